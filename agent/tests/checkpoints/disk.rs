//! The agent's own disk is full: while it restores, and while it publishes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::eventually::eventually;

use super::{Kind, Stage, on_both_stores};
use crate::p4_never_stuck::SmallDisk;
use crate::scene::{agent, condition};

on_both_stores!(
    a_full_disk_while_restoring_is_named_and_room_is_enough_to_go_on,
    a_full_disk_while_publishing_is_named_and_room_is_enough_to_go_on,
);

/// The reason of a condition that is true.
fn reason(status: &Value, kind: &str) -> Option<String> {
    let conditions = status["conditions"].as_array()?;
    let found =
        conditions.iter().find(|condition| condition["type"] == kind && condition["status"] == "True")?;
    Some(found["reason"].as_str()?.to_owned())
}

async fn a_full_disk_while_restoring_is_named_and_room_is_enough_to_go_on(kind: Kind) -> Result<()> {
    let Some(disk) = SmallDisk::mount("8m").await? else {
        return Ok(());
    };
    let stage = Stage::new(kind).await?;
    stage.origin.grow("main", 4, 4_000_000, 1).await?;
    stage.one_generation().await?;
    let data = disk.path().join("data");
    let second = stage.start(stage.with_store(agent().data(&data), None)).await?;
    second
        .wait_status(&stage.repo(), "the full disk", |status| {
            reason(status, "RestoreFailed").as_deref() == Some("DiskFull")
        })
        .await?;
    // A full disk here says nothing about the checkpoint.
    ensure!(stage.bad()? == 0, "a good checkpoint was called bad");
    disk.grow("200m").await?;
    second.wait_phase(&stage.repo(), "Ready").await?;
    stage.expect_clone(&second, "clone").await
}

async fn a_full_disk_while_publishing_is_named_and_room_is_enough_to_go_on(kind: Kind) -> Result<()> {
    let Some(disk) = SmallDisk::mount("64m").await? else {
        return Ok(());
    };
    let stage = Stage::new(kind).await?;
    let first = stage.start(stage.with_store(agent().data(disk.path().join("data")), None)).await?;
    first.wait_phase(&stage.repo(), "Ready").await?;
    stage.published(&first).await?;
    first.wait_idle().await?;
    // Room for what the fetch brings, and not for the same once more, which is what publishing it takes.
    let filler = disk.path().join("filler");
    let statistics = rustix::fs::statvfs(disk.path())?;
    let free = statistics.f_bavail * statistics.f_frsize;
    let keep = 12 << 20;
    std::fs::write(&filler, vec![1; usize::try_from(free.checked_sub(keep).context("room")?)?])?;
    stage.origin.grow("main", 1, 8 << 20, 5).await?;
    let tip = stage.origin.rev_parse("main").await?;
    first.fetch_now(&stage.repo()).await?;
    first.wait_status(&stage.repo(), "the push", |status| status["head"]["sha"] == tip).await?;
    let status = eventually(Duration::from_secs(30), "the full disk", async || {
        first.post(&format!("/mirrors/{}/checkpoint", stage.repo())).await?;
        let status = first.mirror_status(&stage.repo()).await?;
        ensure!(reason(&status, "StoreFailed").as_deref() == Some("DiskFull"), "{status}");
        Ok(status)
    })
    .await?;
    ensure!(condition(&status, "Ready"), "it no longer serves: {status}");
    let shown = stage.git.ls_remote(&first.git_url(&stage.repo())?).await?;
    ensure!(shown == stage.origin.refs().await?, "the refs are not served");
    ensure!(stage.manifests()?.len() == 1, "something was published");
    std::fs::remove_file(filler)?;
    ensure!(stage.published(&first).await? == 2, "a second generation");
    first.wait_status(&stage.repo(), "no trouble", |status| !condition(status, "StoreFailed")).await?;
    Ok(())
}
