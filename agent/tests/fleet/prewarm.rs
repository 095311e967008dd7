//! What is brought before anyone asks for it.

use anyhow::{Result, ensure};
use serde_json::json;
use tarn_testkit::agent::PATIENCE;
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Fault;

use super::{Repositories, counted};
use crate::scene::agent;

#[tokio::test]
async fn popular_mirrors_come_by_themselves_and_the_others_when_they_are_asked_for() -> Result<()> {
    let plain: &[&str] = &[];
    let all = [("a", plain), ("b", plain), ("always", &["prewarm: Always"]), ("never", &["prewarm: Never"])];
    let scene = Repositories::new(&all).await?;
    let store = scene.dir.path().join("store");
    counted(&store, &[(scene.repo("b"), 5), (scene.repo("never"), 50)])?;
    let agent = agent().arg("--store").arg(&store).arg("--prewarm-most-cloned").arg("1");
    let agent = agent.start_with(&[("all.yaml", &scene.yaml)]).await?;
    agent.wait_ready(&[&scene.repo("b"), &scene.repo("always")]).await?;
    let warm = eventually(PATIENCE, "two mirrors", async || {
        let prewarm = agent.status().await?["prewarm"].clone();
        ensure!(prewarm["underWay"] == 0 && prewarm["warmed"] == 2, "{prewarm}");
        Ok(prewarm)
    });
    ensure!(warm.await? == json!({"total": 2, "warmed": 2, "underWay": 0, "failed": 0}), "two chosen");
    ensure!(agent.metric::<u64>("tarn_prewarm_warm").await? == 2, "{}", agent.metrics().await?);
    for name in ["a", "never"] {
        let status = agent.mirror_status(&scene.repo(name)).await?;
        ensure!(status["phase"] == "OnDemand" && status["bytes"] == 0, "{status}");
        ensure!(status["conditions"][0]["reason"] == "OnDemand", "{status}");
        ensure!(scene.asked(name) == 0, "the upstream was asked for {name}");
    }
    for name in ["a", "never"] {
        scene.clone(&agent, name, name).await?;
        agent.wait_phase(&scene.repo(name), "Ready").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_mirror_that_fails_delays_nobody_for_long_and_comes_later() -> Result<()> {
    let plain: &[&str] = &[];
    let scene = Repositories::new(&[("a", plain), ("b", plain), ("c", plain)]).await?;
    scene.upstream.fault_in("a.git", Fault::Status(500));
    let agent = agent().arg("--prewarm-concurrency").arg("1");
    let agent = agent.start_with(&[("all.yaml", &scene.yaml)]).await?;
    agent.wait_ready(&[&scene.repo("b"), &scene.repo("c")]).await?;
    let prewarm = agent.status().await?["prewarm"].clone();
    ensure!(prewarm["total"] == 3 && prewarm["failed"] == 1, "{prewarm}");
    scene.upstream.mend();
    agent.wait_phase(&scene.repo("a"), "Ready").await?;
    let prewarm = agent.status().await?["prewarm"].clone();
    ensure!(prewarm["warmed"] == 3 && prewarm["failed"] == 0, "{prewarm}");
    Ok(())
}

#[tokio::test]
async fn a_mirror_that_becomes_popular_or_is_declared_later_is_brought_too() -> Result<()> {
    let plain: &[&str] = &[];
    let scene = Repositories::new(&[("a", plain), ("b", plain)]).await?;
    let only_a = scene.yaml.split("---\n").next().unwrap_or_default().to_owned();
    let agent = agent().start_with(&[("all.yaml", &only_a)]).await?;
    agent.wait_phase(&scene.repo("a"), "Ready").await?;
    agent.write_manifest("all.yaml", &scene.yaml)?;
    agent.wait_phase(&scene.repo("b"), "Ready").await?;
    Ok(())
}
