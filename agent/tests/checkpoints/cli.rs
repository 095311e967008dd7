//! `tarn-agent store`: ls, verify, gc, rm.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::process::Output;

use super::{Kind, Stage, files, on_both_stores, packs};
use crate::scene::agent;

on_both_stores!(
    ls_names_mirrors_and_generations,
    verify_finds_damage_and_says_where,
    gc_removes_what_nobody_names_and_nothing_else,
    rm_removes_a_mirror_and_whoever_mirrors_it_publishes_it_anew,
);

#[tokio::test]
async fn a_misspelt_directory_is_an_error_and_is_not_made() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let missing = dir.path().join("missing");
    let output = agent().arg("store").arg("ls").arg("--store").arg(&missing).run_alone().await?;
    ensure!(!output.status.success() && output.stderr.contains("is no directory"), "{}", output.stderr);
    ensure!(!missing.exists(), "it was made");
    Ok(())
}

/// Runs `tarn-agent store …`, which must succeed, and returns what it prints.
pub(super) async fn store(stage: &Stage, args: &[&str]) -> Result<String> {
    let output = attempt(stage, args).await?;
    ensure!(output.status.success(), "{:?}: {}", output.status, output.stderr);
    Ok(output.text())
}

async fn attempt(stage: &Stage, args: &[&str]) -> Result<Output> {
    let builder = args.iter().fold(agent().arg("store"), |builder, arg| builder.arg(*arg));
    stage.with_store(builder, None).run_alone().await
}

async fn ls_names_mirrors_and_generations(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    let table = store(&stage, &["ls"]).await?;
    ensure!(table.starts_with("MIRROR") && table.contains(&stage.repo()), "{table}");
    let rows: Vec<Value> = serde_json::from_str(&store(&stage, &["ls", "--json"]).await?)?;
    let checkpoints = rows.iter().filter(|row| row["kind"] == "checkpoint");
    let generations: Vec<_> = checkpoints.map(|row| row["generation"].clone()).collect();
    ensure!(generations == [2, 1] && rows.iter().all(|row| row["state"] == "good"), "{rows:?}");
    let unknown = attempt(&stage, &["ls", "example.org/none"]).await?;
    ensure!(!unknown.status.success() && unknown.stderr.contains("has no mirror"), "{}", unknown.stderr);
    Ok(())
}

async fn verify_finds_damage_and_says_where(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    store(&stage, &["verify"]).await?;
    let newest = stage.newest()?.context("a manifest")?;
    let pack = packs(&newest).pop().context("a pack")?;
    let path = stage.objects().join(&pack);
    let mut content = std::fs::read(&path)?;
    content[40] ^= 1;
    std::fs::write(&path, content)?;
    let output = attempt(&stage, &["verify"]).await?;
    ensure!(!output.status.success() && output.text().contains(&pack), "{} {}", output.text(), output.stderr);
    ensure!(stage.bad()? == 0, "verifying marks nothing");
    Ok(())
}

async fn gc_removes_what_nobody_names_and_nothing_else(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    let all = || -> Result<usize> {
        let objects = stage.objects();
        Ok(files(&objects.join("packs"), "pack")?.len() + files(&objects.join("refs"), "zst")?.len())
    };
    let before = (stage.manifests()?.len(), all()?);
    // Within the grace period nothing goes, whatever `--keep` says.
    store(&stage, &["gc", "--keep", "1"]).await?;
    ensure!((stage.manifests()?.len(), all()?) == before, "something went within the grace period");
    let would = store(&stage, &["gc", "--keep", "1", "--grace-hours", "0", "--dry-run", "--json"]).await?;
    let would: Vec<Value> = serde_json::from_str(&would)?;
    ensure!(would[0]["checkpoints"] == 1 && would[0]["removed"] == false, "{would:?}");
    ensure!((stage.manifests()?.len(), all()?) == before, "a dry run removed something");
    store(&stage, &["gc", "--keep", "1", "--grace-hours", "0"]).await?;
    ensure!(stage.manifests()?.len() == 1, "generation 1 is still there");
    store(&stage, &["gc", "--keep", "1", "--grace-hours", "0"]).await?;
    store(&stage, &["verify"]).await?;
    let mut fresh = stage.ready().await?;
    stage.expect_clone(&fresh, "clone").await?;
    fresh.stop().await?;
    ensure!(stage.bad()? == 0, "what a kept generation names was removed");
    Ok(())
}

async fn rm_removes_a_mirror_and_whoever_mirrors_it_publishes_it_anew(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    let other = stage.store().join("v1/example.org/other.git/refs");
    std::fs::create_dir_all(&other)?;
    std::fs::write(other.join("kept"), "kept")?;
    let table = store(&stage, &["rm", &stage.repo()]).await?;
    ensure!(table.contains(&stage.repo()), "{table}");
    ensure!(files(&stage.objects().join("checkpoints"), "json")?.is_empty(), "a manifest is left");
    ensure!(files(&stage.objects().join("packs"), "pack")?.is_empty(), "a pack is left");
    ensure!(other.join("kept").exists(), "another mirror's object is gone");
    // Not the same one: the agent may have begun anew.
    let none = attempt(&stage, &["rm", "example.org/none.git"]).await?;
    ensure!(!none.status.success() && none.stderr.contains("has no mirror"), "{}", none.stderr);
    // What is published then restores: it does not build on what is gone.
    stage.origin.commit("main", &[("after.txt", "after")]).await?;
    stage.published(&agent).await?;
    store(&stage, &["verify"]).await?;
    Ok(())
}
