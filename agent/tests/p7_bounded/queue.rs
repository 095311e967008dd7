//! Nobody starves anybody: slow hosts, and work that no client waits for, leave others their turns.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::{Process, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Fault, Operation, Upstream};
use tarn_testkit::wire::Answer;

use crate::scene::{Scene, agent};
use crate::serving::{fetch_request, post};

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

/// The answers to all these requests at once, and the most children that the agent had meanwhile.
async fn at_once(scene: &Scene, requests: &[Vec<u8>]) -> Result<(Vec<Answer>, Vec<Process>)> {
    let ask = async |request: &Vec<u8>| {
        let mut connection = scene.connect().await?;
        connection.send(request).await?;
        connection.answer().await
    };
    let mut answers = std::pin::pin!(futures_util::future::try_join_all(requests.iter().map(ask)));
    let mut most = Vec::new();
    loop {
        let children = scene.agent.children()?;
        if children.len() > most.len() {
            most = children;
        }
        tokio::select! {
            answers = &mut answers => return Ok((answers?, most)),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
}

/// Two children for each processor, each with a helper; a fetch of what nobody knows, with its helpers; upkeep.
fn enough() -> Result<usize> {
    Ok(4 * std::thread::available_parallelism()?.get() + 12)
}

#[tokio::test]
async fn many_requests_for_unknown_objects_start_a_bounded_number_of_children() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.agent.wait_idle().await?;
    let request = |number: usize| {
        let want = format!("{number:040x}");
        post(&scene.path(), "git-upload-pack", &fetch_request(&[&want], &["done"]))
    };
    let requests: Vec<_> = (1..=60).map(request).collect();
    let (_, most) = at_once(&scene, &requests).await?;
    ensure!(most.len() <= enough()?, "{} children: {most:?}", most.len());
    scene.expect_upstream_refs().await.map(drop)
}

#[tokio::test]
async fn many_requests_for_other_bundles_start_a_bounded_number_of_children() -> Result<()> {
    let scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 160, 2_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_idle().await?;
    let commits = scene.origin.git(&["rev-list", "main"]).await?;
    let request = |base: &str| {
        format!("GET {}/snapshot.bundle?base={base} HTTP/1.1\r\nHost: test\r\n\r\n", scene.path())
            .into_bytes()
    };
    let requests: Vec<_> = commits.lines().skip(1).take(150).map(request).collect();
    ensure!(requests.len() == 150, "{} commits", requests.len());
    let (answers, most) = at_once(&scene, &requests).await?;
    let bundles = answers.iter().filter(|answer| answer.status == 200).count();
    ensure!(bundles == requests.len(), "{bundles} bundles");
    ensure!(most.len() <= enough()?, "{} children: {most:?}", most.len());
    Ok(())
}
