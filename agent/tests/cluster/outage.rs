//! The API server is away: at the start, or for a while.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Cluster, POD};

#[tokio::test]
async fn clones_go_on_while_the_api_server_is_away_and_status_catches_up() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    cluster.declare("b").await?;
    let pod = cluster.pod(POD).await?;
    cluster.head_told("a", POD, &origin).await?;
    pod.wait_phase(&cluster.repo("b"), "Ready").await?;
    cluster.api.down().await;
    for round in 0..4 {
        origin.commit("main", &[("f", &round.to_string())]).await?;
        cluster.clones(&pod, "a", &format!("away-{round}")).await?;
        let ready = pod.admin("/readyz").await?;
        ensure!(ready.status == 200, "not ready: {}", ready.text());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Meanwhile the users go on as well.
    cluster.api.delete("gitmirrors", "b");
    cluster.upstream.seed("c.git").await?;
    cluster.api.mirror("c", "default", json!({"url": cluster.url("c")}));
    cluster.api.up().await;
    cluster.head_told("a", POD, &origin).await?;
    pod.wait_phase(&cluster.repo("c"), "Ready").await?;
    cluster.gone(&pod, "b").await
}

#[tokio::test]
async fn a_pod_that_starts_while_the_api_server_is_away_is_ready_and_catches_up() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    cluster.api.down().await;
    let mut pod = cluster.pod(POD).await?;
    ensure!(pod.admin("/readyz").await?.status == 200, "not ready");
    cluster.gone(&pod, "a").await?;
    cluster.api.up().await;
    cluster.head_told("a", POD, &origin).await?;
    cluster.clones(&pod, "a", "after").await?;
    // Started again on its disk, with the API server away: what was declared once is there when it is back.
    cluster.api.down().await;
    pod.kill9().await?;
    pod.start_again().await?;
    ensure!(pod.admin("/readyz").await?.status == 200, "not ready");
    cluster.api.up().await;
    pod.wait_phase(&cluster.repo("a"), "Ready").await?;
    Ok(())
}
