//! A look at the upstream: what are its refs now?
//!
//! http(s): protocol v2 `ls-refs` over kept-alive connections, spoken natively; what the upstream can do
//! is asked once and remembered. file: the same protocol with a local `git upload-pack`. ssh:
//! `git ls-remote`. Nothing here decides when to look; see `mirror::freshness`.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bstr::BString;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use reqwest::{Client, Response, redirect};
use sha2::{Digest, Sha256};
use tarn_crds::{
    repo::{Scheme, UpstreamUrl},
    v1alpha1::Refs,
};
use tokio::time::timeout;

use super::{
    credentials::{Credentials, Installed, Secret},
    github_app::{TokenError, Tokens},
};
use crate::{
    git::{
        Git, GitError, ObjectFormat, RefSet,
        remote::Remote,
        stderr::{FailureKind, plain},
        upload_pack,
        upload_pack::ProtocolVersion,
    },
    protocol::{
        advertisement::{self, Advertisement, AdvertisementError},
        ls_refs::{LsRefs, LsRefsError, parse_response},
    },
};

/// The most an upstream's ref list may take: 100,000 refs are 7.5 MB, so this is about 3 million.
const MAX_REF_LIST: usize = 256 * 1024 * 1024;

/// What the agent calls itself upstream.
const AGENT: &str = concat!("tarn/", env!("CARGO_PKG_VERSION"));

/// Connections to a host that are kept though nobody uses them.
const IDLE: usize = 8;

/// The client of all upstreams whose certificates the system's authorities vouch for.
static SHARED: OnceLock<Client> = OnceLock::new();

const GIT_PROTOCOL: HeaderName = HeaderName::from_static("git-protocol");

/// Why a look gave no answer. The texts hold no secrets and go into status and answers.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// No answer in time.
    #[error("the upstream did not answer within {}s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// No connection, or it broke.
    #[error("cannot reach the upstream: {0}")]
    Network(String),
    /// It wants other credentials, or any.
    #[error("the upstream refuses access (HTTP {0}): check the credentials in spec.secretRef")]
    Unauthorized(u16),
    /// No such repository.
    #[error("the upstream has no such repository (HTTP 404), or hides it without credentials")]
    NotFound,
    /// It is elsewhere.
    #[error("the upstream redirects to another host (HTTP {0}): write that URL into spec.url")]
    Redirected(u16),
    /// Another HTTP error.
    #[error("the upstream answers HTTP {0}")]
    Status(u16),
    /// Not git's protocol: a web page, say.
    #[error("the upstream does not speak git's protocol: {0}")]
    NotGit(String),
    /// It speaks git, but says it cannot.
    #[error("{0}")]
    Refused(String),
    /// The credentials that the declaration names are missing, so the upstream is not asked.
    #[error("{0}")]
    NoCredentials(String),
    /// A GitHub App's installation has no token for the mirror.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A git command failed.
    #[error(transparent)]
    Git(#[from] GitError),
}

impl LookError {
    /// The kind of failure, whose code is the reason in status and metrics.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::TimedOut(_) => FailureKind::TimedOut,
            Self::Network(text) if text.contains("certificate") => FailureKind::Untrusted,
            Self::Network(_) => FailureKind::Network,
            Self::Status(429) => FailureKind::RateLimited,
            Self::Status(_) | Self::Redirected(_) => FailureKind::Status,
            Self::Unauthorized(_) | Self::NoCredentials(_) => FailureKind::Unauthorized,
            Self::NotFound => FailureKind::NotFound,
            Self::NotGit(_) => FailureKind::NotGit,
            Self::Refused(_) => FailureKind::Other,
            Self::Token(error) => error.kind,
            Self::Git(error) => error.kind(),
        }
    }
}

impl LookError {
    /// Whether the same look may succeed at once: not where the upstream has said what it thinks.
    fn may_pass(&self) -> bool {
        match self {
            Self::Network(_) | Self::NotGit(_) => true,
            Self::Status(status) => *status >= 500,
            Self::TimedOut(_) | Self::Unauthorized(_) | Self::NotFound | Self::Redirected(_) => false,
            Self::Refused(_) | Self::NoCredentials(_) | Self::Token(_) | Self::Git(_) => false,
        }
    }
}

impl From<AdvertisementError> for LookError {
    fn from(error: AdvertisementError) -> Self {
        match error {
            AdvertisementError::Remote(_) => Self::Refused(plain(&error.to_string())),
            _ => Self::NotGit(plain(&error.to_string())),
        }
    }
}

impl From<LsRefsError> for LookError {
    fn from(error: LsRefsError) -> Self {
        match error {
            LsRefsError::Remote(_) => Self::Refused(plain(&error.to_string())),
            _ => Self::NotGit(plain(&error.to_string())),
        }
    }
}

impl From<reqwest::Error> for LookError {
    fn from(error: reqwest::Error) -> Self {
        // The cause at the bottom tells most ("Connection refused"); the URL is known and left out.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Self::Network(plain(&cause.to_string()))
    }
}

/// What the upstream is asked with.
enum Authorization {
    None,
    Fixed(HeaderValue),
    /// Tokens that git gets as well, by its file.
    App(Arc<Tokens>, Option<Arc<Installed>>),
}

/// Looks at one upstream.
pub struct Looker {
    pub(super) git: Git,
    pub(super) url: UpstreamUrl,
    remote: Remote,
    pub(super) client: Client,
    authorization: Authorization,
    /// Which refs are mirrored; the others are left out of every answer.
    declared: Refs,
    known: Mutex<Option<Known>>,
    last: Mutex<Option<Last>>,
}

/// The last list of refs: most looks find the same one, and need not read it again (1,000 refs take 1 ms).
#[derive(Debug)]
struct Last {
    /// SHA-256 of what the upstream sent.
    digest: [u8; 32],
    refs: Arc<RefSet>,
}

/// What is remembered of an upstream that speaks protocol v2.
#[derive(Clone, Debug)]
struct Known {
    /// The repository's URL, after redirects.
    base: String,
    format: ObjectFormat,
    unborn: bool,
}

fn sensitive(header: &Secret) -> Result<HeaderValue, LookError> {
    let mut value = HeaderValue::from_str(header.expose())
        .map_err(|_| LookError::Refused("the Secret's credentials do not fit into a header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

impl fmt::Debug for Looker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Looker({})", self.url)
    }
}

impl Looker {
    /// A looker at those refs of `url` that are `declared`; `remote` is the same upstream for git commands, which find
    /// the credentials in what is `installed`.
    ///
    /// # Errors
    /// The credentials hold a bad certificate or header.
    pub fn new(
        git: Git,
        url: UpstreamUrl,
        remote: Remote,
        credentials: &Credentials,
        installed: Option<Arc<Installed>>,
        declared: Refs,
    ) -> Result<Self, LookError> {
        let same_host = redirect::Policy::custom(|attempt| {
            let from = attempt.previous().last();
            let same = from.is_some_and(|from| {
                from.host_str() == attempt.url().host_str()
                    && from.port_or_known_default() == attempt.url().port_or_known_default()
                    && (from.scheme() == "http" || attempt.url().scheme() == "https")
            });
            if same && attempt.previous().len() <= 5 { attempt.follow() } else { attempt.stop() }
        });
        let mut builder = Client::builder()
            .redirect(same_host)
            .pool_max_idle_per_host(IDLE)
            .user_agent(concat!("git/2.39 tarn/", env!("CARGO_PKG_VERSION")));
        if let Some(ca) = credentials.ca() {
            let bad = |_| LookError::Refused("the Secret's key \"ca.crt\" holds no PEM certificates".into());
            let certificates = reqwest::Certificate::from_pem_bundle(ca.expose().as_bytes()).map_err(bad)?;
            builder = builder.tls_certs_merge(certificates);
        }
        let authorization = match (credentials.authorization(), credentials.app()) {
            (Some(header), _) => Authorization::Fixed(sensitive(header)?),
            (None, Some(app)) => Authorization::App(Tokens::of(app, credentials.ca())?, installed),
            (None, None) => Authorization::None,
        };
        // One for all that trust the same: they share connections, and what it takes to check certificates.
        let client = match (SHARED.get(), credentials.ca()) {
            (Some(shared), None) => shared.clone(),
            (None, None) => {
                let built = builder.build()?;
                SHARED.get_or_init(|| built).clone()
            }
            (_, Some(_)) => builder.build()?,
        };
        Ok(Self {
            git,
            url,
            remote,
            client,
            authorization,
            declared,
            known: Mutex::new(None),
            last: Mutex::new(None),
        })
    }

    /// Asks for the refs that start with one of `prefixes`, all where there are none, for at most `limit`.
    /// What fails at once is tried once more. An upstream that cannot select sends more than was asked for.
    /// A dropped future closes the connection.
    ///
    /// # Errors
    /// No answer, or none that makes sense.
    pub async fn look(&self, prefixes: &[BString], limit: Duration) -> Result<Arc<RefSet>, LookError> {
        let started = std::time::Instant::now();
        let look = async {
            match self.look_once(prefixes, limit).await {
                Err(error) if error.may_pass() => {
                    tracing::debug!(repo = %self.url.id(), %error, "look failed; trying once more");
                    self.look_once(prefixes, limit).await
                }
                result => result,
            }
        };
        let result = timeout(limit, look).await.unwrap_or(Err(LookError::TimedOut(limit)));
        let millis = started.elapsed().as_millis();
        match &result {
            Ok(refs) => tracing::debug!(repo = %self.url.id(), millis, refs = refs.refs().len(), "look"),
            Err(error) => tracing::debug!(repo = %self.url.id(), millis, %error, "look failed"),
        }
        result
    }

    async fn look_once(&self, prefixes: &[BString], limit: Duration) -> Result<Arc<RefSet>, LookError> {
        match self.url.scheme() {
            Scheme::Https | Scheme::Http => self.look_over_http(prefixes).await,
            Scheme::File => self.look_at_file(prefixes).await,
            Scheme::Ssh => Ok(self.selected(self.remote.ls_remote(&self.git, limit).await?)),
        }
    }

    async fn look_over_http(&self, prefixes: &[BString]) -> Result<Arc<RefSet>, LookError> {
        if let Some(known) = self.known() {
            match self.ls_refs(&known, prefixes).await {
                // The upstream may have moved, or been replaced by one that speaks otherwise: ask anew.
                Err(
                    LookError::NotFound | LookError::Status(_) | LookError::NotGit(_) | LookError::Refused(_),
                ) => {
                    self.remember(None);
                }
                result => return result,
            }
        }
        let url = format!("{}/info/refs?service=git-upload-pack", self.url);
        let response = self.send(self.client.get(url)).await?;
        // Where redirects within the host have led.
        let base = response.url().as_str();
        let base = base.split("/info/refs").next().unwrap_or(base).to_owned();
        let body = read(response, "application/x-git-upload-pack-advertisement").await?;
        match advertisement::parse(&body)? {
            Advertisement::Refs(refs) => Ok(self.selected(refs)),
            Advertisement::V2 { format, unborn } => {
                let known = Known { base, format, unborn };
                let refs = self.ls_refs(&known, prefixes).await?;
                self.remember(Some(known));
                Ok(refs)
            }
        }
    }

    fn known(&self) -> Option<Known> {
        self.known.lock().ok().and_then(|known| known.clone())
    }

    /// The upstream's URL, after the redirects that the last look followed.
    pub fn url(&self) -> String {
        self.known().map_or_else(|| self.url.to_string(), |known| known.base)
    }

    fn remember(&self, known: Option<Known>) {
        if let Ok(mut slot) = self.known.lock() {
            *slot = known;
        }
    }

    async fn ls_refs(&self, known: &Known, prefixes: &[BString]) -> Result<Arc<RefSet>, LookError> {
        let request = LsRefs { unborn: known.unborn, prefixes: prefixes.into(), ..LsRefs::everything() };
        let post = self
            .client
            .post(format!("{}/git-upload-pack", known.base))
            .header(header::CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(header::ACCEPT, "application/x-git-upload-pack-result")
            .body(request.to_request(known.format, AGENT));
        let body = read(self.send(post).await?, "application/x-git-upload-pack-result").await?;
        self.understand(&body, known.format)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, LookError> {
        self.send_with(request, HeaderValue::from_static("version=2")).await
    }

    /// The mirror's credentials as they are now. A token that is about to expire is renewed first, for git as well.
    ///
    /// # Errors
    /// There is no token.
    pub(super) async fn authorization(&self) -> Result<Option<HeaderValue>, LookError> {
        match &self.authorization {
            Authorization::None => Ok(None),
            Authorization::Fixed(value) => Ok(Some(value.clone())),
            Authorization::App(tokens, installed) => {
                let header = tokens.authorization().await?;
                if let Some(installed) = installed {
                    installed.authorize(&header).map_err(|error| {
                        LookError::Refused(format!("cannot write the credentials for git: {error}"))
                    })?;
                }
                Ok(Some(sensitive(&header)?))
            }
        }
    }

    /// Sends `request` with the mirror's credentials in the protocol version that `protocol` names.
    pub(super) async fn send_with(
        &self,
        request: reqwest::RequestBuilder,
        protocol: HeaderValue,
    ) -> Result<Response, LookError> {
        let mut headers = HeaderMap::new();
        headers.insert(GIT_PROTOCOL, protocol);
        let authorization = self.authorization().await?;
        if let Some(value) = &authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let response = request.headers(headers).send().await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                // Revoked before its time, or the installation's rights have changed: the next look has another.
                if let (Authorization::App(tokens, _), Some(value)) = (&self.authorization, &authorization) {
                    tokens.refused(value.as_bytes()).await;
                }
                Err(LookError::Unauthorized(status.as_u16()))
            }
            StatusCode::NOT_FOUND => Err(LookError::NotFound),
            status if status.is_redirection() => Err(LookError::Redirected(status.as_u16())),
            status => Err(LookError::Status(status.as_u16())),
        }
    }

    /// Where a file:// upstream lies.
    pub(super) fn path(&self) -> PathBuf {
        let path = self.url.as_str().strip_prefix("file://").unwrap_or_default();
        PathBuf::from(percent_decode_str(path).decode_utf8_lossy().into_owned())
    }

    pub(super) fn file_job(
        &self,
        repository: PathBuf,
        version: ProtocolVersion,
        request: Bytes,
    ) -> upload_pack::Job {
        upload_pack::Job { repository, version, request, tuning: upload_pack::Tuning::default(), idle: false }
    }

    async fn look_at_file(&self, prefixes: &[BString]) -> Result<Arc<RefSet>, LookError> {
        let path = self.path();
        let body = upload_pack::advertise(&self.git, &path, ProtocolVersion::V2).await?;
        let Advertisement::V2 { format, unborn } = advertisement::parse(&body)? else {
            return Err(LookError::NotGit("git speaks an old protocol".into()));
        };
        let request =
            LsRefs { unborn, prefixes: prefixes.into(), ..LsRefs::everything() }.to_request(format, AGENT);
        let answer = self.file_job(path, ProtocolVersion::V2, request.into()).stream(&self.git)?;
        let mut answer = std::pin::pin!(answer);
        let mut body = BString::default();
        while let Some(chunk) = answer.next().await {
            extend(&mut body, &chunk?)?;
        }
        self.understand(&body, format)
    }

    fn understand(&self, body: &[u8], format: ObjectFormat) -> Result<Arc<RefSet>, LookError> {
        let digest: [u8; 32] = Sha256::digest(body).into();
        if let Ok(last) = self.last.lock()
            && let Some(last) =
                last.as_ref().filter(|last| last.digest == digest && last.refs.format() == format)
        {
            return Ok(last.refs.clone());
        }
        let refs = self.selected(parse_response(body, format)?);
        if let Ok(mut last) = self.last.lock() {
            *last = Some(Last { digest, refs: refs.clone() });
        }
        Ok(refs)
    }

    fn selected(&self, refs: RefSet) -> Arc<RefSet> {
        Arc::new(refs.filtered(|name| self.declared.selects(&String::from_utf8_lossy(name))))
    }
}

/// Makes sure that an answer is of git's own type `expected`.
pub(super) fn check_type(response: &Response, expected: &str) -> Result<(), LookError> {
    let kind =
        response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("nothing");
    if kind.split(';').next() == Some(expected) {
        return Ok(());
    }
    Err(LookError::NotGit(format!("it sends {:?}", kind.get(..60).unwrap_or(kind))))
}

async fn read(response: Response, expected: &str) -> Result<BString, LookError> {
    check_type(&response, expected)?;
    let (mut body, mut chunks) = (BString::default(), response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        extend(&mut body, &chunk?)?;
    }
    Ok(body)
}

fn extend(body: &mut BString, chunk: &[u8]) -> Result<(), LookError> {
    if body.len() + chunk.len() > MAX_REF_LIST {
        return Err(LookError::NotGit(format!("its ref list is longer than {MAX_REF_LIST} bytes")));
    }
    body.extend_from_slice(chunk);
    Ok(())
}
