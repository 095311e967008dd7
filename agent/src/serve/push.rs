//! Pushes, handed on to the upstream with the caller's own credentials and never the mirror's.
//!
//! A push that went through is followed by a look, so that the next reader need not wait for it.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use tarn_crds::v1alpha1::Access;

use super::error::{Failure, challenge};
use crate::{
    mirror::{Mirror, freshness::Unavailable},
    upstream::{LookError, Looker},
};

const REQUEST: &str = "application/x-git-receive-pack-request";

/// What of the upstream's answer is for the client.
const RETURNED: [HeaderName; 3] = [header::CONTENT_TYPE, header::CACHE_CONTROL, header::RETRY_AFTER];

/// `GET info/refs?service=git-receive-pack`.
///
/// # Errors
/// Pushes cannot be handed on, or the upstream cannot be reached.
pub async fn advertise(mirror: &Mirror, headers: &HeaderMap) -> Result<Response, Failure> {
    forward(mirror, Method::GET, "/info/refs?service=git-receive-pack", headers, Body::empty()).await
}

/// `POST git-receive-pack`.
///
/// # Errors
/// Pushes cannot be handed on, or the upstream cannot be reached.
pub async fn receive(mirror: &Mirror, headers: &HeaderMap, body: Body) -> Result<Response, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind != Some(REQUEST) {
        return Err(Failure::media_type(REQUEST));
    }
    let response = forward(mirror, Method::POST, "/git-receive-pack", headers, body).await?;
    if response.status() == StatusCode::OK {
        let mirror = mirror.clone();
        tokio::spawn(async move {
            // Its failure is known already where it matters: to the mirror's task.
            let _ = mirror.look(&[]).await;
        });
    }
    Ok(response)
}

/// The upstream of a mirror whose callers' requests may be handed on.
pub(super) fn upstream(mirror: &Mirror) -> Result<Arc<Looker>, Failure> {
    let settings = mirror.settings();
    let refused = || Failure::push(settings.url.as_str());
    // A token for this agent must never reach the upstream: elsewhere callers push there themselves.
    if !matches!(settings.access, Access::Anonymous | Access::Upstream) {
        return Err(refused());
    }
    if settings.suspend {
        return Err(Unavailable::Suspended.into());
    }
    mirror.upstream().filter(|upstream| upstream.can_push()).ok_or_else(refused)
}

async fn forward(
    mirror: &Mirror,
    method: Method,
    verb: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let upstream = upstream(mirror)?;
    let body = reqwest::Body::wrap_stream(body.into_data_stream());
    let answer = upstream
        .push(method, verb, headers, body)
        .await
        .map_err(|error: LookError| Failure::upstream(error))?;
    let mut response = Response::builder().status(answer.status());
    for name in RETURNED {
        if let Some(value) = answer.headers().get(&name) {
            response = response.header(name, value);
        }
    }
    if answer.status() == StatusCode::UNAUTHORIZED {
        response = response.header(header::WWW_AUTHENTICATE, challenge(&mirror.settings().url));
    }
    response.body(Body::from_stream(answer.bytes_stream())).map_err(Failure::upstream)
}
