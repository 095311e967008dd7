//! The Secrets that GitMirrors name: one watch for each, and for no other.
//!
//! Rights on Secrets are given by name, which the API server matches with a field selector on the name only.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    runtime::watcher::{self, Event, watcher},
};
use tarn_crds::{CREDENTIALS_LABEL, HOSTS_ANNOTATION, manifest::Manifest};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::declarations::Content,
    Scope,
    watching::{self, watched},
};
use crate::metrics::Metrics;

/// News of one Secret: what it holds as far as that matters, or that there is none.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) name: String,
    pub(super) content: Option<Content>,
}

/// All Secrets that are named.
pub(super) struct Secrets {
    scope: Scope,
    metrics: Metrics,
    watched: BTreeMap<String, AbortOnDropHandle<()>>,
    told: mpsc::Sender<Told>,
    news: mpsc::Receiver<Told>,
}

impl Secrets {
    pub(super) fn new(scope: &Scope, metrics: Metrics) -> Self {
        // Watches wait while this is full: they hold their place in the stream of changes.
        let (told, news) = mpsc::channel(16);
        Self { scope: scope.clone(), metrics, watched: BTreeMap::new(), told, news }
    }

    /// Watches a Secret from now on.
    pub(super) fn watch(&mut self, name: String) {
        let task = follow(self.scope.clone(), name.clone(), self.told.clone(), self.metrics.clone());
        self.watched.insert(name, AbortOnDropHandle::new(tokio::spawn(task)));
    }

    /// Watches a Secret no longer.
    pub(super) fn forget(&mut self, name: &str) {
        self.watched.remove(name);
    }

    /// Whether a Secret is watched.
    pub(super) fn watches(&self, name: &str) -> bool {
        self.watched.contains_key(name)
    }

    /// The next news. A dropped future loses none.
    pub(super) async fn next(&mut self) -> Option<Told> {
        self.news.recv().await
    }
}

async fn follow(scope: Scope, name: String, told: mpsc::Sender<Told>, metrics: Metrics) {
    let api: Api<Secret> = Api::namespaced(scope.client, &scope.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watched(watcher(api, config)));
    let (mut listed, mut coming) = (false, None);
    while let Some(event) = events.next().await {
        let content = match event {
            Ok(Event::Init) => {
                coming = None;
                continue;
            }
            Ok(Event::InitApply(secret)) => {
                coming = Some(secret);
                continue;
            }
            Ok(Event::InitDone) => {
                listed = true;
                coming.take().map(present)
            }
            Ok(Event::Apply(secret)) => Some(present(secret)),
            Ok(Event::Delete(_)) => None,
            Err(error) => {
                metrics.cluster.watch_errors.inc();
                let reason = watching::reason(&error);
                tracing::warn!(secret = name, reason, "a Secret cannot be watched; trying again");
                // What was read once stays in use.
                if listed {
                    continue;
                }
                Some(Content::Unreadable(format!("cannot be read: {reason}")))
            }
        };
        if told.send(Told { name: name.clone(), content }).await.is_err() {
            return;
        }
    }
}

fn present(secret: Secret) -> Content {
    Content::Object(Box::new(Manifest::Secret(Box::new(part(secret)))))
}

/// What matters of a Secret: others' annotations may change, and may repeat its data.
fn part(secret: Secret) -> Secret {
    let Secret { metadata, data, .. } = secret;
    let keep = |pairs: Option<BTreeMap<String, String>>, key: &str| {
        pairs.and_then(|mut pairs| pairs.remove_entry(key)).map(|pair| BTreeMap::from([pair]))
    };
    let metadata = ObjectMeta {
        name: metadata.name,
        labels: keep(metadata.labels, CREDENTIALS_LABEL),
        annotations: keep(metadata.annotations, HOSTS_ANNOTATION),
        ..ObjectMeta::default()
    };
    Secret { metadata, data, ..Secret::default() }
}
