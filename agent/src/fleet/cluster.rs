//! A cluster's GitMirrors and the Secrets they name, watched: the twin of [`super::manifests`].
//!
//! *Invariant:* what runs goes on while the API server is away; only what it says takes anything away.

pub mod board;
pub mod cleanup;
pub mod endpoints;
mod objects;
mod requests;
mod secrets;
mod watching;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

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
    Fleet,
    desired::{Content, Rules, Source, desired},
};
use crate::{metrics::Metrics, mirror::Settings};
use board::Board;
pub(crate) use objects::own_entry;
use objects::{Change, Objects};
use requests::Requests;
use secrets::Secrets;
use watching::watched;

/// How long to wait for more changes before they are applied: `kubectl apply` sends several at a time.
const SETTLE: Duration = Duration::from_millis(50);

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
    rules: Rules,
    metrics: Metrics,
    mirrors: Objects,
    secrets: Secrets,
    requests: Requests,
    board: Board,
    applied: Option<Vec<Source>>,
    previous: BTreeMap<String, Vec<Settings>>,
}

impl Cluster {
    /// Knows nothing yet, and asks nothing.
    pub fn new(scope: Scope, rules: Rules, metrics: Metrics) -> Self {
        let board = Board::default();
        Self {
            mirrors: Objects::new(&scope.pod, board.clone()),
            secrets: Secrets::new(&scope, metrics.clone()),
            requests: Requests::default(),
            scope,
            rules,
            metrics,
            board,
            applied: None,
            previous: BTreeMap::new(),
        }
    }

    /// What the API server shows of the GitMirrors.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Applies every change, for ever.
    pub async fn follow(mut self, fleet: Arc<Fleet>) {
        let config = watcher::Config::default().fields(&format!("spec.cacheRef.name={}", self.scope.cache));
        let mut mirrors = pin!(watched(watcher(self.scope.mirrors(), config)));
        let mut due: Option<Instant> = None;
        loop {
            let settled = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                Some(event) = mirrors.next() => self.mirror_event(event),
                Some(told) = self.secrets.next() => self.secrets.take(told),
                Some(done) = self.requests.next() => {
                    self.board.handled(&done.name, done.value);
                    false
                }
                () = settled => {
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
                let change = self.mirrors.take(event);
                if self.mirrors.listed() && self.metrics.synced.set(1) == 0 {
                    tracing::info!(cache = self.scope.cache, "the cluster's GitMirrors are known");
                }
                change == Change::Declared
            }
            Err(error) => {
                self.metrics.watch_errors.inc();
                let reason = watching::reason(&error);
                tracing::warn!(reason, "GitMirrors cannot be watched; what runs goes on, trying again");
                false
            }
        }
    }

    async fn apply(&mut self, fleet: &Fleet) {
        if !self.mirrors.listed() {
            return;
        }
        let named: BTreeSet<&str> = self.mirrors.declared().filter_map(objects::secret_of).collect();
        self.secrets.watch(&named);
        let mut sources: Vec<Source> = self.mirrors.declared().cloned().collect();
        for source in &mut sources {
            if objects::secret_of(source).is_some_and(|secret| self.secrets.is_awaited(secret)) {
                source.content = Content::Pending;
            }
        }
        sources.extend(self.secrets.sources());
        if self.applied.as_ref() != Some(&sources) {
            fleet.apply(desired(&[], &sources, &mut self.previous, self.rules)).await;
            self.applied = Some(sources);
        }
    }
}
