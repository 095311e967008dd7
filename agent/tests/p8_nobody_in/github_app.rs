//! Mirrors of what a GitHub App may read: tokens are minted for one repository each, renewed, and seen nowhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::github::GitHub;
use tarn_testkit::upstream::{Auth, Fault, Operation, Upstream};

use super::credentials::{CANARY, expect_no_canary};
use crate::scene::agent;

/// An upstream that an App may read, and GitHub's API beside it.
struct Hub {
    upstream: Upstream,
    github: GitHub,
    origin: Repo,
    dir: tempfile::TempDir,
}

impl Hub {
    async fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let upstream = Upstream::start(&root)?;
        let origin = upstream.seed("a.git").await?;
        let github = GitHub::start(dir.path()).await?;
        let hub = Self { upstream, github, origin, dir };
        hub.token(&format!("{CANARY}-1"), 3600);
        Ok(hub)
    }

    /// The only token there is from now on.
    fn token(&self, token: &str, seconds: u64) {
        self.github.mint(token, Duration::from_secs(seconds));
        self.upstream.require(Auth::Basic { user: "x-access-token".into(), password: token.to_owned() });
    }

    fn yaml(&self, names: &[&str], installation: &str) -> String {
        let spec = ["secretRef: {name: creds}", "access: Anonymous", "interval: 10s"];
        let mut documents: Vec<String> = names
            .iter()
            .map(|name| manifest(name, &self.upstream.url(&format!("{name}.git")), &spec))
            .collect();
        let key = self.github.key().replace('\n', "\n    ");
        documents.push(format!(
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: creds\n  labels: {{tarn.dev/credentials: 'true'}}\n  \
             annotations: {{tarn.dev/hosts: 'http://{}'}}\nstringData:\n  githubAppID: '{}'\n  \
             githubAppInstallationID: '{installation}'\n  githubAppBaseURL: {}\n  githubAppPrivateKey: |\n    {key}\n",
            self.upstream.address(),
            GitHub::APP,
            self.github.url(),
        ));
        documents.join("---\n")
    }

    async fn start(&self, names: &[&str], installation: &str) -> Result<Agent> {
        let yaml = self.yaml(names, installation);
        agent().env("TARN_AGENT_LOG", "trace").start_with(&[("a.yaml", &yaml)]).await
    }

    fn repo(&self) -> String {
        repo_id(&self.upstream.url("a.git"))
    }

    /// Neither tokens nor the key nor a JWT can be read by others.
    async fn expect_silence(&self, agent: &Agent) -> Result<()> {
        expect_no_canary(agent).await?;
        let line = self.github.key().lines().nth(2).unwrap_or_default().to_owned();
        let (logs, status) = (agent.logs()?, agent.status().await?.to_string());
        for secret in [line.as_str(), "eyJhbGciOi", "x-access-token", "eC1hY2Nlc3MtdG9rZW"] {
            ensure!(!logs.contains(secret) && !status.contains(secret), "{secret} can be read");
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_app_opens_the_upstream_with_a_token_for_each_repository() -> Result<()> {
    let hub = Hub::new().await?;
    hub.upstream.seed("b.git").await?;
    let agent = hub.start(&["a", "b"], GitHub::INSTALLATION).await?;
    agent.wait_ready(&[&hub.repo(), &repo_id(&hub.upstream.url("b.git"))]).await?;
    ensure!(hub.github.refusals().is_empty(), "{:?}", hub.github.refusals());
    let mut minted = hub.github.repositories();
    minted.sort();
    ensure!(minted == ["a", "b"], "{minted:?}");
    // A mirror that is declared anew has its token still.
    agent.write_manifest("a.yaml", &hub.yaml(&["a", "b"], GitHub::INSTALLATION).replace("10s", "11s"))?;
    agent.wait_ready(&[&hub.repo(), &repo_id(&hub.upstream.url("b.git"))]).await?;
    Git::new()?.ls_remote(&agent.git_url(&hub.repo())?).await?;
    ensure!(hub.github.minted() == 2, "{} tokens", hub.github.minted());
    let clone =
        Git::new()?.clone_repo(&agent.git_url(&hub.repo())?, &hub.dir.path().join("clone"), &[]).await?;
    clone.fsck().await?;
    hub.expect_silence(&agent).await
}

#[tokio::test]
async fn tokens_are_renewed_before_they_expire_and_when_they_are_revoked() -> Result<()> {
    let hub = Hub::new().await?;
    // Renewed five minutes before the end: in three seconds.
    hub.token(&format!("{CANARY}-1"), 303);
    let agent = hub.start(&["a"], GitHub::INSTALLATION).await?;
    agent.wait_ready(&[&hub.repo()]).await?;
    let url = agent.git_url(&hub.repo())?;
    let git = Git::new()?;
    hub.github.mint(&format!("{CANARY}-2"), Duration::from_secs(3600));
    eventually(Duration::from_secs(20), "a renewal", async || {
        git.ls_remote(&url).await?;
        ensure!(hub.github.minted() == 2, "{}", hub.github.minted());
        Ok(())
    })
    .await?;
    // Looks and fetches go on with the new one.
    hub.token(&format!("{CANARY}-2"), 3600);
    let pushed = hub.origin.commit("main", &[("f", "2")]).await?;
    let clone = git.clone_repo(&url, &hub.dir.path().join("clone"), &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == pushed, "old");
    agent.wait_status(&hub.repo(), "the push", |status| status["head"]["sha"] == pushed.as_str()).await?;
    // Revoked: the next look gets another.
    hub.token(&format!("{CANARY}-3"), 3600);
    let pushed = hub.origin.commit("main", &[("f", "3")]).await?;
    eventually(Duration::from_secs(20), "the push", async || {
        let refs = git.ls_remote(&url).await?;
        ensure!(refs.get("HEAD") == Some(&pushed), "{refs:?}");
        Ok(())
    })
    .await?;
    agent.wait_status(&hub.repo(), "the push", |status| status["head"]["sha"] == pushed.as_str()).await?;
    hub.expect_silence(&agent).await
}

#[tokio::test]
async fn what_the_api_refuses_is_told_with_its_remedy_and_mended_without_a_restart() -> Result<()> {
    let hub = Hub::new().await?;
    let agent = hub.start(&["a"], "43").await?;
    // A refusal is the first thing told until a look succeeds; what fails since then, in another condition.
    let told = |text: &'static str| move |status: &Value| status["conditions"].to_string().contains(text);
    agent
        .wait_status(&hub.repo(), "the installation", told("check the Secret's githubAppInstallationID"))
        .await?;
    hub.github.fail(Some(401));
    agent.wait_status(&hub.repo(), "the key", told("check the Secret's githubAppID")).await?;
    hub.github.fail(Some(500));
    agent.wait_status(&hub.repo(), "the outage", told("GitHub's API answers HTTP 500")).await?;
    hub.github.fail(None);
    // A key that is none is named at once.
    let broken = hub.yaml(&["a"], GitHub::INSTALLATION).replace("PRIVATE KEY", "PUBLIC KEY");
    agent.write_manifest("a.yaml", &broken)?;
    eventually(Duration::from_secs(20), "the key to be named", async || {
        let status = agent.status().await?.to_string();
        ensure!(status.contains("githubAppPrivateKey") && status.contains("PEM"), "{status}");
        Ok(())
    })
    .await?;
    agent.write_manifest("a.yaml", &hub.yaml(&["a"], GitHub::INSTALLATION))?;
    agent.wait_ready(&[&hub.repo()]).await?;
    hub.expect_silence(&agent).await
}

#[tokio::test]
async fn a_slow_api_yields_a_token_and_one_that_holds_is_used_meanwhile() -> Result<()> {
    let hub = Hub::new().await?;
    // Longer than a look may take, and held by none.
    hub.github.delay(Duration::from_secs(6));
    let agent = hub.start(&["a"], GitHub::INSTALLATION).await?;
    agent.wait_ready(&[&hub.repo()]).await?;
    ensure!(hub.github.minted() <= 2, "{} tokens", hub.github.minted());
    // Close to its end, and the API does not answer at all: what holds is good enough.
    hub.token(&format!("{CANARY}-2"), 200);
    eventually(Duration::from_secs(60), "a short token", async || {
        Git::new()?.ls_remote(&agent.git_url(&hub.repo())?).await?;
        ensure!(hub.github.minted() >= 2, "{}", hub.github.minted());
        let target = format!("/git/{}/info/refs?service=git-upload-pack", hub.repo());
        let answer = agent.get(&target).await?;
        ensure!(answer.header("tarn-freshness") == Some("verified"), "{:?}", answer.header("tarn-freshness"));
        Ok(())
    })
    .await?;
    hub.github.delay(Duration::from_secs(3600));
    let pushed = hub.origin.commit("main", &[("f", "2")]).await?;
    let refs = Git::new()?.ls_remote(&agent.git_url(&hub.repo())?).await?;
    ensure!(refs.get("HEAD") == Some(&pushed), "{refs:?}");
    hub.expect_silence(&agent).await
}

#[tokio::test]
async fn an_upstream_that_forbids_one_repository_costs_no_tokens() -> Result<()> {
    let hub = Hub::new().await?;
    hub.upstream.seed("b.git").await?;
    hub.upstream.fault_in("b.git", Fault::Status(403));
    let agent = hub.start(&["a", "b"], GitHub::INSTALLATION).await?;
    agent.wait_ready(&[&hub.repo()]).await?;
    let other = repo_id(&hub.upstream.url("b.git"));
    for _ in 0..10 {
        let target = format!("/git/{other}/info/refs?service=git-upload-pack");
        let answer = agent.get(&target).await?;
        ensure!(answer.status == 403, "{}", answer.status);
    }
    ensure!(hub.upstream.count("b.git", Operation::Advertise) >= 1, "it is asked");
    ensure!(hub.github.minted() == 2, "{} tokens", hub.github.minted());
    Ok(())
}
