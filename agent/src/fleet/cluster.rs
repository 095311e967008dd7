//! A cluster's GitMirrors and the Secrets they name, watched: the twin of [`super::manifests`].
//!
//! *Invariant:* what runs goes on while the API server is away; only what it says takes anything away. A process that
//! starts meanwhile follows what the one before it followed.

pub mod board;
pub mod cleanup;
pub mod endpoints;
mod objects;
mod requests;
mod secrets;
mod watching;

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api, Client, Config,
    api::DynamicObject,
    core::ApiResource,
    runtime::watcher::{self, watcher},
};
use tarn_crds::v1alpha1::GitMirror;
use tokio::time::{Instant, sleep_until};

use super::{
    Fleet, Known,
    declarations::{Age, Content, Declarations, Rules, Source},
    last_known::LastKnown,
};
use crate::{metrics::Metrics, never::or_never};
use board::Board;
pub(crate) use objects::own_entry;
use objects::{Edit, Objects};
use requests::Requests;
use secrets::{Secrets, Told};
use watching::watched;

/// How long to wait for more changes before they are applied: `kubectl apply` sends several at a time.
const SETTLE: Duration = Duration::from_millis(50);

/// How long a new process waits for the API server's list before it follows what an earlier one knew; not so long where
/// the API server is known to be away.
const ALONE: Duration = Duration::from_secs(2);

/// How long to wait for a connection: an API server that does not take one within this is away.
const CONNECT: Duration = Duration::from_secs(5);

/// Why the API server cannot be spoken to, ever.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The file that `KUBECONFIG` names.
    #[error("the file that KUBECONFIG names cannot be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The pod's service account.
    #[error("the pod's service account cannot be used: {0}; outside a cluster, name a file with KUBECONFIG")]
    ServiceAccount(#[from] kube::config::InClusterError),
    /// Certificates or credentials.
    #[error("the API server cannot be spoken to: {0}")]
    Client(#[from] kube::Error),
}

/// A client of the API server that `KUBECONFIG` names or, without that, of the pod's own. Nothing is asked yet, so
/// the API server may be away.
///
/// # Errors
/// What says where the API server is, or how to prove oneself to it, is missing or wrong.
pub async fn connect() -> Result<Client, ClusterError> {
    let mut config = match std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
        Some(_) => Config::from_kubeconfig(&kube::config::KubeConfigOptions::default()).await?,
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT);
    Ok(Client::try_from(config)?)
}

/// Which GitMirrors are meant, and where to find them.
#[derive(Clone)]
pub struct Scope {
    /// The API server.
    pub client: Client,
    /// The pod's namespace.
    pub namespace: String,
    /// The GitCache.
    pub cache: String,
    /// The pod's name.
    pub pod: String,
    /// How the cache's pods are reached: `http` or `https`.
    pub scheme: &'static str,
}

impl Scope {
    /// The namespace's GitMirrors, as they come: an object that does not fit the types disturbs no other.
    pub fn mirrors(&self) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<GitMirror>(&());
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }
}

/// Keeps the fleet what the cluster says.
pub struct Cluster {
    scope: Scope,
    metrics: Metrics,
    objects: Objects,
    secrets: Secrets,
    requests: Requests,
    board: Board,
    declarations: Declarations,
    last_known: LastKnown,
    /// The API server does not answer, and has not since the start.
    alone: bool,
}

impl Cluster {
    /// Knows what an earlier process knew, and asks nothing.
    pub fn new(scope: Scope, rules: Rules, last_known: LastKnown, metrics: Metrics) -> Self {
        let board = Board::default();
        let mut declarations = Declarations::new(Vec::new(), rules);
        declarations.resume(last_known.load());
        Self {
            objects: Objects::new(&scope.pod, board.clone(), declarations.ages()),
            secrets: Secrets::new(&scope, metrics.clone()),
            requests: Requests::default(),
            scope,
            metrics,
            board,
            declarations,
            last_known,
            alone: false,
        }
    }

    /// What the API server shows of the GitMirrors.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// What keeps the declarations for the next process; never ends.
    pub fn keeping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.last_known.writing()
    }

    /// Applies every change, for ever.
    pub async fn follow(mut self, fleet: Arc<Fleet>) {
        let config = watcher::Config::default().fields(&format!("spec.cacheRef.name={}", self.scope.cache));
        let mut mirrors = pin!(watched(watcher(self.scope.mirrors(), config)));
        let mut due = None;
        let mut patience = Some(Instant::now() + ALONE);
        loop {
            let changed = tokio::select! {
                Some(event) = mirrors.next() => self.mirror_event(event),
                Some(told) = self.secrets.next() => self.secret_told(told),
                Some(done) = self.requests.next() => {
                    self.board.handled(&done.name, done.value);
                    false
                }
                () = or_never(patience.map(sleep_until)) => {
                    patience = None;
                    self.be_alone()
                }
                () = or_never(due.map(sleep_until)) => {
                    due = None;
                    self.apply(&fleet).await;
                    false
                }
            };
            if changed {
                // One application for a burst of changes, but not none for a stream of them.
                due.get_or_insert_with(|| Instant::now() + SETTLE);
            }
            self.requests.start(&self.board, &fleet);
        }
    }

    /// Takes an event in; says whether it changes what is declared.
    fn mirror_event(&mut self, event: Result<watcher::Event<DynamicObject>, watcher::Error>) -> bool {
        match event {
            Ok(event) => {
                let first = !self.objects.listed();
                let edits = self.objects.take(event);
                // The first list is a change even if it is empty: from now on it is known that it is.
                let first = first && self.objects.listed();
                if first {
                    self.metrics.cluster.synced.set(1);
                    tracing::info!(cache = self.scope.cache, "the cluster's GitMirrors are known");
                }
                let changed = first || !edits.is_empty();
                for edit in edits {
                    match edit {
                        Edit::Set(age, source) => self.declarations.set(age, source),
                        Edit::Remove(age) => self.declarations.remove(&age),
                    }
                }
                changed
            }
            Err(error) => {
                self.metrics.cluster.watch_errors.inc();
                let reason = watching::reason(&error);
                tracing::warn!(reason, "GitMirrors cannot be watched; what runs goes on, trying again");
                self.be_alone()
            }
        }
    }

    /// Takes in that the API server does not answer; says whether that changes what is declared.
    fn be_alone(&mut self) -> bool {
        let alone = !self.objects.listed() && !std::mem::replace(&mut self.alone, true);
        if alone {
            self.declarations.be_alone();
        }
        alone
    }

    /// Takes news of a Secret in; says whether they may change anything.
    fn secret_told(&mut self, told: Told) -> bool {
        let Told { name, content } = told;
        // Nobody may name it any more.
        let named = self.secrets.watches(&name);
        if named {
            self.secret(&name, content);
        }
        named
    }

    fn secret(&mut self, name: &str, content: Option<Content>) {
        let file = format!("Secret/{name}");
        let age: Age = (None, file.clone());
        match content {
            Some(content) => self.declarations.set(age, Source { file, content }),
            None => self.declarations.remove(&age),
        }
    }

    async fn apply(&mut self, fleet: &Fleet) {
        let known = match (self.objects.listed(), self.alone) {
            (true, _) => Known::All,
            (false, true) => Known::Earlier,
            (false, false) => return,
        };
        for (name, named) in self.declarations.take_named() {
            match (named, self.secrets.watches(&name)) {
                (true, false) => {
                    self.secret(&name, Some(Content::Awaited));
                    self.secrets.watch(name);
                }
                (false, true) => {
                    self.secrets.forget(&name);
                    self.secret(&name, None);
                }
                _ => {}
            }
        }
        let delta = self.declarations.delta(std::time::Instant::now());
        if known == Known::All
            && let Some(followed) = self.declarations.take_followed()
        {
            self.last_known.note(followed);
        }
        if delta.changes.is_empty() && delta.refused.is_none() && fleet.known() >= known {
            return;
        }
        if known == Known::Earlier && fleet.known() < known {
            let mirrors = delta.changes.len();
            tracing::warn!(
                mirrors,
                "the API server does not answer: following what it said before the restart"
            );
        }
        fleet.apply(delta, known).await;
    }
}
