//! What the targets share.

use tarn_agent::{
    git::{ObjectFormat, Oid, RefSet},
    protocol::pktline::write,
};

/// The packets that lines of text stand for: `0000`, `0001` and `0002` for themselves, any other line for a
/// data packet. Mutations rarely keep the length of a packet right; with lines they need not.
pub fn framed(lines: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines.split(|byte| *byte == b'\n') {
        match line {
            b"0000" | b"0001" | b"0002" => out.extend_from_slice(line),
            line => write(&mut out, &[line, b"\n"]),
        }
    }
    out
}

/// Whether git could use `refs`: a name that holds a line's end, say, would put refs into the file that nobody
/// told of, and a hash of another length makes git refuse the whole file.
pub fn assert_can_be_written(refs: &RefSet) {
    let text = refs.to_packed_refs();
    let mut lines = text.split(|byte| *byte == b'\n').skip(1);
    for r in refs.refs() {
        let line = [r.oid.to_hex().as_bytes(), b" ", r.name.as_slice()].concat();
        assert_eq!(lines.next(), Some(line.as_slice()), "a ref takes one line");
        if let Some(peeled) = r.peeled {
            let line = [b"^".as_slice(), peeled.to_hex().as_bytes()].concat();
            assert_eq!(lines.next(), Some(line.as_slice()), "its peeled tag another");
        }
    }
    assert_eq!((lines.next(), lines.next()), (Some(b"".as_slice()), None));
    let ids = refs.refs().iter().flat_map(|r| [Some(r.oid), r.peeled]).flatten().chain(refs.tips());
    assert!(ids.into_iter().all(|id| id.format() == refs.format()), "a hash of another format: {refs:?}");
}

/// Both hash functions.
pub const FORMATS: [ObjectFormat; 2] = [ObjectFormat::Sha1, ObjectFormat::Sha256];

/// An object name of `format` made of one digit.
pub fn oid(format: ObjectFormat, digit: u8) -> Oid {
    let length = if format == ObjectFormat::Sha1 { 40 } else { 64 };
    Oid::from_hex(&vec![digit; length]).expect("digits")
}
