//! What goes wrong on one machine is not blamed on the store, whose generations all agents share.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Operation;

use super::{Kind, Stage};

/// A git that does `instead` where its arguments contain `verb`, and is the real one otherwise. Returns a PATH with it.
fn broken_git(dir: &Path, verb: &str, instead: &str) -> Result<String> {
    let path = std::env::var("PATH")?;
    let real = std::env::split_paths(&path).map(|dir| dir.join("git")).find(|git| git.is_file());
    let real = real.context("git is on PATH")?;
    let bin = dir.join("bin");
    std::fs::create_dir(&bin)?;
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*\"{verb}\"*) {instead} ;;\nesac\nexec {} \"$@\"\n",
        real.display()
    );
    std::fs::write(bin.join("git"), script)?;
    std::fs::set_permissions(bin.join("git"), std::fs::Permissions::from_mode(0o755))?;
    Ok(format!("{}:{path}", bin.display()))
}

/// A base, an increment on it, and another one; the agent that made them has gone.
async fn three_generations() -> Result<Stage> {
    let stage = Stage::new(Kind::Directory).await?;
    stage.origin.grow("main", 30, 20_000, 7).await?;
    let mut agent = stage.ready().await?;
    for number in 0..3 {
        stage.origin.commit("main", &[(&format!("file-{number}"), "text")]).await?;
        stage.published(&agent).await?;
    }
    agent.stop().await?;
    // And one more, where the first was published before the first commit.
    ensure!(stage.manifests()?.len() >= 3, "three generations");
    Ok(stage)
}

/// With a git that is broken so, an agent with an empty disk becomes ready, its clone is whole, and nothing is marked.
async fn expect_no_mark(verb: &str, instead: &str) -> Result<()> {
    let stage = three_generations().await?;
    let path = broken_git(stage.dir.path(), verb, instead)?;
    let agent = stage.start(stage.with_store(crate::scene::agent(), None).env("PATH", path)).await?;
    agent.wait_phase(&stage.repo(), "Ready").await?;
    stage.expect_clone(&agent, "clone").await?;
    ensure!(stage.bad()? == 0, "{} generations are marked for what this machine did", stage.bad()?);
    ensure!(agent.logs()?.contains("cannot restore from the store"), "the fault was not met");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_git_marks_no_generation() -> Result<()> {
    expect_no_mark("rev-list --objects --quiet", "kill -9 $$").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_without_memory_threads_or_a_disk_marks_no_generation() -> Result<()> {
    for said in [
        "fatal: mmap failed: Cannot allocate memory",
        "fatal: unable to create thread: Resource temporarily unavailable",
        "error: file x.pack cannot be mapped: Input/output error\\nfatal: bad object 1234",
        "error: unable to open x.idx: Too many open files\\nfatal: missing tree object '1234'",
    ] {
        let instead = format!("printf '%b\\n' \"{said}\" >&2; exit 128");
        expect_no_mark("rev-list --objects --quiet", &instead).await.with_context(|| said.to_owned())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_git_cannot_open_are_not_called_missing() -> Result<()> {
    let instead = "sed 's/$/ missing/'; echo 'error: unable to open x.idx: Too many open files' >&2; exit 0";
    expect_no_mark("cat-file --batch-check", instead).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_that_fails_once_costs_no_clone() -> Result<()> {
    let stage = three_generations().await?;
    let once = stage.dir.path().join("failed").display().to_string();
    let instead = format!("[ -e {once} ] || {{ touch {once}; kill -9 $$; }}");
    let path = broken_git(stage.dir.path(), "rev-list --objects --quiet", &instead)?;
    stage.upstream.clear_log();
    let agent = stage.start(stage.with_store(crate::scene::agent(), None).env("PATH", path)).await?;
    agent.wait_phase(&stage.repo(), "Ready").await?;
    let fetches = stage.upstream.count("a.git", Operation::Fetch);
    ensure!(fetches == 0 && Path::new(&once).exists(), "{fetches} fetches from the upstream");
    ensure!(stage.bad()? == 0, "a generation is marked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_restore_marks_one_generation_and_the_next_the_next() -> Result<()> {
    let stage = three_generations().await?;
    let generations = stage.manifests()?.len();
    for number in 1..=generations {
        std::fs::write(stage.objects().join(format!("checkpoints/{number:020}.json")), "")?;
    }
    // The upstream is away: restores are tried again and again.
    stage.upstream.down().await;
    let agent = stage.agent().await?;
    eventually(Duration::from_secs(60), "all generations to be marked", async || {
        let marked = stage.bad()?;
        let restores: usize = agent.metric("tarn_checkpoint_restores_total{outcome=\"none\"}").await?;
        // The one under way may have marked one more, and the count is younger.
        assert!(marked <= restores + 1, "{marked} marks by {restores} restores");
        ensure!(marked == generations, "{marked} marks");
        Ok(())
    })
    .await
}
