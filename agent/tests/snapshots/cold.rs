//! A pod with an empty disk: the bytes come at once, once for all who ask, and never less than the whole.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::proxy::{HttpFault, HttpFaultProxy, Select, When};
use tarn_testkit::upstream::Fault;

use super::{ask, current, download, expect_clean, objects, path, published};
use crate::checkpoints::{Kind, Stage, files, on_both_stores};
use crate::scene::agent as builder;

on_both_stores!(
    a_cold_agent_serves_the_snapshot_though_the_upstream_hangs,
    a_restarted_agent_serves_its_snapshot_without_the_store,
    a_damaged_archive_is_never_taken_for_whole_and_passed_over,
    what_is_served_cold_is_restored_as_well,
);

async fn a_cold_agent_serves_the_snapshot_though_the_upstream_hangs(kind: Kind) -> Result<()> {
    let stage = published(kind).await?;
    stage.upstream.fault(Fault::Hang);
    let agent = stage.agent().await?;
    let began = Instant::now();
    let answer = download(&stage, &agent).await?;
    ensure!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
    ensure!(answer.header("x-cachew-bundle-url").is_some(), "no bundle is named");
    stage.upstream.mend();
    expect_clean(&stage, &answer.body, "clone").await?;
    Ok(())
}

async fn a_restarted_agent_serves_its_snapshot_without_the_store(kind: Kind) -> Result<()> {
    let stage = published(kind).await?;
    let mut agent = stage.agent().await?;
    let first = download(&stage, &agent).await?;
    let status = agent
        .wait_status(&stage.repo(), "the whole archive", |s| s["snapshot"]["local"] == s["snapshot"]["bytes"])
        .await?;
    let id = tarn_crds::repo::RepoId::from_route(&stage.repo())?;
    let digest = status["snapshot"]["digest"].as_str().context("a digest")?;
    let manifest = agent.data().join("snapshots").join(id.dir()).join(format!("{digest}.json"));
    eventually(Duration::from_secs(10), "its manifest", async || {
        ensure!(manifest.exists(), "not yet");
        Ok(())
    })
    .await?;
    agent.kill9().await?;
    for archive in files(&objects(&stage), "zst")? {
        std::fs::remove_file(archive)?;
    }
    agent.start_again().await?;
    ensure!(download(&stage, &agent).await?.body == first.body, "another archive");
    Ok(())
}

async fn a_damaged_archive_is_never_taken_for_whole_and_passed_over(kind: Kind) -> Result<()> {
    let stage = published(kind).await?;
    let archive = files(&objects(&stage), "zst")?.pop().context("an archive")?;
    let mut content = std::fs::read(&archive)?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&archive, &content)?;
    let agent = stage.agent().await?;
    let result = agent.get(&path(&stage)).await;
    ensure!(result.is_err(), "a damaged archive was served as whole");
    // It is marked; another one is built, and served.
    let status =
        agent.wait_status(&stage.repo(), "another one", |s| s["snapshot"]["generation"] == 2).await?;
    ensure!(!files(&objects(&stage), "bad")?.is_empty(), "it is not marked: {status}");
    expect_clean(&stage, &download(&stage, &agent).await?.body, "clone").await?;
    Ok(())
}

async fn what_is_served_cold_is_restored_as_well(kind: Kind) -> Result<()> {
    let stage = published(kind).await?;
    let agent = stage.agent().await?;
    download(&stage, &agent).await?;
    agent.wait_phase(&stage.repo(), "Ready").await?;
    stage.expect_clone(&agent, "clone").await
}

/// An agent with an empty disk behind a proxy in front of the bucket.
async fn behind(stage: &Stage, proxy: &HttpFaultProxy) -> Result<Agent> {
    stage.start(stage.with_store(builder(), Some(&proxy.url()))).await
}

fn proxy(stage: &Stage) -> Result<HttpFaultProxy> {
    HttpFaultProxy::start(stage.s3.as_ref().context("a bucket")?.address())
}

/// Requests for archives that passed, and their bytes.
fn archive_bytes(proxy: &HttpFaultProxy) -> u64 {
    let gets = proxy.seen().into_iter().filter(|s| s.method == Method::GET && s.target.contains(".tar.zst"));
    gets.map(|seen| seen.down).sum()
}

fn archives() -> Select {
    Select { method: Some(Method::GET), path: Some(".tar.zst".into()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_cold_clients_whole_and_ranged_share_one_download() -> Result<()> {
    let stage = published(Kind::Bucket).await?;
    let proxy = proxy(&stage)?;
    let agent = behind(&stage, &proxy).await?;
    let target = path(&stage);
    let size = std::fs::metadata(files(&objects(&stage), "zst")?.pop().context("an archive")?)?.len();
    let whole = (0..4).map(|_| ask(&agent, "GET", &target, &[]));
    let ranges: Vec<String> =
        (0..8).map(|n| format!("bytes={}-{}", n * size / 8, (n + 1) * size / 8 - 1)).collect();
    let ranged =
        ranges.iter().map(|range| async { ask(&agent, "GET", &target, &[("Range", range.as_str())]).await });
    let (whole, ranged) = tokio::try_join!(
        futures_util::future::try_join_all(whole),
        futures_util::future::try_join_all(ranged)
    )?;
    let parts: Vec<u8> = ranged.iter().flat_map(|part| part.body.clone()).collect();
    ensure!(ranged.iter().all(|part| part.status == 206), "not all are parts");
    ensure!(whole.iter().all(|answer| answer.body == parts), "the answers differ");
    ensure!(u64::try_from(parts.len())? == size, "{} bytes", parts.len());
    ensure!(archive_bytes(&proxy) == size, "{} bytes from the store for {size}", archive_bytes(&proxy));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn head_of_a_cold_snapshot_downloads_nothing() -> Result<()> {
    let stage = published(Kind::Bucket).await?;
    let proxy = proxy(&stage)?;
    let agent = behind(&stage, &proxy).await?;
    let head = ask(&agent, "HEAD", &path(&stage), &[]).await?;
    ensure!(head.status == 200 && head.header("content-length").is_some(), "{:?}", head.headers);
    ensure!(head.header("x-cachew-snapshot-commit").is_some(), "no commit");
    agent.wait_phase(&stage.repo(), "Ready").await?;
    ensure!(archive_bytes(&proxy) == 0, "{} bytes were downloaded", archive_bytes(&proxy));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_nothing_for_the_others() -> Result<()> {
    let stage = published(Kind::Bucket).await?;
    let proxy = proxy(&stage)?;
    proxy.add(archives(), When::Always, HttpFault::Delay(Duration::from_millis(300)));
    let agent = behind(&stage, &proxy).await?;
    let target = path(&stage);
    let stays = agent.get(&target);
    let leaves = tokio::time::timeout(Duration::from_millis(100), agent.get(&target));
    let (stays, leaves) = tokio::join!(stays, leaves);
    ensure!(leaves.is_err(), "it was faster than it leaves");
    let stays = stays?;
    ensure!(stays.status == 200, "{}", stays.status);
    expect_clean(&stage, &stays.body, "clone").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_with_the_store_is_mended_below_the_clients() -> Result<()> {
    let stage = published(Kind::Bucket).await?;
    let proxy = proxy(&stage)?;
    for fault in [
        HttpFault::Truncate(1000),
        HttpFault::Answer(503, "SlowDown"),
        HttpFault::FlipBit(500),
        HttpFault::LoseAnswer,
    ] {
        proxy.add(archives(), When::First(1), fault);
    }
    let agent = behind(&stage, &proxy).await?;
    expect_clean(&stage, &download(&stage, &agent).await?.body, "clone").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_for_good_breaks_the_answer_off_and_the_next_one_is_whole() -> Result<()> {
    let stage = published(Kind::Bucket).await?;
    let proxy = proxy(&stage)?;
    proxy.add(archives(), When::Always, HttpFault::Answer(403, "AccessDenied"));
    let agent = behind(&stage, &proxy).await?;
    ensure!(agent.get(&path(&stage)).await.is_err(), "a short body was taken for whole");
    agent
        .wait_status(&stage.repo(), "the trouble", |status| {
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| c["type"] == "StoreFailed" && c["status"] == "True")
        })
        .await?;
    ensure!(
        agent.metrics().await?.contains("tarn_snapshot_downloads_total{outcome=\"StoreDenied\"}"),
        "metrics"
    );
    proxy.mend();
    expect_clean(&stage, &download(&stage, &agent).await?.body, "clone").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_knows_an_older_snapshot_takes_up_the_newer_one() -> Result<()> {
    let stage = published(Kind::Directory).await?;
    let reader = stage.agent().await?;
    download(&stage, &reader).await?;
    stage.origin.commit("main", &[("next.txt", "next")]).await?;
    let status = current(&stage, &reader).await?;
    ensure!(status["snapshot"]["generation"] == 2, "{status}");
    Ok(())
}
