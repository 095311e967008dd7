//! Tokens of a GitHub App's installation: minted with the App's key, each for one repository, renewed before they expire.
//!
//! The App proves itself to GitHub's API with a short-lived JWT signed by its private key, and gets a token of an hour
//! that git takes as a password. The token can read the contents of one repository and nothing else, whatever the
//! installation may do. Those who want tokens of one repository share one [`Tokens`]. A token is minted in
//! a task of its own, which no impatient look ends: who has none waits for it, who has one that still holds uses that
//! meanwhile. Neither key nor tokens are ever printed.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::{HeaderName, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use ring::{rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use serde_json::json;
use tarn_crds::{
    allowed_hosts::AllowedHosts,
    repo::{Scheme, UpstreamUrl},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use url::Url;

use super::{
    egress::Egress,
    http::{Host, HttpError, read},
    reach::{Reach, proxied},
    secret::Secret,
};
use crate::git::stderr::FailureKind;

/// A token is renewed when it is this close to its end: whoever begins with one has time to use it.
const MARGIN: SignedDuration = SignedDuration::from_mins(5);

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// After a refusal the API is left alone for so long.
const RETRY: Duration = Duration::from_secs(5);

/// A token a minute may be minted, and a few at once: revoked ones are replaced quickly, and an upstream that refuses
/// every token does not have one minted for each look.
const PACE: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 3;

/// The longest answer that is read: GitHub's has about 2 kB.
const MAX_ANSWER: usize = 64 * 1024;

/// A JWT holds from a minute ago, as clocks differ, for ten minutes in all: GitHub takes none that is longer.
const JWT: (i64, i64) = (60, 540);

/// The longest number of an App or an installation, or client id of an App.
const MAX_ID: usize = 64;

/// An App's installation, and the key that proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// The App's id, or its client id.
    pub(super) id: String,
    /// The installation's number.
    pub(super) installation: String,
    /// The private key, in PEM.
    pub(super) key: Secret,
    /// Where the API is, without a closing slash.
    pub(super) api: String,
    /// The repository's name, without its owner: the installation has one owner.
    pub(super) repository: String,
}

impl App {
    /// Takes an App's credentials apart; what is wrong with which key.
    pub(super) fn new(
        (id, installation): (&str, &str),
        key: &str,
        base: Option<&str>,
        url: &UpstreamUrl,
    ) -> Result<Self, (&'static str, &'static str)> {
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
        if id.is_empty() || id.len() > MAX_ID || !plain(id) {
            return Err(("githubAppID", "is no App's id: digits, or a client id"));
        }
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if installation.is_empty() || installation.len() > MAX_ID || !digits(installation) {
            return Err(("githubAppInstallationID", "is no installation's number: digits"));
        }
        der(key).map_err(|problem| ("githubAppPrivateKey", problem))?;
        let api = match base {
            Some(base) => api_at(base, url).map_err(|problem| ("githubAppBaseURL", problem))?,
            None => api_of(url),
        };
        let path = url.id().path();
        let repository = path.rsplit('/').next().unwrap_or(path).to_owned();
        let (id, installation) = (id.to_owned(), installation.to_owned());
        Ok(Self { id, installation, key: Secret::new(key), api, repository })
    }
}

/// Where a host's API is: GitHub's own apart, GitHub Enterprise Server's below the host itself.
fn api_of(url: &UpstreamUrl) -> String {
    let host = url.id().host();
    match host {
        "github.com" | "www.github.com" => "https://api.github.com".to_owned(),
        _ if host.ends_with(".ghe.com") => format!("https://api.{host}"),
        _ => format!("{}://{host}/api/v3", url.scheme().as_str()),
    }
}

fn api_at(base: &str, url: &UpstreamUrl) -> Result<String, &'static str> {
    let parsed = Url::parse(base).map_err(|_| "is no URL, such as https://github.example.com/api/v3")?;
    let plain = parsed.username().is_empty() && parsed.password().is_none();
    if !plain || parsed.query().is_some() || parsed.fragment().is_some() {
        return Err("must be a plain URL: no credentials, no query");
    }
    match (parsed.scheme(), url.scheme()) {
        ("https", _) | ("http", Scheme::Http) => Ok(parsed.as_str().trim_end_matches('/').to_owned()),
        _ => Err("must begin with https://, as spec.url does"),
    }
}

const NO_KEY: &str = "is no RSA private key in PEM, as GitHub gives it";

/// The key as it is written. Whether it is one is seen when it signs: that takes a millisecond, and every mirror that names
/// the Secret is read again with every change of any.
fn der(pem: &str) -> Result<PrivateKeyDer<'static>, &'static str> {
    match PrivateKeyDer::from_pem_slice(pem.as_bytes()) {
        Ok(der @ (PrivateKeyDer::Pkcs1(_) | PrivateKeyDer::Pkcs8(_))) => Ok(der),
        _ => Err(NO_KEY),
    }
}

fn key_pair(pem: &str) -> Result<KeyPair, &'static str> {
    match der(pem)? {
        PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()).map_err(|_| NO_KEY),
        PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| NO_KEY),
        _ => Err(NO_KEY),
    }
}

/// Why there is no token. The text holds no secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct TokenError {
    /// What kind of failure it is.
    pub kind: FailureKind,
    text: String,
}

impl TokenError {
    fn new(kind: FailureKind, text: impl fmt::Display) -> Self {
        Self { kind, text: text.to_string() }
    }
}

impl From<HttpError> for TokenError {
    fn from(error: HttpError) -> Self {
        let text = match &error {
            HttpError::TimedOut(_) => "GitHub's API did not answer in time".to_owned(),
            HttpError::Network(cause) => format!("cannot reach GitHub's API: {cause}"),
            HttpError::NotAllowed(refused) => refused.to_string(),
            HttpError::TooLong(_) => "GitHub's API answers too much".to_owned(),
            HttpError::Paused(paused) => {
                format!("GitHub's API asks for fewer requests (HTTP {})", paused.status)
            }
            HttpError::Setup(problem) => (*problem).to_owned(),
        };
        Self::new(error.kind(), text)
    }
}

/// The tokens of one installation for one repository.
pub(super) struct Tokens {
    app: App,
    host: Arc<Host>,
    state: Mutex<State>,
    /// Counts the attempts to mint that have ended.
    ended: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    token: Option<(Secret, Timestamp)>,
    refused: Option<(TokenError, Instant)>,
    minting: bool,
    /// When the last few were minted.
    minted: VecDeque<Instant>,
}

impl State {
    /// Why none may be minted now; `None` where one may.
    fn held_back(&self, now: Instant) -> Option<TokenError> {
        if let Some((error, at)) = &self.refused
            && now.duration_since(*at) < RETRY
        {
            return Some(error.clone());
        }
        let first = self.minted.front().filter(|_| self.minted.len() >= AT_ONCE)?;
        let soon = now.duration_since(*first) < PACE * AT_ONCE as u32;
        soon.then(|| {
            let text = "the upstream refuses GitHub's tokens one after another: check what the App may read";
            TokenError::new(FailureKind::Unauthorized, text)
        })
    }
}

/// One for each App, installation, key, API and repository, for as long as a mirror uses it: a mirror that is declared
/// anew goes on with its token, for GitHub counts what is minted.
static SHARED: LazyLock<Mutex<HashMap<[u8; 32], Weak<Tokens>>>> = LazyLock::new(Mutex::default);

impl Tokens {
    /// Those of `app`, which other mirrors may use already; what is `trusted` is so besides the system's certificates.
    pub(super) fn of(
        app: &App,
        trusted: Option<&Secret>,
        allowed: &Arc<AllowedHosts>,
    ) -> Result<Arc<Self>, TokenError> {
        let mut hash = blake3::Hasher::new();
        let ca = trusted.map_or("", Secret::expose);
        for part in [&app.id, &app.installation, &app.api, &app.repository, app.key.expose(), ca] {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let key = *hash.finalize().as_bytes();
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shared.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        // The JWT goes to the API and nowhere else: no redirect is followed.
        // A person wrote the URL into a Secret, or it follows from the upstream's.
        let target = Egress::new(&app.api, allowed.clone()).home(proxied).map_err(HttpError::from)?;
        let host = Host::of(&app.api, trusted, false, Reach::of(&target, allowed))?;
        let (state, ended) = (Mutex::default(), watch::Sender::new(0));
        let made = Arc::new(Self { app: app.clone(), host, state, ended });
        shared.retain(|_, tokens| tokens.strong_count() > 0);
        shared.insert(key, Arc::downgrade(&made));
        Ok(made)
    }

    /// The value of an `Authorization` header that still holds. Shortly before its end another one is minted, and this
    /// one used meanwhile. A dropped future stops waiting, not the minting.
    ///
    /// # Errors
    /// There is none, and none can be had now.
    pub(super) async fn authorization(self: &Arc<Self>) -> Result<Secret, TokenError> {
        let mut ended = self.ended.subscribe();
        for again in [true, false] {
            {
                let mut state = self.lock();
                let now = Timestamp::now();
                let held = state.token.clone().filter(|(_, until)| *until > now);
                let fresh = held.as_ref().is_some_and(|(_, until)| until.duration_since(now) > MARGIN);
                let refused = if fresh { None } else { self.see_to(&mut state) };
                match (held, refused) {
                    (Some((token, _)), _) => return Ok(token),
                    (None, Some(error)) => return Err(error),
                    (None, None) if again => {}
                    (None, None) => break,
                }
            }
            let _ = timeout(PATIENCE, ended.changed()).await;
        }
        Err(HttpError::TimedOut(PATIENCE).into())
    }

    /// Has a token minted, unless that is under way; why not, where it must not be.
    fn see_to(self: &Arc<Self>, state: &mut State) -> Option<TokenError> {
        if state.minting {
            return None;
        }
        let held_back = state.held_back(Instant::now());
        if held_back.is_none() {
            state.minting = true;
            let own = Arc::clone(self);
            tokio::spawn(async move {
                let now = Timestamp::now();
                let minted = timeout(PATIENCE, own.mint(now)).await;
                own.minted(minted.unwrap_or_else(|_| Err(HttpError::TimedOut(PATIENCE).into())));
            });
        }
        held_back
    }

    fn minted(&self, minted: Result<(Secret, Timestamp), TokenError>) {
        let App { id: app, installation, key: _, api: _, repository } = &self.app;
        let mut state = self.lock();
        state.minting = false;
        match minted {
            Ok((token, until)) => {
                tracing::info!(app, installation, repository, %until, "token minted");
                (state.token, state.refused) = (Some((token, until)), None);
                state.minted.push_back(Instant::now());
                if state.minted.len() > AT_ONCE {
                    state.minted.pop_front();
                }
            }
            Err(error) => {
                tracing::warn!(app, installation, repository, %error, "no token");
                state.refused = Some((error, Instant::now()));
            }
        }
        drop(state);
        self.ended.send_modify(|ended| *ended += 1);
    }

    /// The token that is there now, if any.
    pub(super) fn held(&self) -> Option<Secret> {
        self.lock().token.as_ref().map(|(token, _)| token.clone())
    }

    /// Notes that the upstream does not know a token: the next one who asks gets another.
    pub(super) fn refused(&self, value: &[u8]) {
        let mut state = self.lock();
        if state.token.as_ref().is_some_and(|(token, _)| token.expose().as_bytes() == value) {
            state.token = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each step leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mint(&self, now: Timestamp) -> Result<(Secret, Timestamp), TokenError> {
        let App { id: _, installation, key: _, api, repository } = &self.app;
        let jwt = self.jwt(now)?;
        let wanted = json!({"repositories": [repository], "permissions": {"contents": "read"}});
        let client = self.host.client();
        let request = client
            .post(format!("{api}/app/installations/{installation}/access_tokens"))
            .bearer_auth(jwt.expose())
            .header(header::ACCEPT, "application/vnd.github+json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(wanted.to_string())
            .header(HeaderName::from_static("x-github-api-version"), "2022-11-28");
        let response = self.host.send(&self.host.caller(None), request, PATIENCE).await?;
        let said = |kind, text: &str| Err(TokenError::new(kind, text));
        match response.status() {
            StatusCode::CREATED | StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => {
                return said(
                    FailureKind::Unauthorized,
                    "GitHub does not take the App's key (HTTP 401): check the Secret's githubAppID and \
                     githubAppPrivateKey, and this machine's clock",
                );
            }
            StatusCode::FORBIDDEN => {
                return said(
                    FailureKind::Unauthorized,
                    "GitHub refuses a token (HTTP 403): is the App's installation suspended?",
                );
            }
            StatusCode::NOT_FOUND => {
                return said(
                    FailureKind::Unauthorized,
                    "GitHub knows no such installation of the App (HTTP 404): check the Secret's \
                     githubAppInstallationID, or install the App for the repository's owner",
                );
            }
            StatusCode::UNPROCESSABLE_ENTITY => {
                return said(
                    FailureKind::Unauthorized,
                    "GitHub mints no token that reads this repository (HTTP 422): add the repository to the App's \
                     installation, and give the App the permission to read contents",
                );
            }
            status => {
                let text = format!("GitHub's API answers HTTP {}", status.as_u16());
                return said(FailureKind::Status, &text);
            }
        }
        let body = read(response, MAX_ANSWER, PATIENCE).await?;
        // Serde's own words may repeat a value.
        let minted: Minted = serde_json::from_slice(&body)
            .map_err(|_| TokenError::new(FailureKind::NotGit, "GitHub's API answers with no token"))?;
        let basic = BASE64_STANDARD.encode(format!("x-access-token:{}", minted.token));
        Ok((Secret::new(format!("Basic {basic}")), minted.expires_at))
    }

    fn jwt(&self, now: Timestamp) -> Result<Secret, TokenError> {
        let failed = |problem: &str| {
            TokenError::new(FailureKind::Credentials, format!("the Secret's githubAppPrivateKey {problem}"))
        };
        let pair = key_pair(self.app.key.expose()).map_err(failed)?;
        let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let (before, after) = JWT;
        let claims =
            json!({"iat": now.as_second() - before, "exp": now.as_second() + after, "iss": self.app.id});
        let signed = format!("{}.{}", part(json!({"alg": "RS256", "typ": "JWT"})), part(claims));
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| failed("cannot sign"))?;
        Ok(Secret::new(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))))
    }
}

/// GitHub's answer, as far as it is used.
#[derive(Deserialize)]
struct Minted {
    token: String,
    expires_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> UpstreamUrl {
        UpstreamUrl::parse(text).unwrap()
    }

    #[test]
    fn the_api_is_where_the_host_has_it() {
        for (upstream, api) in [
            ("https://github.com/o/r", "https://api.github.com"),
            ("https://octo.ghe.com/o/r", "https://api.octo.ghe.com"),
            ("https://git.corp:8443/o/r", "https://git.corp:8443/api/v3"),
        ] {
            assert_eq!(api_of(&url(upstream)), api);
        }
        let https = url("https://git.corp/o/r");
        assert_eq!(api_at("https://api.corp/v3/", &https).unwrap(), "https://api.corp/v3");
        for wrong in
            ["http://api.corp", "https://canary@api.corp", "https://api.corp/?canary", "canary", "file:///x"]
        {
            assert!(!api_at(wrong, &https).unwrap_err().contains("canary"), "{wrong}");
        }
        assert!(api_at("http://api.corp", &url("http://git.corp/o/r")).is_ok());
    }

    #[test]
    fn tokens_are_minted_a_few_at_once_and_then_one_a_minute() {
        let now = Instant::now();
        let mut state = State::default();
        for _ in 0..AT_ONCE {
            assert!(state.held_back(now).is_none());
            state.minted.push_back(now);
        }
        assert_eq!(state.held_back(now).unwrap().kind, FailureKind::Unauthorized);
        assert!(state.held_back(now + PACE * 3).is_none());
        state.refused = Some((TokenError::new(FailureKind::Network, "x"), now + PACE * 3));
        assert_eq!(state.held_back(now + PACE * 3).unwrap().kind, FailureKind::Network);
        assert!(state.held_back(now + PACE * 3 + RETRY).is_none());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        let https = url("https://github.com/o/r");
        let problem = |ids, key| App::new(ids, key, None, &https).unwrap_err().0;
        assert_eq!(problem(("", "1"), ""), "githubAppID");
        assert_eq!(problem(("1/../2", "1"), ""), "githubAppID");
        assert_eq!(problem(("1", "1/repos"), ""), "githubAppInstallationID");
        assert_eq!(problem(("Iv1.8a61f9b3a7aba766", "12"), "canary"), "githubAppPrivateKey");
    }
}
