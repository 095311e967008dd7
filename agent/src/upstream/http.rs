//! HTTP to upstreams: connections shared by all mirrors of a host, requests with timeouts, answers with bounds, and who
//! is to be left alone for how long.
//!
//! Mirrors of one host that trust the same authorities share a [`Host`], hence its connections. A host that asks for
//! fewer requests (429, 403 or 503 with a time) is left alone until then by all who come with the same credentials:
//! others have limits of their own. Who asks meanwhile is told at once, and no request goes out.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};
use reqwest::{Certificate, Client, RequestBuilder, Response, redirect};
use tokio::time::timeout;

use super::{
    egress::NotAllowed,
    reach::{Reach, Unresolved},
    secret::Secret,
};
use crate::{
    authorities,
    git::stderr::{FailureKind, plain},
};

/// An upstream that sends nothing for this long is given up; git servers send keepalives every 5 s.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// Connections to a host that are kept though nobody uses them.
const IDLE: usize = 8;

/// Redirects within a host that are followed.
const MAX_REDIRECTS: usize = 5;

/// How long a host is left alone that asks for fewer requests and does not say until when; GitHub's documentation asks
/// for a minute.
pub(super) const PAUSE: Duration = Duration::from_secs(60);

/// The longest that a host is believed: a wrong clock or a typing error must not stop a mirror for a day.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The most pauses remembered; the one that ends first is forgotten.
const MAX_PAUSES: usize = 10_000;

/// Why a request has no answer. The texts hold no secrets.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HttpError {
    /// Nothing came in time.
    #[error("the upstream did not answer within {}s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// No connection, or it broke.
    #[error("cannot reach the upstream: {0}")]
    Network(String),
    /// The upstream asks to be left alone.
    #[error(transparent)]
    Paused(#[from] Paused),
    /// The answer is longer than it may be.
    #[error("the upstream's answer is longer than {0} bytes")]
    TooLong(usize),
    /// It would go to a place that may not be asked.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// Certificates or headers that are none.
    #[error("{0}")]
    Setup(&'static str),
}

/// The upstream asks for fewer requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the upstream asks for fewer requests (HTTP {status}): it is left alone for {}s more", .left.as_secs().max(1))]
pub struct Paused {
    /// What it answered: 429, 403 or 503.
    pub status: u16,
    /// How long it is left alone still.
    pub left: Duration,
}

impl HttpError {
    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::TimedOut(_) => FailureKind::TimedOut,
            Self::Network(text) if text.contains("certificate") => FailureKind::Untrusted,
            Self::Network(_) => FailureKind::Network,
            Self::Paused(Paused { status: 503, .. }) => FailureKind::Status,
            Self::Paused(_) => FailureKind::RateLimited,
            Self::TooLong(_) => FailureKind::NotGit,
            Self::NotAllowed(_) => FailureKind::NotAllowed,
            Self::Setup(_) => FailureKind::Other,
        }
    }
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(deeper) = cause {
            // The resolver has said so.
            if let Some(Unresolved::NotAllowed(refused)) = deeper.downcast_ref() {
                return refused.clone().into();
            }
            cause = deeper.source();
        }
        Self::Network(self::cause(error))
    }
}

impl From<Unresolved> for HttpError {
    fn from(error: Unresolved) -> Self {
        match error {
            Unresolved::Io(error) => Self::Network(plain(&error.to_string())),
            Unresolved::NotAllowed(refused) => refused.into(),
        }
    }
}

/// The cause at the bottom, which tells most ("Connection refused"); the URL is known and left out.
pub fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    plain(&cause.to_string())
}

/// One host, as all mirrors reach it that trust the same authorities.
pub(super) struct Host {
    /// As URLs begin: scheme, host and port.
    origin: String,
    ca: Option<Secret>,
    follow: bool,
    reach: Reach,
    /// When it last answered a look.
    heard: Mutex<Option<Instant>>,
    client: Mutex<Client>,
}

static HOSTS: LazyLock<Mutex<HashMap<blake3::Hash, Weak<Host>>>> = LazyLock::new(Mutex::default);

impl Host {
    /// The host of `origin`, where certificates of `ca` are trusted besides the system's. Redirects within the host are
    /// followed if `follow` says so.
    pub(super) fn of(
        origin: &str,
        ca: Option<&Secret>,
        follow: bool,
        reach: Reach,
    ) -> Result<Arc<Self>, HttpError> {
        let (list, trusted) = (reach.list.to_string(), ca.map_or("", Secret::expose));
        let ways = [u8::from(follow), reach.trust as u8, u8::from(reach.proxied)];
        let key = digest(&[origin.as_bytes(), trusted.as_bytes(), &ways, list.as_bytes()]);
        if let Some(known) = lock(&HOSTS).get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let client = Mutex::new(client(ca, follow, &reach)?);
        let (origin, ca) = (origin.to_owned(), ca.cloned());
        let made = Self { origin, ca, follow, reach, heard: Mutex::default(), client };
        let mut hosts = lock(&HOSTS);
        hosts.retain(|_, host| host.strong_count() > 0);
        // Another one may have been faster.
        let known = hosts.get(&key).and_then(Weak::upgrade);
        let host = known.unwrap_or_else(|| Arc::new(made));
        hosts.insert(key, Arc::downgrade(&host));
        Ok(host)
    }

    /// All other hosts that are reached so: they share a client, and nothing is kept of any of them.
    pub(super) fn elsewhere(ca: Option<&Secret>, reach: Reach) -> Result<Arc<Self>, HttpError> {
        Self::of("elsewhere", ca, true, reach)
    }

    /// The client with its connections.
    pub(super) fn client(&self) -> Client {
        lock(&self.client).clone()
    }

    /// How it is reached.
    pub(super) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Who asks this host with these credentials.
    pub(super) fn caller(&self, authorization: Option<&HeaderValue>) -> Caller {
        Caller::of(&self.origin, authorization)
    }

    /// Sends what `build` makes of a client. Where this host has answered nobody for half of the patience, its
    /// connections may be dead, and a dead one says nothing: a second attempt goes over a new one, and if that is
    /// answered first, the old ones are given up. A host that is only slow is still waited for.
    pub(super) async fn ask(
        &self,
        caller: &Caller,
        build: impl Fn(&Client) -> RequestBuilder,
        patience: Duration,
    ) -> Result<Response, HttpError> {
        let began = Instant::now();
        let mut first = std::pin::pin!(self.send(caller, build(&self.client()), patience));
        let early = timeout(patience / 2, &mut first).await;
        let response = match early {
            Ok(answered) => answered,
            Err(_) if lock(&self.heard).is_some_and(|heard| heard > began) => first.await,
            Err(_) => {
                let fresh = client(self.ca.as_ref(), self.follow, &self.reach)?;
                let second = std::pin::pin!(self.send(caller, build(&fresh), patience / 2));
                match select(first, second).await {
                    Either::Left((Ok(response), _)) => Ok(response),
                    Either::Left((Err(_), second)) => second.await,
                    Either::Right((Ok(response), _)) => {
                        *lock(&self.client) = fresh;
                        Ok(response)
                    }
                    Either::Right((Err(_), first)) => first.await,
                }
            }
        };
        if response.is_ok() {
            *lock(&self.heard) = Some(Instant::now());
        }
        response
    }

    /// Sends `request` for `caller`, whose answer must begin within `patience`; what the host says of its limits is
    /// kept for all who are this caller.
    pub(super) async fn send(
        &self,
        caller: &Caller,
        request: RequestBuilder,
        patience: Duration,
    ) -> Result<Response, HttpError> {
        caller.may_ask()?;
        let response =
            timeout(patience, request.send()).await.map_err(|_| HttpError::TimedOut(patience))??;
        let status = response.status();
        match pause(status, response.headers(), Timestamp::now()) {
            None => Ok(response),
            Some(left) => {
                tracing::warn!(
                    host = response.url().origin().ascii_serialization(),
                    status = status.as_u16(),
                    seconds = left.as_secs(),
                    "paused"
                );
                Err(caller.pause(status, left).into())
            }
        }
    }
}

fn client(ca: Option<&Secret>, follow: bool, reach: &Reach) -> Result<Client, HttpError> {
    let same_host = redirect::Policy::custom(|attempt| {
        let from = attempt.previous().last();
        let same = from.is_some_and(|from| {
            from.host_str() == attempt.url().host_str()
                && from.port_or_known_default() == attempt.url().port_or_known_default()
                && from.scheme() == attempt.url().scheme()
        });
        if same && attempt.previous().len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
    });
    let bad = |_| HttpError::Setup("the Secret's key \"ca.crt\" holds no certificates in PEM");
    let trusted = authorities::trusted(ca.map(Secret::expose)).map_err(bad)?;
    let trusted: Result<Vec<_>, _> = trusted.iter().map(|one| Certificate::from_der(one)).collect();
    let mut builder = Client::builder()
        .tls_certs_only(trusted?)
        .redirect(if follow { same_host } else { redirect::Policy::none() })
        .pool_max_idle_per_host(IDLE)
        .user_agent(concat!("git/2.39 tarn/", env!("CARGO_PKG_VERSION")));
    if !reach.proxied {
        builder = builder.no_proxy().dns_resolver(reach.clone());
    }
    Ok(builder.build()?)
}

/// Who is left alone by whom until when: a digest of host and credentials, which is of no use outside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller(blake3::Hash);

static PAUSES: LazyLock<Mutex<HashMap<blake3::Hash, (u16, Instant)>>> = LazyLock::new(Mutex::default);

impl Caller {
    /// Who asks the host of `origin` with these credentials.
    pub(super) fn of(origin: &str, authorization: Option<&HeaderValue>) -> Self {
        Self(digest(&[origin.as_bytes(), authorization.map_or(&b""[..], HeaderValue::as_bytes)]))
    }

    /// Whether the host may be asked now.
    pub(super) fn may_ask(&self) -> Result<(), Paused> {
        let pauses = lock(&PAUSES);
        let Some((status, until)) = pauses.get(&self.0) else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Ok(()) } else { Err(Paused { status: *status, left }) }
    }

    /// Leaves the host alone for `left`, or longer if that was agreed before.
    pub(super) fn pause(&self, status: StatusCode, left: Duration) -> Paused {
        let (now, status) = (Instant::now(), status.as_u16());
        let mut pauses = lock(&PAUSES);
        pauses.retain(|_, (_, until)| *until > now);
        if pauses.len() >= MAX_PAUSES
            && let Some(first) = pauses.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| *key)
        {
            pauses.remove(&first);
        }
        let entry = pauses.entry(self.0).or_insert((status, now + left));
        if now + left > entry.1 {
            *entry = (status, now + left);
        }
        Paused { status, left: entry.1.saturating_duration_since(now) }
    }
}

const LIMIT_LEFT: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// For how long an answer asks to be left alone. 429 always does; 503 where it says until when; 403 as GitHub has it,
/// whose limits are told so: by `Retry-After`, or by a count that has reached nothing.
fn pause(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |name: &HeaderName| text(name).and_then(|text| text.parse::<u64>().ok());
    let until = |time: Timestamp| Duration::try_from(time.duration_since(now)).unwrap_or_default();
    let date = |text: &str| rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let after = match number(&header::RETRY_AFTER) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => text(&header::RETRY_AFTER).and_then(date).map(until),
    };
    let spent = number(&LIMIT_LEFT) == Some(0);
    let reset = || Some(until(Timestamp::from_second(i64::try_from(number(&LIMIT_RESET)?).ok()?).ok()?));
    let asked = match status {
        StatusCode::TOO_MANY_REQUESTS => Some(after.or_else(reset).unwrap_or(PAUSE)),
        StatusCode::SERVICE_UNAVAILABLE => after,
        StatusCode::FORBIDDEN if after.is_some() || spent => Some(after.or_else(reset).unwrap_or(PAUSE)),
        _ => None,
    };
    asked.map(|asked| asked.clamp(Duration::from_secs(1), MAX_PAUSE))
}

/// The body, each piece of which must come within `silence`.
pub(super) fn chunks(
    response: Response,
    silence: Duration,
) -> impl Stream<Item = Result<Bytes, HttpError>> + Send + use<> {
    futures_util::stream::unfold(Some(response.bytes_stream().boxed()), move |stream| async move {
        let mut stream = stream?;
        match timeout(silence, stream.next()).await {
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(stream))),
            Ok(Some(Err(error))) => Some((Err(error.into()), None)),
            Ok(None) => None,
            Err(_) => Some((Err(HttpError::TimedOut(silence)), None)),
        }
    })
}

/// The whole body, of at most `most` bytes, each piece of which must come within `silence`.
pub(super) async fn read(response: Response, most: usize, silence: Duration) -> Result<Bytes, HttpError> {
    let mut body = BytesMut::new();
    let mut chunks = std::pin::pin!(chunks(response, silence));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        if body.len() + chunk.len() > most {
            return Err(HttpError::TooLong(most));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The digest of these parts; no two lists of parts are the same text, and no other process has the same digests.
fn digest(parts: &[&[u8]]) -> blake3::Hash {
    static KEY: LazyLock<[u8; 32]> = LazyLock::new(rand::random);
    let mut hasher = blake3::Hasher::new_keyed(&KEY);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.finalize()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole values come and go: a panic leaves none half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_host_is_left_alone() {
        // 1994-11-06T08:49:37Z
        let now = Timestamp::from_second(784_111_777).unwrap();
        let date = "Sun, 06 Nov 1994 08:50:07 GMT";
        for (status, headers, seconds) in [
            (200, &[("retry-after", "9")][..], None),
            (404, &[("retry-after", "9")], None),
            (500, &[], None),
            (429, &[], Some(60)),
            (429, &[("retry-after", "9")], Some(9)),
            (429, &[("retry-after", " 9 ")], Some(9)),
            (429, &[("retry-after", date)], Some(30)),
            (429, &[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(1)),
            (429, &[("retry-after", "soon")], Some(60)),
            (429, &[("retry-after", "0")], Some(1)),
            (429, &[("retry-after", "86400")], Some(300)),
            (429, &[("retry-after", "99999999999999999999999")], Some(60)),
            (429, &[("x-ratelimit-reset", "784111787")], Some(10)),
            (503, &[], None),
            (503, &[("retry-after", "120")], Some(120)),
            (403, &[], None),
            (403, &[("x-ratelimit-remaining", "12"), ("x-ratelimit-reset", "784111787")], None),
            (403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "784111787")], Some(10)),
            (403, &[("x-ratelimit-remaining", "0")], Some(60)),
            (403, &[("retry-after", "7")], Some(7)),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            let asked = pause(StatusCode::from_u16(status).unwrap(), &map, now);
            assert_eq!(asked, seconds.map(Duration::from_secs), "{status} {headers:?}");
        }
    }

    fn host(origin: &str, ca: Option<&Secret>) -> Result<Arc<Host>, HttpError> {
        // Another test may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Host::of(origin, ca, true, Reach::none())
    }

    #[test]
    fn who_comes_with_other_credentials_has_limits_of_its_own() {
        let host = host("https://pauses.example", None).unwrap();
        let (one, other) = (HeaderValue::from_static("Basic one"), HeaderValue::from_static("Basic other"));
        host.caller(Some(&one)).pause(StatusCode::TOO_MANY_REQUESTS, Duration::from_secs(60));
        assert_eq!(host.caller(Some(&one)).may_ask().unwrap_err().status, 429);
        host.caller(Some(&other)).may_ask().unwrap();
        host.caller(None).may_ask().unwrap();
        // A shorter pause does not end a longer one.
        let paused = host.caller(Some(&one)).pause(StatusCode::TOO_MANY_REQUESTS, Duration::from_secs(1));
        assert!(paused.left > Duration::from_secs(50), "{paused}");
    }

    #[test]
    fn mirrors_that_trust_the_same_share_a_host() {
        let one = host("https://shared.example", None).unwrap();
        assert!(Arc::ptr_eq(&one, &host("https://shared.example", None).unwrap()));
        assert!(!Arc::ptr_eq(&one, &host("https://other.example", None).unwrap()));
        let bad = host("https://shared.example", Some(&Secret::new("no certificate")));
        assert!(bad.is_err() || !Arc::ptr_eq(&one, &bad.unwrap()));
    }
}
