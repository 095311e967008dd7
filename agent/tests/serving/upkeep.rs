//! What is done to a mirror while it serves does not show, except in what it costs.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;

use crate::scene::Scene;

async fn done(scene: &Scene, work: &str) -> Result<u64> {
    let metrics = scene.agent.metrics().await?;
    let name = format!("tarn_mirror_upkeeps_total{{work=\"{work}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(count.map(str::parse).transpose()?.unwrap_or(0))
}

#[tokio::test]
async fn clones_in_a_loop_for_the_length_of_three_repacks_all_succeed() -> Result<()> {
    let scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 30, 20_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let (mut round, mut clones) = (0_u32, 0);
    let deadline = std::time::Instant::now() + Duration::from_secs(90);
    while done(&scene, "repack").await? < 3 {
        ensure!(std::time::Instant::now() < deadline, "fewer than three repacks in {clones} clones");
        // New packs until the first repack after the clone's; then quiet, so that the next one comes.
        if round < 12 || done(&scene, "repack").await? == 2 && round < 24 {
            scene.origin.commit("main", &[("round", &round.to_string())]).await?;
            round += 1;
        }
        let depth: &[&str] = if clones % 3 == 0 { &["--depth", "1"] } else { &[] };
        let clone = scene.clone(&format!("clone-{clones}"), depth).await?;
        ensure!(clone.rev_parse("HEAD").await? == scene.origin.rev_parse("main").await?);
        clone.fsck().await?;
        std::fs::remove_dir_all(clone.path())?;
        clones += 1;
    }
    let mirror = crate::p4_never_stuck::mirror_dir(&scene.agent)?;
    tarn_testkit::git::Repo::open(scene.git.clone(), &mirror).fsck().await?;
    let packs = std::fs::read_dir(mirror.join("objects/pack"))?.flatten();
    let packs = packs.filter(|file| file.path().extension().is_some_and(|kind| kind == "pack")).count();
    ensure!(packs <= 8, "{packs} packs after {round} fetches");
    Ok(())
}

#[tokio::test]
async fn shallow_clones_get_a_seed_that_follows_head_and_answers_rightly() -> Result<()> {
    let scene = Scene::ready().await?;
    for round in 0..3_u64 {
        let head = scene.origin.commit("main", &[("round", &round.to_string())]).await?;
        for (name, options) in [("one", ["--depth", "1"]), ("three", ["--depth", "3"])] {
            let clone = scene.clone(&format!("{name}-{round}"), &options).await?;
            ensure!(clone.rev_parse("HEAD").await? == head);
            clone.fsck().await?;
        }
        eventually(Duration::from_secs(30), "a seed for the new HEAD", async || {
            let seeds = done(&scene, "seed").await?;
            ensure!(seeds > round, "{seeds} seeds");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
