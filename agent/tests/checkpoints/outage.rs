//! The upstream is down, the store is down, or both.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Fault;

use super::{Kind, Stage, on_both_stores};
use crate::scene::{agent, condition};

on_both_stores!(
    with_the_upstream_down_a_restored_mirror_serves_and_says_that_it_is_stale,
    with_the_upstream_down_and_the_policy_fail_a_restored_mirror_answers_errors,
    with_the_upstream_down_nothing_is_published,
    an_upstream_that_never_answers_delays_no_restore,
);

async fn with_the_upstream_down_a_restored_mirror_serves_and_says_that_it_is_stale(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.one_generation().await?;
    stage.upstream.down().await;
    let second = stage.restored().await?;
    let answer = second.get(&format!("/git/{}/info/refs?service=git-upload-pack", stage.repo())).await?;
    let freshness = answer.header("tarn-freshness").unwrap_or_default();
    ensure!(answer.status == 200 && freshness.starts_with("stale"), "{} {freshness}", answer.status);
    stage.expect_clone(&second, "clone").await?;
    ensure!(condition(&second.mirror_status(&stage.repo()).await?, "Stale"), "status does not say so");
    stage.upstream.up().await;
    second.wait_phase(&stage.repo(), "Ready").await?;
    Ok(())
}

async fn with_the_upstream_down_and_the_policy_fail_a_restored_mirror_answers_errors(
    kind: Kind,
) -> Result<()> {
    let mut stage = Stage::new(kind).await?;
    stage.spec.push("freshness: {onUpstreamFailure: Fail, lookTimeout: 1s}");
    stage.one_generation().await?;
    stage.upstream.down().await;
    let second = stage.restored().await?;
    let url = second.git_url(&stage.repo())?;
    ensure!(stage.git.ls_remote(&url).await.is_err(), "old refs were shown");
    stage.upstream.up().await;
    stage.git.ls_remote(&url).await?;
    Ok(())
}

async fn with_the_upstream_down_nothing_is_published(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let mut first = stage.ready().await?;
    stage.published(&first).await?;
    stage.upstream.down().await;
    drop(first.fetch_now(&stage.repo()).await?);
    drop(first.post(&format!("/mirrors/{}/checkpoint", stage.repo())).await?);
    first.stop().await?;
    let second = stage.restored().await?;
    drop(second.post(&format!("/mirrors/{}/checkpoint", stage.repo())).await?);
    second.wait_status(&stage.repo(), "stale", |status| condition(status, "Stale")).await?;
    ensure!(stage.manifests()?.len() == 1, "something was published");
    Ok(())
}

async fn an_upstream_that_never_answers_delays_no_restore(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.one_generation().await?;
    stage.upstream.fault(Fault::Hang);
    let second = stage.restored().await?;
    let began = Instant::now();
    stage.expect_clone(&second, "clone").await?;
    // lookTimeout is 5 s; from then on a request waits a second at most.
    ensure!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_store_down_at_the_start_the_mirror_is_cloned_and_published_later() -> Result<()> {
    let stage = Stage::new(Kind::Bucket).await?;
    let proxy = stage.cut_line().await?;
    let endpoint = format!("http://{}", proxy.address());
    let began = Instant::now();
    let first = stage.start(stage.with_store(agent(), Some(&endpoint))).await?;
    ensure!(began.elapsed() < Duration::from_secs(5), "the start waits for the store");
    // Served while the restore is still being tried, and ready in the end.
    stage.expect_clone(&first, "cold").await?;
    first.wait_phase(&stage.repo(), "Ready").await?;
    first
        .wait_status(&stage.repo(), "trouble with the store", |status| condition(status, "StoreFailed"))
        .await?;
    proxy.accept().await;
    eventually(Duration::from_secs(60), "a checkpoint", async || {
        ensure!(stage.manifests()?.len() == 1, "none yet");
        Ok(())
    })
    .await?;
    first.wait_status(&stage.repo(), "no trouble", |status| !condition(status, "StoreFailed")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_down_the_agent_starts_answers_and_recovers_when_the_store_does() -> Result<()> {
    let stage = Stage::new(Kind::Bucket).await?;
    stage.one_generation().await?;
    let proxy = stage.cut_line().await?;
    stage.upstream.fault(Fault::Hang);
    let endpoint = format!("http://{}", proxy.address());
    let second = stage.start(stage.with_store(agent(), Some(&endpoint))).await?;
    let began = Instant::now();
    let answer = second.get(&format!("/git/{}/info/refs?service=git-upload-pack", stage.repo())).await?;
    ensure!(
        answer.status >= 500 && began.elapsed() < Duration::from_secs(8),
        "{} {:?}",
        answer.status,
        began.elapsed()
    );
    proxy.accept().await;
    stage.wait_restored(&second).await?;
    stage.expect_clone(&second, "clone").await
}
