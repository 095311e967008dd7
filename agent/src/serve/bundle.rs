//! `GET snapshot.bundle?base=SHA`: what the default branch has gained since a snapshot, as a git bundle.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bstr::BString;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode, header, request::Parts};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{FRESHNESS, Serving, error::Failure, info_refs::fresh_refs};
use crate::{
    git::{
        Head, ObjectFormat, Oid,
        bundle::{self, Base},
    },
    mirror::{BringError, Mirror},
    packs::{self, MakeError, PackError},
    spool::Sink,
};

/// How long a request waits for a mirror that is being made: as long as a restore of some gigabytes takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers the request.
///
/// # Errors
/// The base is no commit that is known here, the mirror is not there yet, or the upstream fails.
pub async fn handle(
    serving: &Arc<Serving>,
    mirror: &Mirror,
    client: IpAddr,
    request: &Parts,
) -> Result<Response, Failure> {
    let base = base(request.uri.query().unwrap_or_default())?;
    if !mirror.wait_for_data(PATIENCE).await {
        return Err(Failure::warming(mirror.progress().as_deref()));
    }
    let head = match mirror.view().stored.map(|stored| stored.refs.head().clone()) {
        Some(Head::Symbolic(name)) => vec![name],
        _ => Vec::new(),
    };
    let shown = fresh_refs(serving, mirror, &head).await?;
    let branch = match shown.refs.head() {
        Head::Symbolic(name) => shown.refs.get(name.as_ref()),
        Head::Detached(_) | Head::Missing => None,
    };
    let branch = branch.ok_or_else(Failure::no_branch)?;
    let mut response = match since(serving, mirror, client, base, branch.oid, &branch.name).await? {
        Some(body) => body,
        None => StatusCode::NO_CONTENT.into_response(),
    };
    if let Ok(value) = HeaderValue::from_str(&shown.freshness.to_string()) {
        response.headers_mut().insert(FRESHNESS, value);
    }
    Ok(response)
}

/// The commit that a query names.
pub(super) fn base(query: &str) -> Result<Oid, Failure> {
    let text = query.split('&').find_map(|pair| pair.strip_prefix("base="));
    text.and_then(|text| Oid::from_hex(text.as_bytes())).ok_or_else(|| {
        Failure::bad_request("BadRequest", "base is a commit's full, lower-case hash: ?base=SHA")
    })
}

/// The bundle that leads from `base` to `tip`; `None` where there is nothing to bring.
async fn since(
    serving: &Arc<Serving>,
    mirror: &Mirror,
    client: IpAddr,
    base: Oid,
    tip: Oid,
    branch: &BString,
) -> Result<Option<Response>, Failure> {
    if base == tip {
        return Ok(None);
    }
    let mut key = Sha256::new();
    key.update(format!("bundle {} {base} {tip} {branch}", mirror.id()));
    let key = key.finalize().into();
    let pack = match serving.packs.get(mirror.id(), key).await {
        Some(pack) => pack,
        None => {
            let reading = mirror.read();
            let brought = timeout(mirror.settings().timeout, mirror.bring(&[tip])).await;
            brought.map_err(|_| Failure::busy())??;
            let (git, dir) = (serving.git.clone(), mirror.dir().to_owned());
            let relation = {
                let _turn = serving.turn(Some(client), mirror.id()).await?;
                bundle::relation(&git, &dir, base, tip).await.map_err(|error| Failure::child(&error))?
            };
            match relation {
                Base::Unknown => return Err(BringError::Missing(base).into()),
                Base::UpToDate => return Ok(None),
                Base::Behind => {}
            }
            let format = mirror.view().stored.map_or(ObjectFormat::Sha1, |stored| stored.refs.format());
            let (own, id, branch) = (serving.clone(), mirror.id().clone(), branch.clone());
            let make = move |sink: Sink<MakeError>| async move {
                let _held = reading;
                let (file, growth) = sink.for_child()?;
                growth.room().await?;
                let _turn = own.turn(Some(client), &id).await.map_err(|_| MakeError::Busy)?;
                let tips = (base, tip);
                Ok(bundle::create(&git, &dir, branch.as_ref(), tips, format, file).await?)
            };
            serving.packs.get_or_make(mirror.id(), key, packs::always(), make).await
        }
    };
    let failed = |error: PackError| {
        tracing::warn!(%error, "a bundle cannot be made");
        Failure::from(error)
    };
    let mut chunks = Box::pin(pack.read());
    drop(pack);
    let first = chunks.next().await.unwrap_or_else(|| Ok(Bytes::new())).map_err(failed)?;
    let sent = serving.metrics.serve.sent.clone();
    let count = move |chunk: &Result<Bytes, _>| {
        if let Ok(chunk) = chunk {
            sent.inc_by(chunk.len() as u64);
        }
    };
    let rest = futures_util::stream::once(async { Ok(first) }).chain(chunks).inspect(count);
    let kind = [(header::CONTENT_TYPE, "application/x-git-bundle")];
    Ok(Some((StatusCode::OK, kind, Body::from_stream(rest)).into_response()))
}
