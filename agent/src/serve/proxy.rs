//! Requests for a mirror that is cold here, handed to an agent that has it: one hop, before the upstream is asked.
//!
//! A request that is handed on says so in [`PROXIED_BY`], and its answer says in [`PEER`] whether it may be passed
//! back. An agent that gets such a request never hands it on again: where it is cold as well, it says `cold` at once,
//! and the next one is asked. So two cold agents that know each other ask each other once, and then the upstream.
//!
//! *Invariant:* what the caller sent besides the request itself stays here: no credentials, no cookies. Where not everybody
//! may have the mirror, this agent proves who it is and says who the caller is and by which access it was let in; the peer
//! believes that of an agent of its own cache (`access::peers`). What it shows of refs rests on a look of its own (P1).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use reqwest::{Client, redirect};
use rustls::ClientConfig;
use tarn_crds::repo::RepoId;
use tokio::time::timeout;

use super::headers::{AGE, BUNDLE, COMMIT, PEER, PROXIED_BY, Told};
use crate::{
    access::Voucher,
    backoff::backoff,
    metrics::{Metrics, Proxied},
    mirror::Mirror,
    peers::addresses::{Address, Addresses},
    upstream::http::cause,
};

/// How long a connection may take: a pod that is gone does not refuse, it is silent.
const CONNECT: Duration = Duration::from_secs(1);

/// How long a peer may be silent before it is asked whether it is there: a pod that hangs takes connections, and answers
/// nothing, while one that makes a pack answers other requests. And how long it has to say so.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a peer that is there may take to answer, and be silent within an answer: as an upstream may. A cold one says
/// so at once.
const SILENCE: Duration = Duration::from_secs(60);

/// Peers that are told of a webhook at once.
const TELLING: usize = 8;

/// The most peers that one request asks.
const TRIES: usize = 3;

/// How long a peer that could not be reached is left alone; each time in a row twice as long, up to the second.
const AWAY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What of a request is handed on.
const FORWARDED: [HeaderName; 9] = [
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    HeaderName::from_static("git-protocol"),
];

/// What of an answer is for the client.
const RETURNED: [HeaderName; 12] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::CACHE_CONTROL,
    header::ETAG,
    header::LAST_MODIFIED,
    header::RETRY_AFTER,
    super::FRESHNESS,
    COMMIT,
    BUNDLE,
    AGE,
];

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A client, or whoever does not say.
    Client,
    /// Another agent, which must not be asked back.
    Peer,
}

impl Origin {
    /// Reads it from a request's headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(PROXIED_BY) { Self::Peer } else { Self::Client }
    }
}

/// Says of an answer to a peer what it is worth, unless that stands there already.
pub(super) fn mark(response: &mut Response) {
    let status = response.status();
    let refused = status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 429);
    let failed = refused || response.extensions().get::<Told>().is_some();
    let worth = HeaderValue::from_static(if failed { "failed" } else { "warm" });
    response.headers_mut().entry(PEER).or_insert(worth);
}

/// Whether this agent has nothing of the mirror on its disk to answer from.
pub(super) fn is_cold(mirror: &Mirror) -> bool {
    mirror.view().stored.is_none()
}

/// A request to hand on.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    /// GET, HEAD or POST.
    pub(super) method: Method,
    /// What comes after the repository, such as `/info/refs?service=git-upload-pack`.
    pub(super) verb: &'a str,
    /// The client's headers, of which few are handed on.
    pub(super) headers: &'a HeaderMap,
    /// The body, unpacked.
    pub(super) body: Bytes,
    /// What the peer is told of the caller.
    pub(super) voucher: Voucher,
}

/// What a webhook said, for the other agents to hear as well: they judge it anew.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    /// Such as `/hooks/github`.
    pub(super) path: String,
    /// Event and signature.
    pub(super) headers: HeaderMap,
    /// As it was signed.
    pub(super) body: Bytes,
}

/// Why a peer's answer is not passed back.
enum Passed {
    /// It has no such mirror on its disk either.
    Cold,
    /// It refuses, or cannot.
    Refused(u16),
    /// It cannot be reached, or breaks off.
    Unreachable(String),
}

/// Hands requests to peers.
pub struct Proxy {
    client: Client,
    name: HeaderValue,
    addresses: Addresses,
    metrics: Metrics,
    away: Mutex<HashMap<Address, Absence>>,
}

/// A peer that could not be reached.
struct Absence {
    /// How often in a row.
    times: u32,
    until: Instant,
}

impl Proxy {
    /// Knows those at `addresses`, over TLS by `tls` where it is not by the system's authorities; `name` is what this
    /// agent calls itself to them.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        name: &str,
        addresses: Addresses,
        tls: Option<ClientConfig>,
        metrics: Metrics,
    ) -> Result<Self, reqwest::Error> {
        // Not by the environment's proxies, which are for the way out of the cluster; a redirect leads elsewhere.
        let mut builder =
            Client::builder().no_proxy().redirect(redirect::Policy::none()).connect_timeout(CONNECT);
        if let Some(tls) = tls {
            builder = builder.tls_backend_preconfigured(tls);
        }
        let client = builder.build()?;
        let name = HeaderValue::from_str(name).unwrap_or_else(|_| HeaderValue::from_static("tarn-agent"));
        Ok(Self { client, name, addresses, metrics, away: Mutex::default() })
    }

    /// The answer of the first peer that has the mirror; `None` where none has. It begins with its first byte here, so
    /// that a peer that dies before it costs nothing but time; one that dies later breaks the client's connection.
    /// Dropping the future ends the request.
    pub(super) async fn ask(&self, id: &RepoId, ask: Ask<'_>) -> Option<Response> {
        let peers = self.addresses.ranked(id);
        let near = peers.into_iter().filter(|peer| !self.is_away(peer)).take(TRIES);
        for peer in near {
            let started = Instant::now();
            let outcome = match self.ask_one(&peer, id, &ask).await {
                Ok(response) => {
                    let millis = started.elapsed().as_millis();
                    tracing::debug!(repo = %id, %peer, verb = ask.verb, millis, "answered by a peer");
                    self.metrics.serve.proxied.get_or_create(&Proxied::SERVED).inc();
                    self.lock().remove(&peer);
                    return Some(response);
                }
                Err(Passed::Cold) => {
                    tracing::debug!(repo = %id, %peer, "the peer is cold too");
                    Proxied::COLD
                }
                Err(Passed::Refused(status)) => {
                    tracing::debug!(repo = %id, %peer, status, "the peer does not answer this");
                    Proxied::REFUSED
                }
                Err(Passed::Unreachable(reason)) => {
                    tracing::warn!(repo = %id, %peer, reason, "a peer cannot be asked; the next one is");
                    self.is_gone(peer);
                    Proxied::UNREACHABLE
                }
            };
            self.metrics.serve.proxied.get_or_create(&outcome).inc();
        }
        None
    }

    /// Hands a webhook to all peers. One that does not hear it looks with its next fetch, as without webhooks.
    pub(super) async fn tell(&self, notice: &Notice) {
        let one = |peer: Address| async move {
            let mut headers = notice.headers.clone();
            headers.insert(PROXIED_BY, self.name.clone());
            let request = self.client.post(peer.url(&notice.path)).headers(headers).body(notice.body.clone());
            let answer = match timeout(SILENCE, request.send()).await {
                Ok(answer) => answer.map_err(unreachable),
                Err(_) => Err(Passed::Unreachable("it does not answer".to_owned())),
            };
            let reason = match answer {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => format!("it answers {}", answer.status()),
                Err(Passed::Unreachable(reason)) => reason,
                Err(Passed::Cold | Passed::Refused(_)) => return,
            };
            tracing::debug!(%peer, reason, "a peer does not hear a webhook");
        };
        stream::iter(self.addresses.all()).for_each_concurrent(TELLING, one).await;
    }

    /// Whether the agents of these names can all be reached, and all have the mirror. One that has not brings it. `ask` is
    /// anything that takes the mirror to answer.
    pub(super) async fn all_warm(&self, id: &RepoId, names: &[String], ask: &Ask<'_>) -> bool {
        let all = self.addresses.ranked(id);
        for name in names {
            let Some(peer) = all.iter().find(|peer| peer.name == *name) else { return false };
            if !self.ask_one(peer, id, ask).await.is_ok_and(|answer| answer.status().is_success()) {
                return false;
            }
        }
        !names.is_empty()
    }

    async fn ask_one(&self, peer: &Address, id: &RepoId, ask: &Ask<'_>) -> Result<Response, Passed> {
        let mut headers = HeaderMap::new();
        for name in FORWARDED {
            // As often as the client sent it: of several, none is to be overheard.
            for value in ask.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        if let Voucher::Headers(vouched) = &ask.voucher {
            headers.extend(vouched.clone());
        }
        headers.insert(PROXIED_BY, self.name.clone());
        let url = peer.url(&format!("/git/{}{}", id.route(), ask.verb));
        let sending =
            self.client.request(ask.method.clone(), url).headers(headers).body(ask.body.clone()).send();
        let answer = self.while_there(peer, sending).await?.map_err(unreachable)?;
        let status = answer.status();
        match answer.headers().get(PEER).map(HeaderValue::as_bytes) {
            Some(b"warm") if !status.is_server_error() => {}
            Some(b"cold") => return Err(Passed::Cold),
            // Failed, or no agent at all.
            _ => return Err(Passed::Refused(status.as_u16())),
        }
        let mut response = Response::builder().status(status);
        for name in RETURNED {
            if let Some(value) = answer.headers().get(&name) {
                response = response.header(name, value);
            }
        }
        let mut chunks = Box::pin(answer.bytes_stream());
        let first = match self.while_there(peer, chunks.next()).await? {
            Some(first) => Some(first.map_err(unreachable)?),
            None => None,
        };
        let body = self.body(first, chunks);
        response.body(body).map_err(|error| Passed::Unreachable(error.to_string()))
    }

    /// Waits for `answer` as long as the peer is there, and not for ever.
    async fn while_there<T>(&self, peer: &Address, answer: impl Future<Output = T>) -> Result<T, Passed> {
        let silent = || Passed::Unreachable("it does not answer".to_owned());
        let mut answer = std::pin::pin!(answer);
        let patient = async {
            loop {
                if let Ok(answered) = timeout(PATIENCE, &mut answer).await {
                    return Ok(answered);
                }
                // Whatever it says, it is there.
                let there = timeout(PATIENCE, self.client.get(peer.url("/")).send());
                tokio::select! {
                    answered = &mut answer => return Ok(answered),
                    there = there => if !matches!(there, Ok(Ok(_))) { return Err(silent()) },
                }
            }
        };
        timeout(SILENCE, patient).await.unwrap_or_else(|_| Err(silent()))
    }

    /// What has arrived, then the rest; an error there breaks the connection, so that nobody takes what came before for
    /// the whole.
    fn body(
        &self,
        first: Option<Bytes>,
        rest: impl Stream<Item = Result<Bytes, reqwest::Error>> + Send + Unpin + 'static,
    ) -> Body {
        let Some(first) = first else { return Body::empty() };
        let metrics = self.metrics.clone();
        let rest = stream::try_unfold(rest, |mut rest| async move {
            match timeout(SILENCE, rest.next()).await {
                Ok(Some(chunk)) => {
                    Ok::<_, std::io::Error>(Some((chunk.map_err(std::io::Error::other)?, rest)))
                }
                Ok(None) => Ok(None),
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            }
        });
        let counted = stream::once(async { Ok(first) }).chain(rest).inspect(move |chunk| match chunk {
            Ok(chunk) => drop(metrics.serve.proxied_bytes.inc_by(u64::try_from(chunk.len()).unwrap_or(0))),
            Err(error) => {
                metrics.serve.proxied.get_or_create(&Proxied::BROKEN).inc();
                tracing::warn!(%error, "a peer's answer breaks off; the connection is cut");
            }
        });
        Body::from_stream(counted)
    }

    fn is_away(&self, peer: &Address) -> bool {
        self.lock().get(peer).is_some_and(|absence| absence.until > Instant::now())
    }

    /// Leaves a peer alone for a while.
    fn is_gone(&self, peer: Address) {
        let (now, mut away) = (Instant::now(), self.lock());
        // Those that have long been free to be asked are other pods by now, or nobody's.
        away.retain(|_, absence| now.saturating_duration_since(absence.until) < AWAY.1);
        let absence = away.entry(peer).or_insert(Absence { times: 0, until: now });
        // Requests that were under way together find out together: that is one time.
        if absence.until <= now {
            absence.times += 1;
            absence.until = now + backoff(AWAY.0, AWAY.1, absence.times, 1.0);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Address, Absence>> {
        // Whole entries come and go: a panic leaves none half written.
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreachable(error: reqwest::Error) -> Passed {
    Passed::Unreachable(cause(error))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use http::StatusCode;

    use super::*;

    fn worth(mut response: Response) -> String {
        mark(&mut response);
        response.headers().get(PEER).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn an_answer_says_what_it_is_worth() {
        assert_eq!(worth(StatusCode::OK.into_response()), "warm");
        assert_eq!(worth(StatusCode::NO_CONTENT.into_response()), "warm");
        assert_eq!(worth(StatusCode::NOT_FOUND.into_response()), "warm");
        assert_eq!(worth(StatusCode::SERVICE_UNAVAILABLE.into_response()), "failed");
        assert_eq!(worth(StatusCode::FORBIDDEN.into_response()), "failed");
        // Where git begins, one that has no room says so.
        assert_eq!(worth(super::super::error::Failure::busy().of_discovery().into_response()), "failed");
        assert_eq!(worth(super::super::error::Failure::busy().into_packet()), "failed");
        assert_eq!(worth(super::super::error::Failure::cold().into_response()), "cold");
    }
}
