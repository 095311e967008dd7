//! Tells the API server what this pod holds of each GitMirror: the pod's own entry of `status.replicas[]`, and a
//! Lease that says that the pod lives.
//!
//! [`plan`] decides what is written when, [`entry`] what an entry says; this file carries it out. Serving never waits
//! for any of it.

mod entry;
pub mod lease;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use tarn_crds::{repo::RepoId, v1alpha1::Replica};
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    config::Pod,
    fleet::{
        Fleet,
        cluster::{Scope, board::Board, own_entry},
        declarations::{Refused, Rejected, Stalled},
    },
    metrics::{ApiOutcome, Metrics},
    mirror::Changes,
};
use plan::{Fault, Known, Next, Plan};

/// Between two times that changes are taken in: what moved is to be seen within two seconds, and what moves all the
/// time need not be looked at each time.
const LOOK_OVER: Duration = Duration::from_millis(500);

/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes the pod's entries. What does not change costs nothing: mirrors, the fleet and the board say what does.
pub struct Reporter {
    mirrors: Api<DynamicObject>,
    pod: Pod,
    fleet: Arc<Fleet>,
    board: Board,
    metrics: Metrics,
    plan: Plan,
    declared: Declared,
    following: FuturesUnordered<BoxFuture<'static, (RepoId, Option<Changes>)>>,
    /// GitMirrors to look at.
    dirty: BTreeSet<String>,
    /// Whether the fleet has changed.
    anew: bool,
}

/// The fleet as it was when it last changed.
#[derive(Default)]
struct Declared {
    names: BTreeMap<RepoId, String>,
    refused: Arc<Refused>,
    stalled: BTreeMap<String, Stalled>,
    rejected: BTreeMap<String, Rejected>,
    followed: BTreeSet<RepoId>,
}

/// The field manager of a pod: with a shared one, each pod's apply would delete the others' entries.
pub(crate) fn manager(pod: &str) -> String {
    format!("tarn-agent.{pod}")
}

impl Reporter {
    /// Has told nothing yet.
    pub fn new(scope: &Scope, pod: Pod, fleet: Arc<Fleet>, board: Board, metrics: Metrics) -> Self {
        Self {
            mirrors: scope.mirrors(),
            pod,
            fleet,
            board,
            metrics,
            plan: Plan::default(),
            declared: Declared::default(),
            following: FuturesUnordered::new(),
            dirty: BTreeSet::new(),
            anew: true,
        }
    }

    /// Reports, for ever.
    pub async fn run(mut self) {
        let mut look = Instant::now();
        loop {
            let now = Instant::now();
            if self.has_news() && now >= look {
                self.take_in(now);
                look = now + LOOK_OVER;
            }
            match self.plan.next(now) {
                Next::Write(name, entry) => self.write(name, *entry).await,
                Next::Wait(until) => self.rest(until, look).await,
            }
        }
    }

    fn has_news(&self) -> bool {
        self.anew || !self.dirty.is_empty()
    }

    /// Waits for the next write that is due, or for news, which are taken in at `look` at the earliest.
    async fn rest(&mut self, until: Option<Instant>, look: Instant) {
        loop {
            let wake = until.into_iter().chain(self.has_news().then_some(look)).min();
            let timer = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = timer => return,
                Some((id, changes)) = self.following.next() => self.followed(id, changes),
                () = self.board.changed() => self.dirty.extend(self.board.take_changed()),
                () = self.fleet.changed() => self.anew = true,
            }
        }
    }

    /// A mirror has changed, or has gone.
    fn followed(&mut self, id: RepoId, changes: Option<Changes>) {
        match changes {
            Some(changes) => {
                self.dirty.extend(self.declared.names.get(&id).cloned());
                self.follow(id, changes);
            }
            // Another one may have its place already, which is not followed yet.
            None if self.declared.followed.remove(&id) => {
                if let Some(mirror) = self.fleet.get(&id) {
                    self.declared.followed.insert(id.clone());
                    self.follow(id, mirror.changes());
                }
            }
            None => {}
        }
    }

    fn follow(&self, id: RepoId, mut changes: Changes) {
        let next = async move {
            let lives = changes.next().await;
            (id, lives.then_some(changes))
        };
        self.following.push(next.boxed());
    }

    /// Compares what has changed with what the API server was told of it.
    fn take_in(&mut self, now: Instant) {
        self.dirty.extend(self.board.take_changed());
        if std::mem::take(&mut self.anew) {
            self.read_fleet();
        }
        for name in std::mem::take(&mut self.dirty) {
            self.look_at(&name, now);
        }
        self.metrics.report.waiting.set(i64::try_from(self.plan.waiting()).unwrap_or(i64::MAX));
    }

    /// Takes in which mirrors have come, changed or gone, and what is refused.
    fn read_fleet(&mut self) {
        for id in self.fleet.take_changed() {
            self.dirty.extend(self.declared.names.remove(&id));
            let Some(mirror) = self.fleet.get(&id) else { continue };
            let name = mirror.settings().name.clone();
            self.dirty.insert(name.clone());
            self.declared.names.insert(id.clone(), name);
            if self.declared.followed.insert(id.clone()) {
                self.follow(id, mirror.changes());
            }
        }
        let refused = self.fleet.refused();
        if Arc::ptr_eq(&refused, &self.declared.refused) {
            return;
        }
        let named = |rejected: &Rejected| {
            Some((rejected.file.strip_prefix("GitMirror/")?.to_owned(), rejected.clone()))
        };
        let (stalled, rejected) = (refused.stalled.iter(), refused.rejected.iter());
        let declared = &mut self.declared;
        let former = (
            std::mem::replace(
                &mut declared.stalled,
                stalled.map(|stalled| (stalled.name.clone(), stalled.clone())).collect(),
            ),
            std::mem::replace(&mut declared.rejected, rejected.filter_map(named).collect()),
        );
        let now = declared.stalled.keys().chain(declared.rejected.keys()).cloned();
        self.dirty.extend(former.0.into_keys().chain(former.1.into_keys()).chain(now));
        declared.refused = refused;
    }

    fn look_at(&mut self, name: &str, now: Instant) {
        if let Some(shown) = self.board.read(|all| all.get(name).cloned()) {
            // Not applied yet where there is none: the fleet will say so.
            let Some((mut entry, interval)) = self.entry(name) else { return };
            entry.last_handled_requested_at.clone_from(&shown.handled);
            let known = Known { entry: shown.entry.as_ref(), version: shown.version };
            self.plan.update(name, entry, interval, known, now);
        } else if let Some(leaving) = self.board.leaving(name).filter(|leaving| leaving.removed) {
            let known = Known { entry: leaving.shown.entry.as_ref(), version: leaving.shown.version };
            self.plan.update(name, entry::removed(&self.pod), Duration::ZERO, known, now);
        } else {
            self.plan.forget(name);
        }
    }

    /// What is true of a GitMirror on this pod, and how often times alone are told of it.
    fn entry(&self, name: &str) -> Option<(Replica, Duration)> {
        let running = self.fleet.named(name).map(|mirror| {
            let settings = mirror.settings();
            (entry::running(&self.pod, &mirror, &settings), settings.interval)
        });
        let found = match self.declared.stalled.get(name) {
            Some(Stalled { reason, message, .. }) => {
                let (entry, interval) = running.unwrap_or_else(|| (entry::empty(&self.pod), Duration::ZERO));
                Some((entry::stalled(entry, *reason, message.clone()), interval))
            }
            None => running,
        };
        let Some(rejected) = self.declared.rejected.get(name) else { return found };
        let (entry, interval) = found.unwrap_or((entry::empty(&self.pod), Duration::ZERO));
        Some((entry::rejected(entry, rejected), interval))
    }

    async fn write(&mut self, name: String, entry: Replica) {
        let body = json!({
            "apiVersion": "tarn.dev/v1alpha1",
            "kind": "GitMirror",
            "metadata": {"name": name},
            "status": {"replicas": [entry]},
        });
        // By force: what the entry says is for this pod alone to say.
        let params = PatchParams::apply(&manager(&self.pod.name)).force();
        let written =
            timeout(PATIENCE, self.mirrors.patch_status(&name, &params, &Patch::Apply(&body))).await;
        let now = Instant::now();
        let outcome = match written {
            Ok(Ok(object)) => {
                let version = object.metadata.resource_version.and_then(|version| version.parse().ok());
                let echo = own_entry(&self.pod.name, &object.data);
                self.plan.wrote(&name, entry, echo, version.unwrap_or(0), now);
                tracing::debug!(name, "status written");
                "ok"
            }
            failed => {
                let error = failed.ok().and_then(Result::err);
                let (fault, outcome) = error.as_ref().map_or((Fault::Server, "unreachable"), outcome);
                let failures = self.plan.failed(&name, fault, now, rand::random());
                // Once at its beginning; later ones are counted.
                if failures == 1 {
                    tracing::warn!(name, outcome, "status cannot be written; trying again");
                } else {
                    tracing::debug!(name, outcome, failures, "status cannot be written");
                }
                outcome
            }
        };
        self.metrics.report.writes.get_or_create(&ApiOutcome { outcome }).inc();
    }
}

/// Whose fault a failure is, and its name.
pub(crate) fn outcome(error: &kube::Error) -> (Fault, &'static str) {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => (Fault::Object, "gone"),
            409 => (Fault::Object, "conflict"),
            400 | 422 => (Fault::Object, "invalid"),
            // Rights are given for all objects at once, perhaps a moment after the pod has started.
            401 | 403 => (Fault::Server, "denied"),
            _ => (Fault::Server, "refused"),
        },
        _ => (Fault::Server, "unreachable"),
    }
}
