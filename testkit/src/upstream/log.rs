//! What arrived: which repository, and which of git's operations, told apart by looking into the request.

use std::io::Read as _;
use std::time::Instant;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};

use super::Body;

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `info/refs` for reading: capabilities with protocol v2, all refs with v0 and v1.
    Advertise,
    /// Protocol v2 `ls-refs`.
    LsRefs,
    /// Objects: protocol v2 `fetch`, or a v0 or v1 `git-upload-pack` request.
    Fetch,
    /// Either half of a push.
    Push,
    /// LFS: which objects can be had, or are wanted, and where.
    LfsBatch,
    /// LFS: an object, in either direction.
    LfsObject,
    /// LFS: locks.
    LfsLocks,
    /// Anything else.
    Other,
}

impl Operation {
    /// Those that a git server knows.
    pub const ALL: [Self; 7] = [
        Self::Advertise,
        Self::LsRefs,
        Self::Fetch,
        Self::Push,
        Self::LfsBatch,
        Self::LfsObject,
        Self::LfsLocks,
    ];

    /// The type of a good answer to a request for `path`.
    pub(crate) fn answered_with(self, path: &str) -> &'static str {
        match self {
            Self::Advertise => "application/x-git-upload-pack-advertisement",
            Self::LsRefs | Self::Fetch => "application/x-git-upload-pack-result",
            Self::Push if path.ends_with("/info/refs") => "application/x-git-receive-pack-advertisement",
            Self::Push => "application/x-git-receive-pack-result",
            Self::LfsBatch | Self::LfsLocks => "application/vnd.git-lfs+json",
            Self::LfsObject | Self::Other => "application/octet-stream",
        }
    }

    /// Whether it is one of LFS.
    pub(crate) fn is_lfs(self) -> bool {
        matches!(self, Self::LfsBatch | Self::LfsObject | Self::LfsLocks)
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Record {
    /// When its head had arrived.
    pub at: Instant,
    /// The repository's path below the root.
    pub repo: String,
    /// What it wanted.
    pub operation: Operation,
    /// The `Git-Protocol` header.
    pub protocol: Option<String>,
    /// The `User-Agent` header.
    pub agent: Option<String>,
    /// Whether it carried credentials.
    pub authorized: bool,
    /// Whether it said how long its body is.
    pub sized: bool,
    /// The answer's status, once the answer is there (or held back by [`super::Fault::HoldAnswer`]).
    pub status: Option<u16>,
}

impl Record {
    pub(super) fn new(parts: &http::request::Parts, repo: String, operation: Operation) -> Self {
        let text = |name: &str| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
        Self {
            at: Instant::now(),
            repo,
            operation,
            protocol: text("git-protocol"),
            agent: text("user-agent"),
            authorized: parts.headers.contains_key(AUTHORIZATION),
            sized: parts.method != http::Method::POST || parts.headers.contains_key(CONTENT_LENGTH),
            status: None,
        }
    }
}

/// The part of the path that names the repository.
pub(super) fn repo_of(path: &str) -> String {
    let path = path.trim_start_matches('/');
    if let Some((repo, _)) = path.rsplit_once(super::lfs::BELOW) {
        return repo.to_owned();
    }
    ["/info/refs", "/git-upload-pack", "/git-receive-pack"]
        .iter()
        .find_map(|end| path.strip_suffix(end))
        .unwrap_or(path)
        .to_owned()
}

/// Tells the operation. The body comes back whole, what was read of it in front.
pub(super) async fn recognise(parts: &http::request::Parts, body: Incoming) -> Result<(Operation, Body)> {
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    let mut body = body.map_err(anyhow::Error::from).boxed_unsync();
    let mut head = Bytes::new();
    if path.ends_with("/git-upload-pack") {
        (head, body) = peek(body).await?;
    }
    let zipped = parts.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding.as_bytes() == b"gzip");
    Ok((operation_of(path, query, &head, zipped), body))
}

/// The operation of a request, by its target and by what its body begins with.
pub(crate) fn operation_of(path: &str, query: &str, head: &[u8], zipped: bool) -> Operation {
    if let Some((_, rest)) = path.rsplit_once(super::lfs::BELOW) {
        return match rest.split('/').next() {
            Some("objects") => Operation::LfsBatch,
            Some("locks") => Operation::LfsLocks,
            _ => Operation::LfsObject,
        };
    }
    if path.ends_with("/git-receive-pack") || query.contains("service=git-receive-pack") {
        return Operation::Push;
    }
    if path.ends_with("/info/refs") {
        return Operation::Advertise;
    }
    if !path.ends_with("/git-upload-pack") {
        return Operation::Other;
    }
    let head = if zipped { gunzip(head) } else { head.to_vec() };
    let needle = b"command=ls-refs";
    let ls_refs = head.windows(needle.len()).any(|window| window == needle);
    if ls_refs { Operation::LsRefs } else { Operation::Fetch }
}

/// Reads the first bytes of a body (enough for `command=…`, also when compressed) and puts them back.
async fn peek(mut body: Body) -> Result<(Bytes, Body)> {
    const ENOUGH: usize = 64;
    let mut head = BytesMut::new();
    while head.len() < ENOUGH {
        let Some(frame) = body.frame().await else { break };
        if let Ok(data) = frame?.into_data() {
            head.extend_from_slice(&data);
        }
    }
    let head = head.freeze();
    let first = futures_util::stream::iter([Ok::<_, anyhow::Error>(Frame::data(head.clone()))]);
    let rest = http_body_util::BodyStream::new(body);
    let whole = StreamBody::new(futures_util::StreamExt::chain(first, rest));
    Ok((head, whole.boxed_unsync()))
}

/// What the beginning of a gzip stream holds.
fn gunzip(head: &[u8]) -> Vec<u8> {
    let mut plain = vec![0; 4096];
    // The input ends in the middle of the stream: one read gives what can be had.
    let got = flate2::read::GzDecoder::new(head).read(&mut plain).unwrap_or(0);
    plain.truncate(got);
    plain
}

/// Base64 for the `Authorization` header.
pub(crate) fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS.get((bits & 63) as usize).copied().unwrap_or(b'='));
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        encoded.push(digit(bits >> 18));
        encoded.push(digit(bits >> 12));
        encoded.push(if chunk.len() > 1 { digit(bits >> 6) } else { '=' });
        encoded.push(if chunk.len() > 2 { digit(bits) } else { '=' });
    }
    encoded
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_pads_as_the_rfc_says() {
        let pairs = [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("ada:s3cret?", "YWRhOnMzY3JldD8=")];
        for (plain, encoded) in pairs {
            assert_eq!(super::base64(plain), encoded);
        }
    }

    #[test]
    fn the_repository_is_the_path_before_the_service() {
        assert_eq!(super::repo_of("/team/a.git/info/refs"), "team/a.git");
        assert_eq!(super::repo_of("/a.git/git-upload-pack"), "a.git");
    }
}
