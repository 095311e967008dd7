//! Who may use the store: credentials that are wrong or end, certificates, clocks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::proxy::{HttpFault, HttpFaultProxy, Select, When};
use tarn_testkit::s3::S3Server;

use super::{Kind, Stage};
use crate::scene::agent;

/// Waits until the mirror serves and says that the store does not work, and gives the message of that.
async fn trouble(stage: &Stage, agent: &Agent, reason: &str) -> Result<String> {
    let found = |status: &Value| {
        let conditions = status["conditions"].as_array()?;
        let failed = conditions.iter().find(|c| c["type"] == "StoreFailed" && c["status"] == "True")?;
        (failed["reason"] == reason).then(|| failed["message"].as_str().unwrap_or_default().to_owned())
    };
    agent.wait_phase(&stage.repo(), "Ready").await?;
    let status = agent.wait_status(&stage.repo(), reason, |status| found(status).is_some()).await?;
    found(&status).context("the message")
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_named_and_the_mirror_is_cloned_and_served() -> Result<()> {
    let stage = Stage::new(Kind::Bucket).await?;
    let secret = "a-wrong-secret-0123456789";
    let agent = stage.with_store(agent(), None).env("AWS_SECRET_ACCESS_KEY", secret);
    let agent = stage.start(agent).await?;
    let message = trouble(&stage, &agent, "StoreDenied").await?;
    ensure!(message.contains("correct the agent's credentials"), "{message}");
    stage.expect_clone(&agent, "clone").await?;
    let told = agent.logs()? + &agent.status().await?.to_string();
    ensure!(!told.contains(secret), "the secret is told");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_end_are_named_and_new_ones_are_used_without_a_restart() -> Result<()> {
    let stage = Stage::new(Kind::Bucket).await?;
    let s3 = stage.s3.as_ref().context("a bucket")?;
    s3.administer("create-user", "visitor", "visitorvisitor").await?;
    let visitor = stage
        .with_store(agent(), None)
        .env("AWS_ACCESS_KEY_ID", "visitor")
        .env("AWS_SECRET_ACCESS_KEY", "visitorvisitor");
    let agent = stage.start(visitor).await?;
    agent.wait_phase(&stage.repo(), "Ready").await?;
    stage.published(&agent).await?;
    s3.administer("delete-user", "visitor", "").await?;
    // The server remembers its users for a while.
    eventually(Duration::from_secs(150), "the end of the credentials", async || {
        stage.origin.commit("main", &[("file", "text")]).await?;
        agent.fetch_now(&stage.repo()).await?;
        agent.post(&format!("/mirrors/{}/checkpoint", stage.repo())).await?;
        let status = agent.mirror_status(&stage.repo()).await?;
        ensure!(status["conditions"].to_string().contains("StoreDenied"), "{status}");
        Ok(())
    })
    .await?;
    let message = trouble(&stage, &agent, "StoreDenied").await?;
    ensure!(message.contains("credentials"), "{message}");
    s3.administer("create-user", "visitor", "visitorvisitor").await?;
    stage.published(&agent).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_over_https_is_used_with_its_authority_and_refused_without() -> Result<()> {
    let mut stage = Stage::new(Kind::Bucket).await?;
    stage.s3 = Some(S3Server::start_https().await?);
    let authority = stage.dir.path().join("ca.pem");
    std::fs::write(&authority, S3Server::AUTHORITY)?;
    let trusting = || stage.with_store(agent(), None).env("AWS_CA_BUNDLE", &authority);
    let mut first = stage.start(trusting()).await?;
    first.wait_phase(&stage.repo(), "Ready").await?;
    stage.published(&first).await?;
    first.stop().await?;
    let second = stage.start(trusting()).await?;
    second
        .wait_status(&stage.repo(), "a restored mirror", |status| status["checkpoint"]["generation"] == 1)
        .await?;
    stage.expect_clone(&second, "clone").await?;
    // What the system trusts, the store's client does.
    let third = stage.start(stage.with_store(agent(), None).env("SSL_CERT_FILE", &authority)).await?;
    third
        .wait_status(&stage.repo(), "a restored mirror", |status| status["checkpoint"]["generation"] == 1)
        .await?;

    let stranger = stage.agent().await?;
    let message = trouble(&stage, &stranger, "StoreUnreachable").await?;
    ensure!(message.to_lowercase().contains("certificate"), "{message}");

    let none = stage.dir.path().join("none.pem");
    std::fs::write(&none, "no certificate")?;
    for (path, text) in [(&none, "give a PEM file"), (&stage.dir.path().join("missing.pem"), "missing.pem")] {
        let output = stage.with_store(agent(), None).env("AWS_CA_BUNDLE", path).run_to_end().await?;
        ensure!(output.status.code() == Some(1) && output.stderr.contains(text), "{}", output.stderr);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_are_corrected_or_named() -> Result<()> {
    let stage = Stage::new(Kind::Bucket).await?;
    let line = HttpFaultProxy::start(stage.s3.as_ref().context("a bucket")?.address())?;
    // Whoever believes the first answer signs an hour ahead, which the server refuses, and is put right by that.
    line.add(Select::default(), When::First(1), HttpFault::Skewed(3600));
    let mut first = stage.start(stage.with_store(agent(), Some(&line.url()))).await?;
    first.wait_phase(&stage.repo(), "Ready").await?;
    stage.published(&first).await?;
    let refused = line.seen().iter().filter(|seen| seen.status == Some(403)).count();
    ensure!(refused >= 2, "the first answer was not believed: {refused}");
    first.stop().await?;
    line.add(Select::default(), When::Always, HttpFault::Skewed(3600));
    let second = stage.start(stage.with_store(agent(), Some(&line.url()))).await?;
    let message = trouble(&stage, &second, "StoreDenied").await?;
    ensure!(message.contains("set the time of this machine"), "{message}");
    Ok(())
}
