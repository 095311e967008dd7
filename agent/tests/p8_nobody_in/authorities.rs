//! Whom the agent believes to be an upstream: the system's authorities and a Secret's own, for looks, git, LFS and the store alike.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Upstream, lfs};
use tarn_testkit::wire::Connection;

use super::tls::certificate;
use crate::scene::agent;

const LFS_TOKEN: &str = "kanarienvogel-lfs-2d11";

/// A Secret with nothing but an authority of one's own, for all upstreams of this machine.
fn authority(file: &str, upstreams: &[&Upstream]) -> Result<String> {
    let pem = std::fs::read_to_string(certificate(file))?.replace('\n', "\n    ");
    let hosts: Vec<_> = upstreams.iter().map(|upstream| upstream.address().to_string()).collect();
    Ok(format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: creds\n  labels: {{tarn.dev/credentials: 'true'}}\n  \
         annotations: {{tarn.dev/hosts: '{}'}}\nstringData:\n  ca.crt: |\n    {pem}\n",
        hosts.join(", ")
    ))
}

/// The mirror is fetched and looked at, and its LFS object comes.
async fn expect_all(agent: &Agent, upstream: &Upstream, content: &[u8]) -> Result<()> {
    let repo = repo_id(&upstream.url("a.git"));
    agent.wait_phase(&repo, "Ready").await?;
    let refs = Git::new()?.ls_remote(&agent.git_url(&repo)?).await?;
    ensure!(refs.contains_key("HEAD"), "{refs:?}");
    let oid = lfs::oid(content);
    let body = json!({"operation": "download", "objects": [{"oid": oid, "size": content.len()}]}).to_string();
    let kind = [("Content-Type", "application/vnd.git-lfs+json")];
    let mut connection = Connection::open(agent.git_address()?).await?;
    let batch = format!("/git/{repo}/info/lfs/objects/batch");
    let answer = connection.ask("POST", &batch, &kind, body.as_bytes()).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let object = agent.get(&format!("/git/{repo}/info/lfs/objects/{oid}?size={}", content.len())).await?;
    ensure!(object.body == content, "{} {}", object.status, object.text());
    Ok(())
}

async fn upstream(dir: &std::path::Path, certificate: &str, content: &[u8]) -> Result<Upstream> {
    let root = dir.join(certificate);
    std::fs::create_dir(&root)?;
    let upstream = Upstream::start_https(&root, certificate)?;
    upstream.seed("a.git").await?;
    upstream.lfs().enable(LFS_TOKEN);
    upstream.lfs().hrefs_at(&format!("https://{}", upstream.address()));
    upstream.lfs().put("a.git", content);
    Ok(upstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_named_by_variables_count_for_looks_git_and_lfs() -> Result<()> {
    let (dir, content) = (tempfile::tempdir()?, b"an object".repeat(100));
    let server = upstream(dir.path(), "server", &content).await?;
    let yaml = manifest("a", &server.url("a.git"), &[]);
    // A directory of certificates, each below its own name's hash.
    let certs = dir.path().join("certs");
    std::fs::create_dir(&certs)?;
    std::fs::copy(certificate("ca.pem"), certs.join("0123abcd.0"))?;
    for (variable, value) in [("SSL_CERT_FILE", certificate("ca.pem")), ("SSL_CERT_DIR", certs)] {
        let trusting = agent().env(variable, value).start_with(&[("a.yaml", &yaml)]).await?;
        expect_all(&trusting, &server, &content).await.context(variable)?;
    }
    // Those that are not named are not believed, by nobody.
    let stranger = agent().env("SSL_CERT_FILE", certificate("other-ca.pem"));
    let stranger = stranger.start_with(&[("a.yaml", &yaml)]).await?;
    let untrusted = |status: &serde_json::Value| status["message"].to_string().contains("UpstreamUntrusted");
    stranger.wait_status(&repo_id(&server.url("a.git")), "the refusal", untrusted).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_a_secret_is_trusted_beside_the_systems() -> Result<()> {
    let (dir, content) = (tempfile::tempdir()?, b"an object".repeat(100));
    let (system, own) =
        (upstream(dir.path(), "server", &content).await?, upstream(dir.path(), "other", &content).await?);
    let spec = ["secretRef: {name: creds}", "access: Anonymous"];
    let secret = authority("other-ca.pem", &[&system, &own])?;
    let documents =
        [manifest("a", &system.url("a.git"), &spec), manifest("b", &own.url("a.git"), &spec), secret];
    let agent = agent().env("SSL_CERT_FILE", certificate("ca.pem"));
    let agent = agent.start_with(&[("a.yaml", &documents.join("---\n"))]).await?;
    for upstream in [&system, &own] {
        expect_all(&agent, upstream, &content).await?;
    }
    // It is trusted for those who name the Secret, and for nobody else.
    agent.write_manifest("a.yaml", &manifest("b", &own.url("a.git"), &[]))?;
    let untrusted = |status: &serde_json::Value| status["message"].to_string().contains("UnknownIssuer");
    agent.wait_status(&repo_id(&own.url("a.git")), "the refusal", untrusted).await?;
    // What is no certificate is named.
    let broken = documents.join("---\n").replace("BEGIN CERT", "BEGIN CANARY");
    agent.write_manifest("a.yaml", &broken)?;
    tarn_testkit::eventually::eventually(tarn_testkit::agent::PATIENCE, "the key to be named", async || {
        let status = agent.status().await?.to_string();
        ensure!(status.contains("ca.crt") && status.contains("holds no certificates in PEM"), "{status}");
        Ok(())
    })
    .await
}
