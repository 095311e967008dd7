//! The poison cycle, broken: what is damaged in the store is passed over, and never comes back.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_agent::checkpoint::{
    lineage::{GRACE, Lineage},
    manifest::Keys,
};
use tarn_agent::generations::keyring::Keyring;
use tarn_agent::store::{PutMode, SharedStore, dir::DirStore};
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::Agent;

use super::{Kind, Stage, on_both_stores, packs};

on_both_stores!(
    a_flipped_bit_is_found_and_the_generation_before_restored,
    a_missing_pack_is_found_and_a_fresh_clone_made,
    a_truncated_pack_is_found,
    an_empty_manifest_never_comes_back,
    a_manifest_that_leaves_an_increment_out_is_found,
    a_damaged_list_of_refs_is_found,
    damage_is_found_before_anything_is_built_on_it,
    a_lost_list_of_refs_is_found_by_publishing_which_goes_on,
    a_spoilt_list_of_refs_that_a_merge_needs_is_found_by_publishing_which_goes_on,
);

/// The generations' own packs: of the newest what the one before has not.
fn newest_pack(stage: &Stage) -> Result<String> {
    let manifests = stage.manifests()?;
    let [.., before, newest] = manifests.as_slice() else { anyhow::bail!("two manifests") };
    let old = packs(before);
    packs(newest).into_iter().find(|pack| !old.contains(pack)).context("an increment")
}

fn flip(path: &Path) -> Result<()> {
    let mut content = std::fs::read(path)?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    Ok(std::fs::write(path, content)?)
}

/// An agent with an empty disk gets a whole mirror, publishes a sound checkpoint, and another one restores that.
async fn expect_recovery(stage: &Stage, passed_over: bool) -> Result<Value> {
    let mut agent: Agent = stage.ready().await?;
    stage.expect_clone(&agent, "after-damage").await?;
    let status = agent.mirror_status(&stage.repo()).await?;
    ensure!(crate::scene::condition(&status, "RestoreFailed") == passed_over, "{status}");
    stage.origin.commit("main", &[("third.txt", "third")]).await?;
    stage.published(&agent).await?;
    agent.stop().await?;
    let bad = stage.bad()?;
    let mut next = stage.ready().await?;
    stage.expect_clone(&next, "after-recovery").await?;
    ensure!(stage.bad()? == bad, "the checkpoint published after the damage is damaged too");
    let status = next.mirror_status(&stage.repo()).await?;
    ensure!(!crate::scene::condition(&status, "RestoreFailed"), "{status}");
    next.stop().await?;
    Ok(status)
}

async fn a_flipped_bit_is_found_and_the_generation_before_restored(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    flip(&stage.objects().join(newest_pack(&stage)?))?;
    expect_recovery(&stage, true).await?;
    ensure!(stage.bad()? == 1, "one generation is bad, the first is not");
    Ok(())
}

async fn a_missing_pack_is_found_and_a_fresh_clone_made(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    // The base: both generations need it.
    let base = packs(&stage.manifests()?[0])[0].clone();
    std::fs::remove_file(stage.objects().join(base))?;
    expect_recovery(&stage, true).await?;
    ensure!(stage.bad()? == 1, "one restore marks one generation: the next may have better luck");
    Ok(())
}

async fn a_truncated_pack_is_found(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    let path = stage.objects().join(newest_pack(&stage)?);
    let content = std::fs::read(&path)?;
    std::fs::write(&path, &content[..content.len() / 2])?;
    expect_recovery(&stage, true).await?;
    Ok(())
}

async fn an_empty_manifest_never_comes_back(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    let newest = stage.objects().join(format!("checkpoints/{:020}.json", 2));
    std::fs::write(newest, "")?;
    expect_recovery(&stage, true).await?;
    ensure!(stage.bad()? == 1, "marked");
    Ok(())
}

async fn a_manifest_that_leaves_an_increment_out_is_found(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.origin.grow("main", 30, 20_000, 7).await?;
    let mut agent = stage.ready().await?;
    stage.published(&agent).await?;
    // A large increment and a small one after it, so that they stay apart.
    for number in 0..20 {
        stage.origin.commit("main", &[(&format!("many-{number}"), "text")]).await?;
    }
    stage.published(&agent).await?;
    stage.origin.commit("main", &[("last.txt", "text")]).await?;
    let generation = stage.published(&agent).await?;
    agent.stop().await?;
    let path = stage.objects().join(format!("checkpoints/{generation:020}.json"));
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let all = manifest["packs"].as_array_mut().context("packs")?;
    ensure!(all.len() == 3, "a base and two increments: {}", all.len());
    all.remove(1);
    std::fs::write(&path, serde_json::to_vec(&manifest)?)?;
    expect_recovery(&stage, true).await?;
    Ok(())
}

async fn a_damaged_list_of_refs_is_found(kind: Kind) -> Result<()> {
    let stage = Stage::two_generations(kind).await?;
    let newest = stage.newest()?.context("a manifest")?;
    let name = newest["refs"]["name"].as_str().context("a name")?;
    flip(&stage.objects().join(format!("refs/{name}.zst")))?;
    expect_recovery(&stage, true).await?;
    Ok(())
}

async fn damage_is_found_before_anything_is_built_on_it(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    let base = packs(&stage.manifests()?[0])[0].clone();
    std::fs::remove_file(stage.objects().join(base))?;
    stage.origin.commit("main", &[("second.txt", "second")]).await?;
    stage.published(&agent).await?;
    let newest = stage.newest()?.context("a manifest")?;
    ensure!(newest["parent"].is_null() && newest["generation"] == 2, "it was built on damage: {newest}");
    let second = stage.ready().await?;
    stage.expect_clone(&second, "clone").await?;
    ensure!(
        !crate::scene::condition(&second.mirror_status(&stage.repo()).await?, "RestoreFailed"),
        "damaged"
    );
    Ok(())
}

async fn a_lost_list_of_refs_is_found_by_publishing_which_goes_on(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    let newest = stage.newest()?.context("a manifest")?;
    let name = newest["refs"]["name"].as_str().context("a name")?;
    std::fs::remove_file(stage.objects().join(format!("refs/{name}.zst")))?;
    stage.origin.commit("main", &[("second.txt", "second")]).await?;
    stage.published(&agent).await?;
    expect_new_base(&stage, 2).await
}

async fn a_spoilt_list_of_refs_that_a_merge_needs_is_found_by_publishing_which_goes_on(
    kind: Kind,
) -> Result<()> {
    let stage = Stage::new(kind).await?;
    stage.origin.grow("main", 30, 20_000, 7).await?;
    let agent = stage.ready().await?;
    stage.published(&agent).await?;
    stage.origin.commit("main", &[("second.txt", "text")]).await?;
    stage.published(&agent).await?;
    let newest = stage.newest()?.context("a manifest")?;
    let since = newest["packs"][1]["since"].as_str().context("an increment")?;
    flip(&stage.objects().join(format!("refs/{since}.zst")))?;
    // Larger than the increment before it, so that it takes that one in.
    for number in 0..5 {
        stage.origin.commit("main", &[(&format!("many-{number}"), "text")]).await?;
    }
    stage.published(&agent).await?;
    expect_new_base(&stage, 3).await
}

/// The newest generation is this one, has a base of its own, and restores; the one before is marked, and no other.
async fn expect_new_base(stage: &Stage, generation: u64) -> Result<()> {
    let newest = stage.newest()?.context("a manifest")?;
    ensure!(newest["parent"].is_null() && newest["generation"] == generation, "built on damage: {newest}");
    ensure!(stage.bad()? == 1, "{} generations are marked", stage.bad()?);
    let second = stage.ready().await?;
    stage.expect_clone(&second, "clone").await?;
    let status = second.mirror_status(&stage.repo()).await?;
    ensure!(!crate::scene::condition(&status, "RestoreFailed"), "{status}");
    Ok(())
}

#[tokio::test]
async fn what_is_put_again_between_listing_and_deleting_stays() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store: SharedStore = Arc::new(DirStore::open(dir.path())?);
    let lineage = Lineage {
        store: store.clone(),
        keys: Keys::of(&RepoId::from_route("example.org/a")?),
        keyring: Keyring::default(),
    };
    let old = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
    let key = |name: &str| format!("{}{name}.zst", lineage.keys.all_refs());
    for name in ["again", "garbage"] {
        store.put(&key(name), "refs".into(), PutMode::Overwrite).await?;
        std::fs::File::options().write(true).open(dir.path().join(key(name)))?.set_modified(old)?;
    }
    let garbage = lineage.garbage(1, GRACE).await?;
    ensure!(garbage.objects.len() == 2, "{garbage:?}");
    store.put(&key("again"), "refs".into(), PutMode::Overwrite).await?;
    lineage.remove(&garbage).await?;
    ensure!(store.head(&key("again")).await.is_ok(), "what somebody is about to name has gone");
    ensure!(store.head(&key("garbage")).await.is_err(), "garbage stays");
    Ok(())
}
