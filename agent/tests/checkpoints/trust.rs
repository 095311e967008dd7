//! A cache with a key believes what its own agents wrote, and nothing else that is in the store.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::Agent;

use super::{Kind, Stage, files, on_both_stores};
use crate::scene::agent;

on_both_stores!(
    a_checkpoint_that_the_cache_did_not_sign_is_neither_restored_nor_marked,
    keys_are_rotated_and_what_the_old_one_signed_is_restored,
);

const ONE: &str = "one one one one one one one one one";
const TWO: &str = "two two two two two two two two two";

/// A file with these keys.
fn keys(stage: &Stage, name: &str, keys: &[&str]) -> Result<PathBuf> {
    let path = stage.dir.path().join(name);
    std::fs::write(&path, keys.join("\n"))?;
    Ok(path)
}

/// An agent with an empty disk and the keys of this file.
async fn with_keys(stage: &Stage, keys: &Path) -> Result<Agent> {
    stage.start(stage.with_store(agent(), None).arg("--store-key").arg(keys)).await
}

/// An agent with these keys restores what there is while the upstream is away.
async fn expect_restored(stage: &Stage, keys: &Path) -> Result<()> {
    stage.upstream.down().await;
    let mut agent = with_keys(stage, keys).await?;
    stage.wait_restored(&agent).await?;
    agent.stop().await?;
    stage.upstream.up().await;
    Ok(())
}

/// The name of a generation's manifest in the store.
fn manifest(stage: &Stage, generation: u64) -> PathBuf {
    stage.objects().join(format!("checkpoints/{generation:020}.json"))
}

async fn a_checkpoint_that_the_cache_did_not_sign_is_neither_restored_nor_marked(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    let keys = keys(&stage, "keys", &[ONE])?;
    let mut agent = with_keys(&stage, &keys).await?;
    let status = agent.wait_phase(&stage.repo(), "Ready").await?;
    let conditions = status["conditions"].as_array().context("conditions")?;
    let restore = conditions.iter().find(|condition| condition["type"] == "RestoreFailed");
    ensure!(restore.is_some_and(|found| found["reason"] == "StoreUntrusted"), "{status}");
    ensure!(agent.metric::<f64>("tarn_store_untrusted_total").await? >= 2.0, "nothing is counted");
    stage.expect_clone(&agent, "from-upstream").await?;
    // It publishes anew, and builds on nothing of theirs.
    ensure!(stage.published(&agent).await? == 3, "the third generation");
    let newest = stage.newest()?.context("a manifest")?;
    ensure!(newest["parent"] == Value::Null, "{newest}");
    ensure!(stage.bad()? == 0, "agents without the key may still use them");
    agent.stop().await?;
    expect_restored(&stage, &keys).await?;
    // And those without a key read what is signed.
    let mut without = stage.ready().await?;
    let status = without.mirror_status(&stage.repo()).await?;
    ensure!(!crate::scene::condition(&status, "RestoreFailed"), "{status}");
    ensure!(without.logs()?.contains("carry no signature"), "nobody is told");
    without.stop().await?;
    Ok(())
}

async fn keys_are_rotated_and_what_the_old_one_signed_is_restored(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let (old, both) = (keys(&stage, "old", &[ONE])?, keys(&stage, "both", &["# new", TWO, ONE])?);
    let new = keys(&stage, "new", &[TWO])?;
    let mut first = with_keys(&stage, &old).await?;
    first.wait_phase(&stage.repo(), "Ready").await?;
    stage.published(&first).await?;
    first.stop().await?;
    expect_restored(&stage, &both).await?;
    let mut second = with_keys(&stage, &both).await?;
    second.wait_phase(&stage.repo(), "Ready").await?;
    stage.origin.commit("main", &[("second.txt", "second")]).await?;
    ensure!(stage.published(&second).await? == 2, "it builds on the first");
    ensure!(stage.newest()?.context("a manifest")?["parent"] == 1, "it builds on the first");
    second.stop().await?;
    expect_restored(&stage, &new).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_good_for_the_generation_that_it_was_made_for() -> Result<()> {
    let stage = Stage::new(Kind::Directory).await?;
    let keys = keys(&stage, "keys", &[ONE])?;
    let mut agent = with_keys(&stage, &keys).await?;
    agent.wait_phase(&stage.repo(), "Ready").await?;
    stage.published(&agent).await?;
    agent.stop().await?;
    // Its manifest and signature again, as a newer generation; and one that was changed.
    let text = std::fs::read_to_string(manifest(&stage, 1))?;
    let signature = files(&stage.objects().join("checkpoints"), "mac")?.pop().context("a signature")?;
    let called = signature.file_name().and_then(|name| name.to_str()).context("a name")?;
    let copy = signature.with_file_name(called.replacen("1.", "2.", 1));
    ensure!(copy != signature, "{called}");
    std::fs::copy(&signature, copy)?;
    std::fs::write(manifest(&stage, 2), &text)?;
    std::fs::write(manifest(&stage, 3), text.replacen("\"generation\":1", "\"generation\":3", 1))?;
    let output = agent_store(&stage, &["ls", "--json", "--store-key"], &keys).await?;
    let rows: Vec<Value> = serde_json::from_str(&output.text())?;
    let told: Vec<_> = rows.iter().filter(|row| row["kind"] == "checkpoint").collect();
    ensure!(told[0]["signature"] == "unsigned" && told[2]["signature"] == "signed", "{rows:?}");
    let output = agent_store(&stage, &["verify", "--all", "--store-key"], &keys).await?;
    ensure!(!output.status.success() && output.text().contains("wrong signature"), "{}", output.text());
    expect_restored(&stage, &keys).await
}

async fn agent_store(stage: &Stage, args: &[&str], keys: &Path) -> Result<tarn_testkit::process::Output> {
    let builder = args.iter().fold(agent().arg("store"), |builder, arg| builder.arg(*arg)).arg(keys);
    stage.with_store(builder, None).run_alone().await
}

#[tokio::test]
async fn a_file_of_keys_that_protects_nothing_stops_the_start() -> Result<()> {
    let stage = Stage::new(Kind::Directory).await?;
    let short = keys(&stage, "short", &["secret"])?;
    let output = stage.with_store(agent(), None).arg("--store-key").arg(&short).run_to_end().await?;
    let told = &output.stderr;
    ensure!(!output.status.success() && told.contains("--store-key"), "{told}");
    ensure!(told.contains("openssl rand") && !told.contains("secret"), "{told}");
    Ok(())
}
