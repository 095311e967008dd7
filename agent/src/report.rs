//! Tells the API server what this pod holds of each GitMirror: the pod's own entry of `status.replicas[]`, and a
//! Lease that says that the pod lives.
//!
//! [`plan`] decides what is written when, [`entry`] what an entry says; this file carries it out. Serving never waits
//! for any of it.

mod entry;
pub mod lease;
mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use tarn_crds::v1alpha1::Replica;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    config::Pod,
    fleet::{
        Fleet,
        cluster::{Scope, board::Board, own_entry},
    },
    metrics::{ApiOutcome, Metrics},
};
use plan::{Fault, Known, Next, Plan};

/// How often the mirrors are looked over for changes: what moved is to be seen within two seconds.
const LOOK_OVER: Duration = Duration::from_millis(500);

/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes the pod's entries.
pub struct Reporter {
    mirrors: Api<DynamicObject>,
    pod: Pod,
    fleet: Arc<Fleet>,
    board: Board,
    metrics: Metrics,
    plan: Plan,
}

/// The field manager of a pod: with a shared one, each pod's apply would delete the others' entries.
pub(crate) fn manager(pod: &str) -> String {
    format!("tarn-agent.{pod}")
}

impl Reporter {
    /// Has told nothing yet.
    pub fn new(scope: &Scope, pod: Pod, fleet: Arc<Fleet>, board: Board, metrics: Metrics) -> Self {
        Self { mirrors: scope.mirrors(), pod, fleet, board, metrics, plan: Plan::default() }
    }

    /// Reports, for ever.
    pub async fn run(mut self) {
        let mut looked_over = None;
        loop {
            let now = Instant::now();
            if looked_over.is_none_or(|at| now.duration_since(at) >= LOOK_OVER) {
                self.look_over(now);
                looked_over = Some(now);
            }
            match self.plan.next(now) {
                Next::Write(name, entry) => self.write(name, *entry).await,
                Next::Wait(until) => {
                    let left = until.map_or(LOOK_OVER, |until| until.duration_since(now));
                    sleep(left.min(LOOK_OVER)).await;
                }
            }
        }
    }

    /// Compares every mirror with what the API server was told of it.
    fn look_over(&mut self, now: Instant) {
        let refused = self.fleet.refused();
        let mut entries: BTreeMap<String, (Replica, Duration)> = BTreeMap::new();
        for mirror in self.fleet.mirrors() {
            let settings = mirror.settings();
            let entry = entry::running(&self.pod, &mirror, &settings);
            entries.insert(settings.name.clone(), (entry, settings.interval));
        }
        for stalled in &refused.stalled {
            let entry = entry::stalled(&self.pod, stalled.reason, &stalled.message);
            entries.insert(stalled.name.clone(), (entry, Duration::ZERO));
        }
        for rejected in &refused.rejected {
            if let Some(name) = rejected.file.strip_prefix("GitMirror/") {
                let running = entries.remove(name);
                let (entry, interval) = running.unwrap_or((entry::empty(&self.pod), Duration::ZERO));
                entries.insert(name.to_owned(), (entry::rejected(entry, rejected), interval));
            }
        }
        let plan = &mut self.plan;
        self.board.read(|all| {
            plan.retain(|name| all.contains_key(name));
            for (name, shown) in all {
                if let Some((mut entry, interval)) = entries.remove(name) {
                    entry.last_handled_requested_at.clone_from(&shown.handled);
                    let known = Known { entry: shown.entry.as_ref(), version: shown.version };
                    plan.update(name, entry, interval, known, now);
                }
            }
        });
        self.metrics.report_waiting.set(i64::try_from(plan.waiting()).unwrap_or(i64::MAX));
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
        self.metrics.report_writes.get_or_create(&ApiOutcome { outcome }).inc();
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
