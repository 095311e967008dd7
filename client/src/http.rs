//! The HTTP client, and what its failures mean.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::io::AsyncWriteExt as _;

use crate::token::Token;

/// Tarn is near; a host that has not answered by then is down.
const CONNECT: Duration = Duration::from_secs(10);

/// The longest silence before an answer: the server itself waits up to 60 s for a snapshot.
const SILENCE: Duration = Duration::from_secs(75);

/// How much of an error's text is shown.
const REASON: usize = 300;

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, no answer, or an answer that broke off.
    #[error("{doing}: {}", root(source))]
    Transport {
        /// What was asked for.
        doing: &'static str,
        /// What went wrong; its URL is taken out.
        source: reqwest::Error,
    },
    /// The server refused.
    #[error("{doing}: {status}{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Status {
        /// What was asked for.
        doing: &'static str,
        /// The status.
        status: StatusCode,
        /// The first line of the body.
        reason: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The answer is not what it should be.
    #[error("{doing}: {what}")]
    Answer {
        /// What was asked for.
        doing: &'static str,
        /// What is wrong with the answer.
        what: &'static str,
    },
    /// A file could not be written.
    #[error("{doing}: {source}")]
    File {
        /// What was asked for.
        doing: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl HttpError {
    /// Whether the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Transport { source, .. } => !source.is_builder() && !source.is_redirect(),
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Answer { .. } | Self::File { .. } => false,
        }
    }

    /// The status, where there was an answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Transport { .. } | Self::Answer { .. } | Self::File { .. } => None,
        }
    }

    /// How long to wait before the next attempt: as the server says, within bounds, else twice as long each time.
    pub fn wait(&self, failures: u32) -> Duration {
        let own = Duration::from_millis(200 << failures.min(5));
        match self {
            Self::Status { retry_after: Some(asked), .. } => (*asked).clamp(own, Duration::from_secs(30)),
            _ => own,
        }
    }
}

/// The innermost cause: what a person can act on.
fn root(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// An HTTP client for one Tarn.
#[derive(Clone, Debug)]
pub struct Http(Client);

impl Http {
    /// Prepares a client, which proves itself with the token, if there is one; a redirect to another host is not shown it.
    /// HTTP/1.1 only: with HTTP/2 all ranges would share one connection.
    ///
    /// # Errors
    /// The TLS library does not start.
    pub fn new(connections: usize, token: Option<&Token>) -> Result<Self, HttpError> {
        let mut headers = HeaderMap::new();
        let bearer =
            token.and_then(|token| HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok());
        if let Some(mut bearer) = bearer {
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let client = Client::builder()
            .default_headers(headers)
            .http1_only()
            .user_agent(concat!("git-tarn/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(redirect::Policy::limited(3))
            .pool_max_idle_per_host(connections)
            .build();
        Ok(Self(client.map_err(|source| HttpError::Transport { doing: "start HTTP", source })?))
    }

    /// Sends a request, and gives back an answer that says success.
    ///
    /// # Errors
    /// None came, or another one.
    pub async fn send(
        &self,
        doing: &'static str,
        request: impl FnOnce(&Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, HttpError> {
        let answer = request(&self.0).send().await.map_err(|source| transport(doing, source))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let retry_after = header(answer.headers(), &RETRY_AFTER).and_then(|text| text.parse().ok());
        let reason = first_line(answer).await;
        Err(HttpError::Status { doing, status, reason, retry_after: retry_after.map(Duration::from_secs) })
    }

    /// Sends a request until it succeeds, fails for good, or `attempts` are used up.
    ///
    /// # Errors
    /// As the last attempt's.
    pub async fn persist(
        &self,
        doing: &'static str,
        attempts: u32,
        request: impl Fn(&Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, HttpError> {
        for failures in 1..attempts {
            match self.send(doing, &request).await {
                Err(error) if error.is_passing() => tokio::time::sleep(error.wait(failures)).await,
                done => return done,
            }
        }
        self.send(doing, &request).await
    }
}

/// A transport failure without its URL.
pub fn transport(doing: &'static str, source: reqwest::Error) -> HttpError {
    HttpError::Transport { doing, source: source.without_url() }
}

/// A header's text.
pub fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Writes a body to a file, and gives back its size.
///
/// # Errors
/// The body breaks off, or the file cannot be written.
pub async fn save(doing: &'static str, answer: Response, path: &Path) -> Result<u64, HttpError> {
    let disk = |source| HttpError::File { doing, source };
    let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
    let mut body = answer.bytes_stream();
    let mut bytes = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|source| transport(doing, source))?;
        file.write_all(&chunk).await.map_err(disk)?;
        bytes += chunk.len() as u64;
    }
    file.flush().await.map_err(disk)?;
    Ok(bytes)
}

/// The start of an error's body: Tarn's errors are one plain line.
async fn first_line(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < REASON {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    bytes.truncate(REASON);
    String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().trim().to_owned()
}
