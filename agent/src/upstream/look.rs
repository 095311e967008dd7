//! A look at the upstream: what are its refs now?
//!
//! http(s): protocol v2 `ls-refs` over kept-alive connections, spoken natively; what the upstream can do
//! is asked once and remembered. file: the same protocol with a local `git upload-pack`. ssh:
//! `git ls-remote`. Nothing here decides when to look; see `mirror::freshness`.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bstr::BString;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use reqwest::{Client, RequestBuilder, Response};
use sha2::{Digest, Sha256};
use tarn_crds::{
    allowed_hosts::AllowedHosts,
    repo::{Scheme, UpstreamUrl},
    v1alpha1::Refs,
};
use tokio::time::timeout;

use super::{
    credentials::{Credentials, Installed},
    egress::Egress,
    error::LookError,
    github_app::Tokens,
    http::{Caller, Host, HttpError, PAUSE, read},
    reach::{Reach, proxied},
    secret::Secret,
};
use crate::{
    git::{
        Git, ObjectFormat, RefSet, remote::Remote, stderr::plain, upload_pack, upload_pack::ProtocolVersion,
    },
    protocol::{
        advertisement::{self, Advertisement, Offered},
        ls_refs::{LsRefs, parse_response},
    },
};

/// The most an upstream's ref list may take: 100,000 refs are 7.5 MB, so this is about 3 million.
const MAX_REF_LIST: usize = 256 * 1024 * 1024;

/// What the agent calls itself upstream.
pub(super) const AGENT: &str = concat!("tarn/", env!("CARGO_PKG_VERSION"));

/// How many times the patience a look may take that is being answered: an upstream that sends is not called down.
const MOST: u32 = 4;

const GIT_PROTOCOL: HeaderName = HeaderName::from_static("git-protocol");

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
    pub(super) remote: Remote,
    pub(super) host: Arc<Host>,
    pub(super) egress: Egress,
    pub(super) ca: Option<Secret>,
    /// Those that were reached for URLs of the upstream's answers.
    pub(super) elsewhere: Mutex<Vec<Arc<Host>>>,
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
    offered: Offered,
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
    /// The credentials hold a bad certificate or header, or `allowed` does not let the upstream be asked.
    pub fn new(
        git: Git,
        url: UpstreamUrl,
        remote: Remote,
        credentials: &Credentials,
        installed: Option<Arc<Installed>>,
        declared: Refs,
        allowed: &Arc<AllowedHosts>,
    ) -> Result<Self, LookError> {
        let egress = Egress::new(url.as_str(), allowed.clone());
        let reach = match url.scheme() {
            Scheme::Http | Scheme::Https => {
                Reach::of(&egress.home(proxied).map_err(HttpError::from)?, allowed)
            }
            Scheme::Ssh | Scheme::File => Reach::none(),
        };
        // One for all that trust the same: they share connections, and what it takes to check certificates.
        let origin = format!("{}://{}", url.scheme().as_str(), url.id().host());
        let host = Host::of(&origin, credentials.ca(), true, reach)?;
        let authorization = match (credentials.authorization(), credentials.app()) {
            (Some(header), _) => Authorization::Fixed(sensitive(header)?),
            (None, Some(app)) => Authorization::App(Tokens::of(app, credentials.ca(), allowed)?, installed),
            (None, None) => Authorization::None,
        };
        Ok(Self {
            git,
            url,
            remote,
            host,
            egress,
            ca: credentials.ca().cloned(),
            elsewhere: Mutex::default(),
            authorization,
            declared,
            known: Mutex::new(None),
            last: Mutex::new(None),
        })
    }

    /// Asks for the refs that start with one of `prefixes`, all where there are none. Each answer must begin within
    /// `patience` of the request, and go on within it; the look must end within [`MOST`] times that. What fails at once
    /// is tried once more. An upstream that cannot select sends more than was asked for. A dropped future closes the
    /// connection.
    ///
    /// # Errors
    /// No answer, or none that makes sense.
    pub async fn look(&self, prefixes: &[BString], patience: Duration) -> Result<Arc<RefSet>, LookError> {
        let started = std::time::Instant::now();
        let look = async {
            match self.look_once(prefixes, patience).await {
                Err(error) if error.may_pass() => {
                    tracing::debug!(repo = %self.url.id(), %error, "look failed; trying once more");
                    self.look_once(prefixes, patience).await
                }
                result => result,
            }
        };
        let most = patience * MOST;
        let result = timeout(most, look).await.unwrap_or(Err(HttpError::TimedOut(most).into()));
        let millis = started.elapsed().as_millis();
        match &result {
            Ok(refs) => tracing::debug!(repo = %self.url.id(), millis, refs = refs.refs().len(), "look"),
            Err(error) => tracing::debug!(repo = %self.url.id(), millis, %error, "look failed"),
        }
        result
    }

    async fn look_once(&self, prefixes: &[BString], patience: Duration) -> Result<Arc<RefSet>, LookError> {
        match self.url.scheme() {
            Scheme::Https | Scheme::Http => self.look_over_http(prefixes, patience).await,
            Scheme::File => timeout(patience, self.look_at_file(prefixes))
                .await
                .unwrap_or(Err(HttpError::TimedOut(patience).into())),
            Scheme::Ssh => Ok(self.selected(self.remote.ls_remote(&self.git, patience).await?)),
        }
    }

    async fn look_over_http(
        &self,
        prefixes: &[BString],
        patience: Duration,
    ) -> Result<Arc<RefSet>, LookError> {
        if let Some(known) = self.known() {
            match self.ls_refs(&known, prefixes, patience).await {
                // The upstream may have moved, or been replaced by one that speaks otherwise: ask anew.
                Err(
                    LookError::NotFound(_)
                    | LookError::Status(_)
                    | LookError::NotGit(_)
                    | LookError::Refused(_),
                ) => {
                    self.remember(None);
                }
                result => return result,
            }
        }
        let url = format!("{}/info/refs?service=git-upload-pack", self.url);
        let response = self.ask(|client| client.get(&url), patience).await?;
        // Where redirects within the host have led.
        let base = repository(response.url().as_str()).to_owned();
        let body = read_refs(response, "application/x-git-upload-pack-advertisement", patience).await?;
        match advertisement::parse(&body)? {
            Advertisement::Refs(refs) => Ok(self.selected(refs)),
            Advertisement::V2 { format, offered } => {
                let known = Known { base, format, offered };
                // A slow upstream need not be asked this again, should it be too slow for the rest.
                self.remember(Some(known.clone()));
                let refs = self.ls_refs(&known, prefixes, patience).await;
                if refs.as_ref().is_err_and(|error| !matches!(error, LookError::Http(_))) {
                    self.remember(None);
                }
                refs
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

    /// What the upstream is known to take, of a request in protocol v2; all, where nothing is known.
    pub(super) fn trim(&self, request: &Bytes) -> Bytes {
        self.known().map_or_else(|| request.clone(), |known| known.offered.trim(request).into())
    }

    async fn ls_refs(
        &self,
        known: &Known,
        prefixes: &[BString],
        patience: Duration,
    ) -> Result<Arc<RefSet>, LookError> {
        let asked =
            LsRefs { unborn: known.offered.unborn, prefixes: prefixes.into(), ..LsRefs::everything() };
        let request = Bytes::from(known.offered.trim(&asked.to_request(known.format, AGENT)));
        let url = format!("{}/git-upload-pack", known.base);
        let post = |client: &Client| {
            client
                .post(&url)
                .header(header::CONTENT_TYPE, "application/x-git-upload-pack-request")
                .header(header::ACCEPT, "application/x-git-upload-pack-result")
                .body(request.clone())
        };
        let response = self.ask(post, patience).await?;
        let body = read_refs(response, "application/x-git-upload-pack-result", patience).await?;
        self.understand(&body, known.format)
    }

    /// Asks with the mirror's credentials in protocol v2, over a new connection if the old ones seem dead.
    async fn ask(
        &self,
        build: impl Fn(&Client) -> RequestBuilder,
        patience: Duration,
    ) -> Result<Response, LookError> {
        let authorization = self.authorization().await?;
        let headers = headers(authorization.as_ref(), ProtocolVersion::V2);
        let caller = self.host.caller(authorization.as_ref());
        let sent = self.host.ask(&caller, |client| build(client).headers(headers.clone()), patience).await?;
        self.judge(sent, authorization.as_ref())
    }

    /// Whether the upstream may be asked now with the mirror's credentials; where not, for how long.
    ///
    /// # Errors
    /// It has asked to be left alone.
    pub fn may_ask(&self) -> Result<(), LookError> {
        Ok(self.caller().may_ask()?)
    }

    /// Notes that the upstream has asked git for fewer requests; git does not tell for how long.
    pub fn limited(&self) {
        self.caller().pause(StatusCode::TOO_MANY_REQUESTS, PAUSE);
    }

    /// Who the mirror is to the upstream, as far as is known without asking anyone.
    fn caller(&self) -> Caller {
        let value = match &self.authorization {
            Authorization::None => None,
            Authorization::Fixed(value) => Some(value.clone()),
            Authorization::App(tokens, _) => tokens.held().and_then(|token| sensitive(&token).ok()),
        };
        self.host.caller(value.as_ref())
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

    /// Sends `request` with the mirror's credentials in the protocol version `version`.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        version: ProtocolVersion,
        patience: Duration,
    ) -> Result<Response, LookError> {
        let authorization = self.authorization().await?;
        let request = request.headers(headers(authorization.as_ref(), version));
        let sent = self.host.send(&self.host.caller(authorization.as_ref()), request, patience).await?;
        self.judge(sent, authorization.as_ref())
    }

    fn judge(&self, response: Response, sent: Option<&HeaderValue>) -> Result<Response, LookError> {
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED => {
                // A token that was revoked before its time: the next look has another. 403 says that it is known, and
                // may not do this: another one may not either.
                if let (Authorization::App(tokens, _), Some(value)) = (&self.authorization, sent) {
                    tokens.refused(value.as_bytes());
                }
                Err(LookError::Unauthorized(401))
            }
            status if status.is_redirection() => Err(redirected(&response)),
            status => Err(LookError::refusal(status).unwrap_or(LookError::Status(status.as_u16()))),
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
        let Advertisement::V2 { format, offered } = advertisement::parse(&body)? else {
            return Err(LookError::NotGit("git speaks an old protocol".into()));
        };
        let asked = LsRefs { unborn: offered.unborn, prefixes: prefixes.into(), ..LsRefs::everything() };
        let request = asked.to_request(format, AGENT);
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

/// The repository's URL in one of its requests.
pub(super) fn repository(url: &str) -> &str {
    let url = url.split("/info/refs").next().unwrap_or(url);
    url.strip_suffix("/git-upload-pack").unwrap_or(url)
}

/// Where an answer leads that is not followed.
pub(super) fn redirected(response: &Response) -> LookError {
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let to = location.and_then(|location| response.url().join(location).ok());
    let to = to.map_or_else(|| "another place".to_owned(), |to| plain(repository(to.as_str())));
    LookError::Redirected { status: response.status().as_u16(), to }
}

fn headers(authorization: Option<&HeaderValue>, version: ProtocolVersion) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(GIT_PROTOCOL, HeaderValue::from_static(version.env()));
    if let Some(value) = authorization {
        headers.insert(header::AUTHORIZATION, value.clone());
    }
    headers
}

async fn read_refs(response: Response, expected: &str, silence: Duration) -> Result<Bytes, LookError> {
    check_type(&response, expected)?;
    Ok(read(response, MAX_REF_LIST, silence).await?)
}

fn extend(body: &mut BString, chunk: &[u8]) -> Result<(), LookError> {
    if body.len() + chunk.len() > MAX_REF_LIST {
        return Err(HttpError::TooLong(MAX_REF_LIST).into());
    }
    body.extend_from_slice(chunk);
    Ok(())
}
