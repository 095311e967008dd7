//! The API server is away: at the start, or for a while.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Auth;
use tarn_testkit::wire::Answer;

use super::{Cluster, PATIENCE, POD};
use crate::p8_nobody_in::{CANARY, CANARY_BASE64, READS, ask, expect_no_canary};

#[tokio::test]
async fn clones_go_on_while_the_api_server_is_away_and_status_catches_up() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    cluster.declare("b").await?;
    let pod = cluster.pod(POD).await?;
    cluster.head_told("a", POD, &origin).await?;
    pod.wait_phase(&cluster.repo("b"), "Ready").await?;
    cluster.api.down().await;
    for round in 0..4 {
        origin.commit("main", &[("f", &round.to_string())]).await?;
        cluster.clones(&pod, "a", &format!("away-{round}")).await?;
        let ready = pod.admin("/readyz").await?;
        ensure!(ready.status == 200, "not ready: {}", ready.text());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Meanwhile the users go on as well.
    cluster.api.delete("gitmirrors", "b");
    cluster.upstream.seed("c.git").await?;
    cluster.api.mirror("c", "default", json!({"url": cluster.url("c")}));
    cluster.api.up().await;
    cluster.head_told("a", POD, &origin).await?;
    pod.wait_phase(&cluster.repo("c"), "Ready").await?;
    cluster.gone(&pod, "b").await
}

#[tokio::test]
async fn a_pod_that_starts_while_the_api_server_is_away_is_ready_and_catches_up() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("a").await?;
    cluster.api.down().await;
    let pod = cluster.pod(POD).await?;
    ensure!(pod.admin("/readyz").await?.status == 200, "not ready");
    cluster.refused(&pod, "a", "DeclarationsUnknown").await?;
    cluster.api.up().await;
    cluster.head_told("a", POD, &origin).await?;
    cluster.clones(&pod, "a", "after").await?;
    Ok(())
}

impl Cluster {
    /// Asks a pod for the refs of a mirror, without credentials.
    async fn refs_of(&self, pod: &Agent, name: &str) -> Result<Answer> {
        pod.get(&format!("/git/{}/info/refs?service=git-upload-pack", self.repo(name))).await
    }

    /// Expects a refusal with a true reason, and a time after which to ask again.
    async fn refused(&self, pod: &Agent, name: &str, code: &str) -> Result<()> {
        let answer = self.refs_of(pod, name).await?;
        let text = answer.text();
        ensure!(answer.status == 503 && text.starts_with(&format!("{code}: ")), "{} {text}", answer.status);
        ensure!(answer.header("retry-after").is_some(), "{name}: no time is named");
        Ok(())
    }

    /// What the answer about a mirror's refs rests on.
    async fn freshness(&self, pod: &Agent, name: &str) -> Result<String> {
        let answer = self.refs_of(pod, name).await?;
        ensure!(answer.status == 200, "{name}: {} {}", answer.status, answer.text());
        Ok(answer.header("tarn-freshness").unwrap_or_default().to_owned())
    }

    /// A mirror whose upstream wants the canary; anyone may read it.
    async fn private(&self, name: &str, prewarm: &str) -> Result<()> {
        self.upstream.seed(&format!("{name}.git")).await?;
        let spec = json!({"url": self.url(name), "access": "Anonymous", "secretRef": {"name": "creds"},
            "prewarm": prewarm, "freshness": {"lookTimeout": "1s"}});
        self.api.mirror(name, "default", spec);
        Ok(())
    }

    fn creds(&self) {
        let host = self.upstream.address().to_string();
        self.api.secret("creds", &format!("http://{host}"), &[("username", "ada"), ("password", CANARY)]);
    }
}

fn locked() -> Auth {
    Auth::Basic { user: "ada".into(), password: CANARY.into() }
}

#[tokio::test]
async fn a_pod_that_starts_alone_serves_what_it_has_to_those_who_had_it() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.declare("open").await?;
    cluster.declare("deleted").await?;
    cluster.upstream.seed("guarded.git").await?;
    cluster.api.mirror("guarded", "default", json!({"url": cluster.url("guarded"), "access": "RBAC"}));
    let mut pod = cluster.pod(POD).await?;
    for name in ["open", "deleted", "guarded"] {
        pod.wait_phase(&cluster.repo(name), "Ready").await?;
    }
    let kept = pod.data().join("declarations.json");
    eventually(PATIENCE, "the declarations to be kept", async || {
        let text = std::fs::read_to_string(&kept)?;
        ensure!(["open", "deleted", "guarded"].iter().all(|name| text.contains(name)), "{text}");
        Ok(())
    })
    .await?;
    cluster.api.down().await;
    pod.kill9().await?;
    let pushed = origin.commit("main", &[("f", "pushed meanwhile")]).await?;
    cluster.api.delete("gitmirrors", "deleted");
    pod.start_again().await?;
    // The first request already.
    let refs = cluster.git.ls_remote(&pod.git_url(&cluster.repo("open"))?).await?;
    ensure!(refs["HEAD"] == pushed, "the upstream can be asked: {refs:?}");
    ensure!(cluster.freshness(&pod, "open").await? == "verified");
    cluster.clones(&pod, "open", "alone").await?;
    // Nobody says that it was deleted.
    cluster.clones(&pod, "deleted", "not-known-to-be-deleted").await?;
    // Who may have it, only the API server knows.
    let bearer = format!("Bearer {}", cluster.api.mint("system:serviceaccount:ci:job", "tarn"));
    let path = format!("/git/{}", cluster.repo("guarded"));
    for route in READS {
        let answer = ask(&pod, &path, route, &[("Authorization", &bearer)]).await?;
        ensure!(answer.status == 503, "{route:?}: {} {}", answer.status, answer.text());
        let text = answer.text();
        // Not in an answer to HEAD.
        ensure!(text.is_empty() || text.contains("AccessUnknown: "), "{route:?}: {text}");
    }
    // What was not declared then may be declared by now.
    cluster.refused(&pod, "other", "DeclarationsUnknown").await?;
    let data = pod.data().join("mirrors").join(RepoId::from_route(&cluster.repo("deleted"))?.dir());
    ensure!(data.exists(), "{}", data.display());
    cluster.api.up().await;
    cluster.gone(&pod, "deleted").await?;
    cluster.gone(&pod, "other").await?;
    eventually(PATIENCE, "its data to go as well", async || {
        ensure!(!data.exists(), "{}", data.display());
        Ok(())
    })
    .await?;
    cluster.head_told("open", POD, &origin).await?;
    cluster.clones(&pod, "open", "together-again").await
}

#[tokio::test]
async fn without_its_secrets_a_pod_that_starts_alone_serves_stale_answers_and_keeps_none_of_them()
-> Result<()> {
    let cluster = Cluster::new()?;
    cluster.upstream.require(locked());
    cluster.creds();
    cluster.private("here", "Auto").await?;
    cluster.private("elsewhere", "Never").await?;
    let mut pod = cluster.pod(POD).await?;
    pod.wait_phase(&cluster.repo("here"), "Ready").await?;
    pod.wait_phase(&cluster.repo("elsewhere"), "OnDemand").await?;
    let kept = pod.data().join("declarations.json");
    let text = eventually(PATIENCE, "the declarations to be kept", async || {
        let text = std::fs::read_to_string(&kept)?;
        ensure!(text.contains("elsewhere") && text.contains("\"here\""), "{text}");
        Ok(text)
    })
    .await?;
    ensure!(!text.contains(CANARY) && !text.contains(CANARY_BASE64) && text.contains("creds"), "{text}");
    cluster.api.down().await;
    pod.kill9().await?;
    cluster.upstream.clear_log();
    pod.start_again().await?;
    let freshness = cluster.freshness(&pod, "here").await?;
    ensure!(freshness == "stale; age=unknown", "{freshness}");
    cluster.clones(&pod, "here", "stale").await?;
    cluster.refused(&pod, "elsewhere", "AuthenticationFailed").await?;
    ensure!(cluster.upstream.log().is_empty(), "it was asked without credentials");
    cluster.api.up().await;
    eventually(PATIENCE, "fresh answers", async || {
        let freshness = cluster.freshness(&pod, "here").await?;
        ensure!(freshness == "verified", "{freshness}");
        Ok(())
    })
    .await?;
    cluster.clones(&pod, "elsewhere", "brought").await?;
    expect_no_canary(&pod).await
}

#[tokio::test]
async fn kept_declarations_that_are_damaged_or_newer_are_left_alone_with_a_warning() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.declare("a").await?;
    let mut pod = cluster.pod(POD).await?;
    pod.wait_phase(&cluster.repo("a"), "Ready").await?;
    let kept = pod.data().join("declarations.json");
    let text =
        eventually(PATIENCE, "the declarations to be kept", async || std::fs::read_to_string(&kept)).await?;
    for spoilt in [
        text.replace("\"version\":1", "\"version\":9"),
        text.chars().take(60).collect::<String>(),
        String::new(),
    ] {
        cluster.api.down().await;
        pod.kill9().await?;
        std::fs::write(&kept, spoilt)?;
        let before = pod.logs()?.matches("ignored the declarations of an earlier process").count();
        pod.start_again().await?;
        cluster.refused(&pod, "a", "DeclarationsUnknown").await?;
        let warned = pod.logs()?.matches("ignored the declarations of an earlier process").count();
        ensure!(warned == before + 1, "{warned} warnings after {before}");
        cluster.api.up().await;
        pod.wait_phase(&cluster.repo("a"), "Ready").await?;
        ensure!(cluster.freshness(&pod, "a").await? == "verified");
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_made_anew_fails_no_request() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.upstream.require(locked());
    cluster.creds();
    cluster.private("a", "Auto").await?;
    let pod = cluster.pod(POD).await?;
    pod.wait_phase(&cluster.repo("a"), "Ready").await?;
    cluster.api.delete("secrets", "creds");
    let missing = |entry: &serde_json::Value| entry["findings"][0]["reason"] == "SecretNotFound";
    let entry = cluster.entry("a", POD, "SecretNotFound", missing).await?;
    ensure!(entry["head"].is_string(), "what it has is told as well: {entry}");
    for _ in 0..5 {
        let freshness = cluster.freshness(&pod, "a").await?;
        ensure!(freshness.starts_with("stale; age="), "{freshness}");
    }
    cluster.clones(&pod, "a", "meanwhile").await?;
    cluster.creds();
    eventually(PATIENCE, "fresh answers", async || {
        let freshness = cluster.freshness(&pod, "a").await?;
        ensure!(freshness == "verified", "{freshness}");
        Ok(())
    })
    .await?;
    // One that never had its Secret has nothing to serve, and is declared all the same.
    cluster.upstream.seed("b.git").await?;
    let spec = json!({"url": cluster.url("b"), "access": "Anonymous", "secretRef": {"name": "none"}});
    cluster.api.mirror("b", "default", spec);
    cluster.entry("b", POD, "SecretNotFound", missing).await?;
    cluster.refused(&pod, "b", "SecretNotFound").await
}
