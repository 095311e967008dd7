//! What the API server declares takes effect, and nothing else.

use anyhow::{Result, ensure};
use serde_json::json;
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Operation;

use super::{Cluster, PATIENCE, POD};
use crate::scene::agent;

#[tokio::test]
async fn declared_mirrors_are_served_and_edits_and_deletions_take_effect() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.declare("a").await?;
    let pod = cluster.pod(POD).await?;
    pod.wait_phase(&cluster.repo("a"), "Ready").await?;
    cluster.clones(&pod, "a", "one").await?;
    // Another one.
    cluster.declare("b").await?;
    pod.wait_phase(&cluster.repo("b"), "Ready").await?;
    // An edit.
    cluster.api.mirror("a", "default", json!({"url": cluster.url("a"), "access": "RBAC"}));
    eventually(PATIENCE, "access denied", async || {
        let target = format!("/git/{}/info/refs?service=git-upload-pack", cluster.repo("a"));
        let answer = pod.get(&target).await?;
        ensure!(answer.status == 401, "{}", answer.status);
        Ok(())
    })
    .await?;
    cluster.api.delete("gitmirrors", "b");
    cluster.gone(&pod, "b").await?;
    // Changes are seen as well after the API server has forgotten older states.
    cluster.api.compact();
    cluster.declare("c").await?;
    pod.wait_phase(&cluster.repo("c"), "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn mirrors_of_another_cache_are_none_of_its_business() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.declare("a").await?;
    cluster.upstream.seed("b.git").await?;
    cluster.api.mirror("b", "other", json!({"url": cluster.url("b")}));
    let pod = cluster.pod(POD).await?;
    pod.wait_phase(&cluster.repo("a"), "Ready").await?;
    cluster.gone(&pod, "b").await?;
    assert!(cluster.api.entry("b", POD).is_none());
    let other = cluster.pod_of("other", "other-0").await?;
    other.wait_phase(&cluster.repo("b"), "Ready").await?;
    cluster.gone(&other, "a").await
}

#[tokio::test]
async fn a_malformed_object_stops_no_other_and_is_told() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.api.mirror("bad", "default", json!({"url": 7, "interval": "canary"}));
    cluster.api.mirror("file", "default", json!({"url": "file:///srv/a.git"}));
    let origin = cluster.declare("good").await?;
    let _pod = cluster.pod(POD).await?;
    cluster.head_told("good", POD, &origin).await?;
    for (name, reason) in [("bad", "InvalidSpec"), ("file", "InvalidUrl")] {
        let entry = cluster
            .entry(name, POD, reason, |entry| {
                entry["findings"][0]["type"] == "Stalled" && entry["findings"][0]["reason"] == reason
            })
            .await?;
        assert!(!entry.to_string().contains("canary"), "{entry}");
        assert_eq!(entry["phase"], "Absent");
    }
    Ok(())
}

#[tokio::test]
async fn a_look_asked_for_by_annotation_is_done_once_and_echoed() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    let _pod = cluster.pod(POD).await?;
    cluster.head_told("a", POD, &origin).await?;
    // Nobody asks for refs, and the interval is long: only the annotation tells the pod to look.
    origin.commit("main", &[("f", "2")]).await?;
    cluster.upstream.clear_log();
    cluster.api.annotate("a", "tarn.dev/requestedAt", "2026-01-01T00:00:00Z");
    let entry = cluster
        .entry("a", POD, "the echo", |entry| entry["lastHandledRequestedAt"] == "2026-01-01T00:00:00Z")
        .await?;
    assert_eq!(entry["head"], origin.rev_parse("HEAD").await?.as_str(), "told before it was fetched");
    assert_eq!(cluster.upstream.count("a.git", Operation::LsRefs), 1);
    Ok(())
}

#[tokio::test]
async fn a_start_in_a_cluster_names_what_it_lacks() -> Result<()> {
    let bare = || agent().without_manifests().arg("--in-cluster").arg("--cache").arg("default");
    let ended = bare().run_to_end().await?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("POD_NAME, POD_NAMESPACE, POD_UID"), "{}", ended.stderr);
    let pod = bare().env("POD_NAME", POD).env("POD_NAMESPACE", "ci").env("POD_UID", "u");
    let ended = pod.run_to_end().await?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("service account"), "{}", ended.stderr);
    Ok(())
}
