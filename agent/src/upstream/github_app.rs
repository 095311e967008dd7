//! Tokens of a GitHub App's installation: minted with the App's key, renewed before they expire.
//!
//! The App proves itself to GitHub's API with a short-lived JWT signed by its private key, and gets a token of an hour
//! that git takes as a password. All mirrors that name the same installation share one [`Tokens`], and who asks while
//! one is being minted waits for that. Neither key nor tokens are ever printed.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use futures_util::StreamExt;
use http::{HeaderName, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Client, Response, redirect};
use ring::{rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use serde_json::json;
use tarn_crds::repo::{Scheme, UpstreamUrl};
use tokio::time::{Instant, timeout};
use url::Url;

use super::credentials::Secret;
use crate::git::stderr::FailureKind;

/// A token is renewed when it is this close to its end: whoever begins with one has time to use it.
const MARGIN: SignedDuration = SignedDuration::from_mins(5);

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// After a refusal the API is left alone for so long.
const RETRY: Duration = Duration::from_secs(5);

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
        Ok(Self { id: id.to_owned(), installation: installation.to_owned(), key: Secret::new(key), api })
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

/// The tokens of one installation.
pub(super) struct Tokens {
    app: App,
    client: Client,
    /// Held while one is minted.
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<(Secret, Timestamp)>,
    refused: Option<(TokenError, Instant)>,
}

/// One for each App, installation, key and API, for as long as a mirror uses it: the mirrors of an organisation share
/// an installation, and GitHub counts what is minted.
static SHARED: LazyLock<Mutex<HashMap<[u8; 32], Weak<Tokens>>>> = LazyLock::new(Mutex::default);

impl Tokens {
    /// Those of `app`, which other mirrors may use already; `ca` is trusted besides the system's certificates.
    pub(super) fn of(app: &App, ca: Option<&Secret>) -> Result<Arc<Self>, TokenError> {
        let mut hash = blake3::Hasher::new();
        let ca = ca.map_or("", Secret::expose);
        for part in [&app.id, &app.installation, &app.api, app.key.expose(), ca] {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let key = *hash.finalize().as_bytes();
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shared.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let failed = |error: reqwest::Error| TokenError::new(FailureKind::Other, error.without_url());
        // The JWT goes to the API and nowhere else.
        let mut builder = Client::builder().redirect(redirect::Policy::none()).timeout(PATIENCE);
        if !ca.is_empty() {
            let certificates = reqwest::Certificate::from_pem_bundle(ca.as_bytes()).map_err(failed)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let client =
            builder.user_agent(concat!("tarn/", env!("CARGO_PKG_VERSION"))).build().map_err(failed)?;
        let made = Arc::new(Self { app: app.clone(), client, state: tokio::sync::Mutex::default() });
        shared.retain(|_, tokens| tokens.strong_count() > 0);
        shared.insert(key, Arc::downgrade(&made));
        Ok(made)
    }

    /// The value of an `Authorization` header that holds for five minutes at least.
    pub(super) async fn authorization(&self) -> Result<Secret, TokenError> {
        let mut state = self.state.lock().await;
        let now = Timestamp::now();
        if let Some((token, until)) = &state.token
            && until.duration_since(now) > MARGIN
        {
            return Ok(token.clone());
        }
        if let Some((error, at)) = &state.refused
            && at.elapsed() < RETRY
        {
            return Err(error.clone());
        }
        let minted = timeout(PATIENCE, self.mint(now)).await;
        let minted = minted.unwrap_or_else(|_| {
            Err(TokenError::new(FailureKind::TimedOut, "GitHub's API did not answer in time"))
        });
        match minted {
            Ok((token, until)) => {
                tracing::info!(app = self.app.id, installation = self.app.installation, %until, "token minted");
                *state = State { token: Some((token.clone(), until)), refused: None };
                Ok(token)
            }
            Err(error) => {
                tracing::warn!(app = self.app.id, installation = self.app.installation, %error, "no token");
                state.refused = Some((error.clone(), Instant::now()));
                // One that still holds is better than none.
                let held = state.token.clone().filter(|(_, until)| *until > now);
                held.map(|(token, _)| token).ok_or(error)
            }
        }
    }

    /// Notes that the upstream has refused a token: the next one who asks gets another.
    pub(super) async fn refused(&self, value: &[u8]) {
        let mut state = self.state.lock().await;
        if state.token.as_ref().is_some_and(|(token, _)| token.expose().as_bytes() == value) {
            state.token = None;
        }
    }

    async fn mint(&self, now: Timestamp) -> Result<(Secret, Timestamp), TokenError> {
        let App { id: _, installation, key: _, api } = &self.app;
        let jwt = self.jwt(now)?;
        let request = self
            .client
            .post(format!("{api}/app/installations/{installation}/access_tokens"))
            .bearer_auth(jwt.expose())
            .header(header::ACCEPT, "application/vnd.github+json")
            .header(HeaderName::from_static("x-github-api-version"), "2022-11-28");
        let response = request.send().await.map_err(|error| {
            TokenError::new(
                FailureKind::Network,
                format!("cannot reach GitHub's API at {api}: {}", bottom(error)),
            )
        })?;
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
            StatusCode::TOO_MANY_REQUESTS => {
                return said(FailureKind::RateLimited, "GitHub's API asks for fewer requests (HTTP 429)");
            }
            status => {
                let text = format!("GitHub's API answers HTTP {}", status.as_u16());
                return said(FailureKind::Status, &text);
            }
        }
        let body = read(response).await?;
        // Serde's own words may repeat a value.
        let minted: Minted = serde_json::from_slice(&body)
            .map_err(|_| TokenError::new(FailureKind::NotGit, "GitHub's API answers with no token"))?;
        let basic = BASE64_STANDARD.encode(format!("x-access-token:{}", minted.token));
        Ok((Secret::new(format!("Basic {basic}")), minted.expires_at))
    }

    fn jwt(&self, now: Timestamp) -> Result<Secret, TokenError> {
        let failed = |problem: &str| {
            TokenError::new(FailureKind::Unauthorized, format!("the Secret's githubAppPrivateKey {problem}"))
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

async fn read(response: Response) -> Result<Vec<u8>, TokenError> {
    let (mut body, mut chunks) = (Vec::new(), response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let broken = |error| {
            TokenError::new(FailureKind::Network, format!("GitHub's API breaks off: {}", bottom(error)))
        };
        let chunk = chunk.map_err(broken)?;
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(TokenError::new(FailureKind::NotGit, "GitHub's API answers too much"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The cause at the bottom, which tells most.
fn bottom(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
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
    fn what_is_wrong_is_named_by_its_key() {
        let https = url("https://github.com/o/r");
        let problem = |ids, key| App::new(ids, key, None, &https).unwrap_err().0;
        assert_eq!(problem(("", "1"), ""), "githubAppID");
        assert_eq!(problem(("1/../2", "1"), ""), "githubAppID");
        assert_eq!(problem(("1", "1/repos"), ""), "githubAppInstallationID");
        assert_eq!(problem(("Iv1.8a61f9b3a7aba766", "12"), "canary"), "githubAppPrivateKey");
    }
}
