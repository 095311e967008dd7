//! Many mirrors, and an agent that has just started.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Git;
use tarn_testkit::measure::peak_rss;
use tarn_testkit::s3::S3Server;
use tarn_testkit::upstream::{Fault, Upstream};

use crate::scene::agent;

/// One repository under many names, and manifests for all of them.
async fn many(root: &std::path::Path, count: usize) -> Result<(Upstream, Vec<String>, String)> {
    let upstream = Upstream::start(root)?;
    let seed = upstream.seed("seed.git").await?;
    let (mut repos, mut yaml) = (Vec::new(), Vec::new());
    for number in 0..count {
        let name = format!("m{number:03}.git");
        std::os::unix::fs::symlink(seed.path(), root.join(&name))?;
        repos.push(repo_id(&upstream.url(&name)));
        let spec = &["checkpoint: {interval: 5s}"];
        yaml.push(manifest(&format!("m{number:03}"), &upstream.url(&name), spec));
    }
    Ok((upstream, repos, yaml.join("---\n")))
}

fn flags(count: usize, connections: &str) -> Builder {
    let all = agent().arg("--prewarm-most-cloned").arg(count.to_string());
    all.arg("--prewarm-concurrency").arg("64").arg("--upstream-connections").arg(connections)
}

#[tokio::test]
async fn an_upstream_host_is_asked_by_few_at_once_and_whoever_waits_goes_first() -> Result<()> {
    const MIRRORS: usize = 40;
    let dir = tempfile::tempdir()?;
    let (upstream, repos, yaml) = many(dir.path(), MIRRORS).await?;
    upstream.fault(Fault::Delay(Duration::from_millis(200)));
    let mut agent = flags(MIRRORS, "4").start_with(&[("all.yaml", &yaml)]).await?;
    let last = repos.last().expect("forty").clone();
    // The line is long by now: forty looks of 0.4 s each, four at a time.
    Git::new()?.ls_remote(&agent.git_url(&last)?).await?;
    let status = agent.status().await?;
    let all = status["mirrors"].as_array().cloned().unwrap_or_default();
    let behind = all.iter().filter(|mirror| mirror["lastLookTime"].is_null()).count();
    ensure!(behind >= 10, "whoever waits goes first, and only {behind} come after");
    ensure!(agent.metric::<u64>("tarn_upstream_waiting").await? > 0, "the others wait");
    ensure!(agent.metric::<u64>("tarn_upstream_connections").await? <= 4, "{}", agent.metrics().await?);
    for repo in &repos {
        agent.wait_phase(repo, "Ready").await?;
    }
    ensure!(upstream.most_at_once() <= 4, "{} at once", upstream.most_at_once());
    // The same with data on the disk.
    agent.restart().await?;
    Git::new()?.ls_remote(&agent.git_url(&last)?).await?;
    for repo in &repos {
        agent.wait_phase(repo, "Ready").await?;
    }
    ensure!(upstream.most_at_once() <= 4, "{} at once after a restart", upstream.most_at_once());
    Ok(())
}

/// `TARN_FLEET_MIRRORS=500` makes it a fleet, and has the time from the start to the first clone judged: with a release build
/// and alone, by `make bench-fleet`.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_serves_any_mirror_at_once_and_restores_few_at_a_time() -> Result<()> {
    let wanted: Option<usize> = std::env::var("TARN_FLEET_MIRRORS").ok().and_then(|count| count.parse().ok());
    let count = wanted.unwrap_or(40);
    let patience = Duration::from_secs(60 + count as u64 * 2);
    let dir = tempfile::tempdir()?;
    let (upstream, repos, yaml) = many(dir.path(), count).await?;
    let s3 = S3Server::start().await?;
    let builder = || {
        let all = agent().arg("--prewarm-most-cloned").arg(count.to_string());
        // Two more are restored that somebody waits for.
        all.arg("--prewarm-concurrency").arg("6").bucket("fleet", &s3.endpoint())
    };
    let all = async |agent: &Agent, what: &str, fits: fn(&Value) -> bool| {
        eventually(patience, what, async || {
            let status = agent.status().await?;
            let mirrors = status["mirrors"].as_array().cloned().unwrap_or_default();
            let behind = mirrors.iter().filter(|mirror| !fits(mirror)).count();
            ensure!(behind == 0 && mirrors.len() == count, "{behind} of {} behind", mirrors.len());
            Ok(())
        })
        .await
    };
    let mut first = builder().start_with(&[("all.yaml", &yaml)]).await?;
    all(&first, "checkpoints of all", |mirror| mirror["checkpoint"]["generation"] == 1).await?;
    first.stop().await?;
    drop(first);

    // The machine may be busy with others: what one of three starts achieves is what the agent can.
    let (git, last) = (Git::new()?, repos.last().expect("some"));
    let mut tries = Vec::new();
    let (cold, began) = loop {
        let began = Instant::now();
        let cold = builder().start_with(&[("all.yaml", &yaml)]).await?;
        let place = dir.path().join(format!("clone-{}", tries.len()));
        git.clone_repo(&cold.git_url(last)?, &place, &[]).await?;
        tries.push(began.elapsed());
        if tries.len() == 3 || wanted.is_none() || began.elapsed() <= Duration::from_secs(1) {
            break (cold, began);
        }
    };
    let served = tries.iter().min().copied().unwrap_or_default();
    let (mut most, mut done) = (0, false);
    while !done && began.elapsed() < patience {
        let status = cold.status().await?;
        let mirrors = status["mirrors"].as_array().cloned().unwrap_or_default();
        let restoring = mirrors.iter().filter(|mirror| mirror["phase"] == "Restoring").count() as u64;
        most = most.max(restoring).max(status["prewarm"]["underWay"].as_u64().unwrap_or(0));
        done = status["prewarm"]["warmed"] == count;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (all_there, rss) = (began.elapsed(), peak_rss(cold.pid()?)?);
    println!(
        "{count} mirrors: clone after {tries:?}, all after {all_there:?}, at most {most} at once, {rss} bytes"
    );
    ensure!(done, "not all were restored");
    // Other tests run beside this one, and time says nothing then.
    ensure!(wanted.is_none() || served <= Duration::from_secs(1), "the first clone took {tries:?}");
    ensure!(most <= 8, "{most} at once");
    ensure!(rss <= 150_000_000, "{rss} bytes of memory");
    let restored = cold.metric::<u64>("tarn_checkpoint_restores_total{outcome=\"ok\"}").await?;
    // But for the one that was cloned, perhaps.
    ensure!(restored + 1 >= count as u64, "{restored} of {count} came from the store");
    ensure!(upstream.most_at_once() <= 16, "{} at the upstream at once", upstream.most_at_once());
    Ok(())
}
