//! Mirrors that grow: by more than they may, or by more than the disk has.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::{Agent, PATIENCE, manifest};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Fault;

use super::Repositories;
use crate::p4_never_stuck::SmallDisk;
use crate::scene::agent;

const MEGABYTE: usize = 1_000_000;

/// Whether the mirror tells of this trouble.
fn fails(status: &Value, reason: &str) -> bool {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "FetchFailed" && condition["reason"] == reason)
}

/// The bytes of all files below `dir`.
fn bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

fn declare(scene: &Repositories, agent: &Agent, name: &str, spec: &[&str]) -> Result<()> {
    let yaml = manifest(name, &scene.upstream.url(&format!("{name}.git")), spec);
    agent.write_manifest(&format!("{name}.yaml"), &yaml)
}

#[tokio::test]
async fn a_mirror_that_outgrows_its_limit_is_ended_while_it_grows_and_comes_once_the_limit_is_raised()
-> Result<()> {
    let scene = Repositories::large(&["huge", "other"], 8 * MEGABYTE).await?;
    let agent = agent().start_with(&[]).await?;
    scene.upstream.fault_in("huge.git", Fault::Throttle(4_000_000));
    declare(&scene, &agent, "huge", &["interval: 10s", "limits: {maxBytes: 2Mi}"])?;
    declare(&scene, &agent, "other", &[])?;
    let status =
        agent.wait_status(&scene.repo("huge"), "the limit", |status| fails(status, "MirrorTooLarge")).await?;
    ensure!(status["message"].to_string().contains("spec.limits.maxBytes"), "{status}");
    ensure!(status["bytes"] == 0 && status["phase"] == "Backoff", "{status}");
    agent.wait_phase(&scene.repo("other"), "Ready").await?;
    let staging = agent.data().join("staging");
    eventually(PATIENCE, "what was fetched to be removed", async || {
        ensure!(bytes(&staging)? < MEGABYTE as u64, "{} bytes", bytes(&staging)?);
        Ok(())
    })
    .await?;
    // Whoever clones is served by the upstream.
    scene.upstream.mend();
    scene.clone(&agent, "huge", "passed-through").await?;
    declare(&scene, &agent, "huge", &["interval: 10s", "limits: {maxBytes: 20Mi}"])?;
    let ready = agent.wait_phase(&scene.repo("huge"), "Ready").await?;
    ensure!(!fails(&ready, "MirrorTooLarge"), "{ready}");
    scene.clone(&agent, "huge", "clone").await
}

#[tokio::test]
async fn a_fetch_beyond_the_limit_leaves_what_was_there_and_nothing_of_its_own() -> Result<()> {
    let scene = Repositories::large(&["a"], MEGABYTE).await?;
    let agent = agent().start_with(&[]).await?;
    declare(&scene, &agent, "a", &["interval: 10s", "limits: {maxBytes: 4Mi}"])?;
    agent.wait_settled(&scene.repo("a")).await?;
    let before = scene.origin("a").rev_parse("main").await?;
    scene.origin("a").grow("main", 1, 8 * MEGABYTE, 7).await?;
    scene.upstream.fault_in("a.git", Fault::Throttle(2_000_000));
    agent.fetch_now(&scene.repo("a")).await?;
    agent
        .wait_status(&scene.repo("a"), "the limit", |status| {
            fails(status, "MirrorTooLarge") && status["phase"] == "Ready"
        })
        .await?;
    let packs = agent.data().join("mirrors").join(scene.id("a").dir()).join("objects/pack");
    eventually(PATIENCE, "the temporary pack to go", async || {
        let names: Vec<_> = fs::read_dir(&packs)?.flatten().map(|entry| entry.file_name()).collect();
        let left = names.iter().any(|name| name.to_string_lossy().starts_with("tmp_"));
        ensure!(!left && bytes(&packs)? < 4 << 20, "{names:?}");
        Ok(())
    })
    .await?;
    scene.upstream.down().await;
    let place = scene.place("stale");
    let clone = scene.git.clone_repo(&agent.git_url(&scene.repo("a"))?, &place, &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == before, "what was there is served");
    Ok(())
}

#[tokio::test]
async fn a_mirror_that_grows_while_the_disk_is_short_is_ended_and_a_quiet_one_stays() -> Result<()> {
    let Some(disk) = SmallDisk::mount("100m").await? else {
        return Ok(());
    };
    let scene = Repositories::new(&[("huge", &[]), ("quiet", &[])]).await?;
    scene.origin("huge").grow("main", 1, 30 * MEGABYTE, 7).await?;
    let agent = agent().data(disk.path().join("data")).start_with(&[]).await?;
    declare(&scene, &agent, "quiet", &["interval: 10s"])?;
    agent.wait_settled(&scene.repo("quiet")).await?;
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![1; 85 * MEGABYTE])?;
    // Slowly enough for the two megabytes that are to stay free.
    scene.upstream.fault_in("huge.git", Fault::Throttle(1_000_000));
    declare(&scene, &agent, "huge", &["interval: 10s"])?;
    let full = |status: &Value| fails(status, "DiskFull") && status.to_string().contains("growing most");
    eventually(Duration::from_secs(90), "the growing mirror to be ended", async || {
        let status = agent.mirror_status(&scene.repo("huge")).await?;
        ensure!(full(&status), "{status}");
        Ok(())
    })
    .await?;
    ensure!(agent.logs()?.contains("the disk is short"), "told");
    let quiet = agent.mirror_status(&scene.repo("quiet")).await?;
    ensure!(quiet["phase"] == "Ready" && quiet["bytes"] != 0, "{quiet}");
    ensure!(!agent.logs()?.contains("evicted"), "nobody made way");
    let pushed = scene.origin("quiet").commit("main", &[("file", "new")]).await?;
    let place = scene.place("clone");
    let clone = scene.git.clone_repo(&agent.git_url(&scene.repo("quiet"))?, &place, &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == pushed, "fetches of others go on");
    fs::remove_file(filler)?;
    scene.upstream.mend();
    eventually(3 * PATIENCE, "the large one to come where there is room", async || {
        let status = agent.mirror_status(&scene.repo("huge")).await?;
        ensure!(status["phase"] == "Ready", "{status}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_removed_mirror_leaves_no_answers() -> Result<()> {
    let scene = Repositories::large(&["gone", "stays"], MEGABYTE).await?;
    let agent = agent().start_with(&[]).await?;
    for name in ["gone", "stays"] {
        declare(&scene, &agent, name, &["snapshot: {suspend: true}"])?;
        agent.wait_phase(&scene.repo(name), "Ready").await?;
        // With a filter: an answer that git makes, and that is a file.
        let (url, dir) = (agent.git_url(&scene.repo(name))?, scene.place(name));
        scene.git.clone_repo(&url, &dir, &["--filter=blob:limit=1g", "--no-checkout"]).await?;
    }
    let packs = agent.data().join("packs");
    ensure!(bytes(&packs)? > 2 * MEGABYTE as u64, "the answers of both are kept");
    agent.remove_manifest("gone.yaml")?;
    eventually(PATIENCE, "the answers of one to go", async || {
        let left = bytes(&packs)?;
        ensure!((MEGABYTE as u64..2 * MEGABYTE as u64).contains(&left), "{left} bytes");
        Ok(())
    })
    .await
}
