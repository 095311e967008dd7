//! The git port over TLS: with the git clients there are, with HTTP/1.1 and HTTP/2, and through a renewal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Fault, Operation, Upstream};

use crate::scene::agent;

/// A certificate of the test kit.
pub(crate) fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/tls").join(name)
}

/// Git that trusts whoever this file vouches for.
pub(crate) fn trusting(name: &str) -> Result<Git> {
    Ok(Git::new()?.with_config("http.sslCAInfo", &certificate(name).display().to_string()))
}

/// An agent with a certificate of its own, which can be replaced.
pub(crate) struct Secured {
    pub(crate) agent: Agent,
    pub(crate) upstream: Upstream,
    origin: Repo,
    pub(crate) dir: tempfile::TempDir,
}

impl Secured {
    pub(crate) async fn start(prepare: impl AsyncFnOnce(&Upstream, &Repo) -> Result<()>) -> Result<Self> {
        Self::of(agent(), prepare).await
    }

    /// The same, with an agent that has flags of its own.
    pub(crate) async fn of(
        agent: Builder,
        prepare: impl AsyncFnOnce(&Upstream, &Repo) -> Result<()>,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("upstream"))?;
        let upstream = Upstream::start(&dir.path().join("upstream"))?;
        let origin = upstream.seed("a.git").await?;
        prepare(&upstream, &origin).await?;
        show(dir.path(), "server")?;
        let agent = agent.arg("--tls-cert").arg(dir.path().join("tls.crt"));
        let agent = agent.arg("--tls-key").arg(dir.path().join("tls.key"));
        let yaml = manifest("a", &upstream.url("a.git"), &[]);
        let agent =
            agent.env("TARN_AGENT_LOG", "info,tarn_agent=debug").start_with(&[("a.yaml", &yaml)]).await?;
        Ok(Self { agent, upstream, origin, dir })
    }

    pub(crate) fn repo(&self) -> String {
        repo_id(&self.upstream.url("a.git"))
    }

    pub(crate) fn url(&self) -> Result<String> {
        Ok(self.agent.git_url(&self.repo())?.replace("http://", "https://"))
    }
}

/// Puts a certificate of the test kit and its key into a directory.
fn show(dir: &Path, name: &str) -> Result<()> {
    for (from, to) in [("pem", "tls.crt"), ("key", "tls.key")] {
        std::fs::copy(certificate(&format!("{name}.{from}")), dir.join(to))?;
    }
    Ok(())
}

#[tokio::test]
async fn git_clones_over_tls_with_http_1_and_2() -> Result<()> {
    let secured = Secured::start(async |_, _| Ok(())).await?;
    secured.agent.wait_phase(&secured.repo(), "Ready").await?;
    for (version, shown) in [("HTTP/1.1", "HTTP/1.1 200"), ("HTTP/2", "HTTP/2 200")] {
        let git = trusting("ca.pem")?.with_config("http.version", version).with_env("GIT_CURL_VERBOSE", "1");
        let place = secured.dir.path().join(version.replace('/', "-"));
        let place = place.to_str().unwrap_or_default();
        let cloned = git.attempt(["clone", &secured.url()?, place]).await?;
        ensure!(cloned.status.success(), "{version}: {}", cloned.stderr);
        ensure!(cloned.stderr.contains(shown), "{version}: {}", cloned.stderr);
        let head = git.run(["-C", place, "rev-parse", "HEAD"]).await?.text();
        ensure!(head.trim() == secured.origin.rev_parse("HEAD").await?, "{head}");
    }
    let strange = Git::new()?.attempt(["ls-remote", &secured.url()?]).await?;
    ensure!(strange.stderr.contains("certificate"), "{}", strange.stderr);
    let plain = Git::new()?.attempt(["ls-remote", &secured.agent.git_url(&secured.repo())?]).await?;
    ensure!(!plain.status.success(), "served in the clear");
    // Probes and metrics are not for clients: they stay as they are.
    ensure!(secured.agent.admin("/readyz").await?.status == 200);
    Ok(())
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_at_once_and_cuts_no_stream() -> Result<()> {
    let secured = Secured::start(async |upstream, origin| {
        origin.grow("main", 20, 100_000, 1).await?;
        // Ten seconds for the clone that passes through.
        upstream.fault_on(Operation::Fetch, Fault::Throttle(200_000));
        Ok(())
    })
    .await?;
    let (url, old, new) = (secured.url()?, trusting("ca.pem")?, trusting("renewed.pem")?);
    let place = secured.dir.path().join("clone");
    let cloning = tokio::spawn({
        let (old, url) = (old.clone(), url.clone());
        async move { old.clone_repo(&url, &place, &[]).await }
    });
    eventually(Duration::from_secs(20), "the clone to be under way", async || {
        ensure!(
            secured.agent.metrics().await?.contains("tarn_packs_lookups_total{result=\"miss\"}"),
            "not yet"
        );
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    // The key first, so that for a while the two do not go together.
    std::fs::copy(certificate("renewed.key"), secured.dir.path().join("tls.key"))?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(old.attempt(["ls-remote", &url]).await?.status.success(), "half a renewal is none");
    show(secured.dir.path(), "renewed")?;
    eventually(Duration::from_secs(15), "the renewed certificate", async || {
        let listed = new.attempt(["ls-remote", &url]).await?;
        ensure!(listed.status.success(), "{}", listed.stderr);
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    ensure!(!old.attempt(["ls-remote", &url]).await?.status.success(), "the old one is still shown");
    ensure!(!cloning.is_finished(), "the clone was too fast for this test");
    let clone = cloning.await??;
    clone.fsck().await?;
    // What makes no sense changes nothing, and is told once.
    std::fs::write(secured.dir.path().join("tls.crt"), "kanarienvogel")?;
    eventually(Duration::from_secs(15), "the warning", async || {
        ensure!(secured.agent.logs()?.contains("holds no certificate in PEM"), "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    ensure!(new.attempt(["ls-remote", &url]).await?.status.success());
    ensure!(!secured.agent.logs()?.contains("kanarienvogel"));
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start_with_the_reason() -> Result<()> {
    let key = certificate("server.key");
    for (cert, key, reason) in [
        (certificate("none.pem"), key.clone(), "cannot read"),
        (key.clone(), key.clone(), "holds no certificate"),
        (certificate("server.pem"), certificate("renewed.key"), "--tls-cert, --tls-key"),
    ] {
        let ended = agent().arg("--tls-cert").arg(&cert).arg("--tls-key").arg(&key).run_to_end().await?;
        ensure!(
            !ended.status.success() && ended.stderr.contains(reason),
            "{}: {}",
            cert.display(),
            ended.stderr
        );
    }
    let half = agent().arg("--tls-cert").arg(certificate("server.pem")).run_to_end().await?;
    ensure!(half.status.code() == Some(2) && half.stderr.contains("--tls-key"), "{}", half.stderr);
    Ok(())
}
