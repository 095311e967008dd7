//! Everything there is to know of a test that failed: objects, events, logs of its namespace, and the operator's log.

use crate::release;
use crate::scene::Scene;
use crate::tool;

/// Lines of each log.
const TAIL: &str = "--tail=400";

/// Prints all of it; what cannot be had is left out, for the failure itself matters more.
pub async fn dump(scene: &Scene) {
    let space = scene.namespace.as_str();
    let kinds = "gitcaches,gitmirrors,pods,statefulsets,deployments,services,endpointslices,persistentvolumeclaims,\
                 poddisruptionbudgets,networkpolicies,leases,roles,rolebindings,serviceaccounts";
    show(&["get", kinds, "--output=wide", "--namespace", space]).await;
    show(&["get", "gitcaches,gitmirrors", "--output=yaml", "--namespace", space]).await;
    show(&["get", "events", "--sort-by=.lastTimestamp", "--namespace", space]).await;
    show(&["describe", "pods", "--namespace", space]).await;
    let pods = tool::kubectl(&["get", "pods", "--output=name", "--namespace", space]).await;
    for pod in pods.unwrap_or_default().lines() {
        let log = ["logs", pod, "--all-containers", TAIL, "--namespace", space];
        show(&log).await;
        show(&[&log[..], &["--previous"]].concat()).await;
    }
    show(&["get", "all", "--output=wide", "--namespace", release::NAMESPACE]).await;
    show(&["logs", "deployment/tarn-operator", TAIL, "--namespace", release::NAMESPACE]).await;
}

/// Prints what one command says, under its own line.
#[expect(clippy::print_stderr, reason = "this way the test runner keeps it to the test that failed")]
async fn show(args: &[&str]) {
    if let Ok(said) = tool::kubectl(args).await
        && !said.is_empty()
    {
        eprintln!("\n--- kubectl {}\n{said}", args.join(" "));
    }
}
