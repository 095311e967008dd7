//! The Secrets that GitMirrors name: one watch for each, and for no other.
//!
//! Rights on Secrets are given by name, which the API server matches with a field selector on the name only.

use std::collections::{BTreeMap, BTreeSet};

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
    super::desired::{Content, Source},
    Scope,
    watching::{self, watched},
};
use crate::metrics::Metrics;

/// What is known of a Secret.
#[derive(Clone, Debug, PartialEq)]
enum State {
    /// The API server has not answered yet.
    Awaited,
    /// There is none.
    Absent,
    /// What of it matters.
    Present(Box<Secret>),
    /// It could never be read, and why.
    Unreadable(&'static str),
}

/// News of one Secret.
#[derive(Debug)]
pub(super) struct Told {
    name: String,
    state: State,
}

/// All Secrets that are named.
pub(super) struct Secrets {
    scope: Scope,
    metrics: Metrics,
    watched: BTreeMap<String, (State, AbortOnDropHandle<()>)>,
    told: mpsc::Sender<Told>,
    news: mpsc::Receiver<Told>,
}

impl Secrets {
    pub(super) fn new(scope: &Scope, metrics: Metrics) -> Self {
        // Watches wait while this is full: they hold their place in the stream of changes.
        let (told, news) = mpsc::channel(16);
        Self { scope: scope.clone(), metrics, watched: BTreeMap::new(), told, news }
    }

    /// Watches these Secrets, and no longer any other.
    pub(super) fn watch(&mut self, names: &BTreeSet<&str>) {
        self.watched.retain(|name, _| names.contains(name.as_str()));
        for name in names {
            if !self.watched.contains_key(*name) {
                let task =
                    follow(self.scope.clone(), (*name).to_owned(), self.told.clone(), self.metrics.clone());
                let task = AbortOnDropHandle::new(tokio::spawn(task));
                self.watched.insert((*name).to_owned(), (State::Awaited, task));
            }
        }
    }

    /// The next news. A dropped future loses none.
    pub(super) async fn next(&mut self) -> Option<Told> {
        self.news.recv().await
    }

    /// Takes news in; says whether they change anything.
    pub(super) fn take(&mut self, told: Told) -> bool {
        match self.watched.get_mut(&told.name) {
            // Nobody names it any more.
            None => false,
            Some((state, _)) if *state == told.state => false,
            Some((state, _)) => {
                *state = told.state;
                true
            }
        }
    }

    /// Whether it is not known yet if there is such a Secret.
    pub(super) fn is_awaited(&self, name: &str) -> bool {
        matches!(self.watched.get(name), None | Some((State::Awaited, _)))
    }

    /// The Secrets as declarations.
    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.watched.iter().filter_map(|(name, (state, _))| {
            let content = match state {
                State::Awaited | State::Absent => return None,
                State::Present(secret) => Content::Object(Box::new(Manifest::Secret(secret.clone()))),
                State::Unreadable(reason) => Content::Unreadable(format!("cannot be read: {reason}")),
            };
            Some(Source { file: format!("Secret/{name}"), content })
        })
    }
}

async fn follow(scope: Scope, name: String, told: mpsc::Sender<Told>, metrics: Metrics) {
    let api: Api<Secret> = Api::namespaced(scope.client, &scope.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watched(watcher(api, config)));
    let (mut listed, mut coming) = (false, None);
    while let Some(event) = events.next().await {
        let state = match event {
            Ok(Event::Init) => {
                coming = None;
                continue;
            }
            Ok(Event::InitApply(secret)) => {
                coming = Some(secret);
                continue;
            }
            Ok(Event::InitDone) => {
                coming.take().map_or(State::Absent, |secret| State::Present(Box::new(part(secret))))
            }
            Ok(Event::Apply(secret)) => State::Present(Box::new(part(secret))),
            Ok(Event::Delete(_)) => State::Absent,
            Err(error) => {
                metrics.watch_errors.inc();
                let reason = watching::reason(&error);
                tracing::warn!(secret = name, reason, "a Secret cannot be watched; trying again");
                // What was read once stays in use.
                if listed {
                    continue;
                }
                State::Unreadable(reason)
            }
        };
        listed |= !matches!(state, State::Unreadable(_));
        if told.send(Told { name: name.clone(), state }).await.is_err() {
            return;
        }
    }
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
