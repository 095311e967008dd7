//! What `info/refs?service=git-upload-pack` answers, both sides of it (gitprotocol-http(5)). Pure.

use bstr::{BString, ByteSlice};

use super::pktline::{FLUSH, Packet, PacketError, Packets, write};
use crate::git::{Head, ObjectFormat, Oid, Ref, RefSet, upload_pack::ProtocolVersion};

const SERVICE: &[u8] = b"# service=git-upload-pack\n";

/// What an upstream advertises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advertisement {
    /// Protocol v2: capabilities only.
    V2 {
        /// The hash function of its objects.
        format: ObjectFormat,
        /// What requests may carry.
        offered: Offered,
    },
    /// Protocol v0 or v1: the refs at once. An unborn `HEAD` does not show.
    Refs(RefSet),
}

/// Which capabilities an upstream advertises, of those that requests carry. A server dies of others: git 2.18 to 2.27 of
/// `object-format` (serve.c, "unknown capability").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    /// Whether `ls-refs` shows an unborn `HEAD`.
    pub unborn: bool,
    agent: bool,
    object_format: bool,
    session_id: bool,
    server_option: bool,
}

impl Offered {
    /// A request of protocol v2 without the capabilities that are not offered.
    pub fn trim(&self, request: &[u8]) -> Vec<u8> {
        let (mut kept, mut packets) = (Vec::with_capacity(request.len()), Packets::new(request));
        loop {
            let rest = packets.rest();
            match packets.next() {
                Some(Ok(Packet::Data(line))) if self.admits(line) => write(&mut kept, &[line]),
                Some(Ok(Packet::Data(_))) => {}
                // The arguments follow, or what is no request anyway.
                _ => {
                    kept.extend_from_slice(rest);
                    return kept;
                }
            }
        }
    }

    fn admits(&self, line: &[u8]) -> bool {
        [
            (self.agent, &b"agent="[..]),
            (self.object_format, b"object-format="),
            (self.session_id, b"session-id="),
            (self.server_option, b"server-option="),
        ]
        .iter()
        .all(|(offered, name)| *offered || !line.starts_with(name))
    }
}

/// Why an advertisement makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdvertisementError {
    /// Broken framing.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The other side says it cannot.
    #[error("the upstream answers: {0}")]
    Remote(String),
    /// It holds no ref list and no capabilities.
    #[error("the advertisement has no meaning at line {line}")]
    Syntax {
        /// Counted from 1.
        line: usize,
    },
    /// It speaks of a hash function nobody knows.
    #[error("unknown object format {0:?}")]
    ObjectFormat(String),
    /// It ends without its flush packet.
    #[error("the advertisement is cut short")]
    Truncated,
}

/// Reads an upstream's advertisement of any protocol version.
///
/// # Errors
/// Anything but a whole advertisement.
pub fn parse(body: &[u8]) -> Result<Advertisement, AdvertisementError> {
    let mut lines = Vec::new();
    let mut after_service = false;
    for packet in Packets::new(body) {
        match packet?.line() {
            Some(line) if line.starts_with(b"# service=") => after_service = true,
            // The flush after the service line, and only that one, is no end.
            None if std::mem::take(&mut after_service) && lines.is_empty() => {}
            None => return interpret(&lines),
            Some(line) => lines.push(line),
        }
    }
    Err(AdvertisementError::Truncated)
}

fn interpret(lines: &[&[u8]]) -> Result<Advertisement, AdvertisementError> {
    match lines {
        [first, ..] if first.starts_with(b"ERR ") => {
            Err(AdvertisementError::Remote(first.get(4..).unwrap_or_default().to_str_lossy().into_owned()))
        }
        [b"version 2", capabilities @ ..] => {
            let mut format = ObjectFormat::Sha1;
            let mut offered = Offered::default();
            for capability in capabilities {
                let (name, value) = capability.split_once_str("=").unwrap_or((capability, b""));
                match name {
                    b"object-format" => {
                        format = object_format(value)?;
                        offered.object_format = true;
                    }
                    b"ls-refs" => offered.unborn = value.split_str(" ").any(|feature| feature == b"unborn"),
                    b"agent" => offered.agent = true,
                    b"session-id" => offered.session_id = true,
                    b"server-option" => offered.server_option = true,
                    _ => {}
                }
            }
            Ok(Advertisement::V2 { format, offered })
        }
        [b"version 1", refs @ ..] => Ok(Advertisement::Refs(parse_refs(refs)?)),
        refs => Ok(Advertisement::Refs(parse_refs(refs)?)),
    }
}

fn object_format(name: &[u8]) -> Result<ObjectFormat, AdvertisementError> {
    let name = name.to_str_lossy();
    ObjectFormat::from_name(&name).ok_or_else(|| AdvertisementError::ObjectFormat(name.into_owned()))
}

fn parse_refs(lines: &[&[u8]]) -> Result<RefSet, AdvertisementError> {
    let (mut refs, mut head, mut target) = (Vec::<Ref>::new(), Head::Missing, None);
    let mut format = ObjectFormat::Sha1;
    for (at, line) in lines.iter().enumerate() {
        let syntax = || AdvertisementError::Syntax { line: at + 1 };
        let line = match line.split_once_str("\0") {
            Some((line, capabilities)) if at == 0 => {
                for capability in capabilities.split_str(" ") {
                    if let Some(name) = capability.strip_prefix(b"symref=HEAD:") {
                        target = Some(BString::from(name));
                    } else if let Some(name) = capability.strip_prefix(b"object-format=") {
                        format = object_format(name)?;
                    }
                }
                line
            }
            _ => line,
        };
        if line.starts_with(b"shallow ") {
            continue;
        }
        let (oid, name) = line.split_once_str(" ").ok_or_else(syntax)?;
        let oid = Oid::from_hex(oid).ok_or_else(syntax)?;
        match (name, name.strip_suffix(b"^{}")) {
            (b"capabilities^{}", _) => {}
            (b"HEAD", _) => head = target.clone().map_or(Head::Detached(oid), Head::Symbolic),
            (_, Some(tag)) => {
                if let Some(last) = refs.last_mut().filter(|last| last.name == tag) {
                    last.peeled = Some(oid);
                }
            }
            _ => refs.push(Ref { name: name.into(), oid, peeled: None }),
        }
    }
    Ok(RefSet::new(format, head, refs))
}

/// What this agent's git can do for a repository of one object format, read from git itself at start,
/// so that nothing is advertised that a child would refuse.
#[derive(Clone, Debug)]
pub struct Capabilities {
    v0: BString,
    v2: BString,
}

impl Capabilities {
    /// Takes them from what git advertises for a repository in protocol v0 and v2.
    ///
    /// # Errors
    /// The text is none that git prints.
    pub fn from_git(v0: &[u8], v2: &[u8]) -> Result<Self, AdvertisementError> {
        let first = Packets::new(v0).next().ok_or(AdvertisementError::Truncated)??;
        let line = first.line().ok_or(AdvertisementError::Syntax { line: 1 })?;
        let (_, capabilities) = line.split_once_str("\0").ok_or(AdvertisementError::Syntax { line: 1 })?;
        let capabilities: Vec<&[u8]> =
            capabilities.split_str(" ").filter(|c| !c.is_empty() && !c.starts_with(b"symref=")).collect();
        let Advertisement::V2 { .. } = parse(v2)? else { return Err(AdvertisementError::Syntax { line: 1 }) };
        let mut kept = Vec::new();
        // Only the commands ls-refs and fetch are served.
        for line in
            Packets::new(v2).filter_map(|packet| packet.ok()?.line()).filter(|line| *line != b"object-info")
        {
            write(&mut kept, &[line, b"\n"]);
        }
        kept.extend_from_slice(FLUSH);
        Ok(Self { v0: capabilities.join(&b' ').into(), v2: kept.into() })
    }

    /// The answer to `info/refs`. Protocol v2 tells nothing of the refs; `refs` must be fresh for the others.
    pub fn advertise(&self, version: ProtocolVersion, refs: &RefSet) -> Vec<u8> {
        if version == ProtocolVersion::V2 {
            return self.v2.to_vec();
        }
        let mut out = Vec::with_capacity(512 + refs.refs().len() * 72);
        write(&mut out, &[SERVICE]);
        out.extend_from_slice(FLUSH);
        if version == ProtocolVersion::V1 {
            write(&mut out, &[b"version 1\n"]);
        }
        let symref = match refs.head() {
            Head::Symbolic(name) if refs.head_oid().is_some() => [b" symref=HEAD:".as_slice(), name].concat(),
            _ => Vec::new(),
        };
        // The first line, whatever it names, carries the capabilities.
        let mut capabilities = Some([b"\0".as_slice(), &self.v0, &symref].concat());
        let mut line = |oid: Oid, name: &[u8], suffix: &[u8]| {
            let tail = capabilities.take().unwrap_or_default();
            write(&mut out, &[oid.to_hex().as_bytes(), b" ", name, suffix, &tail, b"\n"]);
        };
        if let Some(oid) = refs.head_oid() {
            line(oid, b"HEAD", b"");
        }
        for r in refs.refs() {
            line(r.oid, &r.name, b"");
            if let Some(peeled) = r.peeled {
                line(peeled, &r.name, b"^{}");
            }
        }
        if let Some(tail) = capabilities {
            let zero = match refs.format() {
                ObjectFormat::Sha1 => "0".repeat(40),
                ObjectFormat::Sha256 => "0".repeat(64),
            };
            write(&mut out, &[zero.as_bytes(), b" capabilities^{}", &tail, b"\n"]);
        }
        out.extend_from_slice(FLUSH);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capabilities() -> Capabilities {
        let mut v0 = Vec::new();
        write(&mut v0, &[&[b'0'; 40], b" capabilities^{}\0side-band-64k ofs-delta object-format=sha1\n"]);
        v0.extend_from_slice(FLUSH);
        let mut v2 = Vec::new();
        write(&mut v2, &[b"version 2\n"]);
        write(&mut v2, &[b"ls-refs=unborn\n"]);
        write(&mut v2, &[b"object-format=sha1\n"]);
        v2.extend_from_slice(FLUSH);
        Capabilities::from_git(&v0, &v2).unwrap()
    }

    fn sample(head: Head) -> RefSet {
        let oid = |digit: u8| Oid::from_hex(&[digit; 40]).unwrap();
        let main = Ref { name: "refs/heads/main".into(), oid: oid(b'1'), peeled: None };
        let tag = Ref { name: "refs/tags/v1".into(), oid: oid(b'2'), peeled: Some(oid(b'1')) };
        RefSet::new(ObjectFormat::Sha1, head, vec![main, tag])
    }

    #[test]
    fn refs_advertised_in_v0_and_v1_are_read_back() {
        let refs = sample(Head::Symbolic("refs/heads/main".into()));
        for version in [ProtocolVersion::V0, ProtocolVersion::V1] {
            let body = capabilities().advertise(version, &refs);
            assert_eq!(parse(&body).unwrap(), Advertisement::Refs(refs.clone()));
        }
    }

    #[test]
    fn an_empty_repository_still_advertises_its_capabilities() {
        let body = capabilities().advertise(ProtocolVersion::V0, &RefSet::empty(ObjectFormat::Sha1));
        assert!(body.contains_str("capabilities^{}\0side-band-64k"), "{}", body.as_bstr());
        assert_eq!(parse(&body).unwrap(), Advertisement::Refs(RefSet::empty(ObjectFormat::Sha1)));
    }

    #[test]
    fn v2_advertises_no_refs() {
        let body = capabilities().advertise(ProtocolVersion::V2, &sample(Head::Missing));
        let offered = Offered { unborn: true, object_format: true, ..Offered::default() };
        assert_eq!(parse(&body).unwrap(), Advertisement::V2 { format: ObjectFormat::Sha1, offered });
    }

    #[test]
    fn only_what_is_offered_is_sent() {
        let request = b"0014command=ls-refs\n0013agent=tarn/1.0\n0017object-format=sha1\n00010009peel\n0015ref-prefix agent=0000";
        let none = b"0014command=ls-refs\n00010009peel\n0015ref-prefix agent=0000";
        assert_eq!(Offered::default().trim(request).as_bstr(), none.as_bstr());
        let all = Offered { agent: true, object_format: true, ..Offered::default() };
        assert_eq!(all.trim(request).as_bstr(), request.as_bstr());
        assert_eq!(Offered::default().trim(b"zzzz").as_bstr(), b"zzzz".as_bstr());
    }

    #[test]
    fn html_is_no_advertisement() {
        assert!(matches!(parse(b"<!DOCTYPE html>"), Err(AdvertisementError::Packet(_))));
    }

    proptest! {
        #[test]
        fn any_advertisement_is_read_without_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
