//! The pod's Lease: while it is renewed, the pod lives, and what its entries say of its disk holds.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tarn_crds::CACHE_LABEL;
use tokio::time::{Instant, sleep_until, timeout};

use super::{manager, outcome};
use crate::{
    backoff::backoff,
    config::Pod,
    fleet::cluster::Scope,
    metrics::{ApiOutcome, Metrics},
};

/// Between two renewals.
const RENEW: Duration = Duration::from_secs(10);

/// How long a renewal holds: three may fail.
const HOLDS: u32 = 40;

/// How long one renewal may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of a pod's Lease.
pub fn name(pod: &str) -> String {
    format!("tarn-agent-{pod}")
}

/// Renews the pod's Lease, for ever.
pub async fn run(scope: Scope, pod: Pod, metrics: Metrics) {
    let leases: Api<Lease> = Api::namespaced(scope.client.clone(), &scope.namespace);
    let params = PatchParams::apply(&manager(&pod.name)).force();
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        let body = lease(&pod, &scope.cache, Timestamp::now());
        let renewed = timeout(PATIENCE, leases.patch(&name(&pod.name), &params, &Patch::Apply(&body))).await;
        let result = match renewed {
            Ok(Ok(_)) => "ok",
            Ok(Err(error)) => outcome(&error).1,
            Err(_) => "unreachable",
        };
        metrics.report.renewals.get_or_create(&ApiOutcome { outcome: result }).inc();
        let wait = if result == "ok" {
            failures = 0;
            RENEW
        } else {
            failures = failures.saturating_add(1);
            if failures == 1 {
                tracing::warn!(outcome = result, "the pod's Lease cannot be renewed; trying again");
            }
            backoff(Duration::from_secs(1), RENEW, failures, rand::random())
        };
        sleep_until(began + wait).await;
    }
}

fn lease(pod: &Pod, cache: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name(&pod.name),
            "labels": {"app.kubernetes.io/managed-by": "tarn-agent", CACHE_LABEL: cache},
            // It goes with the pod.
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}],
        },
        "spec": {
            "holderIdentity": pod.name,
            "leaseDurationSeconds": HOLDS,
            "renewTime": MicroTime(now),
        },
    })
}
