//! Git LFS: downloads from this agent's cache; uploads and locks handed on to the upstream with the caller's own
//! credentials; and the archive of what a worktree needs.
//!
//! *Invariant:* what the upstream says of a download (URL and headers) stays here: callers are sent to this agent.

use std::{fmt::Write, io, ops::Range};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderName, Method, StatusCode, header, request::Parts, uri::Authority};
use jiff::Timestamp;
use tarn_crds::v1alpha1::Access;

use super::{
    Scheme, Serving, address, body,
    content::{self, Chunks, Content, header_value},
    error::{Failure, challenge},
    headers::{AGE, Account, COMMIT},
    push,
    routes::Endpoint,
    snapshot::{KIND, age, wait},
};
use crate::{
    access::caller::Kind,
    audit,
    lfs::{FetchError, LengthFrom, cache::LfsReader},
    mirror::Mirror,
    protocol::lfs::{Batch, BatchError, LfsOid, MEDIA_TYPE, NoCredentials, Object, Operation, answer},
    spool::SpoolError,
};

/// What separates a repository from a request of the LFS API.
const BELOW: &str = "/info/lfs/";

/// The longest name of a lock; servers number them.
const MAX_LOCK: usize = 128;

/// What of the upstream's answer is for the client.
const RETURNED: [HeaderName; 2] = [header::CACHE_CONTROL, header::RETRY_AFTER];

/// What a request of the LFS API wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb<'a> {
    /// Which objects can be had, or are wanted.
    Batch,
    /// An object.
    Object(LfsOid),
    /// Locks: what comes after `info/lfs`.
    Locks(&'a str),
}

impl Verb<'_> {
    /// The endpoint that it is.
    pub(super) fn endpoint(self) -> Endpoint {
        match self {
            Self::Batch => Endpoint::LfsBatch,
            Self::Object(_) => Endpoint::LfsObject,
            Self::Locks("locks") => Endpoint::LfsLocks,
            Self::Locks("locks/verify") => Endpoint::LfsVerify,
            Self::Locks(_) => Endpoint::LfsUnlock,
        }
    }
}

/// Splits `/git/{repository}/info/lfs/…`; nothing where it is no such path. The path is still percent-encoded, so an
/// encoded slash in the repository cannot forge a request.
pub(super) fn split(path: &str) -> Option<(&str, Verb<'_>)> {
    let (repository, rest) = path.strip_prefix("/git/")?.rsplit_once(BELOW)?;
    let verb = match *rest.split('/').collect::<Vec<_>>().as_slice() {
        ["objects", "batch"] => Verb::Batch,
        ["objects", oid] => Verb::Object(LfsOid::parse(oid)?),
        ["locks"] | ["locks", "verify"] => Verb::Locks(rest),
        ["locks", id, "unlock"] if is_lock(id) => Verb::Locks(rest),
        _ => return None,
    };
    Some((repository, verb))
}

fn is_lock(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'=');
    !id.is_empty() && id.len() <= MAX_LOCK && id.bytes().all(plain)
}

/// Answers a request of the LFS API whose caller was let in.
///
/// # Errors
/// The request makes no sense, or the upstream fails.
pub(super) async fn handle(
    serving: &Serving,
    mirror: &Mirror,
    verb: Verb<'_>,
    parts: &Parts,
    body: Body,
    account: &mut Account,
) -> Result<Response, Failure> {
    match verb {
        Verb::Batch => batch(serving, mirror, parts, body, account).await,
        Verb::Object(oid) => {
            account.wants = oid.to_string();
            object(serving, mirror, oid, parts).await
        }
        Verb::Locks(rest) => {
            handed_on(serving, mirror, parts, account, "lfs-locks", format!("{} {rest}", parts.method));
            let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            let body = match parts.method {
                Method::POST => body::read(parts, body, MEDIA_TYPE).await?,
                _ => Bytes::new(),
            };
            forward(serving, mirror, parts, &format!("/{rest}{query}"), body).await
        }
    }
}

/// Notes for the audit log what is handed on to the upstream, which lets the caller in or does not.
fn handed_on(
    serving: &Serving,
    mirror: &Mirror,
    parts: &Parts,
    account: &mut Account,
    what: &'static str,
    wants: String,
) {
    account.what = Some(what);
    account.wants = wants;
    if let Some((_, caller)) = &mut account.of
        && caller.kind == Kind::Anonymous
    {
        let (settings, mut headers) = (mirror.settings(), parts.headers.clone());
        // Refused credentials are told to the caller when the request is handed on.
        if serving.guard.delegate(&settings.url, &mut headers).is_ok() {
            *caller = serving.guard.sender(&settings, &headers);
        }
    }
}

async fn batch(
    serving: &Serving,
    mirror: &Mirror,
    parts: &Parts,
    body: Body,
    account: &mut Account,
) -> Result<Response, Failure> {
    let body = body::read(parts, body, MEDIA_TYPE).await?;
    let batch = Batch::parse(&body)?;
    if batch.operation == Operation::Upload {
        let objects = audit::named(batch.objects.iter().map(|object| object.oid.to_string()));
        handed_on(serving, mirror, parts, account, "lfs-upload", objects);
        return forward(serving, mirror, parts, "/objects/batch", body).await;
    }
    serving.may_show_beside(mirror).await?;
    let base = base(parts, mirror)?;
    let upstream = mirror.upstream();
    let available = mirror.lfs().available(mirror.id(), upstream.as_deref(), &batch.objects).await;
    let available = available.map_err(|error| failure(&error))?;
    let outcomes = available.into_iter().map(|(object, outcome)| {
        let mut href = base.clone();
        // Writing to a String cannot fail.
        let _ = write!(href, "{}?size={}", object.oid, object.bytes);
        (object, outcome.map(|()| href))
    });
    let open = mirror.settings().access == Access::Anonymous;
    let answer = answer(&outcomes.collect::<Vec<_>>(), open.then_some(NoCredentials));
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], answer).into_response())
}

/// Where this agent's objects are for whoever asked: below the address that the request came to.
fn base(parts: &Parts, mirror: &Mirror) -> Result<String, Failure> {
    let scheme = parts.extensions.get::<Scheme>().copied().unwrap_or(Scheme::Http).as_str();
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has it in the request's target.
    let host = host.or_else(|| parts.uri.authority().map(Authority::as_str));
    let host = host.filter(|host| !host.contains('@')).and_then(|host| host.parse::<Authority>().ok());
    let host = host.ok_or_else(|| Failure::bad_request("BadHost", "the Host header names no host"))?;
    Ok(format!("{scheme}://{host}/git/{}{BELOW}objects/", mirror.id().route()))
}

async fn object(serving: &Serving, mirror: &Mirror, oid: LfsOid, parts: &Parts) -> Result<Response, Failure> {
    serving.may_show_beside(mirror).await?;
    let size = parts.uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("size="));
    let reading = match size {
        Some(size) => {
            let wrong = |_| Failure::bad_request("BadRequest", "size is a number of bytes");
            let object = Object { oid, bytes: size.parse().map_err(wrong)? };
            let reading = mirror.lfs().read(mirror.id(), mirror.upstream(), object, LengthFrom::Caller).await;
            reading.map_err(|error| failure(&error))?
        }
        // Whoever does not say how long it is gets what is here: upstreams are asked with the length.
        None => mirror.lfs().kept(mirror.id(), oid).await.ok_or_else(|| {
            Failure::lfs(
                StatusCode::NOT_FOUND,
                "the object is not here; ask with a batch request, or with ?size=",
            )
        })?,
    };
    // A part may be all that the client reads: it is given out once the whole is known to be right.
    if parts.headers.contains_key(header::RANGE) {
        reading.whole().await.map_err(|error| failure(&error))?;
    }
    let tag = oid.to_string();
    let content = Content {
        what: "object",
        kind: "application/octet-stream",
        tag: &tag,
        // Its content never changes: any time is right.
        modified: Timestamp::UNIX_EPOCH,
        bytes: reading.bytes,
    };
    if parts.method == Method::HEAD {
        return Ok(content::respond(parts, content, |_| stream::empty::<Result<Bytes, io::Error>>().boxed()));
    }
    Ok(content::respond(parts, content, |part| send(serving, &reading, part)))
}

fn send(serving: &Serving, reading: &LfsReader, part: Range<u64>) -> Chunks<SpoolError<FetchError>> {
    let sent = serving.metrics.lfs.sent.clone();
    let count = move |chunk: &Result<Bytes, _>| match chunk {
        Ok(chunk) => drop(sent.inc_by(chunk.len() as u64)),
        Err(error) => tracing::debug!(%error, "an LFS object breaks off; the connection is cut"),
    };
    reading.read(part).inspect(count).boxed()
}

/// Hands a request on with the caller's own credentials.
async fn forward(
    serving: &Serving,
    mirror: &Mirror,
    parts: &Parts,
    rest: &str,
    body: Bytes,
) -> Result<Response, Failure> {
    let upstream = push::upstream(mirror)?;
    let (mut headers, settings) = (parts.headers.clone(), mirror.settings());
    serving.guard.delegate(&settings.url, &mut headers)?;
    let attempt = serving.guard.attempt(mirror, &headers, address(parts))?;
    let _place = serving.guard.place(mirror).await?;
    // The body has been read, and unpacked.
    headers.remove(header::CONTENT_ENCODING);
    let answer = upstream.lfs_forward(parts.method.clone(), rest, &headers, body).await;
    let answer = answer.map_err(|error| failure(&FetchError::Upstream(error)))?;
    attempt.ended(answer.status);
    let mut response = (answer.status, [(header::CONTENT_TYPE, MEDIA_TYPE)], answer.body).into_response();
    for name in RETURNED {
        if let Some(value) = answer.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if answer.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge(&settings.url));
    }
    Ok(response)
}

/// `GET lfs-snapshot.tar.zst`.
///
/// # Errors
/// There is none, yet or ever.
pub(super) async fn snapshot(serving: &Serving, mirror: &Mirror, parts: &Parts) -> Result<Response, Failure> {
    let patience = wait(parts.uri.query().unwrap_or_default())?;
    let held = mirror.worktree_lfs().open(patience).await?;
    serving.may_show_beside(mirror).await?;
    let tag = held.digest.to_string();
    let (what, kind, modified) = ("snapshot", KIND, held.time);
    let content = Content { what, kind, tag: &tag, modified, bytes: held.bytes };
    let sent = serving.metrics.lfs.sent.clone();
    let mut response = content::respond(parts, content, |part| {
        let sent = sent.clone();
        let chunks = match held.reader.read(part) {
            _ if parts.method == Method::HEAD => stream::empty().boxed(),
            Ok(chunks) => chunks.boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        };
        let count = move |chunk: &Result<Bytes, _>| {
            if let Ok(chunk) = chunk {
                sent.inc_by(chunk.len() as u64);
            }
        };
        chunks.inspect(count).boxed()
    });
    let headers = response.headers_mut();
    headers.insert(COMMIT, header_value(&held.commit));
    headers.insert(AGE, age(held.time).as_secs().into());
    Ok(response)
}

fn failure(error: &FetchError) -> Failure {
    Failure::lfs(error.status(), error).after(error.pause())
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        let status = match error {
            BatchError::Malformed(_) | BatchError::Oid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            BatchError::Hash => StatusCode::CONFLICT,
            BatchError::TooMany => StatusCode::PAYLOAD_TOO_LARGE,
        };
        Self::lfs(status, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OID: &str = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";

    #[test]
    fn requests_are_told_from_repositories() {
        let oid = Verb::Object(LfsOid::parse(OID).unwrap());
        let object = format!("/git/h/o/r.git/info/lfs/objects/{OID}");
        assert_eq!(split(&object), Some(("h/o/r.git", oid)));
        assert_eq!(split("/git/h/r/info/lfs/objects/batch"), Some(("h/r", Verb::Batch)));
        assert_eq!(split("/git/h/info/lfs/x/info/lfs/locks"), Some(("h/info/lfs/x", Verb::Locks("locks"))));
        let unlock = "/git/h/r/info/lfs/locks/some-id/unlock";
        assert_eq!(split(unlock), Some(("h/r", Verb::Locks("locks/some-id/unlock"))));
        for path in [
            "/git/h/r/info/refs",
            "/git/h/r/info/lfs/objects/../../x",
            "/git/h/r/info/lfs/objects/%2e%2e",
            "/git/h/r/info/lfs/locks/../unlock",
            "/git/h/r/info/lfs/locks/%2e%2e/unlock",
            "/git/h/r/info/lfs/locks/a/b/unlock",
            "/git/h/r/info/lfs/locks//unlock",
            "/git/h%2Fr%2Finfo%2Flfs%2Fobjects/batch",
            &object.to_uppercase(),
        ] {
            assert_eq!(split(path), None, "{path}");
        }
    }
}
