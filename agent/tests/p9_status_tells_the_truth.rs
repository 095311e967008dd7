//! P9: status never claims what is not on disk, and its times are times.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::repo_id;
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation};

use crate::p4_never_stuck::{files, mirror_dir};
use crate::scene::{Scene, condition, message};

/// Whether a value is an RFC 3339 time of the last minute.
fn is_recent(value: &Value) -> Result<()> {
    let text = value.as_str().with_context(|| format!("not a time: {value}"))?;
    let time: jiff::Timestamp = text.parse().with_context(|| format!("not RFC 3339: {text}"))?;
    let age = jiff::Timestamp::now().duration_since(time).as_secs();
    ensure!((-1..=60).contains(&age), "{text} is {age} s ago");
    Ok(())
}

#[tokio::test]
async fn a_ready_mirror_is_described_as_the_upstream_is() -> Result<()> {
    let scene = Scene::prepared(&[], async |_, origin| {
        let tip = origin.grow("main", 1, 500_000, 1).await?;
        origin.annotated_tag("v1", &tip).await.map(drop)
    })
    .await?;
    let status = scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let refs = scene.origin.refs().await?;
    assert_eq!(status["name"], "a");
    assert_eq!(status["url"], scene.upstream.url("a.git").as_str());
    assert_eq!(status["head"]["ref"], "refs/heads/main");
    assert_eq!(status["head"]["sha"], refs["HEAD"].as_str());
    assert_eq!(status["refCount"], 2, "main and v1: {status}");
    assert_eq!(message(&status), "");
    assert!(condition(&status, "Ready") && !condition(&status, "FetchFailed"), "{status}");
    is_recent(&status["lastLookTime"])?;
    is_recent(&status["lastFetchTime"])?;
    let on_disk: u64 = files(&mirror_dir(&scene.agent)?)?
        .iter()
        .filter_map(|path| path.metadata().ok())
        .map(|data| data.len())
        .sum();
    let told = status["bytes"].as_u64().context("no bytes")?;
    assert!(told > on_disk / 2 && told < on_disk * 2, "{told} told, {on_disk} on disk");
    let version = scene.agent.status().await?["version"].clone();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    Ok(())
}

#[tokio::test]
async fn the_digest_of_the_refs_changes_when_and_only_when_they_do() -> Result<()> {
    let scene = Scene::ready().await?;
    let digest = async || -> Result<String> {
        scene.refs().await?;
        scene.agent.wait_phase(&scene.repo(), "Ready").await?;
        Ok(scene.status().await?["refsDigest"].as_str().context("no digest")?.to_owned())
    };
    let first = digest().await?;
    assert_eq!(digest().await?, first);
    let main = scene.origin.rev_parse("main").await?;
    scene.origin.tag("v1", &main).await?;
    let mut seen = vec![first.clone()];
    eventually(Duration::from_secs(10), "another digest", async || {
        let now = digest().await?;
        ensure!(!seen.contains(&now), "still {now}");
        Ok(())
    })
    .await?;
    seen.push(digest().await?);
    scene.origin.set_head("refs/heads/other").await?;
    eventually(Duration::from_secs(10), "another digest for another HEAD", async || {
        let now = digest().await?;
        ensure!(!seen.contains(&now), "still {now}");
        Ok(())
    })
    .await?;
    scene.origin.set_head("refs/heads/main").await?;
    scene.origin.delete_ref("refs/tags/v1").await?;
    eventually(Duration::from_secs(10), "the first digest again", async || {
        let now = digest().await?;
        ensure!(now == first, "{now}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_clone_under_way_shows_its_progress_and_claims_nothing() -> Result<()> {
    let scene = Scene::prepared(&[], async |upstream, origin| {
        origin.grow("main", 200, 30_000, 1).await?;
        upstream.fault_on(Operation::Fetch, Fault::Throttle(1_500_000));
        Ok(())
    })
    .await?;
    let status = scene
        .agent
        .wait_status(&scene.repo(), "progress", |status| {
            status["progress"]
                .as_str()
                .is_some_and(|progress| progress.starts_with("Receiving objects:") && progress.contains('%'))
        })
        .await?;
    assert_eq!(status["phase"], "Cloning", "{status}");
    assert!(status["head"]["sha"].is_null() && status["refCount"] == 0, "nothing is on disk: {status}");
    assert!(status["lastFetchTime"].is_null() && !condition(&status, "Ready"), "{status}");
    assert!(condition(&status, "Reconciling"), "{status}");
    // The pod is ready and alive whatever its mirrors do.
    for probe in ["/readyz", "/healthz"] {
        assert_eq!(scene.agent.admin(probe).await?.status, 200, "{probe}");
    }
    scene.upstream.mend();
    let status = scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    assert!(status["progress"].is_null(), "{status}");
    assert!(scene.agent.logs()?.contains("Receiving objects"), "the log shows progress too");
    Ok(())
}

#[tokio::test]
async fn a_fetch_under_way_is_told_and_the_old_state_still_claimed() -> Result<()> {
    let scene = Scene::ready().await?;
    let before = scene.status().await?;
    scene.origin.grow("main", 2, 1_000_000, 1).await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::Throttle(1_000_000));
    let _ = tokio::time::timeout(Duration::from_millis(300), scene.agent.fetch_now(&scene.repo())).await;
    let during = scene.agent.wait_phase(&scene.repo(), "Fetching").await?;
    assert_eq!(during["head"], before["head"], "what is not on disk is not claimed");
    assert!(condition(&during, "Ready"), "{during}");
    scene.upstream.mend();
    let after = scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    assert_ne!(after["head"], before["head"]);
    Ok(())
}

#[tokio::test]
async fn a_fetch_can_be_asked_for_by_name_only_where_there_is_a_mirror() -> Result<()> {
    let scene = Scene::ready().await?;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    let answer = scene.agent.fetch_now(&scene.repo()).await?;
    assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
    // Nobody asks for refs, so it is the request alone that brings the commit.
    scene
        .agent
        .wait_status(&scene.repo(), "the commit", |status| status["head"]["sha"] == pushed.as_str())
        .await?;
    let other = repo_id(&scene.upstream.url("none.git"));
    assert_eq!(scene.agent.fetch_now(&other).await?.status, 404);
    let answer = scene.agent.admin(&format!("/mirrors/{}/fetch", scene.repo())).await?;
    assert_eq!(answer.status, 405, "a GET changes nothing");
    Ok(())
}

#[tokio::test]
async fn the_interval_alone_brings_what_was_pushed() -> Result<()> {
    let scene = Scene::with(&["interval: 10s"]).await?;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    scene
        .agent
        .wait_status(&scene.repo(), "the commit", |status| status["head"]["sha"] == pushed.as_str())
        .await?;
    Ok(())
}

#[tokio::test]
async fn metrics_are_prometheus_text_with_bounded_labels() -> Result<()> {
    let scene = Scene::prepared(&[], async |_, origin| {
        let main = origin.rev_parse("main").await?;
        origin.set_ref("refs/heads/a-very-odd-branch", &main).await
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.clone("clone", &[]).await?;
    for number in 0..20 {
        let target = format!("/git/example.com/undeclared-{number}/info/refs?service=git-upload-pack");
        scene.agent.get(&target).await?;
    }
    let metrics = scene.agent.metrics().await?;
    assert!(metrics.contains("# TYPE tarn_") && metrics.contains("# HELP tarn_"), "{metrics}");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').with_context(|| format!("not a sample: {line}"))?;
        value.parse::<f64>().with_context(|| format!("not a number: {line}"))?;
        ensure!(series.starts_with("tarn_") || series.starts_with("process_"), "{line}");
    }
    for never in ["undeclared", "a-very-odd-branch", "http://", "refs/"] {
        ensure!(!metrics.contains(never), "{never} in a label:\n{metrics}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_page_of_the_admin_port_is_not_found() -> Result<()> {
    let scene = Scene::ready().await?;
    assert_eq!(scene.agent.admin("/nothing").await?.status, 404);
    // Git is not served here, nor status there.
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    assert_eq!(scene.agent.admin(&target).await?.status, 404);
    assert_eq!(scene.agent.get("/status").await?.status, 404);
    Ok(())
}
