//! Snapshots: a clone with worktree to download, clean at once, served at once, and made where nobody waits for it.

mod build;
mod bundle;
mod cold;
mod damage;
mod serve;
mod share;
mod trust;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::Agent;
use tarn_testkit::git::Repo;
use tarn_testkit::wire::{Answer, Connection};

use crate::checkpoints::{Kind, Stage};

/// The shortest interval there may be.
const SPEC: &[&str] =
    &["interval: 10s", "checkpoint: {interval: 5s}", "snapshot: {interval: 10s, maxAge: 1h}"];

/// A stage whose mirror has snapshots every ten seconds at most.
async fn stage(kind: Kind) -> Result<Stage> {
    let mut stage = Stage::new(kind).await?;
    stage.spec = SPEC.to_vec();
    Ok(stage)
}

/// The path of the repository's snapshot.
fn path(stage: &Stage) -> String {
    format!("/git/{}/snapshot.tar.zst", stage.repo())
}

/// Waits until `agent` has a snapshot of this commit, in the store.
async fn of_commit(stage: &Stage, agent: &Agent, commit: &str) -> Result<Value> {
    agent
        .wait_status(&stage.repo(), "a snapshot of the commit", |status| {
            status["snapshot"]["commit"] == commit && status["snapshot"]["generation"] != 0
        })
        .await
}

/// Waits until `agent` has a snapshot of the upstream's present HEAD.
async fn current(stage: &Stage, agent: &Agent) -> Result<Value> {
    let head = stage.origin.rev_parse("HEAD").await?;
    agent.fetch_now(&stage.repo()).await?;
    of_commit(stage, agent, &head).await
}

/// A stage with a snapshot in its store; the agent that built it has gone.
async fn published(kind: Kind) -> Result<Stage> {
    let stage = stage(kind).await?;
    stage.origin.grow("main", 5, 200_000, 3).await?;
    let mut agent = stage.ready().await?;
    current(&stage, &agent).await?;
    agent.stop().await?;
    Ok(stage)
}

/// Asks `agent` for `target` with these headers.
async fn ask(agent: &Agent, method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    Connection::open(agent.git_address()?).await?.ask(method, target, headers, b"").await
}

/// The whole snapshot as `agent` serves it.
async fn download(stage: &Stage, agent: &Agent) -> Result<Answer> {
    let answer = agent.get(&path(stage)).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(answer)
}

/// Extracts an archive as `tar --zstd -x` would, times included.
pub(crate) fn extract(archive: &[u8], into: &Path) -> Result<()> {
    std::fs::create_dir(into)?;
    let mut tar = tar::Archive::new(zstd::stream::read::Decoder::new(archive)?);
    tar.set_preserve_mtime(true);
    tar.unpack(into).context("unpack")
}

/// Extracts a snapshot, which must be a clean clone of the upstream's HEAD.
async fn expect_clean(stage: &Stage, archive: &[u8], name: &str) -> Result<Repo> {
    let into = stage.dir.path().join(name);
    extract(archive, &into)?;
    let clone = Repo::open(stage.git.clone(), &into);
    let status = clone.git(&["status", "--porcelain", "--ignored"]).await?;
    ensure!(status.is_empty(), "not clean: {status}");
    clone.fsck().await?;
    Ok(clone)
}

/// The snapshots' objects in the store, as files.
fn objects(stage: &Stage) -> PathBuf {
    stage.objects().join("snapshots")
}
