//! A snapshot that someone else has put into the store, with all its digests right.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_agent::blockfile::digest_file;
use tarn_agent::generations::Generation;
use tarn_agent::snapshot::manifest::{Snapshot, SnapshotKeys};
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;

use super::{current, download, expect_clean, extract, objects, published, stage};
use crate::checkpoints::{Kind, Stage};
use crate::scene::agent;

/// Puts a snapshot into the store that differs from the newest in one file, which has another content of the same length, as
/// the next generation. Git sees no difference in it.
fn forge(stage: &Stage, file: &str, change: impl Fn(&mut Vec<u8>)) -> Result<()> {
    let manifest = |generation: u64| objects(stage).join(format!("{generation:020}.json"));
    let generation = (1..).take_while(|generation| manifest(*generation).exists()).last().context("one")?;
    let newest = Snapshot::parse(&std::fs::read(manifest(generation))?)?;
    let keys = SnapshotKeys::of(&RepoId::from_route(&stage.repo())?);
    let place = |snapshot: &Snapshot| -> Result<PathBuf> {
        let name = snapshot.key(&keys);
        Ok(objects(stage).join(name.strip_prefix(keys.all()).context("a key")?))
    };
    let tar = zstd::stream::decode_all(&std::fs::read(place(&newest)?)?[..])?;
    let (mut archive, mut forged) = (tar::Archive::new(&tar[..]), tar::Builder::new(Vec::new()));
    let mut changed = false;
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let (header, is_it) = (entry.header().clone(), entry.path()?.as_ref() == Path::new(file));
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        if is_it {
            let length = content.len();
            change(&mut content);
            changed = true;
            ensure!(content.len() == length, "another length");
        }
        forged.append(&header, &content[..])?;
    }
    ensure!(changed, "there is no {file}");
    let written = stage.dir.path().join("forged");
    std::fs::write(&written, zstd::encode_all(&forged.into_inner()?[..], 3)?)?;
    let writer = newest.writer.clone();
    let commit = tarn_agent::git::Oid::from_hex(newest.commit.as_bytes()).context("a commit")?;
    let fresh = Snapshot::new(commit, newest.branch.clone(), newest.time, writer, digest_file(&written)?);
    let (generation, provenance) = (generation + 1, newest.provenance.clone());
    let forged = Snapshot { generation: Generation(generation), provenance, ..fresh };
    std::fs::copy(&written, place(&forged)?)?;
    Ok(std::fs::write(manifest(generation), forged.to_json())?)
}

/// The file as it is in what `agent` serves.
async fn served(stage: &Stage, agent: &Agent, file: &str, into: &str) -> Result<String> {
    let answer = download(stage, agent).await?;
    let into = stage.dir.path().join(into);
    let _ = std::fs::remove_dir_all(&into);
    extract(&answer.body, &into)?;
    Ok(std::fs::read_to_string(into.join(file))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_the_cache_did_not_sign_is_not_served() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    stage.origin.commit("main", &[("Makefile", "all: build\n")]).await?;
    let keys = stage.dir.path().join("keys");
    std::fs::write(&keys, "one one one one one one one one one")?;
    let with_keys = || stage.with_store(agent(), None).arg("--store-key").arg(&keys);
    let mut builder = stage.start(with_keys()).await?;
    builder.wait_phase(&stage.repo(), "Ready").await?;
    current(&stage, &builder).await?;
    builder.stop().await?;
    forge(&stage, "Makefile", |content| content[5] = b'B')?;
    // What it is without a key, while there is no mirror to compare with.
    stage.upstream.down().await;
    let mut trusting = stage.agent().await?;
    let file = eventually(Duration::from_secs(30), "a snapshot", async || {
        served(&stage, &trusting, "Makefile", "trusting").await
    });
    ensure!(file.await? == "all: Build\n", "it is not the forged one");
    trusting.stop().await?;
    let mut wary = stage.start(with_keys()).await?;
    let file = eventually(Duration::from_secs(30), "a snapshot", async || {
        served(&stage, &wary, "Makefile", "wary").await
    });
    ensure!(file.await? == "all: build\n", "the forged one was served");
    ensure!(wary.metric::<f64>("tarn_store_untrusted_total").await? >= 1.0, "nothing is counted");
    wary.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_here_refutes_a_snapshot_that_is_not_its_commits() -> Result<()> {
    let stage = published(Kind::Directory).await?;
    let name = stage.git.clone_repo(&stage.origin.file_url(), &stage.dir.path().join("look"), &[]).await?;
    let file = name.git(&["ls-files"]).await?.lines().next().context("a file")?.to_owned();
    let right = std::fs::read(name.path().join(&file))?;
    forge(&stage, &file, |content| content[0] ^= 1)?;
    let mut agent = stage.ready().await?;
    // It is fetched, and then found out; whoever asks from then on gets what the commit has.
    let answer = download(&stage, &agent).await;
    ensure!(answer.is_ok(), "nothing is served");
    eventually(Duration::from_secs(60), "the commit's own file", async || {
        let answer = download(&stage, &agent).await?;
        let into = stage.dir.path().join("served");
        let _ = std::fs::remove_dir_all(&into);
        extract(&answer.body, &into)?;
        ensure!(std::fs::read(into.join(&file))? == right, "still the forged one");
        Ok(())
    })
    .await?;
    let logs = agent.logs()?;
    ensure!(logs.contains("is not its commit's") && logs.contains(&file), "nobody is told");
    ensure!(objects(&stage).join(format!("{:020}.bad", 2)).exists(), "others may still serve it");
    let answer = download(&stage, &agent).await?;
    expect_clean(&stage, &answer.body, "clean").await?;
    agent.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_found_is_compared_with_its_commit() -> Result<()> {
    let stage = published(Kind::Directory).await?;
    let agent = stage.ready().await?;
    download(&stage, &agent).await?;
    agent
        .wait_status(&stage.repo(), "a comparison", |status| status["snapshot"]["checked"] == "compared")
        .await?;
    Ok(())
}
