//! As much of GitHub's API as mints tokens for an App's installation. It takes a JWT as GitHub does: signed with the App's
//! key, issued by the App, neither expired nor longer than ten minutes. It mints tokens that read one repository, no others.

#![expect(clippy::indexing_slicing, reason = "a missing field of a JSON value is a null")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::body::Incoming;
use jiff::Timestamp;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::listening::Listening;
use crate::process::{command, run};

/// A running API. It stops when dropped.
#[derive(Debug)]
pub struct GitHub {
    state: Arc<Mutex<State>>,
    listening: Listening,
    key: String,
}

#[derive(Debug)]
struct State {
    public: Vec<u8>,
    token: String,
    lifetime: Duration,
    minted: usize,
    delay: Duration,
    status: Option<u16>,
    refusals: Vec<String>,
    repositories: Vec<String>,
}

impl GitHub {
    /// The App's id.
    pub const APP: &str = "4711";
    /// The number of its installation.
    pub const INSTALLATION: &str = "42";

    /// Starts on a free port of 127.0.0.1, with a new key for the App.
    pub async fn start(dir: &Path) -> Result<Self> {
        let (key, public) = new_key(dir).await?;
        let state = State {
            public,
            token: "ghs_first".into(),
            lifetime: Duration::from_secs(3600),
            minted: 0,
            delay: Duration::ZERO,
            status: None,
            refusals: Vec::new(),
            repositories: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::start("github", address, move |stream| {
            let state = Arc::clone(&shared);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let state = Arc::clone(&state);
                async move {
                    let (parts, body) = request.into_parts();
                    let asked = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
                    let answer = answer(&state, &parts, &asked);
                    let delay = lock(&state).delay;
                    tokio::time::sleep(delay).await;
                    Ok::<_, Infallible>(answer)
                }
            });
            async move {
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            }
        })?;
        Ok(Self { state, listening, key })
    }

    /// Where the API is.
    pub fn url(&self) -> String {
        format!("http://{}/api/v3", self.listening.address())
    }

    /// The App's private key, in PEM as GitHub gives it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is minted from now on, and how long it holds.
    pub fn mint(&self, token: &str, lifetime: Duration) {
        let mut state = lock(&self.state);
        (state.token, state.lifetime) = (token.to_owned(), lifetime);
    }

    /// Answers everything with this status; or as it should.
    pub fn fail(&self, status: Option<u16>) {
        lock(&self.state).status = status;
    }

    /// Answers everything this much later.
    pub fn delay(&self, delay: Duration) {
        lock(&self.state).delay = delay;
    }

    /// How many tokens were minted.
    pub fn minted(&self) -> usize {
        lock(&self.state).minted
    }

    /// The one repository that each of them was minted for.
    pub fn repositories(&self) -> Vec<String> {
        lock(&self.state).repositories.clone()
    }

    /// Why JWTs and requests were refused.
    pub fn refusals(&self) -> Vec<String> {
        lock(&self.state).refusals.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A private key, and its public half in DER.
async fn new_key(dir: &Path) -> Result<(String, Vec<u8>)> {
    let file = dir.join("app.pem");
    let mut make = command("ssh-keygen");
    make.args(["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f"]).arg(&file);
    let made = run(make, b"", Duration::from_secs(30)).await?;
    ensure!(made.status.success(), "ssh-keygen: {}", made.stderr);
    let mut export = command("ssh-keygen");
    export.args(["-e", "-m", "PEM", "-f"]).arg(&file);
    let exported = run(export, b"", Duration::from_secs(30)).await?;
    let pem = String::from_utf8_lossy(exported.stdout.as_ref()).into_owned();
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let public = BASE64_STANDARD.decode(body).context("the public key")?;
    Ok((std::fs::read_to_string(&file)?, public))
}

fn answer(state: &Mutex<State>, request: &Parts, asked: &[u8]) -> Response<Full<Bytes>> {
    let mut state = lock(state);
    if let Some(status) = state.status {
        return reply(status, &json!({"message": "as the test says"}));
    }
    let bearer = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if let Err(why) = check(bearer, &state.public) {
        state.refusals.push(why.to_string());
        return reply(401, &json!({"message": "A JSON web token could not be decoded"}));
    }
    let wanted = format!("/api/v3/app/installations/{}/access_tokens", GitHub::INSTALLATION);
    if request.method != Method::POST || request.uri.path() != wanted {
        return reply(404, &json!({"message": "Not Found"}));
    }
    let asked: Value = serde_json::from_slice(asked).unwrap_or_default();
    let [Value::String(repository)] = asked["repositories"].as_array().map(Vec::as_slice).unwrap_or_default()
    else {
        state.refusals.push(format!("for more than one repository: {asked}"));
        return reply(422, &json!({"message": "as the kit wants it: one repository"}));
    };
    if asked["permissions"] != json!({"contents": "read"}) {
        state.refusals.push(format!("for more than reading contents: {asked}"));
        return reply(422, &json!({"message": "as the kit wants it: contents, read"}));
    }
    let repository = repository.clone();
    state.repositories.push(repository);
    state.minted += 1;
    let until = Timestamp::now() + state.lifetime;
    // GitHub tells whole seconds.
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until).to_string();
    reply(201, &json!({"token": state.token, "expires_at": until, "permissions": {"contents": "read"}}))
}

fn check(jwt: &str, public: &[u8]) -> Result<()> {
    let (signed, signature) = jwt.rsplit_once('.').context("no JWT")?;
    let (head, claims) = signed.split_once('.').context("no claims")?;
    let part =
        |text: &str| -> Result<Value> { Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text)?)?) };
    ensure!(part(head)?["alg"] == "RS256", "another algorithm");
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature)?;
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
    key.verify(signed.as_bytes(), &signature).ok().context("another key's signature")?;
    let claims = part(claims)?;
    ensure!(claims["iss"] == GitHub::APP, "issued by {}", claims["iss"]);
    let now = Timestamp::now().as_second();
    let (issued, expires) = (claims["iat"].as_i64().context("iat")?, claims["exp"].as_i64().context("exp")?);
    ensure!(
        issued <= now && now < expires && expires - issued <= 600,
        "from {issued} to {expires}, now {now}"
    );
    Ok(())
}

fn reply(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
}
