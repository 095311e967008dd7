//! Secrets of a cluster: only those that are named are read, a rotation takes effect, nothing shows them.

use anyhow::{Result, ensure};
use serde_json::json;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::Auth;

use super::{Cluster, PATIENCE, POD};
use crate::p8_nobody_in::{CANARY, CANARY_BASE64, expect_no_canary};

/// Nothing that others can read holds the canary.
async fn expect_none(cluster: &Cluster, agent: &Agent) -> Result<()> {
    expect_no_canary(agent).await?;
    let told = cluster.api.text();
    ensure!(!told.contains(CANARY) && !told.contains(CANARY_BASE64), "the API server was told: {told}");
    // As a Secret's data hold it.
    let encoded = "a2FuYXJpZW52b2dlbC03ZjNh";
    ensure!(!agent.logs()?.contains(encoded) && !told.contains(encoded), "in base64");
    Ok(())
}

fn basic(password: &str) -> Auth {
    Auth::Basic { user: "ada".into(), password: password.into() }
}

#[tokio::test]
async fn a_rotated_secret_takes_effect_and_is_seen_nowhere() -> Result<()> {
    let cluster = Cluster::new()?;
    let origin = cluster.upstream.seed("a.git").await?;
    cluster.upstream.require(basic(CANARY));
    let host = cluster.upstream.address().to_string();
    let spec = json!({"url": cluster.url("a"), "secretRef": {"name": "creds"}, "access": "Anonymous",
        "interval": "10s"});
    cluster.api.mirror("a", "default", spec);
    let pod = cluster.builder("default", POD)?.env("TARN_AGENT_LOG", "trace").start().await?;
    // It is missing, and the entry says so.
    let missing = |entry: &serde_json::Value| entry["findings"][0]["reason"] == "SecretNotFound";
    cluster.entry("a", POD, "SecretNotFound", missing).await?;
    // One for another host is not used.
    cluster.api.secret("creds", "example.org", &[("username", "ada"), ("password", CANARY)]);
    let foreign = |entry: &serde_json::Value| entry["findings"][0]["reason"] == "SecretNotAllowed";
    cluster.entry("a", POD, "SecretNotAllowed", foreign).await?;
    assert!(!cluster.upstream.log().iter().any(|seen| seen.authorized));
    cluster.api.secret("creds", &format!("http://{host}"), &[("username", "ada"), ("password", CANARY)]);
    cluster.head_told("a", POD, &origin).await?;
    expect_none(&cluster, &pod).await?;
    // The upstream takes another password from now on.
    cluster.upstream.require(basic("another"));
    eventually(PATIENCE, "a look that fails", async || {
        let status = pod.mirror_status(&cluster.repo("a")).await?;
        ensure!(status["message"].as_str().is_some_and(|message| !message.is_empty()), "{status}");
        Ok(())
    })
    .await?;
    cluster.entry("a", POD, "a finding", |entry| entry["findings"][0]["type"] == "Stale").await?;
    expect_none(&cluster, &pod).await?;
    origin.commit("main", &[("f", "2")]).await?;
    cluster.api.secret("creds", &format!("http://{host}"), &[("username", "ada"), ("password", "another")]);
    let entry = cluster.head_told("a", POD, &origin).await?;
    assert!(
        entry["findings"].is_null() || entry["findings"].as_array().is_some_and(Vec::is_empty),
        "{entry}"
    );
    cluster.clones(&pod, "a", "clone").await?;
    expect_none(&cluster, &pod).await
}
