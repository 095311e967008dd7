//! The git port: smart HTTP for unmodified git clients.
//!
//! `/git/{host}/{path}` names a repository, with or without `.git`; what follows says what is wanted of
//! it. Refs are answered from memory, objects by `git upload-pack`.

pub mod body;
pub mod headers;
pub mod error;
pub mod conditional;
pub mod routes;
mod content;
mod withheld;
pub mod proxy;
pub mod moving;
pub mod ensure_refs;
pub mod limits;
mod sent;
mod turns;
pub mod hooks;
pub mod info_refs;
pub mod snapshot;
pub mod bundle;
pub mod lfs;
pub mod push;
pub mod rendered;
pub mod lately;
pub mod upload_pack;
pub mod ahead;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use tarn_crds::{repo::RepoId, v1alpha1::Access};

use crate::{
    access::{AccessRequest, Guard, Voucher, caller::Caller},
    audit::Audit,
    fleet::{Fleet, Found},
    git::{
        Git, GitError, Head, ObjectFormat, Ref, RefSet, refs::RefsError, remote, upload_pack::ProtocolVersion,
    },
    metrics::{Metrics, Route},
    mirror::{Mirror, disk::Disk, freshness::Freshness, snapshots::Unready},
    packs::Packs,
    popularity::{Popularity, day::Taken},
    protocol::advertisement::{AdvertisementError, Capabilities},
};
use error::Failure;
use headers::Account;
use hooks::Hooks;
use lately::Lately;
use limits::Requests;
use proxy::{Ask, Origin, Proxy, is_cold};
use rendered::Rendered;
use routes::{Endpoint, Purpose, Verb};
use upload_pack::{Passed, Recipes};

/// Says what an answer about refs rests on: `verified`, `reused; age=seconds` or `stale; age=seconds`.
pub const FRESHNESS: HeaderName = HeaderName::from_static("tarn-freshness");

/// How a request came; in its extensions. Links that lead back here begin so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As a URL begins.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What the handlers share.
pub struct Serving {
    fleet: Arc<Fleet>,
    guard: Guard,
    git: Git,
    metrics: Metrics,
    sha1: Capabilities,
    sha256: Capabilities,
    packs: Packs,
    proxy: Proxy,
    hooks: Hooks,
    requests: Requests,
    passed: Passed,
    recipes: Recipes,
    /// What is asked for, where packs are made ahead.
    lately: Option<Lately>,
    rendered: Rendered,
    audit: Audit,
    /// Where agents tell each other what is asked for, if they share a store.
    popularity: Option<Popularity>,
}

/// Why serving cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Git failed when it was asked what it can do.
    #[error("cannot ask git what it can do: {0}")]
    Git(#[from] GitError),
    /// The probe repository could not be written.
    #[error(transparent)]
    Probe(#[from] RefsError),
    /// Its answer has no meaning.
    #[error("cannot understand what git can do: {0}")]
    Advertisement(#[from] AdvertisementError),
}

impl Serving {
    /// Asks git what it can do, with small repositories made for the purpose.
    ///
    /// # Errors
    /// Git fails: above all because the disk is full.
    #[expect(clippy::too_many_arguments, reason = "one for each part, so that none is forgotten")]
    pub async fn new(
        fleet: Arc<Fleet>,
        guard: Guard,
        git: Git,
        disk: &Disk,
        packs: Packs,
        popularity: Option<Popularity>,
        proxy: Proxy,
        metrics: Metrics,
    ) -> Result<Self, ServeError> {
        let sha1 = capabilities(&git, disk, ObjectFormat::Sha1).await?;
        let sha256 = capabilities(&git, disk, ObjectFormat::Sha256).await?;
        Ok(Self {
            fleet,
            guard,
            git,
            metrics,
            sha1,
            sha256,
            packs,
            proxy,
            hooks: Hooks::new(None),
            requests: Requests::new(limits::RequestLimits::default()),
            passed: Passed::default(),
            recipes: Recipes::default(),
            lately: None,
            popularity,
            rendered: Rendered::default(),
            audit: Audit::default(),
        })
    }

    /// Hears webhooks, too.
    #[must_use]
    pub fn with_hooks(self, hooks: Hooks) -> Self {
        Self { hooks, ..self }
    }

    /// Has no more requests under way at once than these.
    #[must_use]
    pub fn with_limits(self, limits: limits::RequestLimits) -> Self {
        Self { requests: Requests::new(limits), ..self }
    }

    /// Writes down who was given what.
    #[must_use]
    pub fn with_audit(self, audit: Audit) -> Self {
        Self { audit, ..self }
    }

    /// Notes what is asked for, if packs are made ahead.
    #[must_use]
    pub fn with_lately(self, lately: Option<Lately>) -> Self {
        Self { lately, ..self }
    }

    /// Somebody is given something of `mirror`.
    fn count(&self, mirror: &Mirror, taken: Taken) {
        if let Some(popularity) = &self.popularity {
            popularity.count(mirror.id(), taken);
        }
    }

    fn capabilities(&self, format: ObjectFormat) -> &Capabilities {
        match format {
            ObjectFormat::Sha1 => &self.sha1,
            ObjectFormat::Sha256 => &self.sha256,
        }
    }

    /// The one door: the mirror behind a route, for a caller who may have it. Nothing else leads from a route to a mirror.
    /// Who the caller is stands in the request's extensions afterwards, as a [`Caller`].
    ///
    /// # Errors
    /// There is no such mirror, or not for this caller.
    async fn admit(&self, route: &str, purpose: Purpose, parts: &mut Parts) -> Result<Mirror, Failure> {
        let id = RepoId::from_route(route).map_err(|error| Failure::bad_request("BadRepository", error))?;
        let origin = Origin::of(&parts.headers);
        let mirror = match (self.fleet.find(&id).await, purpose, origin) {
            (Found::Mirror(mirror), ..) => *mirror,
            // It may know of declarations that have not come here yet: they are not here, and not wrong.
            (_, Purpose::Read, Origin::Peer) => return Err(Failure::cold()),
            (Found::Refused(reason), ..) => return Err(Failure::declared(&id, reason)),
            (Found::Unknown, ..) => return Err(Failure::undecided(&id)),
            (Found::Undeclared, ..) => return Err(Failure::undeclared(&id)),
        };
        let settings = mirror.settings();
        if let Err(missing) = &settings.credentials
            && missing.is_final(Instant::now())
        {
            return Err(Failure::declared(&id, missing.reason));
        }
        let caller = match (purpose, origin) {
            (Purpose::Read, Origin::Client) => {
                let (headers, address) = (&parts.headers, address(parts));
                let request = AccessRequest { mirror: &mirror, settings: &settings, headers, address };
                self.guard.admit(request).await.map_err(|refusal| match settings.access {
                    Access::Upstream => Failure::from(refusal).asking_for(&settings.url),
                    Access::Anonymous | Access::Authenticated | Access::Rbac => refusal.into(),
                })?
            }
            (Purpose::Read, Origin::Peer) => self.guard.admit_peer(&settings, &parts.headers).await?,
            // The upstream judges who may push, by credentials that are for it.
            (Purpose::Push, _) => {
                push::upstream(&mirror)?;
                self.guard.delegate(&settings.url, &mut parts.headers)?;
                self.guard.sender(&settings, &parts.headers)
            }
        };
        if purpose == Purpose::Read {
            self.may_show(&mirror, None).await?;
        }
        parts.extensions.insert(caller);
        parts.extensions.insert(AdmittedBy(settings.access));
        // Whoever asked a peer has come to another agent, which brings the mirror, or has come here because this one keeps it.
        if origin == Origin::Client || self.fleet.placement().is_some() {
            mirror.asked();
        }
        Ok(mirror)
    }

    /// What another agent is told of the caller who was let in.
    fn vouch(&self, parts: &Parts) -> Voucher {
        let (by, caller) = (parts.extensions.get::<AdmittedBy>(), parts.extensions.get::<Caller>());
        by.zip(caller)
            .map_or(Voucher::Impossible, |(AdmittedBy(access), caller)| self.guard.vouch(*access, caller))
    }

    /// The answer of an agent that has the mirror, for one that is cold here; `None` where none has it.
    ///
    /// # Errors
    /// An agent asks that has it not either.
    async fn of_peer(
        &self,
        mirror: &Mirror,
        origin: Origin,
        ask: Ask<'_>,
    ) -> Result<Option<Response>, Failure> {
        match origin {
            // Without a word for the caller the others would refuse.
            Origin::Client if matches!(ask.voucher, Voucher::Impossible) => Ok(None),
            Origin::Client => Ok(self.proxy.ask(mirror.id(), ask).await),
            Origin::Peer => Err(Failure::cold()),
        }
    }

    /// As [`Self::of_peer`] for a request without a body, wherever the mirror is cold.
    async fn warmer(
        &self,
        mirror: &Mirror,
        request: &Parts,
        verb: &str,
    ) -> Result<Option<Response>, Failure> {
        if !is_cold(mirror) {
            return Ok(None);
        }
        let (method, headers) = (request.method.clone(), &request.headers);
        let ask = Ask { method, verb, headers, body: Bytes::new(), voucher: self.vouch(request) };
        self.of_peer(mirror, Origin::of(headers), ask).await
    }
}

async fn capabilities(git: &Git, disk: &Disk, format: ObjectFormat) -> Result<Capabilities, ServeError> {
    let probe = disk.staging();
    remote::init(git, &probe, format).await?;
    // Before protocol v2, git tells its capabilities behind the first ref: one is needed.
    let oid = remote::write_blob(git, &probe, b"probe").await?;
    let tag = Ref { name: "refs/tags/probe".into(), oid, peeled: None };
    RefSet::new(format, Head::Missing, vec![tag]).write(&probe)?;
    let v0 = crate::git::upload_pack::advertise(git, &probe, ProtocolVersion::V0).await?;
    let v2 = crate::git::upload_pack::advertise(git, &probe, ProtocolVersion::V2).await?;
    if let Err(error) = disk.discard(&probe) {
        tracing::warn!(%error, "a probe repository cannot be removed");
    }
    Ok(Capabilities::from_git(&v0, &v2)?)
}

/// The router of the git port.
pub fn router(serving: Arc<Serving>) -> Router {
    Router::new().fallback(handle).with_state(serving)
}

/// By which access a request's caller was let in. The declaration may have changed since.
#[derive(Clone, Copy)]
struct AdmittedBy(Access);

/// What a path and a query ask for of a repository, as the router takes them.
///
/// # Errors
/// They lead to none.
pub fn endpoint(path: &str, query: &str) -> Result<Endpoint, Failure> {
    match lfs::split(path) {
        Some((_, verb)) => Ok(verb.endpoint()),
        None => Verb::split(path)?.1.endpoint(query),
    }
}

/// Whether git begins with this request.
fn discovers(path: &str) -> bool {
    Verb::split(path).is_ok_and(|(_, verb)| verb == Verb::InfoRefs)
}

async fn handle(
    State(serving): State<Arc<Serving>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    mut request: Request,
) -> Response {
    let started = Instant::now();
    for header in [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE] {
        // So that no log of headers, whoever writes it, shows them.
        if let http::header::Entry::Occupied(mut values) = request.headers_mut().entry(header) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = Origin::of(request.headers());
    let mut account = Account { label: "other", ..Account::default() };
    let limits = serving.requests.begin(client.ip());
    let answered = match &limits {
        Ok(limits) => {
            request.extensions_mut().insert(limits.bodies.clone());
            Box::pin(dispatch(&serving, client, request.map(body::paced), &mut account)).await
        }
        Err(exceeded) => Err(Failure::too_many(*exceeded)),
    };
    let refused = |failure: Failure| match discovers(&path) {
        true => failure.of_discovery().into_response(),
        false => failure.into_response(),
    };
    let mut response = answered.unwrap_or_else(refused);
    if origin == Origin::Peer {
        proxy::mark(&mut response);
    }
    let status = response.status().as_u16();
    serving.metrics.serve.requests.get_or_create(&Route { route: account.label, status }).inc();
    let millis = started.elapsed().as_millis();
    tracing::debug!(%method, path, status, millis, "request");
    match limits {
        Ok(limits) => sent::send(response, limits, serving.audit.clone(), account, client, started),
        Err(_) => response,
    }
}

async fn dispatch(
    serving: &Arc<Serving>,
    client: SocketAddr,
    request: Request,
    account: &mut Account,
) -> Result<Response, Failure> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    if let Some(sender) = hooks::Sender::of(&path) {
        account.label = "hook";
        return hooks::handle(serving, sender, &parts, body).await;
    }
    if let Some((repository, verb)) = lfs::split(&path) {
        let endpoint = verb.endpoint();
        account.label = endpoint.label();
        let answered = async {
            endpoint.check(&parts.method)?;
            let mirror = serving.admit(repository, endpoint.purpose(), &mut parts).await?;
            account.of = caller(&mirror, &parts);
            lfs::handle(serving, &mirror, verb, &parts, body, account).await
        };
        return Ok(answered.await.unwrap_or_else(Failure::into_lfs));
    }
    let (repository, verb) = Verb::split(&path)?;
    let endpoint = verb.endpoint(parts.uri.query().unwrap_or_default())?;
    endpoint.check(&parts.method)?;
    account.label = endpoint.label();
    let mirror = serving.admit(repository, endpoint.purpose(), &mut parts).await?;
    account.of = caller(&mirror, &parts);
    if endpoint.is_snapshot() && mirror.settings().snapshot.suspend {
        return Err(Unready::Suspended.into());
    }
    match verb {
        Verb::InfoRefs if endpoint == Endpoint::PushRefs => push::advertise(serving, &mirror, &parts).await,
        Verb::InfoRefs => {
            match serving.warmer(&mirror, &parts, "/info/refs?service=git-upload-pack").await? {
                Some(answer) => Ok(answer),
                None => info_refs::handle(serving, &mirror, &parts.headers).await,
            }
        }
        Verb::UploadPack => upload_pack::handle(serving, mirror, client.ip(), &parts, body, account).await,
        Verb::ReceivePack => push::receive(serving, &mirror, &parts, body, account).await,
        Verb::EnsureRefs => ensure_refs::handle(&mirror, &parts, body).await,
        Verb::Snapshot => {
            // What is here, or streams from the store, is as good as a peer's.
            if is_cold(&mirror)
                && mirror.snapshots().known(Duration::ZERO).await.is_err()
                && let Some(answer) = serving.warmer(&mirror, &parts, "/snapshot.tar.zst").await?
            {
                return Ok(answer);
            }
            let answer = snapshot::handle(serving, &mirror, &parts).await?;
            account.wants = commit_of(&answer);
            Ok(answer)
        }
        Verb::LfsSnapshot => {
            if mirror.worktree_lfs().open(Duration::ZERO).await.is_err()
                && let Some(answer) = serving.warmer(&mirror, &parts, "/lfs-snapshot.tar.zst").await?
            {
                return Ok(answer);
            }
            let answer = lfs::snapshot(serving, &mirror, &parts).await?;
            account.wants = commit_of(&answer);
            Ok(answer)
        }
        Verb::Bundle => {
            let base = bundle::base(parts.uri.query().unwrap_or_default())?;
            account.wants = format!("since {base}");
            match serving.warmer(&mirror, &parts, &format!("/snapshot.bundle?base={base}")).await? {
                Some(answer) => Ok(answer),
                None => bundle::handle(serving, &mirror, client.ip(), &parts).await,
            }
        }
    }
}

/// The commit that an answer names.
fn commit_of(answer: &Response) -> String {
    let commit = answer.headers().get(headers::COMMIT).and_then(|commit| commit.to_str().ok());
    commit.unwrap_or_default().to_owned()
}

/// Who was let in, to what.
fn caller(mirror: &Mirror, parts: &Parts) -> Option<(RepoId, Caller)> {
    Some((mirror.id().clone(), parts.extensions.get::<Caller>()?.clone()))
}

/// Where a request comes from.
fn address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// The protocol version a client asks for.
fn version(headers: &HeaderMap) -> ProtocolVersion {
    let header = headers.get("git-protocol").and_then(|value| value.to_str().ok());
    ProtocolVersion::from_header(header.unwrap_or_default())
}

/// An answer of git's own content types, which nobody on the way may keep.
fn answer(kind: &'static str, freshness: Option<Freshness>, body: axum::body::Body) -> Response {
    let mut response = (StatusCode::OK, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
    if let Some(value) = freshness.and_then(|freshness| HeaderValue::from_str(&freshness.to_string()).ok()) {
        headers.insert(FRESHNESS, value);
    }
    response
}
