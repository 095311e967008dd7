//! Patience with upstreams that compute, and none with those that are gone.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_agent::git::remote::{self, Patience, Remote, Way};
use tarn_agent::git::stderr::FailureKind;
use tarn_agent::git::{Git, GitError, ObjectFormat, Oid};
use tarn_testkit::git::Repo;
use tarn_testkit::proxy::{FaultProxy, Trouble};
use tarn_testkit::upstream::{Habits, Upstream};
use tokio::sync::watch;

/// An upstream that moves, and the repository that follows it.
struct Followed {
    upstream: Upstream,
    git: Git,
    tip: String,
    dir: tempfile::TempDir,
}

impl Followed {
    async fn new(habits: Habits) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let upstream = Upstream::start(&root)?;
        let origin: Repo = upstream.seed("a.git").await?;
        upstream.behave(habits);
        let git = Git::detect(dir.path(), OsStr::new("test"), false).await?;
        remote::init(&git, &dir.path().join("mirror.git"), ObjectFormat::Sha1).await?;
        Ok(Self { upstream, git, tip: origin.rev_parse("main").await?, dir })
    }

    fn mirror(&self) -> std::path::PathBuf {
        Path::join(self.dir.path(), "mirror.git")
    }

    async fn fetch(&self, url: String, silence: Duration) -> Result<Result<(), GitError>> {
        let oids = HashSet::from([Oid::from_hex(self.tip.as_bytes()).context("a tip")?]);
        let (remote, progress) =
            (Remote { url, credentials: None, way: Way::Proxy }, Arc::new(watch::Sender::new(None)));
        let patience = Patience(silence);
        let limit = Duration::from_secs(60);
        Ok(remote.fetch(&self.git, &self.mirror(), &oids, patience, limit, progress).await)
    }
}

#[tokio::test]
async fn an_upstream_that_computes_for_long_and_says_so_is_waited_for() -> Result<()> {
    // Five times the patience; keepalives of five bytes each second are all that comes.
    let followed = Followed::new(Habits::Thinking { millis: 10_000, keepalives: true }).await?;
    let url = followed.upstream.url("a.git");
    followed.fetch(url, Duration::from_secs(2)).await??;
    let oid = Oid::from_hex(followed.tip.as_bytes()).context("a tip")?;
    ensure!(remote::missing(&followed.git, &followed.mirror(), &[oid]).await?.is_empty(), "not there");
    Ok(())
}

#[tokio::test]
async fn a_silent_upstream_is_given_up_and_a_more_patient_attempt_succeeds() -> Result<()> {
    let followed = Followed::new(Habits::Thinking { millis: 8_000, keepalives: false }).await?;
    let url = followed.upstream.url("a.git");
    let given_up = followed.fetch(url.clone(), Duration::from_secs(2)).await?.unwrap_err();
    ensure!(matches!(given_up, GitError::Silent { .. }), "{given_up}");
    ensure!(given_up.kind() == FailureKind::TimedOut, "{given_up}");
    Ok(followed.fetch(url, Duration::from_secs(30)).await??)
}

#[tokio::test]
async fn a_connection_that_dies_without_a_word_is_given_up() -> Result<()> {
    let followed = Followed::new(Habits::Modern).await?;
    let line = FaultProxy::start(followed.upstream.address())?;
    line.set(Trouble { blackhole: true, ..Trouble::default() });
    let given_up = followed.fetch(format!("http://{}/a.git", line.address()), Duration::from_secs(2)).await?;
    let given_up = given_up.unwrap_err();
    ensure!(matches!(given_up, GitError::Silent { .. }), "{given_up}");
    Ok(())
}
