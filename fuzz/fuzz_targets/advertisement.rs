//! Advertisements of any protocol version: refused, or such that their refs can be kept and told on.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tarn_agent::{
    git::{Head, ObjectFormat, RefSet, upload_pack::ProtocolVersion},
    protocol::advertisement::{Advertisement, Capabilities, parse},
};
use tarn_fuzz::{assert_can_be_written, framed};

const V0: &[u8] = b"0009x \0y\n0000";
const V2: &[u8] = b"000eversion 2\n0000";

static SHA1: LazyLock<Capabilities> = LazyLock::new(|| capabilities("sha1"));
static SHA256: LazyLock<Capabilities> = LazyLock::new(|| capabilities("sha256"));

fuzz_target!(|data: &[u8]| {
    for body in [data, &framed(data)] {
        match parse(body) {
            Ok(Advertisement::Refs(refs)) => told_on(&refs),
            Ok(Advertisement::V2 { .. }) | Err(_) => {}
        }
        // What the installed git says is trusted, but read by the same parsers.
        let _ = Capabilities::from_git(body, V2);
        let _ = Capabilities::from_git(V0, body);
    }
});

fn told_on(refs: &RefSet) {
    assert_can_be_written(refs);
    let capabilities = if refs.format() == ObjectFormat::Sha1 { &SHA1 } else { &SHA256 };
    // Before protocol v2 an unborn HEAD does not show.
    let head = if refs.head_oid().is_some() { refs.head().clone() } else { Head::Missing };
    let expected = RefSet::new(refs.format(), head, refs.refs().to_vec());
    for version in [ProtocolVersion::V0, ProtocolVersion::V1] {
        let told = capabilities.advertise(version, refs);
        assert_eq!(parse(&told), Ok(Advertisement::Refs(expected.clone())));
    }
    assert!(matches!(
        parse(&capabilities.advertise(ProtocolVersion::V2, refs)),
        Ok(Advertisement::V2 { .. })
    ));
}

fn capabilities(format: &str) -> Capabilities {
    let v0 = framed(format!("0 capabilities^{{}}\0ofs-delta object-format={format}\n0000").as_bytes());
    let v2 = framed(format!("version 2\nls-refs=unborn\nobject-format={format}\n0000").as_bytes());
    Capabilities::from_git(&v0, &v2).expect("what git says")
}
