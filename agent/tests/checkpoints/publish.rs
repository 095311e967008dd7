//! What is published, and what never is.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;

use super::{Kind, Stage, files, on_both_stores};

on_both_stores!(
    refs_that_do_not_move_make_no_checkpoint,
    one_commit_costs_its_own_pack,
    a_ref_without_new_objects_makes_no_pack,
    a_mirror_that_lost_all_its_refs_is_not_published,
    a_restart_does_not_publish_again,
);

async fn refs_that_do_not_move_make_no_checkpoint(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    for _ in 0..3 {
        agent.post(&format!("/mirrors/{}/checkpoint", stage.repo())).await?;
        agent.fetch_now(&stage.repo()).await?;
    }
    ensure!(stage.manifests()?.len() == 1, "more than one checkpoint of the same refs");
    Ok(())
}

async fn one_commit_costs_its_own_pack(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.origin.grow("main", 30, 20_000, 7).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    let stored = || -> Result<u64> {
        let packs = files(&stage.objects().join("packs"), "pack")?;
        packs.iter().map(|path| Ok(std::fs::metadata(path)?.len())).sum()
    };
    let before = stored()?;
    let base = stage.origin.rev_parse("main").await?;
    stage.origin.commit("main", &[("one.txt", "one line")]).await?;
    stage.published(&agent).await?;
    let uploaded = stored()? - before;
    let alone = stage
        .git
        .run_with(
            [
                "-C",
                &stage.origin.path().display().to_string(),
                "pack-objects",
                "--revs",
                "--stdout",
                "--quiet",
            ],
            format!("main\n^{base}\n").as_bytes(),
        )
        .await?
        .stdout
        .len() as u64;
    ensure!(uploaded <= alone * 12 / 10 + 65_536, "{uploaded} bytes for a pack of {alone}");
    Ok(())
}

async fn a_ref_without_new_objects_makes_no_pack(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    let before = files(&stage.objects().join("packs"), "pack")?.len();
    stage.origin.git(&["update-ref", "refs/heads/other", "main"]).await?;
    ensure!(stage.published(&agent).await? == 2, "the new ref is not in the checkpoint");
    ensure!(files(&stage.objects().join("packs"), "pack")?.len() == before, "a pack without objects");
    Ok(())
}

async fn a_mirror_that_lost_all_its_refs_is_not_published(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    let refs = stage.origin.refs().await?;
    for name in refs.keys().filter(|name| name.starts_with("refs/")) {
        stage.origin.git(&["update-ref", "-d", name]).await?;
    }
    agent.fetch_now(&stage.repo()).await?;
    agent.wait_status(&stage.repo(), "no refs", |status| status["refCount"] == 0).await?;
    agent.post(&format!("/mirrors/{}/checkpoint", stage.repo())).await?;
    eventually(Duration::from_secs(20), "the refusal to show in status", async || {
        let status = agent.mirror_status(&stage.repo()).await?;
        ensure!(crate::scene::condition(&status, "StoreFailed"), "{status}");
        Ok(())
    })
    .await?;
    ensure!(stage.manifests()?.len() == 1, "an empty checkpoint was published");
    Ok(())
}

async fn a_restart_does_not_publish_again(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let mut agent = stage.ready().await?;
    stage.published(&agent).await?;
    agent.restart().await?;
    agent
        .wait_status(&stage.repo(), "the checkpoint to be known again", |status| {
            status["checkpoint"]["generation"] == 1
        })
        .await?;
    ensure!(stage.manifests()?.len() == 1, "the same refs were published twice");
    Ok(())
}
