//! Over TLS: an answer leads to where the question came from.

use anyhow::{Result, ensure};
use reqwest::{Certificate, Client, Version};
use serde_json::Value;
use tarn_testkit::upstream::{Operation, lfs};

use super::{ATTRIBUTES, TOKEN, client, expect_content, noise, wanted};
use crate::p8_nobody_in::{Secured, certificate};

/// A client of the agent, which trusts the test kit's authority.
fn https(version: Version) -> Result<Client> {
    // Whoever comes first installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = Certificate::from_pem_bundle(&std::fs::read(certificate("ca.pem"))?)?;
    let builder = Client::builder().tls_certs_only(ca).no_proxy();
    Ok(if version == Version::HTTP_11 { builder.http1_only() } else { builder }.build()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn lfs_over_tls_stays_on_tls() -> Result<()> {
    let content = noise(300_000);
    let secured = Secured::start(async |upstream, origin| {
        upstream.lfs().enable(TOKEN);
        let pointer = upstream.lfs().put("a.git", &content);
        origin.commit("main", &[(".gitattributes", ATTRIBUTES), ("big.bin", &pointer)]).await.map(drop)
    })
    .await?;
    secured.agent.wait_phase(&secured.repo(), "Ready").await?;
    let (oid, url) = (lfs::oid(&content), secured.url()?);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let https = https(version)?;
        let question = https.post(format!("{url}/info/lfs/objects/batch"));
        let question = question.header("Content-Type", "application/vnd.git-lfs+json");
        let answer = question.body(wanted(&[(&oid, content.len())]).to_string()).send().await?;
        ensure!(answer.version() == version && answer.status() == 200, "{answer:?}");
        let answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
        let links = links(&answer);
        let expected = format!("{url}/info/lfs/objects/{oid}?size={}", content.len());
        ensure!(links == [expected.as_str()], "{version:?}: {answer}");
        let object = https.get(&expected).send().await?.error_for_status()?.bytes().await?;
        ensure!(object == content, "{version:?}: another content");
    }
    // What users have: git and git-lfs, each with its own TLS.
    let ca = certificate("ca.pem").display().to_string();
    let clone = client()?.with_config("http.sslCAInfo", &ca);
    let clone = clone.with_env("GIT_LFS_SKIP_SMUDGE", "1");
    let clone = clone.clone_repo(&url, &secured.dir.path().join("clone"), &[]).await?;
    let pulled = client()?.with_config("http.sslCAInfo", &ca).with_env("GIT_CURL_VERBOSE", "1");
    let place = clone.path().display().to_string();
    let pulled = pulled.attempt(["-C", &place, "lfs", "pull"]).await?;
    ensure!(pulled.status.success(), "{}", pulled.stderr);
    ensure!(!pulled.stderr.contains("\"href\":\"http://"), "a link in the clear: {}", pulled.stderr);
    expect_content(&clone, &content).await?;
    ensure!(secured.upstream.count("a.git", Operation::LfsObject) == 1, "the upstream was asked again");
    // Without TLS there is nothing for git-lfs to be had.
    let plain = format!("{}/info/lfs/objects/{oid}", secured.agent.git_url(&secured.repo())?);
    ensure!(https(Version::HTTP_11)?.get(plain).send().await.is_err(), "served in the clear");
    Ok(())
}

/// All links of an answer, whatever they are for.
fn links(answer: &Value) -> Vec<&str> {
    let objects = answer["objects"].as_array().into_iter().flatten();
    let actions = objects.flat_map(|object| object["actions"].as_object().into_iter().flatten());
    actions.filter_map(|(_, action)| action["href"].as_str()).collect()
}
