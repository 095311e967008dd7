//! An upstream that answers anything but git: the reason is in `/status`, and a retry follows.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Auth, Fault, Operation, Upstream};

use crate::scene::{Scene, agent, condition, message};

/// Each way to fail, and words of which one must be in the message that tells of it.
fn failures() -> Vec<(&'static str, Fault, &'static [&'static str])> {
    vec![
        ("html", Fault::Html, &["html", "not git", "notgit", "git's protocol", "not valid"]),
        ("unauthorized", Fault::Status(401), &["401", "unauthorized", "credentials", "authentication"]),
        ("forbidden", Fault::Status(403), &["403", "forbidden", "denied", "unauthorized"]),
        ("missing", Fault::Status(404), &["404", "not found", "notfound"]),
        ("broken", Fault::Status(500), &["500", "server error"]),
        ("busy", Fault::Status(503), &["503", "unavailable"]),
        ("silent", Fault::Hang, &["timed out", "timeout", "timedout", "no answer", "within"]),
        (
            "cut",
            Fault::CutAfter(30),
            &[
                "cut",
                "closed",
                "eof",
                "early",
                "broke",
                "incomplete",
                "end of file",
                "unreachable",
                "hung up",
                "disconnect",
            ],
        ),
    ]
}

fn tells(status: &serde_json::Value, words: &[&str]) -> bool {
    let message = message(status).to_lowercase();
    words.iter().any(|word| message.contains(word))
}

#[tokio::test]
async fn a_failed_clone_says_why_and_succeeds_once_the_upstream_is_mended() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let mut manifests = Vec::new();
    for (name, fault, _) in failures() {
        upstream.seed(&format!("{name}.git")).await?;
        upstream.fault_in(&format!("{name}.git"), fault);
        let spec = ["timeout: 10s", "freshness: {lookTimeout: 2s}"];
        manifests
            .push((format!("{name}.yaml"), manifest(name, &upstream.url(&format!("{name}.git")), &spec)));
    }
    let manifests: Vec<_> = manifests.iter().map(|(name, yaml)| (name.as_str(), yaml.as_str())).collect();
    let agent = agent().start_with(&manifests).await?;
    for (name, _, words) in failures() {
        let repo = repo_id(&upstream.url(name));
        let status = agent.wait_status(&repo, "the reason", |status| tells(status, words)).await?;
        ensure!(status["phase"] != "Ready" && !condition(&status, "Ready"), "{status}");
        ensure!(!message(&status).contains('\n'), "one line: {status}");
    }
    // Those that failed at once have been tried again by now, and wait for the next time.
    let retried = repo_id(&upstream.url("broken"));
    tarn_testkit::eventually::eventually(Duration::from_secs(15), "a retry", async || {
        let tried = upstream.log().iter().filter(|seen| seen.repo == "broken.git").count();
        ensure!(tried >= 2, "{tried} requests");
        Ok(())
    })
    .await?;
    agent.wait_phase(&retried, "Backoff").await?;
    upstream.mend();
    let git = Git::new()?;
    for (name, _, _) in failures() {
        let repo = repo_id(&upstream.url(name));
        let status = agent.wait_phase(&repo, "Ready").await?;
        ensure!(message(&status).is_empty(), "the trouble is over: {status}");
        git.ls_remote(&agent.git_url(&repo)?).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_background_fetch_says_why_serves_on_and_recovers() -> Result<()> {
    for (name, fault, words) in
        failures().into_iter().filter(|(name, ..)| ["html", "broken", "silent"].contains(name))
    {
        let scene = Scene::with(&["timeout: 10s", "freshness: {lookTimeout: 2s}"]).await?;
        let before = scene.refs().await?;
        scene.upstream.fault(fault);
        // The answer may wait for the fetch, or tell of its failure: the status is what counts.
        let _ = tokio::time::timeout(Duration::from_millis(500), scene.agent.fetch_now(&scene.repo())).await;
        let status = scene
            .agent
            .wait_status(&scene.repo(), "the reason", |status| {
                tells(status, words) && condition(status, "FetchFailed")
            })
            .await?;
        ensure!(status["head"]["sha"] == before["HEAD"], "{name}: {status}");
        assert_eq!(scene.refs().await?, before, "{name}");
        let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
        scene.upstream.mend();
        // Without a request: the retry alone brings it.
        let status = scene
            .agent
            .wait_status(&scene.repo(), "the new commit", |status| status["head"]["sha"] == pushed.as_str())
            .await?;
        ensure!(!condition(&status, "FetchFailed"), "{name}: {status}");
    }
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_is_down_at_the_start_is_mirrored_when_it_comes_up() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    upstream.down().await;
    let repo = repo_id(&upstream.url("a.git"));
    let agent = agent().start_with(&[("a.yaml", &manifest("a", &upstream.url("a.git"), &[]))]).await?;
    let status = agent.wait_phase(&repo, "Backoff").await?;
    assert!(!message(&status).is_empty(), "{status}");
    let output = Git::new()?.attempt(["ls-remote", &agent.git_url(&repo)?]).await?;
    assert!(!output.status.success());
    upstream.up().await;
    agent.wait_phase(&repo, "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_fails_every_other_request_is_mirrored_in_the_end() -> Result<()> {
    let scene = Scene::prepared(&[], async |upstream, _| {
        upstream.fault(Fault::FailRatio { ratio: 0.5, seed: 11 });
        Ok(())
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.upstream.mend();
    scene.clone("clone", &[]).await?.fsck().await
}

#[tokio::test]
async fn a_clone_that_hangs_in_the_middle_is_ended_after_its_timeout() -> Result<()> {
    let scene = Scene::prepared(&["timeout: 10s"], async |upstream, origin| {
        origin.grow("main", 1, 1_000_000, 1).await?;
        upstream.fault_on(Operation::Fetch, Fault::Throttle(1000));
        Ok(())
    })
    .await?;
    let status = scene
        .agent
        .wait_status(&scene.repo(), "the timeout", |status| {
            tells(status, &["timed out", "timeout", "timedout", "too slow", "longer than"])
        })
        .await?;
    assert!(!condition(&status, "Ready"), "{status}");
    scene.upstream.mend();
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_idle().await
}

#[tokio::test]
async fn wrong_credentials_become_right_without_a_restart() -> Result<()> {
    let scene = Scene::prepared(&[], async |upstream, _| {
        upstream.require(Auth::Basic { user: "ada".into(), password: "right".into() });
        Ok(())
    })
    .await?;
    let status = scene.agent.wait_phase(&scene.repo(), "Backoff").await?;
    assert!(tells(&status, &["401", "unauthorized", "credentials", "authentication"]), "{status}");
    scene.upstream.require(Auth::Open);
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(())
}
