//! The upstream's LFS: asking where objects are, downloading them, and handing a caller's requests on.
//!
//! *Invariant:* the mirror's credentials go to the upstream's own scheme, host and port, and nowhere else; the
//! headers that a batch answer gives go to the host that it names. Neither is in an error.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use tarn_crds::{repo::Scheme, v1alpha1::conditions::Reason};
use tokio::time::timeout;

use super::{
    error::LookError,
    forward::kept,
    http::{Caller, HttpError, SILENCE, chunks, read},
    look::Looker,
};
use crate::protocol::lfs::{Action, Answered, MEDIA_TYPE, Object, ask, parse_answer};

/// The longest answer of the API: 1,000 objects with signed URLs of 2 KB are 2 MB.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// How often a download is sent elsewhere.
const MAX_REDIRECTS: usize = 5;

/// Headers of a batch answer that are between this agent and the server, not the answer's to say.
const OWN: [HeaderName; 4] =
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Why the upstream's LFS gave nothing. The texts hold no secrets.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LfsError {
    /// No LFS there.
    #[error("the upstream has no LFS for this repository, or hides it without credentials (HTTP 404)")]
    Absent,
    /// LFS over ssh and in files is the business of programs on the other side.
    #[error("LFS is served of http and https upstreams only")]
    Transport,
    /// No answer, or a refusal.
    #[error("{reason}: {text}")]
    Look {
        /// In a word.
        reason: Reason,
        /// For people.
        text: String,
        /// For how long the upstream asks to be left alone.
        pause: Option<Duration>,
    },
    /// An answer that is none.
    #[error("the upstream's LFS does not answer as it should: {0}")]
    NotLfs(&'static str),
    /// The server that has the object refuses it.
    #[error("the server that has the object answers HTTP {0}")]
    Refused(u16),
}

impl LfsError {
    /// The reason in metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Absent | Self::Transport => Reason::RepositoryNotFound,
            Self::Look { reason, .. } => *reason,
            Self::NotLfs(_) => Reason::ProtocolError,
            Self::Refused(401 | 403) => Reason::AuthenticationFailed,
            Self::Refused(_) => Reason::UpstreamError,
        }
    }
}

impl From<LookError> for LfsError {
    fn from(error: LookError) -> Self {
        Self::Look { reason: error.kind().reason(), text: error.to_string(), pause: error.pause() }
    }
}

impl From<HttpError> for LfsError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::TooLong(_) => Self::NotLfs("its answer is too long"),
            error => LookError::from(error).into(),
        }
    }
}

impl LfsError {
    /// For how long the upstream asks to be left alone, if it does.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Self::Look { pause, .. } => *pause,
            _ => None,
        }
    }
}

/// An upstream's answer to a request that was handed on.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Looker {
    /// Where git-lfs would look for the LFS of this upstream.
    fn lfs_url(&self) -> Result<String, LfsError> {
        if !matches!(self.url.scheme(), Scheme::Http | Scheme::Https) {
            return Err(LfsError::Transport);
        }
        let url = self.url();
        let url = url.trim_end_matches('/');
        Ok(format!("{}.git/info/lfs", url.strip_suffix(".git").unwrap_or(url)))
    }

    /// Asks where `objects` are to be had, with the mirror's credentials.
    ///
    /// # Errors
    /// No answer that makes sense.
    pub async fn lfs_batch(&self, objects: &[Object]) -> Result<Answered, LfsError> {
        let client = self.host.client();
        let mut post = client
            .post(format!("{}/objects/batch", self.lfs_url()?))
            .header(header::ACCEPT, MEDIA_TYPE)
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(ask(objects));
        let authorization = self.authorization().await?;
        if let Some(value) = &authorization {
            post = post.header(header::AUTHORIZATION, value.clone());
        }
        let response = self.host.send(&self.host.caller(authorization.as_ref()), post, SILENCE).await?;
        match response.status() {
            StatusCode::OK => {}
            // What servers without LFS say of a path that they do not know.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                return Err(LfsError::Absent);
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(LookError::Unauthorized(status.as_u16()).into());
            }
            status => return Err(LookError::Status(status.as_u16()).into()),
        }
        let body = read(response, MAX_ANSWER, SILENCE).await?;
        parse_answer(&body).map_err(LfsError::NotLfs)
    }

    /// Begins the download that `action` names; says how long it is, where the server does. The mirror's credentials go along only to the upstream's own
    /// host, and only where the action brings none; across hosts, no header does.
    ///
    /// # Errors
    /// It does not begin.
    pub async fn lfs_download(
        &self,
        action: &Action,
    ) -> Result<(Option<u64>, impl Stream<Item = Result<Bytes, LfsError>> + Send + use<>), LfsError> {
        let bad = |_| LfsError::NotLfs("it names a download by no URL");
        let mut url = Url::parse(&action.href).map_err(|error| bad(error.to_string()))?;
        let mut headers = given(action);
        let own = Url::parse(self.url.as_str()).is_ok_and(|own| own.origin() == url.origin());
        if own
            && !action.authenticated
            && let Some(value) = self.authorization().await?
        {
            headers.entry(header::AUTHORIZATION).or_insert(value);
        }
        for _ in 0..=MAX_REDIRECTS {
            if !matches!(url.scheme(), "http" | "https") {
                return Err(bad(String::new()));
            }
            let caller = Caller::of(&url.origin().ascii_serialization(), headers.get(header::AUTHORIZATION));
            let get = self.host.client().get(url).headers(headers.clone());
            let response = self.host.send(&caller, get, SILENCE).await?;
            let status = response.status();
            if status == StatusCode::OK {
                return Ok((response.content_length(), chunks(response, SILENCE).map(|chunk| Ok(chunk?))));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                return Err(LfsError::Refused(status.as_u16()));
            };
            // Within the host the client has followed already: this leads elsewhere.
            url = response.url().join(location).map_err(|error| bad(error.to_string()))?;
            headers.clear();
        }
        Err(LfsError::NotLfs("it redirects a download again and again"))
    }

    /// Hands a request of the LFS API on, with the caller's own credentials and never the mirror's; `rest` is what
    /// comes after `info/lfs`. The answer, whatever its status, is the upstream's.
    ///
    /// # Errors
    /// The upstream cannot be reached.
    pub async fn lfs_forward(
        &self,
        method: Method,
        rest: &str,
        from: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, LfsError> {
        let url = format!("{}{rest}", self.lfs_url()?);
        let sent = timeout(SILENCE, self.hand_on(method, url, kept(from), body.into())).await;
        let response = sent.map_err(|_| HttpError::TimedOut(SILENCE))??;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: read(response, MAX_ANSWER, SILENCE).await? })
    }
}

/// The headers that an action asks for.
fn given(action: &Action) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &action.header {
        let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
            continue;
        };
        if !OWN.contains(&name) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    headers
}
