//! Webhooks: who knows the secret has a mirror look at once, and nobody gets more than that.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ring::hmac;
use serde_json::{Value, json};
use tarn_testkit::agent::{Agent, PATIENCE, manifest};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Operation;
use tarn_testkit::wire::{Answer, Connection};

use crate::p8_nobody_in::{CANARY, expect_no_canary};
use crate::scene::{Scene, agent};

/// Between two fetches of their own accord: none falls into a test.
const SPEC: &[&str] = &["interval: 1h"];

struct Hooked {
    scene: Scene,
    secrets: PathBuf,
}

impl Hooked {
    /// The scene's mirror, and an agent that hears webhooks signed with [`CANARY`].
    async fn start() -> Result<(Self, Agent)> {
        let scene = Scene::with(SPEC).await?;
        let secrets = scene.dir.path().join("secrets");
        std::fs::write(&secrets, format!("{CANARY}\n"))?;
        let hooked = Self { scene, secrets };
        let agent = hooked.agent(&[]).await?;
        Ok((hooked, agent))
    }

    async fn agent(&self, peers: &[SocketAddr]) -> Result<Agent> {
        let builder = agent().arg("--webhook-secret-file").arg(&self.secrets);
        let builder =
            peers.iter().fold(builder, |agent, peer| agent.arg("--peer").arg(format!("http://{peer}")));
        let yaml = manifest("a", &self.scene.upstream.url("a.git"), SPEC);
        let agent = builder.start_with(&[("a.yaml", &yaml)]).await?;
        agent.wait_phase(&self.scene.repo(), "Ready").await?;
        Ok(agent)
    }

    /// A push event of the mirror's repository, as GitHub sends it.
    fn push(&self) -> Value {
        json!({"ref": "refs/heads/main", "repository": {"clone_url": self.scene.upstream.url("a.git")}})
    }

    fn looks(&self) -> usize {
        self.scene.upstream.count("a.git", Operation::LsRefs)
    }

    /// Waits until the agent's status has what the upstream has.
    async fn until_seen(&self, agent: &Agent, limit: Duration) -> Result<()> {
        let tip = self.scene.origin.rev_parse("main").await?;
        eventually(limit, "the push to be in the status", async || {
            let status = agent.mirror_status(&self.scene.repo()).await?;
            ensure!(status["head"]["sha"] == tip, "{}", status["head"]);
            Ok(())
        })
        .await
    }
}

fn signed(secret: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::sign(&key, body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn post(agent: &Agent, sender: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let mut connection = Connection::open(agent.git_address()?).await?;
    connection.ask("POST", &format!("/hooks/{sender}"), headers, body).await
}

/// Posts a push event as GitHub does.
async fn github(agent: &Agent, secret: &str, body: &[u8]) -> Result<Answer> {
    let signature = format!("sha256={}", signed(secret, body));
    post(agent, "github", &[("X-GitHub-Event", "push"), ("X-Hub-Signature-256", &signature)], body).await
}

#[tokio::test]
async fn a_push_is_in_the_status_within_two_seconds_of_its_webhook_whoever_sends_it() -> Result<()> {
    let (hooked, agent) = Hooked::start().await?;
    let url = hooked.scene.upstream.url("a.git");
    for sender in ["github", "gitlab", "gitea", "generic"] {
        // Nothing has happened for longer than it takes to settle.
        tokio::time::sleep(Duration::from_secs(2)).await;
        hooked.scene.origin.commit("main", &[("sender", sender)]).await?;
        let body = match sender {
            "gitlab" => json!({"project": {"git_http_url": url}}),
            "generic" => json!({"url": url}),
            _ => hooked.push(),
        };
        let body = body.to_string();
        let digits = signed(CANARY, body.as_bytes());
        let prefixed = format!("sha256={digits}");
        let headers = match sender {
            "github" => vec![("X-GitHub-Event", "push"), ("X-Hub-Signature-256", prefixed.as_str())],
            "gitlab" => vec![("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Token", CANARY)],
            "gitea" => vec![("X-Gitea-Event", "push"), ("X-Gitea-Signature", digits.as_str())],
            _ => vec![("Tarn-Signature", prefixed.as_str())],
        };
        let answer = post(&agent, sender, &headers, body.as_bytes()).await?;
        ensure!(answer.status == 202, "{sender}: {} {}", answer.status, answer.text());
        hooked.until_seen(&agent, Duration::from_secs(2)).await?;
    }
    expect_no_canary(&agent).await
}

#[tokio::test]
async fn slow_bodies_of_others_do_not_turn_a_webhook_away() -> Result<()> {
    let (hooked, agent) = Hooked::start().await?;
    let slow = async |signature: &str| {
        let mut connection = Connection::open(agent.git_address()?).await?;
        let head = format!(
            "POST /hooks/github HTTP/1.1\r\nHost: t\r\nX-GitHub-Event: push\r\n{signature}Content-Length: 5000000\r\n\r\n{{"
        );
        connection.send(head.as_bytes()).await?;
        anyhow::Ok(connection)
    };
    // None of them needs to be read: nothing that follows could be believed.
    let answer = slow("").await?.answer().await?;
    ensure!(answer.status == 401, "{} {}", answer.status, answer.text());
    let made_up = format!("X-Hub-Signature-256: sha256={}\r\n", "0".repeat(64));
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(slow(&made_up).await?);
    }
    // From the same address even, and a short one: at once.
    let began = Instant::now();
    let answer = github(&agent, CANARY, hooked.push().to_string().as_bytes()).await?;
    ensure!(answer.status == 202, "{} {}", answer.status, answer.text());
    ensure!(began.elapsed() < Duration::from_secs(5), "it waited {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn what_is_not_signed_is_refused_and_nothing_follows() -> Result<()> {
    let (hooked, agent) = Hooked::start().await?;
    let body = hooked.push().to_string();
    let good = format!("sha256={}", signed(CANARY, body.as_bytes()));
    let other = format!("sha256={}", signed("another", body.as_bytes()));
    let before = hooked.looks();
    let event = ("X-GitHub-Event", "push");
    for headers in [
        vec![event],
        vec![event, ("X-Hub-Signature-256", "")],
        vec![event, ("X-Hub-Signature-256", &other)],
        vec![event, ("X-Hub-Signature-256", &good), ("X-Hub-Signature-256", &other)],
        // Another sender's proof.
        vec![event, ("X-Gitlab-Token", CANARY)],
    ] {
        let answer = post(&agent, "github", &headers, body.as_bytes()).await?;
        ensure!(answer.status == 401 && answer.text().contains("BadSignature"), "{}", answer.text());
    }
    let wrong = format!("{body} ");
    let answer = post(&agent, "github", &[event, ("X-Hub-Signature-256", &good)], wrong.as_bytes()).await?;
    ensure!(answer.status == 401, "a body that was changed: {}", answer.text());
    // What is signed and means nothing.
    let ping = [("X-GitHub-Event", "ping"), ("X-Hub-Signature-256", good.as_str())];
    ensure!(post(&agent, "github", &ping, body.as_bytes()).await?.status == 202, "a ping");
    let foreign = json!({"repository": {"clone_url": "https://git.example.com/o/r.git"}}).to_string();
    let answer = github(&agent, CANARY, foreign.as_bytes()).await?;
    ensure!(answer.status == 404 && answer.text().contains("RepositoryUndeclared"), "{}", answer.text());
    ensure!(github(&agent, CANARY, b"{}").await?.status == 400, "no repository");
    ensure!(post(&agent, "bitbucket", &[], b"{}").await?.status == 404, "no such sender");
    ensure!(hooked.looks() == before, "something followed");
    // Whoever did not say which secrets there are hears nobody.
    let answer = github(&hooked.scene.agent, CANARY, body.as_bytes()).await?;
    ensure!(answer.status == 404 && answer.text().contains("NoWebhooks"), "{}", answer.text());
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_too_long_or_never_comes_costs_little() -> Result<()> {
    let (_hooked, agent) = Hooked::start().await?;
    let long = vec![b' '; (5 << 20) + 1];
    let answer = github(&agent, CANARY, &long).await?;
    ensure!(answer.status == 413, "{}", answer.text());
    let signature = format!("sha256={}", "0".repeat(64));
    let head = format!(
        "POST /hooks/github HTTP/1.1\r\nHost: t\r\nX-Hub-Signature-256: {signature}\r\nContent-Length: 10\r\n\r\n{{"
    );
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(agent.git_address()?).await?;
        connection.send(head.as_bytes()).await?;
        slow.push(connection);
    }
    for connection in &mut slow {
        let answer = connection.answer().await?;
        ensure!(answer.status == 400 && answer.text().contains("BodyTooSlow"), "{}", answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_replays_is_a_look_a_second_at_most() -> Result<()> {
    let (hooked, agent) = Hooked::start().await?;
    let body = hooked.push().to_string();
    let (before, began) = (hooked.looks(), Instant::now());
    for _ in 0..300 {
        ensure!(github(&agent, CANARY, body.as_bytes()).await?.status == 202, "refused");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (looks, seconds) = (hooked.looks() - before, began.elapsed().as_secs());
    ensure!(looks >= 1 && looks <= usize::try_from(seconds)? + 1, "{looks} looks in {seconds} s");
    Ok(())
}

#[tokio::test]
async fn a_new_secret_counts_at_once_beside_the_old_one() -> Result<()> {
    let (hooked, agent) = Hooked::start().await?;
    let body = hooked.push().to_string();
    ensure!(github(&agent, "new", body.as_bytes()).await?.status == 401, "before");
    std::fs::write(&hooked.secrets, format!("{CANARY}\nnew\n"))?;
    ensure!(github(&agent, "new", body.as_bytes()).await?.status == 202, "beside");
    ensure!(github(&agent, CANARY, body.as_bytes()).await?.status == 202, "the old one");
    std::fs::write(&hooked.secrets, "new\n")?;
    ensure!(github(&agent, CANARY, body.as_bytes()).await?.status == 401, "after");
    Ok(())
}

#[tokio::test]
async fn one_agent_tells_the_others() -> Result<()> {
    let (hooked, first) = Hooked::start().await?;
    let second = hooked.agent(&[first.git_address()?]).await?;
    hooked.scene.origin.commit("main", &[("pushed", "yes")]).await?;
    let body = hooked.push().to_string();
    ensure!(github(&second, CANARY, body.as_bytes()).await?.status == 202, "refused");
    for agent in [&first, &second] {
        hooked.until_seen(agent, PATIENCE).await?;
    }
    // One of whose headers but one matters.
    hooked.scene.origin.commit("main", &[("pushed", "again")]).await?;
    let body = json!({"url": hooked.scene.upstream.url("a.git")}).to_string();
    let signature = format!("sha256={}", signed(CANARY, body.as_bytes()));
    let answer = post(&second, "generic", &[("Tarn-Signature", &signature)], body.as_bytes()).await?;
    ensure!(answer.status == 202, "refused: {}", answer.text());
    for agent in [&first, &second] {
        hooked.until_seen(agent, PATIENCE).await?;
    }
    Ok(())
}
