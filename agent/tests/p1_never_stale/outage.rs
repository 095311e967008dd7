//! The upstream is down or does not answer: what is on disk is served and called stale, or nothing is.

use std::time::{Duration, Instant};

use anyhow::Result;
use tarn_testkit::upstream::{Fault, Operation};

use crate::scene::{Scene, condition};

#[tokio::test]
async fn upstream_down_serves_what_is_on_disk_and_calls_it_stale() -> Result<()> {
    let scene = Scene::ready().await?;
    let before = scene.refs().await?;
    scene.upstream.down().await;
    assert_eq!(scene.refs().await?, before);
    let freshness = scene.freshness().await?;
    let age = freshness.strip_prefix("stale; age=").unwrap_or_else(|| panic!("{freshness}"));
    assert!(age.parse::<u64>()? < 300, "{freshness}");
    scene.clone("clone", &[]).await?.fsck().await?;
    let status = scene.agent.wait_status(&scene.repo(), "Stale", |status| condition(status, "Stale")).await?;
    assert!(!status["message"].as_str().unwrap_or_default().is_empty(), "{status}");
    assert!(scene.agent.metrics().await?.contains("stale"), "a metric tells of stale answers");
    Ok(())
}

#[tokio::test]
async fn upstream_down_fails_where_the_user_wants_no_stale_answer() -> Result<()> {
    let scene = Scene::with(&["freshness: {onUpstreamFailure: Fail, lookTimeout: 1s}"]).await?;
    scene.upstream.down().await;
    for version in ["0", "2"] {
        let git = scene.git.clone().with_config("protocol.version", version);
        let output = git.attempt(["ls-remote", &scene.url()?]).await?;
        assert!(!output.status.success(), "protocol {version}: {output:?}");
        let shown = output.stderr.to_lowercase();
        assert!(shown.contains("upstream"), "the person at the terminal learns why: {shown}");
    }
    scene.upstream.up().await;
    scene.expect_upstream_refs().await.map(drop)
}

#[tokio::test]
async fn upstream_that_comes_back_is_looked_at_again_at_once() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.upstream.down().await;
    scene.refs().await?;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    scene.upstream.up().await;
    tarn_testkit::eventually::eventually(Duration::from_secs(3), "the new commit", async || {
        let head = scene.refs().await?.remove("HEAD");
        anyhow::ensure!(head.as_ref() == Some(&pushed), "{head:?}");
        Ok(())
    })
    .await?;
    assert_eq!(scene.freshness().await?, "verified");
    scene.agent.wait_status(&scene.repo(), "no Stale", |status| !condition(status, "Stale")).await?;
    Ok(())
}

#[tokio::test]
async fn upstream_that_hangs_costs_the_look_timeout_once() -> Result<()> {
    let scene = Scene::with(&["freshness: {lookTimeout: 3s}"]).await?;
    let before = scene.refs().await?;
    scene.upstream.fault(Fault::Hang);
    let start = Instant::now();
    assert_eq!(scene.refs().await?, before);
    assert!(start.elapsed() < Duration::from_secs(7), "{:?} with a look timeout of 3 s", start.elapsed());
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(scene.refs().await?, before);
    }
    // After a failed look each request waits at most a second for a probe it shares.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?} for three more", start.elapsed());
    let freshness = scene.freshness().await?;
    assert!(freshness.starts_with("stale; age="), "{freshness}");
    Ok(())
}

#[tokio::test]
async fn answers_other_than_gits_are_failures_too() -> Result<()> {
    let scene = Scene::with(&["freshness: {lookTimeout: 2s}"]).await?;
    let before = scene.refs().await?;
    for fault in
        [Fault::Html, Fault::Status(500), Fault::Status(404), Fault::Status(401), Fault::CutAfter(20)]
    {
        scene.upstream.fault(fault.clone());
        assert_eq!(scene.refs().await?, before, "{fault:?}");
        let freshness = scene.freshness().await?;
        assert!(freshness.starts_with("stale; age="), "{fault:?}: {freshness}");
    }
    Ok(())
}

#[tokio::test]
async fn a_fetch_that_fails_after_a_good_look_keeps_the_old_mirror_whole() -> Result<()> {
    let scene = Scene::ready().await?;
    let before = scene.clone("before", &["--mirror"]).await?.refs().await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::CutAfter(10));
    scene.origin.grow("main", 1, 100_000, 1).await?;
    // The look knows the new commit, which cannot be had: an answer is new or an error, or old and stale.
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    let answer = scene.agent.get(&target).await?;
    let old = answer.text().contains(&before["HEAD"]);
    let stale = answer.header("tarn-freshness").is_some_and(|freshness| freshness.starts_with("stale"));
    assert!(!old || stale, "{} {:?}", answer.status, answer.header("tarn-freshness"));
    scene.upstream.down().await;
    assert_eq!(scene.clone("during", &["--mirror"]).await?.refs().await?, before);
    scene.upstream.up().await;
    scene.upstream.mend();
    scene.expect_upstream_refs().await?;
    scene.clone("after", &["--mirror"]).await?.fsck().await
}
