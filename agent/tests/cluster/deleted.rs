//! GitMirrors that are deleted: what becomes of their objects in the store.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;

use super::{Cluster, PATIENCE, POD};

impl Cluster {
    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// How many objects the store has of a mirror.
    fn objects(&self, name: &str) -> Result<usize> {
        let id = RepoId::from_route(&self.repo(name))?;
        let root = self.store().join("v1").join(id.store_prefix());
        let (mut files, mut directories) = (0, vec![root]);
        while let Some(directory) = directories.pop() {
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() { directories.push(path) } else { files += 1 }
            }
        }
        Ok(files)
    }

    /// A pod with a store, and a mirror of this policy whose checkpoint is there.
    async fn published(&self, name: &str, policy: &str) -> Result<Agent> {
        self.upstream.seed(&format!("{name}.git")).await?;
        let checkpoint = json!({"interval": "5s", "keep": 3});
        let spec = json!({"url": self.url(name), "deletionPolicy": policy, "checkpoint": checkpoint});
        self.api.mirror(name, "default", spec);
        let pod = self.builder("default", POD)?.arg("--store").arg(self.store());
        let pod =
            pod.arg("--heartbeat").arg("1").env("TARN_AGENT_LOG", "info,tarn_agent=debug").start().await?;
        let known = |entry: &serde_json::Value| entry["checkpoint"]["generation"] == 1;
        self.entry(name, POD, "a checkpoint", known).await?;
        ensure!(self.objects(name)? > 3, "nothing is in the store");
        Ok(pod)
    }
}

#[tokio::test]
async fn the_objects_of_a_deleted_mirror_go_and_the_pod_says_so() -> Result<()> {
    let cluster = Cluster::new()?;
    let pod = cluster.published("a", "Delete").await?;
    cluster.declare("b").await?;
    cluster.entry("b", POD, "its checkpoint", |entry| entry["checkpointTime"].is_string()).await?;
    cluster.api.terminate("a");
    cluster.gone(&pod, "a").await?;
    let entry = cluster.entry("a", POD, "removed", |entry| entry["storeRemoved"] == true).await?;
    ensure!(entry["phase"] == "Absent" && entry["head"].is_null(), "{entry}");
    ensure!(cluster.objects("a")? == 0, "{} objects are left", cluster.objects("a")?);
    ensure!(cluster.objects("b")? > 0, "another mirror's objects are gone");
    // The operator lets it go, and nothing is told of it any more.
    let writes = cluster.entries_written();
    cluster.api.delete("gitmirrors", "a");
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(cluster.entries_written() == writes, "{:?}", cluster.api.writes().last());
    // Declared again, it is mirrored and published again.
    let spec = json!({"url": cluster.url("a"), "checkpoint": {"interval": "5s", "keep": 3}});
    cluster.api.mirror("a", "default", spec);
    cluster.entry("a", POD, "a checkpoint", |entry| entry["checkpoint"]["generation"] == 1).await?;
    Ok(())
}

#[tokio::test]
async fn objects_that_are_to_stay_or_that_another_mirror_uses_stay() -> Result<()> {
    for policy in ["Retain", "Delete"] {
        let cluster = Cluster::new()?;
        let pod = cluster.published("a", policy).await?;
        if policy == "Delete" {
            cluster.api.mirror("second", "default", json!({"url": cluster.url("a")}));
            eventually(PATIENCE, "the second to be known", async || {
                cluster.api.entry("second", POD).context("no entry").map(drop)
            })
            .await?;
        }
        let before = cluster.objects("a")?;
        cluster.api.terminate("a");
        match policy {
            "Retain" => cluster.gone(&pod, "a").await?,
            _ => drop(cluster.entry("second", POD, "Ready", |entry| entry["phase"] == "Ready").await?),
        }
        // Longer than an agent waits before it removes anything.
        tokio::time::sleep(Duration::from_secs(8)).await;
        ensure!(cluster.objects("a")? >= before, "{policy}: objects are gone");
        let entry = cluster.api.entry("a", POD).unwrap_or_default();
        ensure!(entry["storeRemoved"].is_null(), "{entry}");
    }
    Ok(())
}
