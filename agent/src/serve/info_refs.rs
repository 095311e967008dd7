//! `GET info/refs`: what the server can do and, before protocol v2, its refs.

use axum::response::Response;
use bstr::BString;
use http::HeaderMap;

use super::{Serving, answer, error::Failure, version};
use crate::{
    git::{RefSet, upload_pack::ProtocolVersion},
    metrics::Basis,
    mirror::{Mirror, freshness},
};

const KIND: &str = "application/x-git-upload-pack-advertisement";

/// Answers the request.
///
/// # Errors
/// The upstream fails, and the policy does not allow old answers.
pub async fn handle(serving: &Serving, mirror: &Mirror, headers: &HeaderMap) -> Result<Response, Failure> {
    let version = version(headers);
    // Protocol v2 tells nothing of the refs here: no look is needed once the object format is known.
    if let Some(format) = known_format(mirror).filter(|_| version == ProtocolVersion::V2) {
        let body = serving.capabilities(format).advertise(version, &RefSet::empty(format));
        return Ok(answer(KIND, None, body.into()));
    }
    let refs = fresh_refs(serving, mirror, &[]).await?;
    let capabilities = serving.capabilities(refs.refs.format());
    let body = serving.rendered.advertisement(capabilities, version, &refs.refs).await?;
    Ok(answer(KIND, Some(refs.freshness), body.into()))
}

/// The repository's object format, where a look or the disk has told it.
pub fn known_format(mirror: &Mirror) -> Option<crate::git::ObjectFormat> {
    let view = mirror.view();
    let seen = view.seen.map(|(refs, _)| refs.format());
    seen.or_else(|| view.stored.map(|stored| stored.refs.format()))
}

/// The refs to show now, those that start with one of `prefixes` at least, counted by what they rest on.
///
/// # Errors
/// The upstream fails, and the policy does not allow old answers.
pub async fn fresh_refs(
    serving: &Serving,
    mirror: &Mirror,
    prefixes: &[BString],
) -> Result<freshness::Answer, Failure> {
    let result = freshness::refs(mirror, prefixes).await;
    let label = result.as_ref().map_or("error", |answer| answer.freshness.label());
    serving.metrics.serve.answers.get_or_create(&Basis { freshness: label }).inc();
    Ok(result?)
}
