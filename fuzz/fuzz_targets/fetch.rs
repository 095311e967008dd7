//! Requests for objects: any body is judged without a panic; what has a normal form keeps it when it is sent
//! and read again, and has the same key however its lines are ordered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tarn_agent::{
    git::{Head, ObjectFormat, Ref, RefSet, upload_pack::ProtocolVersion},
    protocol::{
        fetch::{BadLine, Fetch},
        request::{Request, parse},
    },
};
use tarn_fuzz::{FORMATS, framed, oid};

fuzz_target!(|data: &[u8]| {
    let with_lines = framed(data);
    for format in FORMATS {
        for body in [data, &with_lines] {
            for version in [ProtocolVersion::V0, ProtocolVersion::V1, ProtocolVersion::V2] {
                if let Ok(Request::Fetch(fetch)) = parse(body, version, format) {
                    normal_form_is_a_fixpoint(*fetch, format);
                }
            }
        }
        arguments(data, format);
    }
});

/// The lines as arguments, without what must stand around them.
fn arguments(data: &[u8], format: ObjectFormat) {
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let fetch = match Fetch::parse(lines.iter().copied()) {
        Ok(fetch) => fetch,
        Err(BadLine(line)) => return assert!(lines.contains(&line.as_slice())),
    };
    normal_form_is_a_fixpoint(fetch.clone(), format);
    let again = Fetch::parse(permuted(&lines)).expect("the same lines");
    assert_eq!(fetch, again, "the order of lines and repetition make a difference");
    for refs in states(&fetch, format) {
        let key = |fetch: Fetch| fetch.normalised(&refs).map(|fetch| fetch.key("h/r", format, &refs));
        assert_eq!(key(fetch.clone()), key(again.clone()));
    }
}

fn normal_form_is_a_fixpoint(fetch: Fetch, format: ObjectFormat) {
    for refs in states(&fetch, format) {
        let Some(normal) = fetch.clone().normalised(&refs) else {
            continue;
        };
        let sent = normal.to_request(format);
        let read = match parse(&sent, ProtocolVersion::V2, format) {
            Ok(Request::Fetch(read)) => *read,
            other => panic!("what is sent is not understood: {other:?}"),
        };
        assert_eq!(read, normal);
        assert_eq!(read.is_shallow(), fetch.is_shallow());
        let again = read.normalised(&refs).expect("a normal form has one");
        assert_eq!(again, normal);
        assert_eq!(again.to_request(format), sent);
        assert_eq!(again.key("h/r", format, &refs), normal.key("h/r", format, &refs));
        assert_ne!(normal.key("h/r", format, &refs), normal.key("h/s", format, &refs));
    }
    assert_eq!(fetch.clone().unusual().normalised(&RefSet::empty(format)), None);
}

/// No refs; an annotated tag of something else; one of the first object wanted.
fn states(fetch: &Fetch, format: ObjectFormat) -> Vec<RefSet> {
    let tag = |peeled| Ref { name: "refs/tags/v1".into(), oid: oid(format, b'a'), peeled: Some(peeled) };
    let state = |tag| RefSet::new(format, Head::Missing, vec![tag]);
    let tags = [Some(oid(format, b'b')), fetch.wants.first().copied()].into_iter().flatten().map(tag);
    [RefSet::empty(format)].into_iter().chain(tags.map(state)).collect()
}

/// Other words first, lists of objects backwards and twice; of arguments with one value the last still wins.
fn permuted<'a>(lines: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let is_list =
        |line: &&[u8]| [b"want ".as_slice(), b"have ", b"shallow "].iter().any(|w| line.starts_with(w));
    let (lists, others): (Vec<&[u8]>, Vec<&[u8]>) = lines.iter().copied().partition(is_list);
    let backwards = lists.iter().rev().chain(&lists).copied();
    backwards.clone().take(lists.len() / 2).chain(others).chain(backwards).collect()
}
