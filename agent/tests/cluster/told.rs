//! What a pod tells of its mirrors, and how often.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tarn_testkit::eventually::eventually;

use super::{Cluster, PATIENCE, POD};

#[tokio::test]
async fn an_entry_has_head_and_phase_and_follows_a_push() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    let pod = cluster.pod(POD).await?;
    let entry = cluster.head_told("a", POD, &origin).await?;
    assert_eq!(entry["podUID"], "uid-of-default-0");
    assert!(entry["refsDigest"].is_string() && entry["lastCheckTime"].is_string(), "{entry}");
    assert_eq!((&entry["headRef"], &entry["refCount"]), (&json!("refs/heads/main"), &json!(1)));
    assert!(entry["bytes"].as_i64().is_some_and(|bytes| bytes > 0) && entry["message"].is_null(), "{entry}");
    let writes = cluster.api.writes();
    let managers = writes.iter().filter(|write| write.kind == "gitmirrors").map(|write| &write.manager);
    assert!(
        managers.clone().count() > 0 && managers.clone().all(|manager| manager == "tarn-agent.default-0")
    );
    // A push to the upstream, and someone who clones.
    origin.commit("main", &[("f", "2")]).await?;
    cluster.clones(&pod, "a", "clone").await?;
    cluster.head_told("a", POD, &origin).await?;
    // A Lease says that the pod lives.
    let lease = cluster.api.get("leases", "tarn-agent-default-0").context("no Lease")?;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-of-default-0");
    let renewed = lease["spec"]["renewTime"].clone();
    eventually(PATIENCE, "a renewal", async || {
        let lease = cluster.api.get("leases", "tarn-agent-default-0").context("no Lease")?;
        ensure!(lease["spec"]["renewTime"] != renewed, "{lease}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn nothing_is_written_while_nothing_changes() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    let pod = cluster.pod(POD).await?;
    // The bitmaps of a new mirror are its last change; a snapshot may be built besides.
    pod.wait_status(&cluster.repo("a"), "a snapshot", |status| !status["snapshot"].is_null()).await?;
    let snapshot = |entry: &serde_json::Value| entry["snapshotTime"].is_string();
    cluster.entry("a", POD, "the snapshot", snapshot).await?;
    let before = cluster.entries_written();
    // Looks change times, and nothing else.
    let quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(15) {
        cluster.git.ls_remote(&pod.git_url(&cluster.repo("a"))?).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let writes = cluster.api.writes();
    let writes: Vec<_> = writes.iter().filter(|write| write.kind == "gitmirrors").collect();
    ensure!(writes.len() == before, "{:?}", writes.get(before..));
    // After a quiet while, a change is told at once.
    origin.commit("main", &[("f", "2")]).await?;
    let head = origin.rev_parse("HEAD").await?;
    let seen = Instant::now();
    cluster.git.ls_remote(&pod.git_url(&cluster.repo("a"))?).await?;
    cluster.entry("a", POD, "the push", |entry| entry["head"] == head.as_str()).await?;
    assert!(seen.elapsed() < Duration::from_secs(8), "told after {:?}", seen.elapsed());
    Ok(())
}

#[tokio::test]
async fn many_transitions_of_one_mirror_are_few_writes() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    let pod = cluster.pod(POD).await?;
    cluster.head_told("a", POD, &origin).await?;
    let (before, began) = (cluster.entries_written(), Instant::now());
    for commit in 0..6 {
        origin.commit("main", &[("f", &commit.to_string())]).await?;
        cluster.git.ls_remote(&pod.git_url(&cluster.repo("a"))?).await?;
    }
    cluster.head_told("a", POD, &origin).await?;
    let written = cluster.entries_written() - before;
    let allowed = began.elapsed().as_secs() / 10 + 2;
    assert!(u64::try_from(written)? <= allowed, "{written} writes in {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn two_pods_write_an_entry_each_and_one_taken_away_comes_back() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    let (_one, _two) = (cluster.pod(POD).await?, cluster.pod("default-1").await?);
    for pod in [POD, "default-1"] {
        cluster.head_told("a", pod, &origin).await?;
        assert!(cluster.api.get("leases", &format!("tarn-agent-{pod}")).is_some());
    }
    for write in cluster.api.writes().iter().filter(|write| write.kind == "gitmirrors") {
        let entries = write.patch["status"]["replicas"].as_array().context("no entries")?;
        assert_eq!(entries.len(), 1, "{}", write.patch);
        assert_eq!(write.manager, format!("tarn-agent.{}", entries[0]["pod"].as_str().unwrap_or_default()));
    }
    // The operator takes the pod for gone, while it lives.
    cluster.api.depart("a", POD);
    cluster.head_told("a", POD, &origin).await?;
    Ok(())
}
