//! `ls-refs`, both sides: a request is read as it is written; an upstream's answer is refused or can be kept,
//! and is told on as it was told; prefixes select what they say.
#![no_main]

use bstr::ByteSlice;
use libfuzzer_sys::fuzz_target;
use tarn_agent::{
    git::{ObjectFormat, RefSet, upload_pack::ProtocolVersion},
    protocol::{
        ls_refs::{LsRefs, parse_response},
        pktline::Packets,
        request::{Request, parse},
    },
};
use tarn_fuzz::{FORMATS, assert_can_be_written, framed};

fuzz_target!(|data: &[u8]| {
    let with_lines = framed(data);
    let asked = LsRefs::parse(data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()));
    for format in FORMATS {
        if let Ok(asked) = &asked {
            request(asked, format);
        }
        for body in [data, &with_lines] {
            if let Ok(Request::LsRefs(asked)) = parse(body, ProtocolVersion::V2, format) {
                request(&asked, format);
            }
            if let Ok(refs) = parse_response(body, format) {
                response(&refs);
            }
        }
    }
});

fn request(asked: &LsRefs, format: ObjectFormat) {
    let sent = asked.to_request(format, "fuzz/0");
    assert_eq!(parse(&sent, ProtocolVersion::V2, format), Ok(Request::LsRefs(asked.clone())));
    let refs = RefSet::empty(format);
    assert_eq!(asked.respond(&refs), b"0000");
}

fn response(refs: &RefSet) {
    assert_can_be_written(refs);
    let everything = LsRefs::everything();
    let told = everything.respond(refs);
    assert_eq!(parse_response(&told, refs.format()).as_ref(), Ok(refs));
    // Each flag and prefix leaves lines, or parts of lines, out of the whole answer.
    let all = lines(&told);
    let names = refs.refs().iter().take(3).map(|r| r.name.clone());
    for prefix in names.chain(["HEAD".into(), "refs/heads/".into(), "".into()]) {
        let asked = LsRefs { prefixes: vec![prefix.clone()], ..everything.clone() };
        let expected: Vec<_> = all.iter().filter(|(name, _)| name.starts_with(&prefix)).collect();
        let told = asked.respond(refs);
        assert_eq!(lines(&told).iter().collect::<Vec<_>>(), expected, "{prefix:?}");
        let twice = LsRefs { prefixes: vec![prefix.clone(), prefix], ..everything.clone() };
        assert_eq!(twice.respond(refs), told);
    }
    let plain = LsRefs::default().respond(refs);
    assert!(lines(&plain).iter().all(|(name, _)| all.iter().any(|(other, _)| other == name)));
}

/// Name and whole line of each ref.
fn lines(answer: &[u8]) -> Vec<(&[u8], &[u8])> {
    let line = |line: &'_ [u8]| line.split_str(" ").nth(1).map(<[u8]>::len);
    let packets = Packets::new(answer).filter_map(|packet| packet.expect("our own").line());
    packets
        .map(|whole| {
            let length = line(whole).expect("a name");
            let start = whole.find(" ").expect("a name") + 1;
            (&whole[start..start + length], whole)
        })
        .collect()
}
