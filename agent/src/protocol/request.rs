//! The body of `POST git-upload-pack`: which command, which objects. Pure.
//!
//! Only as much is understood as the agent needs to make sure that the objects asked for are there;
//! git itself, which gets the body unchanged, judges the rest.

use bstr::{BStr, ByteSlice};

use super::{
    fetch::Fetch,
    ls_refs::LsRefs,
    pktline::{FLUSH, Packet, PacketError, Packets},
};
use crate::git::{ObjectFormat, Oid, upload_pack::ProtocolVersion};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The refs (v2).
    LsRefs(LsRefs),
    /// Objects (v2).
    Fetch(Box<Fetch>),
    /// Objects (v0 and v1): a round of negotiation, for git to judge.
    Negotiation {
        /// The objects the client wants to have afterwards.
        wants: Vec<Oid>,
        /// Whether the client says that it has objects.
        haves: bool,
        /// Whether the client has said all.
        done: bool,
    },
    /// A lone flush: git's probe before it sends a long body (remote-curl.c: probe_rpc). Answered with
    /// nothing.
    Probe,
}

/// Why a body is no request. The text goes to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Broken framing.
    #[error("malformed request: {0}")]
    Packet(#[from] PacketError),
    /// There is no command in it, or no body at all.
    #[error("empty request")]
    Empty,
    /// The parts of a request are not in order, or its end is missing.
    #[error("malformed request: it must be capabilities, a delimiter, arguments and a flush")]
    Framing,
    /// Not one of the commands advertised.
    #[error("unknown command {0:?}")]
    Command(String),
    /// A line that is none of the command's.
    #[error("unexpected line {0:?}")]
    Line(String),
    /// Objects of another hash function than the repository's.
    #[error("the repository's object format is {}, not {asked:?}", has.name())]
    ObjectFormat {
        /// What the client asked for.
        asked: String,
        /// What the repository has.
        has: ObjectFormat,
    },
}

/// Reads a request in protocol `version` to a repository of `format`.
///
/// # Errors
/// What is wrong, for the client.
pub fn parse(body: &[u8], version: ProtocolVersion, format: ObjectFormat) -> Result<Request, RequestError> {
    if body == FLUSH {
        return Ok(Request::Probe);
    }
    match version {
        ProtocolVersion::V2 => parse_v2(body, format),
        ProtocolVersion::V0 | ProtocolVersion::V1 => parse_v0(body),
    }
}

fn parse_v2(body: &[u8], format: ObjectFormat) -> Result<Request, RequestError> {
    let Sections { capabilities, arguments } = sections(body)?;
    let (mut command, mut server_options) = (None, false);
    // A client that says nothing means sha1 (serve.c: check_algorithm).
    let mut asked = "sha1".to_owned();
    for line in capabilities {
        if let Some(name) = line.strip_prefix(b"command=") {
            // serve.c: die on "command '%s' requested after already requesting command"
            if command.replace(name).is_some() {
                return Err(unexpected(line.as_bstr()));
            }
        } else if let Some(name) = line.strip_prefix(b"object-format=") {
            asked = name.to_str_lossy().into_owned();
        } else if line.starts_with(b"server-option=") {
            server_options = true;
        }
    }
    let command = command.ok_or(RequestError::Empty)?;
    if asked != format.name() {
        return Err(RequestError::ObjectFormat { asked, has: format });
    }
    match command {
        b"ls-refs" => {
            LsRefs::parse(arguments).map(Request::LsRefs).map_err(|line| unexpected(line.as_bstr()))
        }
        b"fetch" => {
            let fetch = Fetch::parse(arguments).map_err(|line| unexpected(line.0.as_bstr()))?;
            Ok(Request::Fetch(Box::new(if server_options { fetch.unusual() } else { fetch })))
        }
        other => Err(RequestError::Command(other.to_str_lossy().into_owned())),
    }
}

/// The two parts of a v2 request.
#[derive(Default)]
struct Sections<'a> {
    capabilities: Vec<&'a [u8]>,
    arguments: Vec<&'a [u8]>,
}

/// Splits a request at its delimiter; it must end with a flush, and nothing after it.
fn sections(body: &[u8]) -> Result<Sections<'_>, RequestError> {
    let mut sections = Sections::default();
    let mut in_arguments = false;
    let mut packets = Packets::new(body);
    while let Some(packet) = packets.next() {
        match packet? {
            Packet::Flush if packets.rest().is_empty() => return Ok(sections),
            Packet::Delimiter if !in_arguments => in_arguments = true,
            Packet::Flush | Packet::Delimiter | Packet::ResponseEnd => return Err(RequestError::Framing),
            packet @ Packet::Data(_) => {
                let part = if in_arguments { &mut sections.arguments } else { &mut sections.capabilities };
                part.extend(packet.line());
            }
        }
    }
    Err(if body.is_empty() { RequestError::Empty } else { RequestError::Framing })
}

fn parse_v0(body: &[u8]) -> Result<Request, RequestError> {
    let (mut lines, mut packets) = (Vec::new(), Packets::new(body));
    for packet in packets.by_ref() {
        // Wants, shallow lines and deepen come first, up to a flush; then haves, which git judges.
        match packet?.line() {
            Some(line) => lines.push(line),
            None => break,
        }
    }
    if lines.is_empty() {
        return Err(RequestError::Empty);
    }
    let (mut haves, mut done) = (false, false);
    for line in packets.map_while(Result::ok).filter_map(|packet| packet.line()) {
        haves |= line.starts_with(b"have ");
        done |= line == b"done";
    }
    Ok(Request::Negotiation { wants: wants(lines)?, haves, done })
}

fn wants<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Oid>, RequestError> {
    let mut wants = Vec::new();
    for line in lines {
        if let Some(want) = line.strip_prefix(b"want ") {
            // In v0 the first want carries the client's capabilities after the object name.
            let hex = want.split_str(" ").next().unwrap_or_default();
            wants.push(Oid::from_hex(hex).ok_or_else(|| unexpected(line.as_bstr()))?);
        }
    }
    wants.sort_unstable();
    wants.dedup();
    Ok(wants)
}

/// An error that quotes at most the first 100 bytes of `line`.
fn unexpected(line: &BStr) -> RequestError {
    RequestError::Line(line.get(..100).unwrap_or(line).to_str_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::pktline::write;

    fn body(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            match *line {
                "--" => out.extend_from_slice(b"0001"),
                line => write(&mut out, &[line.as_bytes(), b"\n"]),
            }
        }
        out.extend_from_slice(FLUSH);
        out
    }

    fn v2(lines: &[&str]) -> Result<Request, RequestError> {
        parse(&body(lines), ProtocolVersion::V2, ObjectFormat::Sha1)
    }

    #[test]
    fn both_commands_are_understood() {
        let (one, two) = ("1".repeat(40), "2".repeat(40));
        assert_eq!(
            v2(&["command=ls-refs", "--", "peel"]),
            Ok(Request::LsRefs(LsRefs { peel: true, ..LsRefs::default() }))
        );
        let (want_one, want_two) = (format!("want {one}"), format!("want {two}"));
        let fetch =
            v2(&["command=fetch", "agent=x", "--", "thin-pack", &want_two, &want_one, &want_two, "done"]);
        let oids = [one, two].map(|hex| Oid::from_hex(hex.as_bytes()).unwrap());
        let Ok(Request::Fetch(fetch)) = fetch else { panic!("{fetch:?}") };
        assert_eq!((fetch.wants.as_slice(), fetch.done), (oids.as_slice(), true));
    }

    #[test]
    fn the_old_protocol_names_capabilities_behind_the_first_want() {
        let one = "1".repeat(40);
        let text = body(&[
            &format!("want {one} multi_ack_detailed side-band-64k"),
            &format!("want {one}"),
            "deepen 1",
        ]);
        let request = parse(&text, ProtocolVersion::V0, ObjectFormat::Sha1).unwrap();
        let wants = vec![Oid::from_hex(one.as_bytes()).unwrap()];
        assert_eq!(request, Request::Negotiation { wants: wants.clone(), haves: false, done: false });
        let text = [text, body(&[&format!("have {one}"), "done"])].concat();
        let request = parse(&text, ProtocolVersion::V0, ObjectFormat::Sha1).unwrap();
        assert_eq!(request, Request::Negotiation { wants, haves: true, done: true });
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(v2(&["command=format-disk"]), Err(RequestError::Command("format-disk".into())));
        assert_eq!(v2(&["command=fetch", "--", "want x"]), Err(RequestError::Line("want x".into())));
        assert_eq!(v2(&["command=ls-refs", "--", "blue"]), Err(RequestError::Line("blue".into())));
        assert_eq!(
            v2(&["object-format=sha256", "command=fetch"]),
            Err(RequestError::ObjectFormat { asked: "sha256".into(), has: ObjectFormat::Sha1 })
        );
        assert_eq!(parse(b"0000", ProtocolVersion::V2, ObjectFormat::Sha1), Ok(Request::Probe));
        assert_eq!(parse(b"", ProtocolVersion::V2, ObjectFormat::Sha1), Err(RequestError::Empty));
        assert!(matches!(
            parse(b"zzzz", ProtocolVersion::V2, ObjectFormat::Sha1),
            Err(RequestError::Packet(_))
        ));
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_panic(bytes: Vec<u8>) {
            for version in [ProtocolVersion::V0, ProtocolVersion::V2] {
                let _ = parse(&bytes, version, ObjectFormat::Sha1);
            }
        }
    }
}
