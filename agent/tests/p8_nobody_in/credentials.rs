//! Credentials reach the upstream they are for, and nothing that can be read by others.

use std::time::Duration;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Auth, Fault, Operation, Upstream};

use crate::scene::{agent, message};

/// A password that nothing else contains.
pub(crate) const CANARY: &str = "kanarienvogel-7f3a";

/// The canary in base64, as an `Authorization` header would show it behind `ada:`.
pub(crate) const CANARY_BASE64: &str = "YWRhOmthbmFyaWVudm9nZWwtN2YzYQ==";

pub(super) fn secret(upstream: &Upstream, data: &[(&str, &str)]) -> String {
    secret_for(upstream.address(), data)
}

/// The same for whatever listens at this address.
pub(super) fn secret_for(address: SocketAddr, data: &[(&str, &str)]) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: creds\n  labels: {{tarn.dev/credentials: 'true'}}\n  \
         annotations: {{tarn.dev/hosts: 'http://{address}'}}\nstringData:\n"
    );
    for (key, value) in data {
        yaml.push_str(&format!("  {key}: {value}\n"));
    }
    yaml
}

/// Nothing that others can read holds the canary.
pub(crate) async fn expect_no_canary(agent: &Agent) -> Result<()> {
    let mut places = vec![
        ("status", agent.status().await?.to_string()),
        ("metrics", agent.metrics().await?),
        ("logs", agent.logs()?),
    ];
    for process in agent.children()? {
        places.push(("a child's command line", process.command.join(" ")));
        let environment = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        places.push(("a child's environment", String::from_utf8_lossy(&environment).into_owned()));
    }
    for file in crate::p4_never_stuck::files(&agent.data().join("mirrors"))? {
        places.push((
            "the mirror on disk",
            String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into(),
        ));
    }
    for (place, text) in places {
        ensure!(
            !text.contains(CANARY) && !text.contains(CANARY_BASE64),
            "{place} holds the password: {text}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_opens_the_upstream_and_is_seen_nowhere() -> Result<()> {
    let cases = [
        (
            Auth::Basic { user: "ada".into(), password: CANARY.into() },
            vec![("username", "ada"), ("password", CANARY)],
        ),
        (Auth::Bearer(CANARY.into()), vec![("bearerToken", CANARY)]),
    ];
    for (auth, data) in cases {
        let dir = tempfile::tempdir()?;
        let upstream = Upstream::start(dir.path())?;
        let origin = upstream.seed("a.git").await?;
        origin.grow("main", 1, 2_000_000, 1).await?;
        upstream.require(auth);
        upstream.fault_on(Operation::Fetch, Fault::Throttle(1_000_000));
        let spec = ["secretRef: {name: creds}", "access: Anonymous"];
        let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret(&upstream, &data)].join("---\n");
        let agent = agent().env("TARN_AGENT_LOG", "trace").start_with(&[("a.yaml", &yaml)]).await?;
        let repo = repo_id(&upstream.url("a.git"));
        // While git is at work, its command line and environment can be read.
        eventually(Duration::from_secs(10), "a child", async || {
            expect_no_canary(&agent).await?;
            ensure!(!agent.children()?.is_empty(), "none yet: {}", agent.status().await?);
            Ok(())
        })
        .await?;
        expect_no_canary(&agent).await?;
        agent.wait_phase(&repo, "Ready").await?;
        expect_no_canary(&agent).await?;
        // Looks and fetches of every kind carry the credentials.
        upstream.mend();
        origin.commit("main", &[("f", "2")]).await?;
        assert_eq!(Git::new()?.ls_remote(&agent.git_url(&repo)?).await?, origin.refs().await?);
        assert!(upstream.log().iter().any(|seen| seen.authorized));
        expect_no_canary(&agent).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_told_without_being_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    upstream.require(Auth::Basic { user: "ada".into(), password: "another".into() });
    let spec = ["secretRef: {name: creds}", "access: Anonymous"];
    let data = [("username", "ada"), ("password", CANARY)];
    let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret(&upstream, &data)].join("---\n");
    let agent = agent().env("TARN_AGENT_LOG", "trace").start_with(&[("a.yaml", &yaml)]).await?;
    let repo = repo_id(&upstream.url("a.git"));
    let status = agent.wait_phase(&repo, "Backoff").await?;
    let told = message(&status).to_lowercase();
    assert!(
        told.contains("401") || told.contains("unauthorized") || told.contains("credentials"),
        "{status}"
    );
    expect_no_canary(&agent).await?;
    // The Secret is corrected in its file; nobody restarts anything.
    let data = [("username", "ada"), ("password", "another")];
    let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret(&upstream, &data)].join("---\n");
    agent.write_manifest("a.yaml", &yaml)?;
    agent.wait_phase(&repo, "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn a_secret_goes_only_where_its_annotation_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    let spec = ["secretRef: {name: creds}", "access: Anonymous"];
    let data = [("username", "ada"), ("password", CANARY)];
    let good = secret(&upstream, &data);
    let unlabelled = good.replace("tarn.dev/credentials: 'true'", "app: other");
    let elsewhere = good.replace("127.0.0.1", "git.example.com");
    for (what, secret) in
        [("no label", unlabelled), ("another host", elsewhere), ("no Secret", String::new())]
    {
        let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret].join("---\n");
        let agent = agent().start_with(&[("a.yaml", &yaml)]).await?;
        let told = eventually(Duration::from_secs(10), "the reason", async || {
            let status = agent.status().await?;
            let told = status.to_string();
            ensure!(told.contains("creds") || told.contains("Secret"), "{what}: {told}");
            Ok(told)
        })
        .await?;
        ensure!(!told.contains("\"Ready\",\"progress\""), "{what}: {told}");
        ensure!(!upstream.log().iter().any(|seen| seen.authorized), "{what}: the credentials were sent");
        expect_no_canary(&agent).await?;
    }
    Ok(())
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let elsewhere = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    upstream.fault(Fault::Redirect(format!("http://{}", elsewhere.address())));
    let spec = ["secretRef: {name: creds}", "access: Anonymous"];
    let data = [("username", "ada"), ("password", CANARY)];
    let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret(&upstream, &data)].join("---\n");
    let agent = agent().start_with(&[("a.yaml", &yaml)]).await?;
    let repo = repo_id(&upstream.url("a.git"));
    // Whether the redirect is followed or refused: it is over when the phase is one of these.
    agent
        .wait_status(&repo, "an outcome", |status| {
            ["Ready", "Backoff"].contains(&status["phase"].as_str().unwrap_or_default())
        })
        .await?;
    assert!(upstream.log().iter().any(|seen| seen.authorized), "the right host gets them");
    let leaked: Vec<_> = elsewhere.log().into_iter().filter(|seen| seen.authorized).collect();
    assert!(leaked.is_empty(), "another host got the credentials: {leaked:?}");
    Ok(())
}

#[tokio::test]
async fn credentials_in_a_url_are_refused_without_an_echo() -> Result<()> {
    let agent = agent().env("TARN_AGENT_LOG", "trace").start().await?;
    let urls = [
        format!("https://ada:{CANARY}@example.com/a.git"),
        format!("https://{CANARY}@example.com/a.git"),
        format!("http://:{CANARY}@example.com/a.git"),
        format!("ssh://git:{CANARY}@example.com/a.git"),
        format!("https://example.com/a.git?token={CANARY}"),
        format!("https://example.com/a.git#{CANARY}"),
        format!("ftp://ada:{CANARY}@example.com/a.git"),
        format!("'ada:{CANARY}@example.com:a.git'"),
    ];
    for (number, url) in urls.iter().enumerate() {
        agent.write_manifest(&format!("{number}.yaml"), &manifest("a", url, &[]))?;
    }
    eventually(Duration::from_secs(10), "all to be rejected", async || {
        let status = agent.status().await?;
        let rejected = status["rejected"].as_array().map(Vec::as_slice).unwrap_or_default();
        let files: std::collections::BTreeSet<_> =
            rejected.iter().map(|one| one["file"].to_string()).collect();
        ensure!(files.len() == urls.len(), "{status}");
        Ok(())
    })
    .await?;
    expect_no_canary(&agent).await?;
    for url in urls {
        let output = crate::scene::agent().mirror(url.trim_matches('\'')).run_to_end().await?;
        ensure!(!output.status.success(), "{url} was taken");
        ensure!(!output.stderr.contains(CANARY), "{}", output.stderr);
        ensure!(
            output.stderr.contains("--mirror") || output.stderr.contains("spec.url"),
            "{}",
            output.stderr
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_agent_leaves_no_credential_on_the_disk_where_there_is_a_directory_in_memory() -> Result<()>
{
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("upstream");
    std::fs::create_dir(&root)?;
    let upstream = Upstream::start(&root)?;
    upstream.seed("a.git").await?;
    upstream.require(Auth::Basic { user: "ada".into(), password: CANARY.into() });
    let spec = ["secretRef: {name: creds}", "access: Anonymous"];
    let data = [("username", "ada"), ("password", CANARY)];
    let yaml = [manifest("a", &upstream.url("a.git"), &spec), secret(&upstream, &data)].join("---\n");
    let memory = dir.path().join("memory");
    let agent = agent().env("RUNTIME_DIRECTORY", &memory);
    let mut agent = agent.start_with(&[("a.yaml", &yaml)]).await?;
    agent.wait_phase(&repo_id(&upstream.url("a.git")), "Ready").await?;
    agent.kill9().await?;
    let holding = |place: &std::path::Path| -> Result<usize> {
        let files = crate::p4_never_stuck::files(place)?;
        let text = |file: &std::path::PathBuf| {
            String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
        };
        let holds = |text: &String| text.contains(CANARY) || text.contains(CANARY_BASE64);
        Ok(files.iter().map(text).filter(holds).count())
    };
    ensure!(holding(&memory.join("credentials"))? == 1, "git reads them there");
    ensure!(holding(agent.data())? == 0, "the disk holds the password");
    Ok(())
}
