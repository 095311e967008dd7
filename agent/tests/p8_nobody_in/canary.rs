//! One secret in every place where an agent is given one, and then a search of everything that somebody else can read.

use std::time::Duration;

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Auth, Upstream};

use super::credentials::{CANARY, expect_no_canary, secret};
use super::tls::{certificate, trusting};
use crate::p4_never_stuck::files;
use crate::scene::agent;

#[tokio::test]
async fn a_canary_is_found_nowhere_whatever_it_is_given_as() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = |name: &str| dir.path().join(name);
    for name in ["upstream", "store"] {
        std::fs::create_dir(place(name))?;
    }
    let upstream = Upstream::start(&place("upstream"))?;
    let origin = upstream.seed("a.git").await?;
    origin.commit("main", &[("f", "1")]).await?;
    upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
    let (token, peer) = (format!("{CANARY}-of-a-caller"), format!("{CANARY}-of-the-agents"));
    std::fs::write(place("tokens"), format!("ci {token}\n"))?;
    std::fs::write(place("peer"), &peer)?;
    let spec =
        ["secretRef: {name: creds}", "access: Authenticated", "interval: 10s", "checkpoint: {interval: 5s}"];
    let yaml = manifest("a", &upstream.url("a.git"), &spec);
    let yaml = [yaml, secret(&upstream, &[("username", "ada"), ("password", CANARY)])].join("---\n");
    let agent = agent()
        .arg("--store")
        .arg(place("store"))
        .arg("--tokens")
        .arg(place("tokens"))
        .arg("--peer-token")
        .arg(place("peer"))
        .arg("--tls-cert")
        .arg(certificate("server.pem"))
        .arg("--tls-key")
        .arg(certificate("server.key"))
        .env("TARN_AGENT_LOG", "trace")
        .start_with(&[("a.yaml", &yaml)])
        .await?;
    let repo = repo_id(&upstream.url("a.git"));
    agent.wait_phase(&repo, "Ready").await?;
    let url = agent.git_url(&repo)?.replace("http://", "https://tarn:PASSWORD@");
    for version in ["HTTP/1.1", "HTTP/2"] {
        let git = trusting("ca.pem")?.with_config("http.version", version);
        let clone = place(&version.replace('/', "-"));
        git.clone_repo(&url.replace("PASSWORD", &token), &clone, &[]).await?;
        let wrong = git.attempt(["ls-remote", &url.replace("PASSWORD", &format!("{token}x"))]).await?;
        ensure!(
            !wrong.status.success() && wrong.stderr.contains("remote: Unauthenticated"),
            "{}",
            wrong.stderr
        );
        let told = wrong.stderr.replace(&format!("tarn:{token}x@"), "");
        ensure!(!told.contains(CANARY), "{told}");
        // With the caller's token, which is not for the upstream.
        let push = git.attempt(["push", &url.replace("PASSWORD", &token), "HEAD:refs/heads/x"]).await?;
        ensure!(!push.status.success(), "{}", push.stderr);
    }
    eventually(Duration::from_secs(30), "a checkpoint", async || {
        let stored = files(&place("store"))?;
        ensure!(stored.iter().any(|file| file.to_string_lossy().contains("/checkpoints/")), "{stored:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    expect_no_canary(&agent).await?;
    let sent: Vec<String> = [format!("tarn:{token}"), format!("tarn:{token}x"), format!("ada:{CANARY}")]
        .iter()
        .map(|login| BASE64_STANDARD.encode(login))
        .collect();
    let pem = std::fs::read_to_string(certificate("server.key"))?;
    let key = pem.lines().nth(1).unwrap_or_default().to_owned();
    let mut places =
        vec![("the log".to_owned(), agent.logs()?), ("status".to_owned(), agent.status().await?.to_string())];
    for root in [place("store"), agent.data().to_owned()] {
        for file in files(&root)? {
            // Where git finds the upstream's credentials; nobody else may read there.
            if file.components().any(|part| part.as_os_str() == "private") {
                continue;
            }
            let content = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
            places.push((file.display().to_string(), content));
        }
    }
    for (place, text) in places {
        for secret in sent.iter().map(String::as_str).chain([CANARY, &key]) {
            ensure!(!text.contains(secret), "{place} holds {secret}");
        }
    }
    Ok(())
}
