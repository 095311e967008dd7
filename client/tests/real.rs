//! Client and agent together, with nothing between them: the snapshots are the agent's own.

use std::fs::{self, File};

use anyhow::{Result, ensure};
use serde_json::Value;
use tarn_testkit::git::Repo;

use crate::scene::Scene;

/// Clones straight from the agent, without any other way; waits for its snapshot.
async fn clone(scene: &Scene, name: &str, args: &[&str]) -> Result<(Value, Repo)> {
    let server = format!("http://{}", scene.agent.git_address()?);
    let (report, clone) =
        scene.clone(name, &[&["--server", &server, "--no-fallback"], args].concat()).await?;
    scene.expect_clone(&clone).await?;
    Ok((report, clone))
}

#[tokio::test]
async fn the_agents_snapshot_becomes_a_clone_that_git_need_not_read() -> Result<()> {
    let scene = Scene::without_snapshot(async |origin| {
        let script = "commit refs/heads/main\ncommitter C <c@example.com> 1700000000 +0000\ndata 0\n\
             M 120000 inline link\ndata 6\nREADME\n\
             M 100755 inline run\ndata 10\n#!/bin/sh\n\n\
             M 100644 inline README\ndata 6\nhello\n\n";
        origin.fast_import(script.as_bytes()).await?;
        Ok(())
    })
    .await?;
    let (report, clone) = clone(&scene, "a", &[]).await?;
    assert_eq!(report["commit"], scene.tip("main").await?);
    let path = clone.path().join("README");
    let modified = fs::metadata(&path)?.modified()?;
    fs::write(&path, "HELLO\n")?;
    File::options().write(true).open(&path)?.set_modified(modified)?;
    assert_eq!(clone.git(&["--no-optional-locks", "status", "--porcelain"]).await?, "");
    Ok(())
}

#[tokio::test]
async fn the_agents_bundle_brings_what_was_pushed_since() -> Result<()> {
    let scene = Scene::without_snapshot(async |_| Ok(())).await?;
    let (first, _) = clone(&scene, "first", &[]).await?;
    scene.origin.commit("main", &[("README", "newer\n")]).await?;
    let side = scene.origin.commit("side", &[("side", "side\n")]).await?;
    let (second, _) = clone(&scene, "second", &[]).await?;
    assert_eq!(second["commit"], scene.tip("main").await?);
    let bytes = |report: &Value| report["bytes"].as_u64().unwrap_or_default();
    ensure!(bytes(&second) > bytes(&first), "no bundle: {first} {second}");
    let (third, _) = clone(&scene, "third", &["--ref", "side"]).await?;
    assert_eq!((&third["branch"], &third["commit"]), (&"side".into(), &side.into()));
    Ok(())
}

#[tokio::test]
async fn a_snapshot_of_many_ranges_comes_from_the_agent() -> Result<()> {
    let scene = Scene::without_snapshot(async |origin| {
        origin.grow("main", 3, 3_000_000, 1).await?;
        Ok(())
    })
    .await?;
    let (report, _) = clone(&scene, "a", &[]).await?;
    assert!(report["bytes"].as_u64().unwrap() > 16 << 20, "{report}");
    Ok(())
}

#[tokio::test]
async fn an_empty_upstream_has_no_snapshot_and_is_cloned_by_git() -> Result<()> {
    let scene = Scene::without_snapshot(async |origin| origin.delete_ref("refs/heads/main").await).await?;
    let server = format!("http://{}", scene.agent.git_address()?);
    let (report, _) = scene.clone_somehow("a", &["--server", &server]).await?;
    assert_eq!((&report["how"], &report["commit"]), (&"git-through-tarn".into(), &Value::Null));
    Ok(())
}
