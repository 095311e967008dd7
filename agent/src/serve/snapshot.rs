//! `GET snapshot.tar.zst`: a clone with its worktree, whole or in parts, from the disk or as it arrives there.

use std::{ops::Range, time::Duration};

use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, request::Parts};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;

use super::{
    Serving,
    content::{self, Chunks, Content, header_value},
    error::Failure,
    headers::{AGE, BUNDLE, COMMIT},
};
use crate::{
    blockfile::BlockFileError,
    mirror::{Mirror, snapshots::Offer},
    popularity::day::Taken,
    snapshot::manifest::Snapshot,
};

pub(super) const KIND: &str = "application/zstd";

/// The longest that `?wait=` may ask for: longer than proxies keep silent connections.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Answers the request.
///
/// # Errors
/// There is no snapshot, yet or ever.
pub async fn handle(serving: &Serving, mirror: &Mirror, request: &Parts) -> Result<Response, Failure> {
    let patience = wait(request.uri.query().unwrap_or_default())?;
    let snapshots = mirror.snapshots();
    let known = snapshots.known(patience).await?;
    serving.may_show(mirror, Some(&known.provenance.clone().unwrap_or_default())).await?;
    if request.method == Method::HEAD {
        return Ok(respond(request, mirror, &known, |_| stream::empty().boxed()));
    }
    let offer = snapshots.open(patience).await?;
    refresh(mirror, &offer.snapshot);
    let sent = serving.metrics.snapshot.sent.clone();
    Ok(respond(request, mirror, &offer.snapshot, |part| {
        // One download has many parts, and one that is the first.
        if part.start == 0 {
            serving.count(mirror, Taken::Snapshot);
        }
        read(&offer, part, sent.clone())
    }))
}

/// The bytes of one part. Whoever reads them keeps the download going; an error cuts the connection, so that nobody
/// takes what came before for the whole.
fn read(offer: &Offer, part: Range<u64>, sent: Counter) -> Chunks<BlockFileError> {
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
    if age(snapshot.time) >= mirror.settings().snapshot.interval {
        let mirror = mirror.clone();
        tokio::spawn(async move { mirror.look(&[]).await.map(drop) });
    }
}

/// How long ago that was.
pub(super) fn age(time: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(time)).unwrap_or_default()
}

/// The value of `wait` in a query: `60s`, `60` or nothing.
pub(super) fn wait(query: &str) -> Result<Duration, Failure> {
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
    read: impl Fn(Range<u64>) -> Chunks<BlockFileError>,
) -> Response {
    let tag = snapshot.digest.to_string();
    let (what, kind, modified) = ("snapshot", KIND, snapshot.time);
    let content = Content { what, kind, tag: &tag, modified, bytes: snapshot.bytes };
    let mut response = content::respond(request, content, read);
    let (route, commit) = (mirror.id().route(), &snapshot.commit);
    let bundle = format!("/git/{route}/snapshot.bundle?base={commit}");
    let headers = response.headers_mut();
    headers.insert(COMMIT, header_value(commit));
    headers.insert(BUNDLE, header_value(&bundle));
    headers.insert(AGE, age(snapshot.time).as_secs().into());
    response
}
