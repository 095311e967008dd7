//! Authenticates the agents of one cache to each other. In a cluster, an agent shows a token of the cache's service account
//! for the audience [`AUDIENCE`], and the receiver has the API server review the token. Elsewhere, all agents share a secret.
//!
//! An agent that forwards a request names the caller, and the access by which it admitted the caller. The receiver checks
//! both: the sender must be an agent of its own cache, and the mirror must have the same access here. Two agents that know
//! different declarations refuse each other. An agent without a token of its own sends no such request, and accepts none.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use prometheus_client::metrics::gauge::Gauge;
use tarn_crds::v1alpha1::Access;

use super::{
    Refusal,
    answers::Hashes,
    caller::Caller,
    credential::{Claims, Credential},
    reviews::Reviews,
};
use crate::{files, upstream::Secret};

/// The audience of the tokens by which agents prove themselves to each other; for nothing else.
pub const AUDIENCE: &str = tarn_crds::PEER_AUDIENCE;

/// The header with the caller for whom an agent asks, and the access by which the agent admitted the caller.
pub const CALLER: HeaderName = HeaderName::from_static("tarn-caller");

/// The longest token.
const MAX_FILE: u64 = 16 << 10;

/// The shortest shared secret: what is shorter can be guessed.
const MIN_SECRET: usize = 16;

/// Why the token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What it holds.
    #[error("{} {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong, without the token.
        problem: &'static str,
    },
}

/// Authenticates agents of the cache.
pub struct Peers {
    own: Arc<OwnToken>,
    reviews: Option<Reviews>,
}

/// This agent's own token, as the file has it now.
pub struct OwnToken {
    path: PathBuf,
    judge: Judge,
    now: RwLock<Option<Arc<Own>>>,
    /// Shows whether there is one.
    count: Gauge,
}

/// The judge of other agents' tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// The API server reviews each token.
    Cluster,
    /// Each agent compares a token with its own.
    Shared,
}

struct Own {
    token: Secret,
    header: HeaderValue,
    /// The service account; empty where agents share a secret.
    subject: String,
}

impl OwnToken {
    /// Reads the token. `count` shows from now on whether there is one.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn open(path: &Path, judge: Judge, count: Gauge) -> Result<Arc<Self>, PeersError> {
        let read = files::read_bounded(path, MAX_FILE);
        let text = read.map_err(|source| PeersError::Read { path: path.to_owned(), source })?;
        let content = |problem| PeersError::Content { path: path.to_owned(), problem };
        let own = parse(&text, judge).map_err(content)?;
        let token = Self { path: path.to_owned(), judge, now: RwLock::default(), count };
        token.take(Some(Arc::new(own)));
        Ok(Arc::new(token))
    }

    /// Reads the file again whenever it changes, for ever: the kubelet renews it before it expires. A file that is gone or
    /// holds no token is no token.
    pub async fn follow(self: Arc<Self>) {
        let path = self.path.clone();
        files::follow(&path, MAX_FILE, |found| {
            let problem = match found.map(|text| parse(text, self.judge)) {
                Ok(Ok(own)) => return self.take(Some(Arc::new(own))),
                Ok(Err(problem)) => problem.to_owned(),
                Err(error) => format!("cannot be read: {error}"),
            };
            self.take(None);
            tracing::warn!(path = %self.path.display(), problem, "there is no token for peers");
        })
        .await;
    }

    fn take(&self, own: Option<Arc<Own>>) {
        self.count.set(i64::from(own.is_some()));
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = own;
    }

    fn now(&self) -> Option<Arc<Own>> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn parse(text: &[u8], judge: Judge) -> Result<Own, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "holds no text")?.trim();
    let mut header =
        HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| "holds more than a token")?;
    header.set_sensitive(true);
    let subject = match judge {
        Judge::Shared if text.len() < MIN_SECRET => {
            return Err("is shorter than 16 characters, and could be guessed");
        }
        Judge::Shared => String::new(),
        Judge::Cluster => {
            let claims = Claims::read(text).filter(Claims::is_service_account);
            claims.ok_or("holds no token of a service account")?.subject
        }
    };
    Ok(Own { token: Secret::new(text), header, subject })
}

impl Peers {
    /// Shows `own` to other agents, and checks theirs with `reviews`, or by comparison.
    pub fn new(own: Arc<OwnToken>, reviews: Option<&Reviews>) -> Self {
        Self { own, reviews: reviews.map(|reviews| reviews.for_audience(AUDIENCE)) }
    }

    /// Whether `text` is the secret that the agents share.
    pub(super) fn is_shared_secret(&self, hashes: &Hashes, text: &str) -> bool {
        // Hashes are compared in constant time.
        let of = |secret: &str| hashes.key("peer", &[secret.as_bytes()]);
        let own = self.own.now();
        own.is_some_and(|own| self.own.judge == Judge::Shared && of(text) == of(own.token.expose()))
    }

    /// The headers that name this agent and the caller to another agent.
    pub(super) fn vouch(&self, access: Access, caller: &Caller) -> Option<HeaderMap> {
        let told = HeaderValue::from_str(&format!("{} {}", access.as_str(), caller.encode())).ok()?;
        let own = self.own.now()?;
        Some(HeaderMap::from_iter([(header::AUTHORIZATION, own.header.clone()), (CALLER, told)]))
    }

    /// The caller for whom another agent asks.
    pub(super) async fn admit(
        &self,
        hashes: &Hashes,
        access: Access,
        headers: &HeaderMap,
    ) -> Result<Caller, Refusal> {
        let stranger = || Refusal::Denied("only agents of this cache may hand requests on".into());
        let credential = Credential::of(headers)?;
        let token = credential.token().ok_or_else(stranger)?;
        let own = self.own.now().ok_or_else(stranger)?;
        match (&self.reviews, self.own.judge) {
            (Some(reviews), Judge::Cluster) => {
                let user = reviews.user(hashes, token).await.map_err(|refusal| match refusal {
                    Refusal::Unauthenticated(_) => stranger(),
                    other => other,
                })?;
                if user.name != own.subject {
                    return Err(stranger());
                }
            }
            (_, Judge::Shared) => {
                if !self.is_shared_secret(hashes, token.expose()) {
                    return Err(stranger());
                }
            }
            (None, Judge::Cluster) => return Err(stranger()),
        }
        let told = headers.get(CALLER).and_then(|value| value.to_str().ok());
        let (by, caller) = told.and_then(|told| told.split_once(' ')).ok_or_else(stranger)?;
        if by != access.as_str() {
            let text = "the agent that hands this on knows another access of the mirror; it will learn of the change";
            return Err(Refusal::Denied(text.into()));
        }
        Caller::decode(caller).ok_or_else(stranger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::caller::Kind;

    fn peers(token: &str) -> Peers {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, token).unwrap();
        Peers::new(OwnToken::open(&path, Judge::Shared, Gauge::default()).unwrap(), None)
    }

    #[tokio::test]
    async fn an_agent_is_believed_by_those_with_its_secret_and_its_declaration() {
        let (hashes, caller) = (Hashes::new(), Caller::new(Kind::Upstream, "credential-1"));
        let (here, there) = (peers("0123456789abcdef\n"), peers("0123456789abcdef"));
        let headers = here.vouch(Access::Upstream, &caller).unwrap();
        assert_eq!(there.admit(&hashes, Access::Upstream, &headers).await, Ok(caller));
        for (receiver, access) in
            [(&there, Access::Authenticated), (&peers("another-0123456789"), Access::Upstream)]
        {
            assert!(matches!(receiver.admit(&hashes, access, &headers).await, Err(Refusal::Denied(_))));
        }
        for without in [header::AUTHORIZATION, CALLER] {
            let mut headers = headers.clone();
            headers.remove(without);
            assert!(there.admit(&hashes, Access::Upstream, &headers).await.is_err());
        }
    }

    #[test]
    fn a_token_that_is_none_is_refused_without_being_shown() {
        for (text, judge) in [
            ("canary", Judge::Shared),
            ("canary-canary-canary\ncanary", Judge::Shared),
            ("canary-canary-canary", Judge::Cluster),
        ] {
            let problem = parse(text.as_bytes(), judge).map(drop).unwrap_err();
            assert!(!problem.contains("canary"), "{problem}");
        }
    }
}
