//! The archive of the LFS objects that HEAD's worktree needs.

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::Agent;
use tarn_testkit::wire::Answer;

use super::{client, expect_content, noise, scene, transfers};
use crate::scene::Scene;

async fn download(scene: &Scene, agent: &Agent) -> Result<Answer> {
    let answer = agent.get(&format!("{}/lfs-snapshot.tar.zst?wait=30s", scene.path())).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_lfs_snapshot_extracted_into_a_clone_checks_out_offline() -> Result<()> {
    let content = noise(300_000);
    let mut scene = scene(&content).await?;
    let answer = download(&scene, &scene.agent).await?;
    let head = scene.origin.rev_parse("main").await?;
    ensure!(answer.header("x-cachew-snapshot-commit") == Some(&head), "{:?}", answer.headers);
    ensure!(transfers(&scene) == 1, "{} downloads", transfers(&scene));
    let git = client()?.with_env("GIT_LFS_SKIP_SMUDGE", "1");
    let clone = git.clone_repo(&scene.url()?, &scene.place("clone"), &[]).await?;
    tar::Archive::new(zstd::stream::read::Decoder::new(&answer.body[..])?).unpack(clone.git_dir())?;
    scene.upstream.down().await;
    scene.agent.restart().await?;
    clone.git(&["lfs", "checkout"]).await?;
    expect_content(&clone, &content).await?;
    clone.git(&["lfs", "fsck"]).await?;
    // It is still there, by the same name, and in parts.
    let again = download(&scene, &scene.agent).await?;
    ensure!(again.body == answer.body && again.header("etag") == answer.header("etag"), "another archive");
    let etag = answer.header("etag").context("an etag")?;
    let target = format!("{}/lfs-snapshot.tar.zst", scene.path());
    let headers = [("Range", "bytes=0-99"), ("If-Match", etag)];
    let part = scene.connect().await?.ask("GET", &target, &headers, b"").await?;
    ensure!(part.status == 206 && part.body == answer.body[..100], "{}", part.status);
    let unchanged = scene.connect().await?.ask("GET", &target, &[("If-None-Match", etag)], b"").await?;
    ensure!(unchanged.status == 304, "{}", unchanged.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worktree_without_lfs_has_no_lfs_snapshot() -> Result<()> {
    let scene = Scene::ready().await?;
    let answer = scene.agent.get(&format!("{}/lfs-snapshot.tar.zst?wait=30s", scene.path())).await?;
    ensure!(answer.status == 404 && answer.text().starts_with("NoSnapshot"), "{}", answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_the_upstream_lost_are_left_out_of_the_lfs_snapshot() -> Result<()> {
    let content = noise(10_000);
    let scene = Scene::prepared(&[], async |upstream, origin| {
        upstream.lfs().enable(super::TOKEN);
        let pointer = upstream.lfs().put("a.git", &content);
        let lost = tarn_testkit::upstream::lfs::pointer(&"0".repeat(64), 9);
        origin.commit("main", &[("big.bin", &pointer), ("lost.bin", &lost)]).await.map(drop)
    })
    .await?;
    let answer = download(&scene, &scene.agent).await?;
    let into = scene.place("extracted");
    tar::Archive::new(zstd::stream::read::Decoder::new(&answer.body[..])?).unpack(&into)?;
    let oid = tarn_testkit::upstream::lfs::oid(&content);
    let object = into.join(format!("lfs/objects/{}/{}/{oid}", &oid[..2], &oid[2..4]));
    ensure!(std::fs::read(object)? == content, "another content");
    ensure!(!into.join("lfs/objects/00").exists(), "what is lost is there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pointers_to_more_than_the_disk_has_are_not_followed() -> Result<()> {
    let content = noise(10_000);
    let scene = Scene::prepared(&[], async |upstream, origin| {
        upstream.lfs().enable(super::TOKEN);
        let pointer = upstream.lfs().put("a.git", &content);
        let endless = tarn_testkit::upstream::lfs::pointer(&"1".repeat(64), 1 << 60);
        origin.commit("main", &[("big.bin", &pointer), ("endless.bin", &endless)]).await.map(drop)
    })
    .await?;
    let answer = scene.agent.get(&format!("{}/lfs-snapshot.tar.zst?wait=30s", scene.path())).await?;
    ensure!(answer.status == 404 && answer.text().contains("larger than the disk"), "{}", answer.text());
    ensure!(transfers(&scene) == 0, "nothing is fetched for it: {}", transfers(&scene));
    Ok(())
}
