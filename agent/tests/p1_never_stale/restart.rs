//! After a restart nothing on disk counts as fresh before a look.

use anyhow::{Result, ensure};
use tarn_testkit::upstream::{Fault, Operation};

use crate::scene::Scene;

#[tokio::test]
async fn first_answer_after_a_restart_has_what_was_pushed_meanwhile() -> Result<()> {
    let mut scene = Scene::ready().await?;
    for round in 0..5 {
        if round % 2 == 0 {
            scene.agent.stop().await?;
        } else {
            scene.agent.kill9().await?;
        }
        let pushed = scene.origin.commit("main", &[("round", &round.to_string())]).await?;
        scene.origin.tag("moving", &pushed).await?;
        scene.agent.start_again().await?;
        let refs = scene.refs().await?;
        ensure!(refs.get("HEAD") == Some(&pushed), "round {round}: {refs:?}");
        ensure!(refs.get("refs/tags/moving") == Some(&pushed), "round {round}: {refs:?}");
        let clone = scene.clone(&format!("clone-{round}"), &[]).await?;
        assert_eq!(clone.rev_parse("HEAD").await?, pushed);
    }
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn restart_with_the_upstream_down_serves_what_is_on_disk_as_stale() -> Result<()> {
    let mut scene = Scene::with(&["freshness: {lookTimeout: 1s}"]).await?;
    let before = scene.refs().await?;
    scene.agent.stop().await?;
    scene.upstream.down().await;
    scene.agent.start_again().await?;
    assert_eq!(scene.refs().await?, before);
    let freshness = scene.freshness().await?;
    assert!(freshness.starts_with("stale; age="), "{freshness}");
    scene.clone("clone", &[]).await?.fsck().await?;
    let status = scene.status().await?;
    assert_ne!(status["phase"], "Ready", "no look has succeeded since the start: {status}");
    scene.upstream.up().await;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    assert_eq!(scene.refs().await?["HEAD"], pushed);
    assert_eq!(scene.freshness().await?, "verified");
    Ok(())
}

#[tokio::test]
async fn what_was_reused_before_a_restart_is_not_reused_after_it() -> Result<()> {
    let mut scene = Scene::with(&["freshness: {maxStaleness: 1h}"]).await?;
    scene.refs().await?;
    scene.agent.stop().await?;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    scene.agent.start_again().await?;
    assert_eq!(scene.refs().await?["HEAD"], pushed);
    Ok(())
}

#[tokio::test]
async fn phase_is_catching_up_until_the_look_is_done() -> Result<()> {
    let mut scene = Scene::ready().await?;
    let before = scene.status().await?;
    scene.agent.stop().await?;
    scene.upstream.fault_on(Operation::Advertise, Fault::Hold);
    scene.upstream.fault_on(Operation::LsRefs, Fault::Hold);
    scene.agent.start_again().await?;
    let status = scene.agent.wait_phase(&scene.repo(), "CatchingUp").await?;
    assert_eq!(status["head"], before["head"], "what is on disk is told");
    assert_eq!(status["refsDigest"], before["refsDigest"]);
    scene.upstream.mend();
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(())
}
