//! Clones from a snapshot: whole, clean, fresh.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::time::Duration;

use anyhow::Result;

use crate::scene::Scene;

#[tokio::test]
async fn a_clone_from_a_snapshot_is_as_git_would_have_made_it() -> Result<()> {
    let scene = Scene::small().await?;
    let (report, clone) = scene.clone("a", &[]).await?;
    assert_eq!(report["commit"], scene.tip("main").await?);
    assert_eq!(report["branch"], "main");
    assert_eq!(report["fallback_reasons"], serde_json::json!([]));
    assert_eq!(report["directory"], scene.work().join("a").canonicalize()?.to_str().unwrap());
    assert!(report["bytes"].as_u64().unwrap() > 0 && report["seconds"]["total"].as_f64().unwrap() > 0.0);
    scene.expect_clone(&clone).await?;
    assert_eq!(clone.git(&["rev-parse", "--abbrev-ref", "main@{upstream}"]).await?, "origin/main");
    assert_eq!(clone.git(&["branch", "--format=%(refname)"]).await?, "refs/heads/main");
    assert_eq!(scene.left()?, ["a"]);
    Ok(())
}

#[tokio::test]
async fn status_trusts_the_index_and_opens_no_tracked_file() -> Result<()> {
    let scene = Scene::small().await?;
    let (_, clone) = scene.clone("a", &[]).await?;
    let path = clone.path().join("README");
    let (before, modified) = (fs::metadata(&path)?, fs::metadata(&path)?.modified()?);
    // Other content of the same size and time: only who opens the file can tell.
    fs::write(&path, "HELLO\n")?;
    File::options().write(true).open(&path)?.set_modified(modified)?;
    assert_eq!(fs::metadata(&path)?.size(), before.size());
    assert_eq!(clone.git(&["--no-optional-locks", "status", "--porcelain"]).await?, "");
    File::options().write(true).open(&path)?.set_modified(modified - Duration::from_secs(9))?;
    assert_eq!(clone.git(&["--no-optional-locks", "status", "--porcelain"]).await?, " M README");
    Ok(())
}

#[tokio::test]
async fn what_was_pushed_since_the_snapshot_is_there() -> Result<()> {
    let scene = Scene::small().await?;
    scene.origin.commit("main", &[("README", "newer\n"), ("added", "added\n")]).await?;
    scene.origin.commit("side", &[("side", "side\n")]).await?;
    let tip = scene.origin.commit("late", &[("late", "late\n")]).await?;
    scene.origin.tag("v2", &tip).await?;
    scene.origin.delete_ref("refs/tags/v1").await?;
    let (report, clone) = scene.clone("a", &[]).await?;
    assert_eq!(report["commit"], scene.tip("main").await?);
    assert_eq!(fs::read_to_string(clone.path().join("README"))?, "newer\n");
    scene.expect_clone(&clone).await?;
    let bundles = scene.proxy.seen().into_iter().filter(|seen| seen.target.contains("snapshot.bundle"));
    assert_eq!(bundles.map(|seen| seen.status).collect::<Vec<_>>(), [Some(200)]);
    Ok(())
}

#[tokio::test]
async fn a_branch_that_was_rewritten_is_followed() -> Result<()> {
    let scene = Scene::small().await?;
    let first = scene.origin.rev_parse("refs/heads/main~1").await?;
    scene.origin.set_ref("refs/heads/main", &first).await?;
    let (report, clone) = scene.clone("back", &[]).await?;
    assert_eq!(report["commit"], first);
    scene.expect_clone(&clone).await?;
    scene.origin.commit("main", &[("other", "history\n")]).await?;
    let (report, clone) = scene.clone("aside", &[]).await?;
    assert_eq!(report["commit"], scene.tip("main").await?);
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn another_default_branch_is_followed() -> Result<()> {
    let scene = Scene::small().await?;
    scene.origin.commit("trunk", &[("trunk", "trunk\n")]).await?;
    scene.origin.set_head("refs/heads/trunk").await?;
    scene.origin.delete_ref("refs/heads/main").await?;
    let (report, clone) = scene.clone("a", &[]).await?;
    assert_eq!((&report["branch"], &report["commit"]), (&"trunk".into(), &scene.tip("trunk").await?.into()));
    assert_eq!(clone.git(&["branch", "--format=%(refname)"]).await?, "refs/heads/trunk");
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn links_and_executable_files_of_the_worktree_arrive() -> Result<()> {
    let scene = Scene::without_snapshot(async |origin| {
        let script = "commit refs/heads/main\ncommitter C <c@example.com> 1700000000 +0000\ndata 0\n\
             M 120000 inline out\ndata 16\n/etc/nonexistent\n\
             M 120000 inline up\ndata 5\n../up\n\
             M 100755 inline run\ndata 10\n#!/bin/sh\n\n\n";
        origin.fast_import(script.as_bytes()).await?;
        Ok(())
    })
    .await?;
    scene.take_snapshot().await?;
    let (_, clone) = scene.clone("a", &[]).await?;
    assert_eq!(fs::read_link(clone.path().join("out"))?.to_str(), Some("/etc/nonexistent"));
    assert_ne!(fs::metadata(clone.path().join("run"))?.mode() & 0o100, 0);
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn a_large_snapshot_comes_in_ranges_and_in_order() -> Result<()> {
    let scene = Scene::large().await?;
    let (_, clone) = scene.clone("a", &["--jobs", "3"]).await?;
    scene.expect_clone(&clone).await?;
    let seen = scene.proxy.seen();
    let ranges: Vec<_> = seen.iter().filter_map(|seen| seen.range.as_deref()).collect();
    assert!(ranges.len() >= 3 && ranges.contains(&"bytes=8388608-16777215"), "{ranges:?}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_will_do() -> Result<()> {
    let scene = Scene::large().await?;
    scene.front.change(|served| served.ignores_ranges = true);
    let (_, clone) = scene.clone("a", &[]).await?;
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn directories_on_the_way_are_made_and_links_to_them_followed() -> Result<()> {
    let scene = Scene::small().await?;
    fs::create_dir(scene.work().join("real"))?;
    symlink("real", scene.work().join("link"))?;
    let (report, clone) = scene.clone("link/deep/a", &[]).await?;
    assert_eq!(report["how"], "snapshot");
    scene.expect_clone(&clone).await
}
