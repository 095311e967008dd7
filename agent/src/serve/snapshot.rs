//! `GET snapshot.tar.zst`: a clone with its worktree, whole or in parts, from the disk or as it arrives there.

use std::{ops::Range, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;

use super::{
    Serving,
    conditional::{Selection, Validators, date, select},
    error::Failure,
};
use crate::{
    blockfile::BlockFileError,
    mirror::{Mirror, snapshots::Offer},
    snapshot::manifest::Snapshot,
};

/// The commit that is checked out; the name is cachew's, so that its clients work here too.
const COMMIT: HeaderName = HeaderName::from_static("x-cachew-snapshot-commit");
/// Where what was pushed since is to be had.
const BUNDLE: HeaderName = HeaderName::from_static("x-cachew-bundle-url");
/// Seconds since the snapshot was made.
const AGE: HeaderName = HeaderName::from_static("tarn-snapshot-age");

const KIND: HeaderValue = HeaderValue::from_static("application/zstd");

/// The longest that `?wait=` may ask for: longer than proxies keep silent connections.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Answers the request.
///
/// # Errors
/// There is no snapshot, yet or ever.
pub async fn handle(serving: &Serving, mirror: &Mirror, request: &Parts) -> Result<Response, Failure> {
    let patience = wait(request.uri.query().unwrap_or_default())?;
    let snapshots = mirror.snapshots();
    if request.method == Method::HEAD {
        let snapshot = snapshots.known(patience).await?;
        return Ok(respond(request, mirror, &snapshot, |_| stream::empty().boxed()));
    }
    let offer = snapshots.open(patience).await?;
    refresh(mirror, &offer.snapshot);
    let sent = serving.metrics.snapshot_sent.clone();
    Ok(respond(request, mirror, &offer.snapshot, |part| read(&offer, part, sent.clone())))
}

type Chunks = stream::BoxStream<'static, Result<Bytes, BlockFileError>>;

/// The bytes of one part. Whoever reads them keeps the download going; an error cuts the connection, so that nobody
/// takes what came before for the whole.
fn read(offer: &Offer, part: Range<u64>, sent: Counter) -> Chunks {
    let held = offer.cold.clone();
    let chunks = match offer.reader.read(part) {
        Ok(chunks) => chunks.boxed(),
        Err(error) => stream::once(async { Err(error) }).boxed(),
    };
    let count = move |chunk: &Result<Bytes, BlockFileError>| {
        let _held = &held;
        match chunk {
            Ok(chunk) => drop(sent.inc_by(u64::try_from(chunk.len()).unwrap_or(0))),
            Err(error) => tracing::warn!(%error, "a snapshot breaks off; the connection is cut"),
        }
    };
    chunks.inspect(count).boxed()
}

/// Whoever gets a stale snapshot has the mirror look for something newer; who asks for it next may get it.
fn refresh(mirror: &Mirror, snapshot: &Snapshot) {
    if age(snapshot) >= mirror.settings().snapshot.interval {
        let mirror = mirror.clone();
        tokio::spawn(async move { mirror.look(&[]).await.map(drop) });
    }
}

fn age(snapshot: &Snapshot) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(snapshot.time)).unwrap_or_default()
}

/// The value of `wait` in a query: `60s`, `60` or nothing.
fn wait(query: &str) -> Result<Duration, Failure> {
    let Some(text) = query.split('&').find_map(|pair| pair.strip_prefix("wait=")) else {
        return Ok(Duration::ZERO);
    };
    let bad = || Failure::bad_request("BadRequest", "wait is a number of seconds, such as wait=60s");
    let seconds: u64 = text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| bad())?;
    Ok(Duration::from_secs(seconds).min(MAX_WAIT))
}

/// The answer to a request; `read` gives the bytes of a part.
fn respond(
    request: &Parts,
    mirror: &Mirror,
    snapshot: &Snapshot,
    read: impl Fn(Range<u64>) -> Chunks,
) -> Response {
    let length = snapshot.bytes;
    let etag = format!("\"{}\"", snapshot.digest);
    let validators = Validators { etag: &etag, modified: snapshot.time };
    let mut response = match select(&request.method, &request.headers, validators, length) {
        Selection::NotModified => StatusCode::NOT_MODIFIED.into_response(),
        Selection::PreconditionFailed => {
            let text = format!("PreconditionFailed: the snapshot is now {etag}\n");
            (StatusCode::PRECONDITION_FAILED, text).into_response()
        }
        Selection::Unsatisfiable => {
            let text = format!("RangeNotSatisfiable: the snapshot has {length} bytes\n");
            let range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            (StatusCode::RANGE_NOT_SATISFIABLE, range, text).into_response()
        }
        Selection::Whole => {
            let headers = [(header::CONTENT_TYPE, KIND), (header::CONTENT_LENGTH, length.into())];
            (StatusCode::OK, headers, Body::from_stream(read(0..length))).into_response()
        }
        Selection::Parts(parts) => partial(&parts, length, read),
    };
    let route = mirror.id().route();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    set(header::ETAG, etag);
    set(header::LAST_MODIFIED, date(snapshot.time));
    set(COMMIT, snapshot.commit.clone());
    set(BUNDLE, format!("/git/{route}/snapshot.bundle?base={}", snapshot.commit));
    set(AGE, age(snapshot).as_secs().to_string());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A 206: one part as it is, several as `multipart/byteranges` (RFC 9110, 14.6).
fn partial(parts: &[Range<u64>], length: u64, read: impl Fn(Range<u64>) -> Chunks) -> Response {
    let named = |part: &Range<u64>| format!("bytes {}-{}/{length}", part.start, part.end.saturating_sub(1));
    if let [part] = parts {
        let headers = [
            (header::CONTENT_TYPE, KIND),
            (header::CONTENT_LENGTH, (part.end - part.start).into()),
            (header::CONTENT_RANGE, header_value(&named(part))),
        ];
        return (StatusCode::PARTIAL_CONTENT, headers, Body::from_stream(read(part.clone()))).into_response();
    }
    let boundary = format!("{:032x}", rand::random::<u128>());
    let text = |text: String| stream::once(async { Ok(Bytes::from(text)) }).boxed();
    let (mut total, mut body) = (0, Vec::new());
    for part in parts {
        let (kind, range) = ("application/zstd", named(part));
        let head = format!("\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: {range}\r\n\r\n");
        total += head.len() as u64 + (part.end - part.start);
        body.extend([text(head), read(part.clone())]);
    }
    let end = format!("\r\n--{boundary}--\r\n");
    total += end.len() as u64;
    body.push(text(end));
    let headers = [
        (header::CONTENT_TYPE, header_value(&format!("multipart/byteranges; boundary={boundary}"))),
        (header::CONTENT_LENGTH, total.into()),
    ];
    let body = Body::from_stream(stream::iter(body).flatten());
    (StatusCode::PARTIAL_CONTENT, headers, body).into_response()
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
