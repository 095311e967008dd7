//! Several agents on one store: one snapshot for all; and what a killed one leaves.

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::PATIENCE;
use tarn_testkit::eventually::eventually;

use super::{current, download, objects, path, stage};
use crate::checkpoints::{Kind, files, on_both_stores};

on_both_stores!(two_agents_serve_the_same_snapshot);

async fn two_agents_serve_the_same_snapshot(kind: Kind) -> Result<()> {
    let stage = stage(kind).await?;
    let (one, two) = tokio::try_join!(stage.ready(), stage.ready())?;
    for number in 0..2 {
        stage.origin.commit("main", &[("next.txt", &number.to_string())]).await?;
        let (first, second) = tokio::try_join!(current(&stage, &one), current(&stage, &two))?;
        ensure!(first["snapshot"]["digest"] == second["snapshot"]["digest"], "{first}\n{second}");
        let (first, second) = tokio::try_join!(download(&stage, &one), download(&stage, &two))?;
        ensure!(first.body == second.body, "the archives differ");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_builds_leaves_nothing_behind() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    stage.origin.grow("main", 30, 500_000, 3).await?;
    let mut agent = stage.agent().await?;
    let staging = agent.data().join("staging");
    eventually(std::time::Duration::from_secs(60), "a worktree", async || {
        let entries = std::fs::read_dir(&staging)?;
        let found = entries.flatten().any(|entry| entry.path().join("tree/.git/index").exists());
        ensure!(found, "not yet");
        Ok(())
    })
    .await?;
    agent.kill9().await?;
    ensure!(files(&objects(&stage), "json")?.is_empty(), "it was published");
    agent.start_again().await?;
    let answer = agent.get(&format!("{}?wait=60s", path(&stage))).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    agent.wait_idle().await?;
    let id = tarn_crds::repo::RepoId::from_route(&stage.repo())?;
    // Once it is published, its manifest is written anew.
    eventually(PATIENCE, "the archive, its manifest, and nothing else", async || {
        let kept = std::fs::read_dir(agent.data().join("snapshots").join(id.dir()))?.count();
        ensure!(kept == 2, "{kept} files");
        Ok(())
    })
    .await?;
    let left = std::fs::read_dir(&staging).context("staging")?.count();
    ensure!(left <= 1, "{left} directories in staging");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_mirror_takes_its_snapshots_along() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let id = tarn_crds::repo::RepoId::from_route(&stage.repo())?;
    let dir = agent.data().join("snapshots").join(id.dir());
    ensure!(dir.exists(), "there is none");
    agent.remove_manifest("a.yaml")?;
    eventually(std::time::Duration::from_secs(20), "it to go", async || {
        ensure!(!dir.exists(), "still there");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_command_lists_verifies_and_collects_snapshots() -> Result<()> {
    let stage = super::published(Kind::Directory).await?;
    let run = async |args: &[&str]| {
        let builder = args.iter().fold(crate::scene::agent().arg("store"), |builder, arg| builder.arg(*arg));
        stage.with_store(builder, None).run_alone().await
    };
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&run(&["ls", "--json"]).await?.stdout)?;
    let snapshots = listed.iter().filter(|row| row["kind"] == "snapshot" && row["state"] == "good");
    ensure!(snapshots.count() == 1, "{listed:?}");
    ensure!(run(&["verify"]).await?.status.success(), "it does not verify");
    // A second one whose manifest was never written.
    let archive = files(&objects(&stage), "zst")?.pop().context("an archive")?;
    let orphan = archive.with_file_name(format!("{}-{}.tar.zst", "1".repeat(40), "2".repeat(64)));
    std::fs::copy(&archive, &orphan)?;
    ensure!(run(&["gc"]).await?.status.success() && orphan.exists(), "it went within the grace period");
    ensure!(run(&["gc", "--grace-hours", "0"]).await?.status.success(), "gc");
    ensure!(!orphan.exists() && archive.exists(), "the wrong one went");
    let mut content = std::fs::read(&archive)?;
    content[100] ^= 1;
    std::fs::write(&archive, content)?;
    let verified = run(&["verify"]).await?;
    ensure!(!verified.status.success() && verified.text().contains("damaged"), "{}", verified.text());
    Ok(())
}
