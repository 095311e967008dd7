//! SIGKILL at every step of publishing and of restoring, then a start.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_agent::checkpoint::failpoint::FailPoint;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;

use super::{Kind, Stage, on_both_stores};
use crate::scene::agent;

on_both_stores!(killed_at_every_step_of_publishing, killed_at_every_step_of_restoring);

/// Runs an agent until it dies at `point`, which it must.
async fn die(stage: &Stage, data: &Path, point: FailPoint) -> Result<()> {
    let builder = agent().data(data).without_manifests().mirror(&stage.upstream.url("a.git"));
    let dying = stage.with_store(builder.env(FailPoint::VARIABLE, point.name()), None);
    let output = dying.run_to_end().await.with_context(|| format!("is {point:?} ever reached?"))?;
    ensure!(output.status.signal() == Some(9), "{point:?}: {:?} {}", output.status, output.stderr);
    Ok(())
}

/// Starts it once more without the failpoint: the mirror becomes ready, and nothing is left in staging.
async fn expect_recovery(stage: &Stage, data: &Path, point: FailPoint) -> Result<Agent> {
    let again = stage.start(stage.with_store(agent().data(data), None)).await?;
    again.wait_phase(&stage.repo(), "Ready").await.with_context(|| format!("after {point:?}"))?;
    stage.published(&again).await.with_context(|| format!("after {point:?}"))?;
    eventually(Duration::from_secs(20), "no leftovers", async || {
        let left = std::fs::read_dir(data.join("staging"))?.count();
        ensure!(left == 0, "{left} leftovers after {point:?}");
        Ok(())
    })
    .await?;
    Ok(again)
}

async fn killed_at_every_step_of_publishing(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let steps = FailPoint::ALL.into_iter().filter(|point| point.name().starts_with("Publish"));
    for (number, point) in steps.enumerate() {
        stage.origin.commit("main", &[(&format!("file-{number}"), "text")]).await?;
        let data = stage.dir.path().join(format!("data-{number}"));
        die(&stage, &data, point).await?;
        let mut again = expect_recovery(&stage, &data, point).await?;
        again.stop().await?;
        // What the next agent restores is whole.
        let mut fresh = stage.ready().await?;
        stage.expect_clone(&fresh, &format!("clone-{number}")).await?;
        ensure!(stage.bad()? == 0, "a torn checkpoint after {point:?}");
        fresh.stop().await?;
    }
    Ok(())
}

async fn killed_at_every_step_of_restoring(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.origin.grow("main", 10, 20_000, 3).await?;
    stage.one_generation().await?;
    let steps = FailPoint::ALL.into_iter().filter(|point| point.name().starts_with("Restore"));
    for (number, point) in steps.enumerate() {
        let data = stage.dir.path().join(format!("data-{number}"));
        die(&stage, &data, point).await?;
        let mut again = expect_recovery(&stage, &data, point).await?;
        stage.expect_clone(&again, &format!("clone-{number}")).await?;
        again.stop().await?;
        ensure!(stage.bad()? == 0, "a good checkpoint was called bad after {point:?}");
    }
    Ok(())
}

/// The two tests above go through the whole list.
#[test]
fn every_failpoint_is_tried() {
    for point in FailPoint::ALL {
        let name = point.name();
        assert!(name.starts_with("Publish") || name.starts_with("Restore"), "{name} is in no test");
    }
}
