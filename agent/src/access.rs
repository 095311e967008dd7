//! Who may have what: the one place where callers are judged. The git port asks here before it does anything else.
//!
//! *Invariants:* nothing here answers "yes" because something else failed. A credential is kept as a keyed hash only,
//! and leaves this process for whoever can judge it: the API server, or the mirror's own upstream. A token that is meant
//! for Tarn never leaves for an upstream, and what a caller gave for one upstream never for another.

pub mod caller;
pub mod credential;
pub mod delegation;
mod answers;
pub mod throttle;
mod upstream;
pub mod peers;
pub mod reviews;
pub mod tokens;
pub mod administrators;

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use tarn_crds::{
    repo::{UpstreamList, UpstreamUrl},
    v1alpha1::Access,
};

use crate::{
    metrics::{Decision, Metrics},
    mirror::{Mirror, Settings},
    upstream::forward::FORWARDED,
};
use answers::{Answers, Hashes, Key};
use caller::{Caller, Kind};
use credential::{Claims, Credential};
use peers::Peers;
use reviews::Reviews;
use throttle::Throttle;
use tokens::Tokens;
use upstream::label;

/// Why a caller is not let in. The texts are for the caller, and hold no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The credential makes no sense: two of them, say.
    Malformed(String),
    /// None came, or one that nobody vouches for: another may do.
    Unauthenticated(String),
    /// Whose it is is known, and that is not enough.
    Denied(String),
    /// It is for another upstream, or does not say for which.
    Unbound(String),
    /// The upstream refuses it with this status: 401, 403, 404, 410 or 451.
    Upstream(u16),
    /// Too many credentials were refused for this caller: none are tried for so long.
    TooMany(Duration),
    /// Whoever could judge does not answer.
    Away(String),
}

impl Refusal {
    /// Its label in metrics.
    const fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Unauthenticated(_) => "unauthenticated",
            Self::Denied(_) | Self::Unbound(_) | Self::Upstream(_) | Self::TooMany(_) => "denied",
            Self::Away(_) => "away",
        }
    }
}

/// A request to read a mirror, as far as the judgement of its sender needs it.
#[derive(Clone, Copy)]
pub struct AccessRequest<'a> {
    /// The mirror.
    pub mirror: &'a Mirror,
    /// Its settings, read once.
    pub settings: &'a Settings,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The sender's address.
    pub address: Option<IpAddr>,
}

/// Judges callers.
pub struct Guard {
    hashes: Hashes,
    tokens: Option<Arc<Tokens>>,
    admin_tokens: Option<Arc<Tokens>>,
    reviews: Option<Reviews>,
    peers: Option<Peers>,
    unbound: UpstreamList,
    tried: Answers<()>,
    throttle: Throttle,
    metrics: Metrics,
}

/// What a [`Guard`] has to judge by.
#[derive(Default)]
pub struct Means {
    /// The file with the callers' tokens.
    pub tokens: Option<Arc<Tokens>>,
    /// The file with the administrators' tokens, which open nothing here and go to no upstream.
    pub admin_tokens: Option<Arc<Tokens>>,
    /// A cluster, which knows its users.
    pub reviews: Option<Reviews>,
    /// What the agents of a cache know each other by.
    pub peers: Option<Peers>,
    /// The upstreams that get callers' credentials which do not say for which upstream they are.
    pub unbound: UpstreamList,
}

impl Guard {
    /// Judges by these means.
    pub fn new(means: Means, metrics: Metrics) -> Self {
        let Means { tokens, admin_tokens, reviews, peers, unbound } = means;
        Self {
            hashes: Hashes::new(),
            tokens,
            admin_tokens,
            reviews,
            peers,
            unbound,
            tried: Answers::default(),
            throttle: Throttle::default(),
            metrics,
        }
    }

    /// Admits the sender of a request to read a mirror.
    ///
    /// # Errors
    /// The sender has no right to it, or nobody can tell.
    pub async fn admit(&self, request: AccessRequest<'_>) -> Result<Caller, Refusal> {
        let AccessRequest { settings, headers, .. } = request;
        let judged = match settings.access {
            Access::Anonymous => Ok(Caller::anonymous()),
            Access::Authenticated => self.by_token(headers),
            Access::Rbac => self.by_review(settings, headers).await,
            Access::Upstream => self.by_upstream(request).await,
        };
        self.count(settings.access, judged)
    }

    /// Lets another agent of the cache in, for a caller whom it has let in itself.
    ///
    /// # Errors
    /// The sender is no such agent, or it judged by another access than the mirror has here.
    pub async fn admit_peer(&self, settings: &Settings, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let judged = match (settings.access, &self.peers) {
            (Access::Anonymous, _) => Ok(Caller::anonymous()),
            (_, None) => Err(Refusal::Denied("agents here have nothing to know each other by".into())),
            (access, Some(peers)) => peers.admit(&self.hashes, access, headers).await,
        };
        self.count(settings.access, judged)
    }

    /// What this agent tells another of a caller it has let in: who it is itself, and who the caller. `None` where the
    /// other needs no telling; without a credential of its own it must not ask at all.
    pub fn vouch(&self, access: Access, caller: &Caller) -> Voucher {
        match (access, &self.peers) {
            (Access::Anonymous, _) => Voucher::NotNeeded,
            (access, Some(peers)) => {
                peers.vouch(access, caller).map_or(Voucher::Impossible, Voucher::Headers)
            }
            (_, None) => Voucher::Impossible,
        }
    }

    /// Leaves in `headers` the credentials that the upstream `url` is asked with for their sender.
    ///
    /// # Errors
    /// Something in what would be handed on is meant for Tarn, for the cluster, or for another upstream.
    pub fn delegate(&self, url: &UpstreamUrl, headers: &mut HeaderMap) -> Result<(), Refusal> {
        match self.delegated(url, headers)? {
            Some(value) => drop(headers.insert(header::AUTHORIZATION, value)),
            None => drop(headers.remove(header::AUTHORIZATION)),
        }
        Ok(())
    }

    fn delegated(&self, url: &UpstreamUrl, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        let credential = Credential::of(headers)?;
        let others = FORWARDED.into_iter().filter(|name| *name != header::AUTHORIZATION);
        let others = others.filter_map(|name| headers.get(name)?.to_str().ok());
        let words = others.flat_map(|text| text.split([' ', '\t', ',', ';', '(', ')']));
        let tail = |word: &'_ str| word.split_once(['=', '/']).is_some_and(|(_, tail)| self.is_own(tail));
        if credential.texts().iter().any(|text| self.is_own(text.trim()))
            || words.into_iter().any(|word| self.is_own(word) || tail(word))
        {
            let text = "this token is for Tarn or for Kubernetes, and is not sent to the upstream: use the \
                        upstream's own credentials";
            return Err(Refusal::Denied(text.into()));
        }
        delegation::for_upstream(&credential, headers, url, &self.unbound)
    }

    /// Whether this is a token for Tarn or the cluster: of a caller, an administrator, another agent or a service account.
    fn is_own(&self, text: &str) -> bool {
        let ours = |claims: Claims| {
            let audience = |name: &String| {
                self.reviews.as_ref().is_some_and(|reviews| reviews.audiences().contains(name))
                    || name == peers::AUDIENCE
            };
            claims.is_service_account() || claims.audiences.iter().any(audience)
        };
        let files = [&self.tokens, &self.admin_tokens];
        files.into_iter().flatten().any(|tokens| tokens.find(text).is_some())
            || self.peers.as_ref().is_some_and(|peers| peers.is_shared_secret(&self.hashes, text))
            || Claims::read(text).is_some_and(ours)
    }

    /// The audit log's name for the sender of a push, an LFS upload or a lock. `headers` are those that [`Self::delegate`]
    /// has let through. The name stands for the credentials in them, and is the same for a reader with the same
    /// credentials ([`Self::by_upstream`]).
    pub fn sender(&self, settings: &Settings, headers: &HeaderMap) -> Caller {
        match headers.get(header::AUTHORIZATION) {
            None => Caller::anonymous(),
            Some(given) => Caller::new(Kind::Upstream, label(&self.presented(settings, given.as_bytes()))),
        }
    }

    /// What stands for credentials that are for a mirror's upstream.
    fn presented(&self, settings: &Settings, given: &[u8]) -> Key {
        self.hashes.key("upstream", &[settings.url.as_str().as_bytes(), given])
    }

    fn count(&self, access: Access, judged: Result<Caller, Refusal>) -> Result<Caller, Refusal> {
        let outcome = judged.as_ref().map_or_else(Refusal::label, |_| "allowed");
        self.metrics.access.decisions.get_or_create(&Decision { access: access.as_str(), outcome }).inc();
        judged
    }

    fn by_token(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let tokens = self.tokens.as_ref();
        let tokens =
            tokens.ok_or_else(|| Refusal::Away("this agent was given no tokens to compare with".into()))?;
        let wanted = || Refusal::Unauthenticated("give a token that the cache knows, as the password".into());
        let credential = Credential::of(headers)?;
        let found = tokens.find(credential.token().ok_or_else(wanted)?.expose());
        let name =
            found.ok_or_else(|| Refusal::Unauthenticated("the cache does not know this token".into()))?;
        Ok(Caller::new(Kind::Token, name))
    }

    async fn by_review(&self, settings: &Settings, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let reviews = self.reviews.as_ref();
        let reviews =
            reviews.ok_or_else(|| Refusal::Away("there is no cluster that knows its users".into()))?;
        let credential = Credential::of(headers)?;
        let Some(token) = credential.token() else {
            let audiences = reviews.audiences().join(" or ");
            let text = format!("give a Kubernetes token for the audience {audiences}, as the password");
            return Err(Refusal::Unauthenticated(text));
        };
        let user = reviews.user(&self.hashes, token).await?;
        reviews.may_clone(&self.hashes, &user, &settings.name).await?;
        Ok(Caller::new(Kind::Kubernetes, user.name.clone()))
    }
}

/// What goes along with a request to another agent.
#[derive(Clone, Debug)]
pub enum Voucher {
    /// Anyone may have what is asked for.
    NotNeeded,
    /// These headers.
    Headers(HeaderMap),
    /// This agent cannot prove who it is: the other would refuse.
    Impossible,
}
