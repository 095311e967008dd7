//! A new agent, an empty disk: the mirror comes from the store.

use anyhow::{Result, ensure};
use tarn_testkit::upstream::Operation;

use super::{Kind, Stage, on_both_stores};

on_both_stores!(
    a_new_agent_restores_instead_of_cloning,
    what_was_pushed_since_the_checkpoint_is_there_before_the_mirror_is_ready,
    increments_are_restored_with_their_base,
    tags_and_odd_refs_come_back,
);

async fn a_new_agent_restores_instead_of_cloning(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.one_generation().await?;
    stage.upstream.clear_log();
    let second = stage.ready().await?;
    ensure!(stage.upstream.count("a.git", Operation::Fetch) == 0, "it fetched from the upstream");
    stage.expect_clone(&second, "clone").await?;
    let status = second.mirror_status(&stage.repo()).await?;
    ensure!(status["checkpoint"]["generation"] == 1, "{status}");
    Ok(())
}

async fn what_was_pushed_since_the_checkpoint_is_there_before_the_mirror_is_ready(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.one_generation().await?;
    stage.origin.commit("main", &[("later.txt", "later")]).await?;
    let second = stage.ready().await?;
    ensure!(
        stage.git.ls_remote(&second.git_url(&stage.repo())?).await? == stage.origin.refs().await?,
        "an old ref was called fresh"
    );
    stage.expect_clone(&second, "clone").await
}

async fn increments_are_restored_with_their_base(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.origin.grow("main", 30, 20_000, 7).await?;
    let mut first = stage.ready().await?;
    stage.published(&first).await?;
    for number in 0..3 {
        stage.origin.commit("main", &[(&format!("file-{number}"), "text")]).await?;
        stage.published(&first).await?;
    }
    first.stop().await?;
    let newest = stage.newest()?.unwrap_or_default();
    ensure!(newest["packs"].as_array().is_some_and(|packs| packs.len() > 1), "no increment: {newest}");
    stage.upstream.clear_log();
    let second = stage.ready().await?;
    ensure!(stage.upstream.count("a.git", Operation::Fetch) == 0, "it fetched from the upstream");
    stage.expect_clone(&second, "clone").await
}

async fn tags_and_odd_refs_come_back(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.origin.git(&["tag", "-a", "-m", "a tag", "v1", "main"]).await?;
    stage.origin.git(&["update-ref", "refs/notes/x", "main"]).await?;
    stage.origin.git(&["update-ref", "refs/heads/feature/with-ümlaut", "main"]).await?;
    stage.one_generation().await?;
    let second = stage.ready().await?;
    ensure!(
        stage.git.ls_remote(&second.git_url(&stage.repo())?).await? == stage.origin.refs().await?,
        "refs differ"
    );
    Ok(())
}
