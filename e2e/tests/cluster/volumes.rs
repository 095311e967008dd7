//! Mirrors on volumes of their own, instead of the node's disk.

use anyhow::{Context, Result, ensure};
use tarn_e2e::cloner::{Cloner, Habit};
use tarn_e2e::play::play;
use tarn_e2e::scene::{PATIENCE, until};

const CACHE: &str = "
apiVersion: tarn.dev/v1alpha1
kind: GitCache
metadata: {name: default}
spec:
  resources: {requests: {cpu: 10m, memory: 32Mi}}
  storage: {volumeClaim: {size: 1Gi}}
";

#[tokio::test]
async fn a_volume_outlives_its_pod_and_goes_with_its_cache() -> Result<()> {
    play("volume", async |scene| {
        scene.with_cache_of(CACHE).await?;
        scene.hold("app", &scene.mirror_manifest("app", "")).await?;
        let inode = async || scene.shell("default-0", "stat -c %i /data/mirrors/*/app.git").await;
        let before = inode().await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::Clone).await?;
        let uid = scene.replace("default-0").await?;
        scene.until_pod_holds("app", &uid).await?;
        // Neither cloned nor restored: there is no store, and it is the very directory.
        let after = until(PATIENCE, "the pod to run", inode).await?;
        ensure!(before == after, "the mirror was made anew");
        cloner.until_more(3).await?;
        cloner.without_failure().await?;
        scene.kubectl(&["delete", "gitcache", "default"]).await?;
        until(PATIENCE, "the volume claims to be gone", async || {
            let claims = scene.kubectl(&["get", "persistentvolumeclaims", "--output=name"]).await?;
            ensure!(!claims.contains("/data-default-"), "there are: {claims}");
            Ok(())
        })
        .await
        .context("spec.storage.volumeClaim goes with the GitCache")
    })
    .await
}
