//! An upstream, an agent that mirrors it, and a git client between: what nearly every test starts with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::{Agent, Builder, PATIENCE, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Refs, Repo};
use tarn_testkit::upstream::Upstream;
use tarn_testkit::wire::Connection;

/// The agent's binary, to be started.
pub(crate) fn agent() -> Builder {
    Builder::new(env!("CARGO_BIN_EXE_tarn-agent"))
}

/// One upstream repository `a.git` and its mirror, with a directory for clones.
pub(crate) struct Scene {
    pub(crate) agent: Agent,
    pub(crate) upstream: Upstream,
    /// The upstream repository itself: changing it is a push.
    pub(crate) origin: Repo,
    pub(crate) git: Git,
    pub(crate) dir: tempfile::TempDir,
}

impl Scene {
    /// The mirror is ready; nothing of its spec is set.
    pub(crate) async fn ready() -> Result<Self> {
        Self::with(&[]).await
    }

    /// The mirror is ready; its spec has these lines besides the URL.
    pub(crate) async fn with(spec: &[&str]) -> Result<Self> {
        let scene = Self::starting(spec).await?;
        scene.agent.wait_phase(&scene.repo(), "Ready").await?;
        Ok(scene)
    }

    /// The agent has just been started.
    pub(crate) async fn starting(spec: &[&str]) -> Result<Self> {
        Self::prepared(spec, async |_, _| Ok(())).await
    }

    /// The upstream is prepared by `prepare` before the agent starts.
    pub(crate) async fn prepared(
        spec: &[&str],
        prepare: impl AsyncFnOnce(&Upstream, &Repo) -> Result<()>,
    ) -> Result<Self> {
        Self::of(agent(), spec, prepare).await
    }

    /// The same, with an agent that has flags of its own.
    pub(crate) async fn of(
        agent: Builder,
        spec: &[&str],
        prepare: impl AsyncFnOnce(&Upstream, &Repo) -> Result<()>,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let upstream = Upstream::start(&root)?;
        let origin = upstream.seed("a.git").await?;
        prepare(&upstream, &origin).await?;
        let yaml = manifest("a", &upstream.url("a.git"), spec);
        let agent = agent.start_with(&[("a.yaml", &yaml)]).await?;
        Ok(Self { agent, upstream, origin, git: Git::new()?, dir })
    }

    /// The agent's name for the repository.
    pub(crate) fn repo(&self) -> String {
        repo_id(&self.upstream.url("a.git"))
    }

    /// The repository's URL through Tarn.
    pub(crate) fn url(&self) -> Result<String> {
        self.agent.git_url(&self.repo())
    }

    /// The path of the repository on the git port, such as `/git/127.0.0.1:80/a`.
    pub(crate) fn path(&self) -> String {
        format!("/git/{}", self.repo())
    }

    /// All refs through Tarn.
    pub(crate) async fn refs(&self) -> Result<Refs> {
        self.git.ls_remote(&self.url()?).await
    }

    /// All refs through Tarn, which must be the upstream's.
    pub(crate) async fn expect_upstream_refs(&self) -> Result<Refs> {
        let (seen, wanted) = (self.refs().await?, self.origin.refs().await?);
        ensure!(seen == wanted, "through Tarn: {}\nupstream: {}", brief(&seen), brief(&wanted));
        Ok(seen)
    }

    /// A place for a clone.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Clones through Tarn.
    pub(crate) async fn clone(&self, name: &str, options: &[&str]) -> Result<Repo> {
        self.git.clone_repo(&self.url()?, &self.place(name), options).await
    }

    /// The mirror's status.
    pub(crate) async fn status(&self) -> Result<Value> {
        self.agent.mirror_status(&self.repo()).await
    }

    /// A connection to the git port.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        Connection::open(self.agent.git_address()?).await
    }

    /// Suspends the mirror, and waits until requests for this path below it are refused for that.
    pub(crate) async fn suspend(&self, refused: &str) -> Result<()> {
        let yaml = manifest("a", &self.upstream.url("a.git"), &["suspend: true"]);
        self.agent.write_manifest("a.yaml", &yaml)?;
        let target = format!("{}{refused}", self.path());
        eventually(PATIENCE, "the refusal of a suspended mirror", async || {
            let answer = self.agent.get(&target).await?;
            let said = answer.status == 503 && answer.text().contains("Suspended");
            ensure!(said, "{} {}", answer.status, answer.text());
            Ok(())
        })
        .await
    }

    /// What the answer to a look through Tarn says of its freshness.
    pub(crate) async fn freshness(&self) -> Result<String> {
        let target = format!("{}/info/refs?service=git-upload-pack", self.path());
        let answer = self.agent.get(&target).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Ok(answer.header("tarn-freshness").context("no Tarn-Freshness header")?.to_owned())
    }
}

/// A few refs for a message.
pub(crate) fn brief(refs: &Refs) -> String {
    let few: BTreeMap<_, _> = refs.iter().take(12).collect();
    format!("{} refs, {few:?}", refs.len())
}

/// Whether a condition of a mirror's status is true.
pub(crate) fn condition(status: &Value, kind: &str) -> bool {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// A mirror's message.
pub(crate) fn message(status: &Value) -> &str {
    status["message"].as_str().unwrap_or_default()
}
