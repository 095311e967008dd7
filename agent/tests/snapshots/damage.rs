//! What rots on this disk is never served, and is whole again without anybody's doing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::wire::Answer;

use super::{SPEC, download, expect_clean, extract, path, published};
use crate::checkpoints::{Kind, files, on_both_stores};
use crate::scene::Scene;

on_both_stores!(a_snapshot_that_rots_on_the_disk_is_fetched_again);

/// Changes the archive with this ending below `dir` in the middle.
fn rot(dir: &Path) -> Result<()> {
    let archive = files(dir, "zst")?.pop().context("an archive on the disk")?;
    let middle = std::fs::metadata(&archive)?.len() / 2;
    let file = std::fs::File::options().write(true).open(&archive)?;
    Ok(std::os::unix::fs::FileExt::write_all_at(&file, b"rot!", middle)?)
}

/// Asks until there is a whole answer again; one that is whole is the right one.
async fn healed(agent: &Agent, target: &str, right: impl Fn(&Answer) -> Result<()>) -> Result<()> {
    eventually(Duration::from_secs(60), "a whole answer", async || {
        let answer = agent.get(target).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        right(&answer)
    })
    .await
}

async fn a_snapshot_that_rots_on_the_disk_is_fetched_again(kind: Kind) -> Result<()> {
    let stage = published(kind).await?;
    let agent = stage.agent().await?;
    let first = download(&stage, &agent).await?;
    let whole = |status: &serde_json::Value| status["snapshot"]["local"] == status["snapshot"]["bytes"];
    agent.wait_status(&stage.repo(), "the whole archive", whole).await?;
    let dir = agent.data().join("snapshots").join(RepoId::from_route(&stage.repo())?.dir());
    rot(&dir)?;
    let cut = agent.get(&path(&stage)).await;
    ensure!(cut.is_err(), "a damaged archive was served as whole");
    healed(&agent, &path(&stage), |answer| {
        assert!(answer.body == first.body, "other bytes");
        Ok(())
    })
    .await?;
    let told = agent.logs()?.matches("a snapshot on this disk is damaged").count();
    ensure!(told == 1, "told {told} times");
    let counted: u64 = agent.metric(r#"tarn_integrity_damages_total{what="snapshot"}"#).await?;
    ensure!(counted == 1, "counted {counted} times");
    // Nobody blames the store for it.
    ensure!(files(&super::objects(&stage), "bad")?.is_empty(), "a snapshot is marked");
    // And what somebody removes comes back as well.
    agent.wait_status(&stage.repo(), "the whole archive", whole).await?;
    for archive in files(&dir, "zst")? {
        std::fs::remove_file(archive)?;
    }
    ensure!(download(&stage, &agent).await?.body == first.body, "other bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_rots_without_a_store_is_built_again() -> Result<()> {
    let scene = Scene::with(SPEC).await?;
    let target = format!("{}/snapshot.tar.zst", scene.path());
    let first = scene.agent.get(&format!("{target}?wait=30s")).await?;
    ensure!(first.status == 200, "{} {}", first.status, first.text());
    rot(&scene.agent.data().join("snapshots").join(RepoId::from_route(&scene.repo())?.dir()))?;
    ensure!(scene.agent.get(&target).await.is_err(), "a damaged archive was served as whole");
    healed(&scene.agent, &format!("{target}?wait=10s"), |answer| {
        let place = scene.dir.path().join("extracted");
        let _ = std::fs::remove_dir_all(&place);
        extract(&answer.body, &place)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_a_snapshot_that_has_rotted_meanwhile() -> Result<()> {
    let stage = published(Kind::Directory).await?;
    let mut agent = stage.agent().await?;
    let first = download(&stage, &agent).await?;
    let dir = agent.data().join("snapshots").join(RepoId::from_route(&stage.repo())?.dir());
    eventually(Duration::from_secs(20), "its manifest", async || {
        ensure!(!files(&dir, "json")?.is_empty(), "not yet");
        Ok(())
    })
    .await?;
    agent.kill9().await?;
    rot(&dir)?;
    agent.start_again().await?;
    let again = download(&stage, &agent).await?;
    ensure!(again.body == first.body, "other bytes");
    expect_clean(&stage, &again.body, "clone").await?;
    Ok(())
}
