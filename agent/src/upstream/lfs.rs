//! The upstream's LFS: asking where objects are, downloading them, and handing a caller's requests on.
//!
//! *Invariant:* the mirror's credentials go to the upstream's own scheme, host and port, and nowhere else. The headers that
//! a batch answer gives go to the host that it names, which is judged first ([`super::egress`]). Neither is in an error.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::Response;
use tarn_crds::{repo::Scheme, v1alpha1::conditions::Reason};
use tokio::time::{Instant, timeout};

use super::{
    egress::NotAllowed,
    error::LookError,
    forward::kept,
    http::{Caller, HttpError, SILENCE, chunks, read},
    look::{Looker, redirected},
};
use crate::protocol::lfs::{Action, Answered, MEDIA_TYPE, Object, ask, cleaned, parse_answer, said};

/// The longest answer of the API: 1,000 objects with signed URLs of 2 KB are 2 MB.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// The least that a download brings within [`SILENCE`]: there are few places for downloads, and one that drips keeps its own.
const LEAST: usize = 60 * 1024;

/// How often a download is sent elsewhere.
const MAX_REDIRECTS: usize = 5;

/// Headers of a batch answer that go to the server with the object; what signed URLs need begins with [`SIGNED`]. A header
/// that is not here could mean something to a server that was not meant, above all to those that hand out a cloud's secrets.
const TAKEN: [HeaderName; 3] = [header::AUTHORIZATION, header::ACCEPT, header::CONTENT_TYPE];

/// S3, Azure, Google Cloud Storage.
const SIGNED: [&str; 3] = ["x-amz-", "x-ms-", "x-goog-"];

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
    /// It names a place that the agent may not ask.
    #[error(transparent)]
    NotAllowed(NotAllowed),
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
            Self::NotAllowed(_) => Reason::UpstreamNotAllowed,
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
            HttpError::NotAllowed(refused) => Self::NotAllowed(refused),
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
    /// Its status: a success, or an error.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body: JSON, without control characters.
    pub body: Bytes,
}

/// A download that has begun.
pub struct Download<S> {
    /// How long it is, where the server says so.
    pub length: Option<u64>,
    /// Whether it comes from the upstream's own host.
    pub own: bool,
    /// Its content.
    pub chunks: S,
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
            status => {
                return Err(LookError::refusal(status).unwrap_or(LookError::Status(status.as_u16())).into());
            }
        }
        let body = answer(response).await?;
        parse_answer(&body).map_err(LfsError::NotLfs)
    }

    /// Begins the download that `action` names. The mirror's credentials go along only to the upstream's own host, and only
    /// where the action brings none; across hosts, no header does. Each place that the download leads to is judged.
    ///
    /// # Errors
    /// It does not begin.
    pub async fn lfs_download(
        &self,
        action: &Action,
    ) -> Result<Download<impl Stream<Item = Result<Bytes, LfsError>> + Send + use<>>, LfsError> {
        let (mut target, mut host) = self.lead(&action.href)?;
        let mut headers = given(action);
        if target.own
            && !action.authenticated
            && let Some(value) = self.authorization().await?
        {
            headers.entry(header::AUTHORIZATION).or_insert(value);
        }
        for _ in 0..=MAX_REDIRECTS {
            let origin = target.url.origin().ascii_serialization();
            let caller = Caller::of(&origin, headers.get(header::AUTHORIZATION));
            let get = host.client().get(target.url).headers(headers.clone());
            let response = host.send(&caller, get, SILENCE).await?;
            let status = response.status();
            if status == StatusCode::OK {
                let (length, own) = (response.content_length(), target.own);
                return Ok(Download {
                    length,
                    own,
                    chunks: flowing(chunks(response, SILENCE), SILENCE, LEAST),
                });
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                return Err(LfsError::Refused(status.as_u16()));
            };
            // Within the host the client has followed already: this leads elsewhere.
            let url = response.url().join(location);
            let url = url.map_err(|_| LfsError::NotLfs("it names a download by no URL"))?;
            (target, host) = self.lead(url.as_str())?;
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
        if status.is_redirection() {
            return Err(redirected(&response).into());
        }
        // Anything else may be a page of a server that was not meant.
        let body = match is_lfs(&headers) {
            true => cleaned(&answer(response).await?).map_err(LfsError::NotLfs)?,
            false if status.is_success() => {
                return Err(LfsError::NotLfs("its answer is not the API's JSON"));
            }
            false => said(&format!("the upstream answers HTTP {}", status.as_u16())),
        };
        Ok(Answer { status, headers, body: body.into() })
    }
}

/// An answer of the API: all of it within [`SILENCE`].
async fn answer(response: Response) -> Result<Bytes, HttpError> {
    let whole = timeout(SILENCE, read(response, MAX_ANSWER, SILENCE)).await;
    whole.unwrap_or(Err(HttpError::TimedOut(SILENCE)))
}

/// The same chunks, as long as they bring at least so many bytes in each span of time.
fn flowing(
    chunks: impl Stream<Item = Result<Bytes, HttpError>> + Send,
    span: Duration,
    least: usize,
) -> impl Stream<Item = Result<Bytes, LfsError>> + Send {
    let began = (Instant::now(), 0);
    chunks.scan(began, move |(since, came), chunk| {
        *came += chunk.as_ref().map_or(0, Bytes::len);
        let slow = since.elapsed() > span && *came < least;
        if since.elapsed() > span {
            (*since, *came) = (Instant::now(), 0);
        }
        let chunk = if slow { Err(HttpError::TimedOut(span)) } else { chunk };
        std::future::ready(Some(chunk.map_err(LfsError::from)))
    })
}

/// Whether an answer is of the API's type.
fn is_lfs(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind == MEDIA_TYPE || kind == "application/json"
}

/// Those headers of an action that go to the server.
fn given(action: &Action) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &action.header {
        let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
            continue;
        };
        let signed = SIGNED.iter().any(|prefix| name.as_str().starts_with(prefix));
        if signed || TAKEN.contains(&name) {
            value.set_sensitive(true);
            headers.insert(name, value);
        } else {
            tracing::debug!(name = name.as_str(), "a header of an LFS action is left out");
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(names: &[&str]) -> Action {
        let header = names.iter().map(|name| ((*name).to_owned(), "v".to_owned())).collect();
        Action { href: String::new(), header, authenticated: true, expires: None }
    }

    #[tokio::test]
    async fn a_download_that_drips_is_ended_and_a_slow_one_is_not() {
        let (span, pace) = (Duration::from_millis(200), Duration::from_millis(20));
        for (bytes, ends) in [(10_000, false), (1, true)] {
            let dripping = futures_util::stream::unfold((), move |()| async move {
                tokio::time::sleep(pace).await;
                Some((Ok(Bytes::from(vec![0; bytes])), ()))
            });
            let came: Vec<_> = flowing(dripping.take(30), span, 100).collect().await;
            assert_eq!(came.iter().any(Result::is_err), ends, "{bytes}");
        }
    }

    #[test]
    fn an_action_sets_the_headers_that_object_stores_need_and_no_others() {
        let taken = [
            "Authorization",
            "Accept",
            "content-type",
            "X-Amz-Content-Sha256",
            "x-amz-security-token",
            "x-ms-version",
            "x-ms-blob-type",
            "x-goog-encryption-key",
        ];
        let refused = [
            "Host",
            "Metadata",
            "Metadata-Flavor",
            "X-Google-Metadata-Request",
            "X-aws-ec2-metadata-token",
            "X-aws-ec2-metadata-token-ttl-seconds",
            "Proxy-Authorization",
            "Connection",
            "Upgrade",
            "TE",
            "Transfer-Encoding",
            "Content-Length",
            "Cookie",
            "Range",
            "Forwarded",
            "X-Forwarded-For",
            "User-Agent",
            "X-Vault-Request",
        ];
        let headers = given(&action(&[&taken[..], &refused[..]].concat()));
        for name in taken {
            assert!(headers.get(name).is_some_and(HeaderValue::is_sensitive), "{name}");
        }
        assert_eq!(headers.len(), taken.len(), "{:?}", headers.keys().collect::<Vec<_>>());
    }
}
