//! Content that was fetched with credentials is shown to nobody under a declaration that has not itself been let in.

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Auth, Upstream};

use super::credentials::{CANARY, expect_no_canary, secret};
use super::{READS, ask};
use crate::checkpoints::{Kind, Stage};
use crate::scene::{agent, condition};

const SPEC: [&str; 3] =
    ["interval: 10s", "checkpoint: {interval: 5s}", "snapshot: {interval: 10s, maxAge: 1h}"];

/// A declaration with the Secret of this name, which opens the upstream, or without any; `access` is Anonymous.
fn declared(upstream: &Upstream, name: Option<&str>) -> String {
    let reference = name.map(|name| format!("secretRef: {{name: {name}}}"));
    let spec: Vec<&str> = SPEC.into_iter().chain(reference.as_deref()).chain(["access: Anonymous"]).collect();
    let mirror = manifest("a", &upstream.url("a.git"), &spec);
    let Some(name) = name else { return mirror };
    let data = [("username", "ada"), ("password", CANARY)];
    [mirror, secret(upstream, &data).replace("name: creds", &format!("name: {name}"))].join("---\n")
}

/// A stage whose upstream lets nobody in but with the credentials.
async fn private() -> Result<Stage> {
    let stage = Stage::new(Kind::Directory).await?;
    stage.origin.grow("main", 3, 5_000, 1).await?;
    stage.upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
    Ok(stage)
}

/// Starts an agent with an empty disk and this declaration, on the stage's store.
async fn start(stage: &Stage, yaml: &str) -> Result<Agent> {
    let builder: Builder = stage.with_store(agent(), None);
    builder.start_with(&[("a.yaml", yaml)]).await
}

/// Publishes a checkpoint and a snapshot as `yaml` declares; the agent that did has gone.
async fn published(stage: &Stage, yaml: &str) -> Result<()> {
    let mut agent = start(stage, yaml).await?;
    agent.wait_phase(&stage.repo(), "Ready").await?;
    let in_store = |status: &serde_json::Value| {
        status["snapshot"]["generation"].as_u64() > Some(0)
            && status["checkpoint"]["generation"].as_u64() > Some(0)
    };
    agent.wait_status(&stage.repo(), "a checkpoint and a snapshot", in_store).await?;
    expect_no_canary(&agent).await?;
    agent.stop().await?;
    Ok(())
}

/// No route shows anything, and each says why by one of these codes.
async fn expect_nothing(agent: &Agent, repo: &str, codes: &[&str]) -> Result<()> {
    for route in READS {
        let answer = ask(agent, &format!("/git/{repo}"), route, &[]).await?;
        ensure!(answer.status >= 400, "{route:?}: {} {}", answer.status, answer.text());
        let said = codes.iter().any(|code| answer.text().contains(code));
        ensure!(route.0 == "HEAD" || said, "{route:?}: {}", answer.text());
    }
    let output = Git::new()?.attempt(["ls-remote", &agent.git_url(repo)?]).await?;
    ensure!(!output.status.success(), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_taken_out_of_a_declaration_takes_the_content_along() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let origin = upstream.seed("a.git").await?;
    upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
    let mut agent = agent().start_with(&[("a.yaml", &declared(&upstream, Some("creds")))]).await?;
    let repo = repo_id(&upstream.url("a.git"));
    agent.wait_phase(&repo, "Ready").await?;
    agent.wait_settled(&repo).await?;
    let (git, refs) = (Git::new()?, origin.refs().await?);
    ensure!(git.ls_remote(&agent.git_url(&repo)?).await? == refs);
    agent.write_manifest("a.yaml", &declared(&upstream, None))?;
    agent.wait_status(&repo, "Withheld", |status| condition(status, "Withheld")).await?;
    expect_nothing(&agent, &repo, &["UpstreamRefuses"]).await?;
    // With an upstream that says nothing it stays so, after a restart too.
    upstream.down().await;
    agent.restart().await?;
    expect_nothing(&agent, &repo, &["AccessUnproven", "UpstreamRefuses"]).await?;
    // Whoever gives the credentials back has them tried first.
    agent.write_manifest("a.yaml", &declared(&upstream, Some("creds")))?;
    upstream.up().await;
    tarn_testkit::eventually::eventually(tarn_testkit::agent::PATIENCE, "the refs", async || {
        ensure!(git.ls_remote(&agent.git_url(&repo)?).await? == refs, "others");
        Ok(())
    })
    .await?;
    // A repository that is open to all is shown to all.
    upstream.require(Auth::Open);
    agent.write_manifest("a.yaml", &declared(&upstream, None))?;
    tarn_testkit::eventually::eventually(tarn_testkit::agent::PATIENCE, "the public refs", async || {
        let status = agent.mirror_status(&repo).await?;
        ensure!(!condition(&status, "Withheld"), "{status}");
        ensure!(git.ls_remote(&agent.git_url(&repo)?).await? == refs, "others");
        let noted = std::fs::read_to_string(crate::p1_never_stale::note(&agent, &repo)?)?;
        ensure!(noted.contains("\"public\""), "{noted}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_made_anew_shows_nothing_of_the_store_that_took_credentials() -> Result<()> {
    let stage = private().await?;
    let with = declared(&stage.upstream, Some("creds"));
    published(&stage, &with).await?;
    let refs = stage.origin.refs().await?;
    for other in [None, Some("other")] {
        let yaml = declared(&stage.upstream, other);
        let agent = start(&stage, &yaml).await?;
        if other.is_none() {
            stage.wait_restored(&agent).await?;
            expect_nothing(&agent, &stage.repo(), &["UpstreamRefuses"]).await?;
        }
        // An upstream that says nothing does not let anybody in either.
        stage.upstream.down().await;
        let agent = start(&stage, &yaml).await?;
        expect_nothing(&agent, &stage.repo(), &[""]).await?;
        stage.wait_restored(&agent).await?;
        expect_nothing(&agent, &stage.repo(), &["AccessUnproven"]).await?;
        stage.upstream.up().await;
    }
    // The declaration that had fetched it is served through an outage, as before.
    stage.upstream.down().await;
    let agent = start(&stage, &with).await?;
    stage.wait_restored(&agent).await?;
    let url = agent.git_url(&stage.repo())?;
    ensure!(stage.git.ls_remote(&url).await? == refs);
    let snapshot = agent.get(&format!("/git/{}/snapshot.tar.zst", stage.repo())).await?;
    ensure!(snapshot.status == 200, "{}", snapshot.text());
    expect_no_canary(&agent).await?;
    for file in crate::p4_never_stuck::files(&stage.store())? {
        let text = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
        ensure!(!text.contains(CANARY), "{} holds the password", file.display());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_older_agents_left_in_the_store_counts_as_fetched_with_credentials() -> Result<()> {
    let stage = Stage::new(Kind::Directory).await?;
    let yaml = declared(&stage.upstream, None);
    published(&stage, &yaml).await?;
    for file in crate::p4_never_stuck::files(&stage.objects())? {
        if file.extension().is_some_and(|end| end == "json") {
            let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
            let manifest = manifest.as_object_mut().context("an object")?;
            ensure!(manifest.remove("provenance") == Some("public".into()), "{}", file.display());
            std::fs::write(&file, serde_json::to_vec(manifest)?)?;
        }
    }
    stage.upstream.down().await;
    let agent = start(&stage, &yaml).await?;
    stage.wait_restored(&agent).await?;
    expect_nothing(&agent, &stage.repo(), &["AccessUnproven"]).await?;
    stage.upstream.up().await;
    stage.expect_clone(&agent, "clone").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_pod_shows_nothing_of_the_store_while_the_upstream_refuses() -> Result<()> {
    let stage = Stage::new(Kind::Directory).await?;
    let yaml = declared(&stage.upstream, None);
    published(&stage, &yaml).await?;
    // It was public, and is private now.
    stage.upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
    let agent = start(&stage, &yaml).await?;
    let snapshot = agent.get(&format!("/git/{}/snapshot.tar.zst", stage.repo())).await?;
    ensure!(snapshot.status == 403, "the very first request: {} {}", snapshot.status, snapshot.text());
    expect_nothing(&agent, &stage.repo(), &["UpstreamRefuses"]).await?;
    stage.wait_restored(&agent).await?;
    expect_nothing(&agent, &stage.repo(), &["UpstreamRefuses"]).await
}
