//! `POST git-upload-pack`: refs from memory, objects from a child.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::HeaderMap;
use tokio::time::timeout;

use super::{Serving, answer, body, error::Failure, info_refs::fresh_refs, version};
use crate::{
    git::{
        GitError, ObjectFormat, Oid,
        upload_pack::{ProtocolVersion, serve},
    },
    mirror::Mirror,
    protocol::request::{self, Request},
};

const REQUEST: &str = "application/x-git-upload-pack-request";
const RESULT: &str = "application/x-git-upload-pack-result";

/// How long a request waits for its turn to start a child.
const QUEUE_WAIT: Duration = Duration::from_secs(60);

/// Answers the request; `label` becomes its kind.
///
/// # Errors
/// The request makes no sense, or the repository is not declared. What goes wrong later is answered with
/// an `ERR` packet, which git shows.
pub async fn handle(
    serving: &Arc<Serving>,
    repository: &str,
    headers: &HeaderMap,
    body: Body,
    label: &mut &'static str,
) -> Result<Response, Failure> {
    let mirror = serving.mirror(repository)?;
    let version = version(headers);
    let bytes = body::read(headers, body, REQUEST).await?;
    let format = format(serving, &mirror).await?;
    let request =
        request::parse(&bytes, version, format).map_err(|error| Failure::bad_request("BadRequest", error))?;
    match request {
        Request::Probe => Ok(answer(RESULT, None, Body::empty())),
        Request::LsRefs(request) => {
            *label = "ls-refs";
            Ok(match fresh_refs(serving, &mirror).await {
                Ok(refs) => answer(RESULT, Some(refs.freshness), request.respond(&refs.refs).into()),
                Err(failure) => failure.into_packet(),
            })
        }
        Request::Fetch { wants } => {
            *label = "fetch";
            let served = fetch(serving, &mirror, version, &wants, bytes).await;
            Ok(served.unwrap_or_else(Failure::into_packet))
        }
    }
}

/// The repository's object format; a client that comes here has asked `info/refs` before, so it is known
/// but for a restart in between.
async fn format(serving: &Serving, mirror: &Mirror) -> Result<ObjectFormat, Failure> {
    let view = mirror.view();
    match (view.stored, view.seen) {
        (_, Some((refs, _))) => Ok(refs.format()),
        (Some(stored), None) => Ok(stored.refs.format()),
        (None, None) => Ok(fresh_refs(serving, mirror).await?.refs.format()),
    }
}

async fn fetch(
    serving: &Arc<Serving>,
    mirror: &Mirror,
    version: ProtocolVersion,
    wants: &[Oid],
    request: Bytes,
) -> Result<Response, Failure> {
    let settings = mirror.settings();
    timeout(settings.timeout, mirror.bring(wants)).await.map_err(|_| Failure::busy())??;
    let permit = timeout(QUEUE_WAIT, serving.children.clone().acquire_owned()).await;
    let permit = permit.ok().and_then(Result::ok).ok_or_else(Failure::busy)?;
    let gauge = Running::new(serving);
    let mut child = Box::pin(
        serve(&serving.git, mirror.dir(), version, request).map_err(|error| Failure::child(&error))?,
    );
    // The first bytes decide between an answer and an error that git can show.
    let first = match child.next().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return Err(Failure::child(&error)),
        None => Bytes::new(),
    };
    let rest = stream::once(async { Ok(first) }).chain(rest(child));
    // The permit and the gauge live as long as the child, which ends with the stream.
    let counted = rest.inspect(move |chunk: &Result<Bytes, GitError>| {
        let _held = (&permit, &gauge);
        if let Ok(chunk) = chunk {
            gauge.serving.metrics.sent.inc_by(u64::try_from(chunk.len()).unwrap_or(0));
        }
    });
    Ok(answer(RESULT, None, Body::from_stream(counted)))
}

/// The rest of a child's answer. An error breaks the connection: the client must not take what it has for
/// the whole.
fn rest(
    child: Pin<Box<impl Stream<Item = Result<Bytes, GitError>> + Send + 'static>>,
) -> impl Stream<Item = Result<Bytes, GitError>> + Send + 'static {
    child.inspect(|chunk| {
        if let Err(error) = chunk {
            tracing::warn!(%error, "upload-pack failed in mid-stream; the connection is cut");
        }
    })
}

/// Counts a running child.
struct Running {
    serving: Arc<Serving>,
}

impl Running {
    fn new(serving: &Arc<Serving>) -> Self {
        serving.metrics.upload_packs.inc();
        Self { serving: serving.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.metrics.upload_packs.dec();
    }
}
