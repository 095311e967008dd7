//! A new agent, an empty disk: the mirror comes from the store.

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Agent, PATIENCE, manifest};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Operation;

use super::{Kind, Stage, on_both_stores};
use crate::p4_never_stuck::files;

on_both_stores!(
    a_new_agent_restores_instead_of_cloning,
    what_was_pushed_since_the_checkpoint_is_there_before_the_mirror_is_ready,
    increments_are_restored_with_their_base,
    tags_and_odd_refs_come_back,
    the_restored_pack_answers_a_full_clone_as_it_is,
    a_restored_pack_that_holds_more_than_the_refs_reach_is_not_given_away,
    a_checkpoint_that_is_larger_than_the_mirror_may_be_is_not_restored,
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

/// How many full clones were answered by the mirror's own pack.
async fn answered_by_pack(agent: &Agent) -> Result<u64> {
    agent.metric("tarn_packs_composed_total{base=\"history\"}").await
}

async fn the_restored_pack_answers_a_full_clone_as_it_is(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let head = stage.origin.grow("main", 6, 100_000, 7).await?;
    stage.origin.annotated_tag("v1", &head).await?;
    stage.one_generation().await?;
    let second = stage.ready().await?;
    stage.expect_clone(&second, "clone").await?;
    ensure!(answered_by_pack(&second).await? == 1, "a child made it anew");
    ensure!(
        second.metric::<u64>("tarn_spool_bytes{spool=\"packs\",part=\"kept\"}").await? == 0,
        "it is no file"
    );
    // Other requests are not for all that the pack holds.
    let url = second.git_url(&stage.repo())?;
    for (name, options) in [("shallow", ["--depth=1"]), ("partial", ["--filter=blob:none"])] {
        stage.git.clone_repo(&url, &stage.dir.path().join(name), &options).await?.fsck().await?;
    }
    // And it does not hold what is pushed.
    stage.origin.commit("main", &[("later.txt", "later")]).await?;
    stage.expect_clone(&second, "later").await?;
    ensure!(answered_by_pack(&second).await? == 2, "the pack, and what is new");
    Ok(())
}

async fn a_restored_pack_that_holds_more_than_the_refs_reach_is_not_given_away(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    // So large that a password more is nothing.
    let kept = stage.origin.grow("main", 40, 1000, 7).await?;
    stage.origin.set_ref("refs/heads/leak", &kept).await?;
    let leak = stage.origin.commit("leak", &[("password.txt", "hunter2")]).await?;
    let mut first = stage.ready().await?;
    stage.published(&first).await?;
    stage.origin.delete_ref("refs/heads/leak").await?;
    stage.published(&first).await?;
    first.stop().await?;
    let newest = stage.newest()?.unwrap_or_default();
    ensure!(newest["packs"].as_array().is_some_and(|packs| packs.len() == 1), "the base alone: {newest}");
    let second = stage.ready().await?;
    let clone =
        stage.git.clone_repo(&second.git_url(&stage.repo())?, &stage.dir.path().join("c"), &[]).await?;
    let there = clone.attempt(&["cat-file", "-e", &leak]).await?;
    ensure!(!there.status.success(), "what the upstream has deleted came with the pack");
    ensure!(answered_by_pack(&second).await? == 0, "the pack was given away");
    Ok(())
}

async fn a_checkpoint_that_is_larger_than_the_mirror_may_be_is_not_restored(kind: Kind) -> Result<()> {
    let mut stage = Stage::new(kind).await?;
    stage.origin.grow("main", 10, 500_000, 7).await?;
    stage.one_generation().await?;
    // Whatever comes, comes from the store.
    stage.upstream.down().await;
    stage.spec.push("limits: {maxBytes: 1Mi}");
    let agent = stage.agent().await?;
    let refused = "tarn_checkpoint_restores_total{outcome=\"MirrorTooLarge\"}";
    eventually(PATIENCE, "the restore to be refused", async || {
        ensure!(agent.metric::<u64>(refused).await? > 0, "{}", agent.metrics().await?);
        Ok(())
    })
    .await?;
    let status = agent.mirror_status(&stage.repo()).await?;
    ensure!(status["bytes"] == 0 && status["refCount"] == 0, "{status}");
    ensure!(
        agent.get(&format!("/git/{}/info/refs?service=git-upload-pack", stage.repo())).await?.status >= 500
    );
    let bad = files(&stage.objects())?.into_iter().any(|file| file.to_string_lossy().ends_with(".bad"));
    ensure!(!bad, "what is too large here is not damaged");
    // The limit is raised.
    stage.spec.pop();
    stage.spec.push("limits: {maxBytes: 100Mi}");
    let yaml = manifest("a", &stage.upstream.url("a.git"), &stage.spec);
    agent.write_manifest("a.yaml", &yaml)?;
    stage.wait_restored(&agent).await
}
