//! Nobody starves anybody: slow hosts, and work that no client waits for, leave others their turns.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Fault, Operation, Upstream};

use crate::scene::agent;

/// One repository under many names: a commit moves the refs of all their mirrors.
async fn many(root: &Path, count: usize) -> Result<(Upstream, Repo, Vec<String>, String)> {
    let upstream = Upstream::start(root)?;
    let seed = upstream.seed("seed.git").await?;
    let (mut repos, mut yaml) = (Vec::new(), Vec::new());
    for number in 0..count {
        let name = format!("m{number:02}.git");
        std::os::unix::fs::symlink(seed.path(), root.join(&name))?;
        repos.push(repo_id(&upstream.url(&name)));
        yaml.push(manifest(&format!("m{number:02}"), &upstream.url(&name), &[]));
    }
    Ok((upstream, seed, repos, yaml.join("---\n")))
}

#[tokio::test]
async fn a_host_that_holds_its_fetches_keeps_no_other_host_waiting() -> Result<()> {
    let (slow_root, root, place) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let (slow, seed, repos, yaml) = many(slow_root.path(), 20).await?;
    let other = Upstream::start(root.path())?;
    let origin = other.seed("a.git").await?;
    let yaml = [yaml, manifest("a", &other.url("a.git"), &[])].join("---\n");
    let agent = agent().arg("--upstream-connections").arg("64").arg("--prewarm-most-cloned").arg("99");
    let agent = agent.start_with(&[("all.yaml", &yaml)]).await?;
    let repo = repo_id(&other.url("a.git"));
    for repo in repos.iter().chain([&repo]) {
        agent.wait_phase(repo, "Ready").await?;
    }
    slow.fault_on(Operation::Fetch, Fault::Hold);
    slow.clear_log();
    seed.commit("main", &[("moved", "all of them")]).await?;
    let git = Git::new()?.with_timeout(Duration::from_secs(30));
    for repo in &repos {
        git.ls_remote(&agent.git_url(repo)?).await?;
        agent.wait_phase(repo, "Fetching").await?;
    }
    let tip = origin.commit("main", &[("moved", "this one")]).await?;
    let clone = git.clone_repo(&agent.git_url(&repo)?, &place.path().join("clone"), &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == tip, "an old state");
    let held = slow.log().iter().filter(|seen| seen.operation == Operation::Fetch).count();
    ensure!((6..=8).contains(&held), "half of the places are one host's: {held}");
    slow.mend();
    for repo in &repos {
        agent.wait_phase(repo, "Ready").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_fetch_that_somebody_waits_for_goes_before_those_in_the_background() -> Result<()> {
    let root = tempfile::tempdir()?;
    let (upstream, seed, repos, yaml) = many(root.path(), 24).await?;
    let agent = agent().arg("--upstream-connections").arg("2").arg("--prewarm-most-cloned").arg("99");
    let mut agent = agent.start_with(&[("all.yaml", &yaml)]).await?;
    for repo in &repos {
        agent.wait_phase(repo, "Ready").await?;
    }
    seed.commit("main", &[("moved", "all of them")]).await?;
    upstream.fault_on(Operation::Fetch, Fault::Hold);
    upstream.clear_log();
    agent.restart().await?;
    for repo in &repos {
        let behind = |status: &Value| status["phase"] == "CatchingUp" && !status["lastLookTime"].is_null();
        agent.wait_status(repo, "a fetch that is due", behind).await?;
    }
    eventually(Duration::from_secs(20), "a fetch under way", async || {
        ensure!(upstream.log().iter().any(|seen| seen.operation == Operation::Fetch), "none");
        Ok(())
    })
    .await?;
    // One fetch is under way; whichever mirror's it is, another is awaited now.
    let first =
        upstream.log().iter().find(|seen| seen.operation == Operation::Fetch).map(|seen| seen.repo.clone());
    let first = first.unwrap_or_default();
    let awaited =
        repos.iter().rev().find(|repo| !first.starts_with(repo.rsplit('/').next().unwrap_or_default()));
    let awaited = awaited.expect("another mirror").clone();
    Git::new()?.ls_remote(&agent.git_url(&awaited)?).await?;
    upstream.mend();
    for repo in &repos {
        agent.wait_phase(repo, "Ready").await?;
    }
    let mut order: Vec<_> = upstream.log();
    order.retain(|seen| seen.operation == Operation::Fetch);
    order.sort_by_key(|seen| seen.at);
    let mut order: Vec<_> = order.into_iter().map(|seen| seen.repo).collect();
    order.dedup();
    let name = awaited.rsplit('/').next().unwrap_or_default();
    let place = order.iter().position(|repo| repo.starts_with(name));
    ensure!(place == Some(1), "{awaited} is fetched as number {place:?} of {order:?}");
    Ok(())
}
