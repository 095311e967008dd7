//! Pushes, handed on to the upstream with the caller's own credentials and never the mirror's.
//!
//! A push that went through is followed by a look, so that the next reader need not wait for it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{body::Body, response::Response};
use futures_util::StreamExt;
use http::{HeaderName, StatusCode, header, request::Parts};
use tarn_crds::v1alpha1::Access;

use super::{Serving, address, error::Failure, headers::Account};
use crate::{
    audit,
    mirror::{Mirror, freshness::Unavailable},
    protocol::pktline::{Packet, Packets},
    upstream::{LookError, Looker, forward::Pushed},
};

const REQUEST: &str = "application/x-git-receive-pack-request";

/// How much of a push is looked at: a hundred commands.
const MAX_SEEN: usize = 16 << 10;

/// What of the upstream's answer is for the client.
const RETURNED: [HeaderName; 2] = [header::CONTENT_TYPE, header::CACHE_CONTROL];

/// `GET info/refs?service=git-receive-pack`.
///
/// # Errors
/// Pushes cannot be handed on, or the upstream cannot be reached.
pub(super) async fn advertise(
    serving: &Serving,
    mirror: &Mirror,
    parts: &Parts,
) -> Result<Response, Failure> {
    let _place = serving.guard.place(mirror).await?;
    let verb = "/info/refs?service=git-receive-pack";
    forward(serving, mirror, parts, verb, Body::empty()).await
}

/// `POST git-receive-pack`.
///
/// # Errors
/// Pushes cannot be handed on, or the upstream cannot be reached.
pub(super) async fn receive(
    serving: &Serving,
    mirror: &Mirror,
    parts: &Parts,
    body: Body,
    account: &mut Account,
) -> Result<Response, Failure> {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind != Some(REQUEST) {
        return Err(Failure::media_type(REQUEST));
    }
    let (body, seen) = Seen::watch(body);
    let response = forward(serving, mirror, parts, "/git-receive-pack", body).await;
    account.wants = seen.refs();
    let response = response?;
    if response.status() == StatusCode::OK {
        let mirror = mirror.clone();
        tokio::spawn(async move {
            // Its failure is known already where it matters: to the mirror's task.
            let _ = mirror.look(&[]).await;
        });
    }
    Ok(response)
}

/// The beginning of a push on its way through: its commands, for the audit log.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    /// The body as it is, and what is seen of it.
    fn watch(body: Body) -> (Body, Self) {
        let seen = Self::default();
        let own = seen.clone();
        let passing = body.into_data_stream().inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                let mut seen = own.0.lock().unwrap_or_else(PoisonError::into_inner);
                let room = MAX_SEEN.saturating_sub(seen.len()).min(chunk.len());
                seen.extend_from_slice(chunk.get(..room).unwrap_or_default());
            }
        });
        (Body::from_stream(passing), seen)
    }

    /// The refs that are to be changed, as far as they have been seen.
    fn refs(&self) -> String {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        audit::named(commands(&seen).into_iter())
    }
}

/// The names of the refs in the commands that a push begins with: `<old> SP <new> SP <name>`.
fn commands(body: &[u8]) -> Vec<String> {
    let packets = Packets::new(body).map_while(Result::ok);
    let lines = packets.take_while(|packet| *packet != Packet::Flush);
    let name = |line: &[u8]| {
        let command = line.split(|byte| *byte == 0).next()?;
        let name = command.splitn(3, |byte| *byte == b' ').nth(2)?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    lines.filter_map(|packet| name(packet.line()?)).collect()
}

/// The upstream of a mirror whose callers' requests may be handed on.
pub(super) fn upstream(mirror: &Mirror) -> Result<Arc<Looker>, Failure> {
    let settings = mirror.settings();
    // A token for this agent must never reach the upstream: elsewhere callers push there themselves. Nobody has asked who
    // they are, so they are not told where that is.
    if !matches!(settings.access, Access::Anonymous | Access::Upstream) {
        return Err(Failure::push(None));
    }
    let refused = || Failure::push((settings.access == Access::Anonymous).then_some(settings.url.as_str()));
    if settings.suspend {
        return Err(Unavailable::Suspended.into());
    }
    mirror.upstream().filter(|upstream| upstream.can_push()).ok_or_else(refused)
}

async fn forward(
    serving: &Serving,
    mirror: &Mirror,
    parts: &Parts,
    verb: &str,
    body: Body,
) -> Result<Response, Failure> {
    let upstream = upstream(mirror)?;
    let attempt = serving.guard.attempt(mirror, &parts.headers, address(parts))?;
    let answer = upstream
        .push(parts.method.clone(), verb, &parts.headers, body.into_data_stream())
        .await
        .map_err(|error: LookError| Failure::upstream(error))?;
    let Pushed { status, headers, chunks } = answer;
    attempt.ended(status);
    if status != StatusCode::OK {
        // Its body may be a page of a server that was not meant.
        return Err(Failure::push_refused(status, &headers, &mirror.settings().url));
    }
    let mut response = Response::builder().status(status);
    for name in RETURNED {
        if let Some(value) = headers.get(&name) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from_stream(chunks)).map_err(Failure::upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refs_of_a_push_are_read_from_its_commands() {
        let (old, new) = ("1".repeat(40), "2".repeat(40));
        let line = |text: String| format!("{:04x}{text}", text.len() + 4);
        let first = line(format!("{old} {new} refs/heads/main\0 report-status side-band-64k"));
        let second = line(format!("{old} {new} refs/tags/v 1\n"));
        let body = format!("{first}{second}0000PACK{first}");
        assert_eq!(commands(body.as_bytes()), ["refs/heads/main", "refs/tags/v 1"]);
        assert_eq!(commands(&body.as_bytes()[..first.len() + 9]), ["refs/heads/main"]);
        assert!(commands(b"zzzz").is_empty());
    }
}
