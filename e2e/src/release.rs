//! The release of the chart that all tests share.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, LogParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::{scene::until, settings, tool};

/// Where the operator runs.
pub const NAMESPACE: &str = "tarn-system";
/// The release, and the operator's Deployment.
const RELEASE: &str = "tarn";
const OPERATOR: &str = "tarn-operator";

/// How long the operator may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(120);

/// Installs the chart once for all tests of this process.
pub async fn ensure_installed() -> Result<()> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED.get_or_try_init(install).await.copied()
}

/// Installs the chart, or upgrades what is there, and waits until the operator is ready.
pub async fn install() -> Result<()> {
    let chart = settings::chart();
    ensure!(chart.join("Chart.yaml").exists(), "there is no chart in {}", chart.display());
    let chart = chart.to_string_lossy().into_owned();
    let (repository, tag) = settings::image();
    let repository = format!("image.repository={repository}");
    let tag = format!("image.tag={tag}");
    let mut args = vec!["upgrade", "--install", RELEASE, chart.as_str()];
    args.extend(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"]);
    args.extend(["--set", &repository, "--set-string", &tag, "--set", "image.pullPolicy=IfNotPresent"]);
    tool::output("helm", &args, "").await.map(drop)
}

/// Removes the release.
pub async fn uninstall() -> Result<()> {
    let args = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "3m"];
    tool::output("helm", args, "").await.map(drop)
}

/// Runs this many operators from now on, and waits until it is so.
pub async fn scale_operator(client: &Client, replicas: i32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch(OPERATOR, &PatchParams::default(), &patch).await.context("scale the operator")?;
    until(PATIENCE, "the operator to be scaled", async || {
        let status = deployments.get(OPERATOR).await?.status.unwrap_or_default();
        let (all, ready) = (status.replicas.unwrap_or(0), status.ready_replicas.unwrap_or(0));
        // Those that are still ending are not counted by the Deployment.
        let pods = operator_pods(client).await?.len();
        let there = usize::try_from(replicas).unwrap_or_default();
        ensure!(all == replicas && ready == replicas && pods == there, "{ready} of {all} ready, {pods} pods");
        Ok(())
    })
    .await
}

/// Everything that operators have logged, those that run now.
pub async fn operator_log(client: &Client) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut log = String::new();
    for pod in operator_pods(client).await? {
        let name = pod.metadata.name.unwrap_or_default();
        log.push_str(&pods.logs(&name, &LogParams::default()).await?);
    }
    Ok(log)
}

async fn operator_pods(client: &Client) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let all = pods.list(&ListParams::default()).await?.items;
    let ours = |pod: &Pod| pod.metadata.name.as_deref().is_some_and(|name| name.starts_with(OPERATOR));
    Ok(all.into_iter().filter(ours).collect())
}
