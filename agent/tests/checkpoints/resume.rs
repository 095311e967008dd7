//! A restore that is killed on the way goes on where it was.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::proxy::{HttpFault, HttpFaultProxy, Select, When};
use tarn_testkit::upstream::Operation;

use super::{Kind, Stage, files};
use crate::scene::agent;

/// A large mirror whose restore has stopped short of the end, with one request unanswered.
struct Cut {
    stage: Stage,
    line: HttpFaultProxy,
    agent: Agent,
    /// The length of all packs in the store.
    bytes: u64,
}

impl Cut {
    async fn new() -> Result<Self> {
        let stage = Stage::new(Kind::Bucket).await?;
        stage.origin.grow("main", 22, 4_000_000, 1).await?;
        stage.one_generation().await?;
        let bytes: u64 = files(&stage.objects().join("packs"), "pack")?
            .iter()
            .map(|path| Ok(std::fs::metadata(path)?.len()))
            .sum::<Result<_>>()?;
        ensure!(bytes > 80 << 20, "{bytes} bytes");
        let line = HttpFaultProxy::start(stage.s3.as_ref().context("a bucket")?.address())?;
        let packs = Select { method: Some(Method::GET), path: Some(".pack".into()) };
        line.add(packs, When::Nth(3), HttpFault::Delay(Duration::from_secs(600)));
        let agent = stage.start(stage.with_store(agent(), Some(&line.url()))).await?;
        let cut = Self { stage, line, agent, bytes };
        let percent = |status: &serde_json::Value| {
            let line = status["progress"].as_str()?.strip_prefix("restoring: ")?.to_owned();
            line.split(' ').next()?.parse::<u64>().ok()
        };
        cut.agent
            .wait_status(&cut.stage.repo(), "nearly all of it", |status| percent(status) >= Some(90))
            .await?;
        Ok(cut)
    }

    /// The leftovers of the restore.
    fn parts(&self) -> Result<Vec<std::path::PathBuf>> {
        let mut left = Vec::new();
        collect(&self.agent.data().join("parts"), &mut left)?;
        Ok(left)
    }

    /// Starts the agent again; returns what it has read from the store until it was ready.
    async fn again(&mut self) -> Result<u64> {
        self.line.mend();
        self.line.forget();
        self.stage.upstream.clear_log();
        self.agent.start_again().await?;
        self.agent.wait_phase(&self.stage.repo(), "Ready").await?;
        ensure!(self.stage.upstream.count("a.git", Operation::Fetch) == 0, "it was cloned");
        ensure!(self.stage.bad()? == 0, "a good checkpoint was called bad");
        self.stage.expect_clone(&self.agent, "clone").await?;
        eventually(Duration::from_secs(10), "no leftovers", async || {
            ensure!(self.parts()?.is_empty(), "{:?}", self.parts()?);
            Ok(())
        })
        .await?;
        Ok(self.line.bytes(&Method::GET).1)
    }
}

fn collect(dir: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_does_not_download_again_what_it_had() -> Result<()> {
    let mut cut = Cut::new().await?;
    cut.agent.kill9().await?;
    let read = cut.again().await?;
    ensure!(read < cut.bytes / 5, "read {read} of {} bytes again", cut.bytes);
    ensure!(cut.agent.logs()?.contains("going on with a restore"), "the log does not say so");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_checked_again_and_those_of_another_checkpoint_removed() -> Result<()> {
    let mut cut = Cut::new().await?;
    cut.agent.kill9().await?;
    let left = cut.parts()?;
    let pack =
        left.iter().find(|path| path.extension().is_some_and(|end| end == "pack")).context("a pack")?;
    // A byte in each of the later blocks: all of them have to be fetched anew.
    let file = std::fs::File::options().write(true).open(pack)?;
    for block in 1..cut.bytes >> 23 {
        file.write_all_at(b"damage", (block << 23) + 100)?;
    }
    let foreign = pack.with_file_name("pack-0000.pack");
    std::fs::write(&foreign, "of another generation")?;
    let read = cut.again().await?;
    ensure!(read > cut.bytes / 2, "read only {read} of {} bytes", cut.bytes);
    ensure!(!foreign.exists(), "it is still there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_checkpoint_goes_on_with_the_packs_of_the_old_one() -> Result<()> {
    let mut cut = Cut::new().await?;
    cut.agent.kill9().await?;
    // Another agent adds an increment meanwhile.
    cut.stage.origin.commit("main", &[("later.txt", "later")]).await?;
    let mut other = cut.stage.ready().await?;
    ensure!(cut.stage.published(&other).await? == 2, "a second generation");
    other.stop().await?;
    let read = cut.again().await?;
    ensure!(read < cut.bytes / 5, "read {read} of {} bytes again", cut.bytes);
    Ok(())
}
