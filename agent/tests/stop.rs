//! How the agent ends: answers under way finish if they can, and it does not live on without a part of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::PATIENCE;
use tarn_testkit::eventually::eventually;

use crate::scene::{Scene, agent};

/// Eight megabytes that do not compress, at a megabyte a second.
async fn slow(drain: &str) -> Result<Scene> {
    let agent = agent().arg("--max-rate").arg("1000000").arg("--drain").arg(drain);
    let scene =
        Scene::of(agent, &[], async |_, origin| origin.grow("main", 8, 1_000_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(scene)
}

/// Begins a clone, and stops the agent when the first bytes of the pack have come.
async fn stop_in_a_clone(scene: &mut Scene) -> Result<(i32, bool)> {
    let (git, url, place) = (scene.git.clone(), scene.url()?, scene.place("clone"));
    let cloning = tokio::spawn(async move { git.clone_repo(&url, &place, &[]).await });
    eventually(PATIENCE, "the pack to be under way", async || {
        let sent: u64 = scene.agent.metric("tarn_serve_sent_bytes_total").await?;
        ensure!(sent > 100_000, "{sent} bytes");
        Ok(())
    })
    .await?;
    ensure!(!cloning.is_finished(), "the clone was too fast for this test");
    let code = scene.agent.stop().await?;
    let whole = match cloning.await.context("the clone's task")? {
        Ok(clone) => clone.fsck().await.map(|()| true)?,
        Err(_) => false,
    };
    Ok((code, whole))
}

#[tokio::test]
async fn a_clone_under_way_is_finished_within_the_drain() -> Result<()> {
    let mut scene = slow("60").await?;
    ensure!(stop_in_a_clone(&mut scene).await? == (0, true), "{}", scene.agent.logs()?);
    ensure!(!scene.agent.logs()?.contains("--drain is over"), "something was cut");
    Ok(())
}

#[tokio::test]
async fn what_is_not_finished_within_the_drain_is_cut_and_told() -> Result<()> {
    let mut scene = slow("1").await?;
    ensure!(stop_in_a_clone(&mut scene).await? == (0, false), "{}", scene.agent.logs()?);
    ensure!(scene.agent.logs()?.contains("--drain is over"), "nothing is told");
    Ok(())
}

#[tokio::test]
async fn an_agent_does_not_live_on_without_a_part_of_its_own() -> Result<()> {
    for (failpoint, name, how) in [
        ("ends:budget", "budget", "ended"),
        ("panics:warmer", "warmer", "panicked"),
        ("ends:manifests", "manifests", "ended"),
        ("ends:orphans", "orphans", "ended"),
        ("ends:admin-port", "admin-port", "ended"),
        ("ends:mirror", "mirror", "ended"),
    ] {
        let agent = agent().mirror("http://127.0.0.1:9/o/r").env("TARN_TASK_FAILPOINT", failpoint);
        let ended = tokio::time::timeout(Duration::from_secs(60), agent.run_to_end()).await??;
        ensure!(ended.status.code() == Some(1), "{failpoint}: {:?} {}", ended.status, ended.stderr);
        let line = format!("task=\"{name}\" how=\"{how}\"");
        ensure!(ended.stderr.contains(&line), "{failpoint}: {}", ended.stderr);
        ensure!(ended.stderr.contains(&format!("tarn-agent: the task {name} {how}")), "{}", ended.stderr);
    }
    Ok(())
}
