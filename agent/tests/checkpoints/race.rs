//! Several agents publish the same mirror at once.

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;

use super::{Kind, Stage, on_both_stores};

on_both_stores!(
    two_publishers_make_one_lineage,
    five_publishers_make_one_lineage,
    every_checkpoint_made_during_pushes_is_one_state_of_the_upstream,
);

async fn two_publishers_make_one_lineage(kind: Kind) -> Result<()> {
    one_lineage(kind, 2, 8).await
}

async fn five_publishers_make_one_lineage(kind: Kind) -> Result<()> {
    one_lineage(kind, 5, 5).await
}

async fn one_lineage(kind: Kind, agents: usize, rounds: usize) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agents = try_join_all((0..agents).map(|_| stage.ready())).await?;
    for round in 0..rounds {
        stage.origin.commit("main", &[(&format!("file-{round}"), "text")]).await?;
        // All at once.
        try_join_all(agents.iter().map(|agent| stage.published(agent))).await?;
    }
    let manifests = stage.manifests()?;
    ensure!(manifests.len() >= rounds, "a lost generation: {}", manifests.len());
    for (at, manifest) in manifests.iter().enumerate() {
        ensure!(manifest["generation"] == at + 1, "a gap before {manifest}");
        let parent = if at == 0 { serde_json::Value::Null } else { at.into() };
        ensure!(manifest["parent"] == parent, "generation {} has another parent: {manifest}", at + 1);
    }
    ensure!(stage.bad()? == 0, "a bad generation");
    drop(agents);
    let fresh = stage.ready().await?;
    stage.expect_clone(&fresh, "clone").await
}

/// Branches move together, many at once and over and over, while checkpoints are taken: each of them holds one
/// state that the upstream had, and restores whole.
async fn every_checkpoint_made_during_pushes_is_one_state_of_the_upstream(kind: Kind) -> Result<()> {
    const CHECKPOINTS: usize = 50;
    let mut stage = Stage::new(kind).await?;
    stage.spec = vec!["interval: 10s", "checkpoint: {interval: 5s, keep: 100}"];
    for branch in 0..5 {
        stage
            .origin
            .set_ref(&format!("refs/heads/b{branch}"), &stage.origin.rev_parse("main").await?)
            .await?;
    }
    let agent = stage.ready().await?;
    let mut states = std::collections::BTreeSet::from([state(&stage).await?]);
    let mut round = 0;
    while stage.manifests()?.len() < CHECKPOINTS {
        round += 1;
        ensure!(round < CHECKPOINTS * 20, "only {} checkpoints", stage.manifests()?.len());
        let tip =
            stage.origin.commit("main", &[(&format!("file-{}", round % 7), &round.to_string())]).await?;
        let moves: Vec<_> = (0..5).map(|branch| (format!("refs/heads/b{branch}"), tip.clone())).collect();
        // `main` has moved alone before: both are states of the upstream.
        states.insert(state(&stage).await?);
        stage.origin.move_refs_atomically(&moves).await?;
        states.insert(state(&stage).await?);
        // Neither the fetch nor the checkpoint is waited for.
        let repo = stage.repo();
        drop(agent.fetch_now(&repo).await?);
        drop(agent.post(&format!("/mirrors/{repo}/checkpoint")).await?);
    }
    drop(agent);
    let verified = super::cli::store(&stage, &["verify", "--all", "--json"]).await?;
    let verified: Vec<serde_json::Value> = serde_json::from_str(&verified)?;
    ensure!(verified.iter().all(|row| row["result"] == "ok"), "{verified:?}");
    let checkpoints: Vec<_> = verified.iter().filter(|row| row["kind"] == "checkpoint").collect();
    ensure!(checkpoints.len() >= CHECKPOINTS, "{} verified", checkpoints.len());
    for checkpoint in checkpoints {
        let tips = checkpoint["tips"].as_object().context("tips")?;
        let seen: Vec<String> =
            tips.iter().map(|(name, oid)| format!("{name} {}", oid.as_str().unwrap_or_default())).collect();
        ensure!(states.contains(&seen), "no state of the upstream: {seen:?}");
    }
    Ok(())
}

/// The upstream's refs as sorted lines.
async fn state(stage: &Stage) -> Result<Vec<String>> {
    let refs = stage.origin.refs().await?;
    Ok(refs
        .iter()
        .filter(|(name, _)| name.starts_with("refs/") && !name.ends_with("^{}"))
        .map(|(name, oid)| format!("{name} {oid}"))
        .collect())
}
