//! Checkpoints in the store: published once, restored by the next agent, never torn, never poisoned. Every test
//! runs on both stores: a directory, and a bucket of a real S3 server.

mod access;
mod blame;
mod cli;
mod damage;
mod disk;
mod lease;
mod outage;
mod peers;
mod popularity;
mod publish;
mod race;
mod restore;
mod resume;
mod sigkill;
mod trust;
mod turns;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::proxy::FaultProxy;
use tarn_testkit::s3::S3Server;
use tarn_testkit::upstream::Upstream;

use crate::scene::agent;

/// Makes of `async fn name(kind: Kind) -> Result<()>` a test for each store.
macro_rules! on_both_stores {
    ($($name:ident),+ $(,)?) => {
        mod in_a_directory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> anyhow::Result<()> {
                super::$name($crate::checkpoints::Kind::Directory).await
            })+
        }
        mod in_a_bucket {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> anyhow::Result<()> {
                super::$name($crate::checkpoints::Kind::Bucket).await
            })+
        }
    };
}
pub(crate) use on_both_stores;

/// Which store a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Bucket,
}

/// An upstream, a store, and agents that come and go with empty disks.
pub(crate) struct Stage {
    pub(crate) upstream: Upstream,
    pub(crate) origin: Repo,
    pub(crate) git: Git,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) s3: Option<S3Server>,
    pub(crate) spec: Vec<&'static str>,
}

/// A checkpoint as soon as the refs move; the shortest interval there may be.
const SPEC: &[&str] = &["interval: 10s", "checkpoint: {interval: 5s, keep: 3}"];

impl Stage {
    pub(crate) async fn new(kind: Kind) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let upstream = Upstream::start(&root)?;
        let origin = upstream.seed("a.git").await?;
        let s3 = match kind {
            Kind::Directory => None,
            Kind::Bucket => Some(S3Server::start().await?),
        };
        Ok(Self { upstream, origin, git: Git::new()?, dir, s3, spec: SPEC.to_vec() })
    }

    /// Two generations, the second an increment; the agent that made them has gone.
    pub(crate) async fn two_generations(kind: Kind) -> Result<Self> {
        let stage = Self::new(kind).await?;
        stage.origin.grow("main", 30, 20_000, 7).await?;
        let mut agent = stage.ready().await?;
        stage.published(&agent).await?;
        stage.origin.commit("main", &[("second.txt", "second")]).await?;
        ensure!(stage.published(&agent).await? == 2, "two generations");
        agent.stop().await?;
        Ok(stage)
    }

    /// One generation; the agent that made it has gone.
    pub(crate) async fn one_generation(&self) -> Result<()> {
        let mut agent = self.ready().await?;
        self.published(&agent).await?;
        agent.stop().await?;
        Ok(())
    }

    /// An agent with an empty disk that has restored its mirror, whatever the upstream does.
    pub(crate) async fn restored(&self) -> Result<Agent> {
        let agent = self.agent().await?;
        self.wait_restored(&agent).await?;
        Ok(agent)
    }

    pub(crate) async fn wait_restored(&self, agent: &Agent) -> Result<()> {
        agent.wait_status(&self.repo(), "restored", |status| status["refCount"] != 0).await?;
        Ok(())
    }

    /// A line to the bucket that can be cut, and is.
    pub(crate) async fn cut_line(&self) -> Result<FaultProxy> {
        let line = FaultProxy::start(self.s3.as_ref().context("a bucket")?.address())?;
        line.refuse().await;
        Ok(line)
    }

    /// Where the store's objects lie as files.
    pub(crate) fn store(&self) -> PathBuf {
        match &self.s3 {
            None => self.dir.path().join("store"),
            Some(s3) => s3.bucket_dir().join("prefix"),
        }
    }

    /// The mirror's objects as files.
    pub(crate) fn objects(&self) -> PathBuf {
        let id = RepoId::from_route(&self.repo()).expect("the kit names repositories as routes do");
        self.store().join("v1").join(id.store_prefix())
    }

    /// Flags and credentials for the store, at `endpoint` instead of the server's own where there is one.
    pub(crate) fn with_store(&self, builder: Builder, endpoint: Option<&str>) -> Builder {
        match &self.s3 {
            None => builder.arg("--store").arg(self.store()),
            Some(s3) => builder.bucket("prefix", &endpoint.map_or_else(|| s3.endpoint(), str::to_owned)),
        }
    }

    pub(crate) fn yaml(&self) -> String {
        manifest("a", &self.upstream.url("a.git"), &self.spec)
    }

    /// An agent with an empty disk.
    pub(crate) async fn agent(&self) -> Result<Agent> {
        self.start(self.with_store(agent(), None)).await
    }

    pub(crate) async fn start(&self, builder: Builder) -> Result<Agent> {
        builder.start_with(&[("a.yaml", &self.yaml())]).await
    }

    /// An agent with an empty disk whose mirror is ready.
    pub(crate) async fn ready(&self) -> Result<Agent> {
        let agent = self.agent().await?;
        agent.wait_phase(&self.repo(), "Ready").await?;
        Ok(agent)
    }

    pub(crate) fn repo(&self) -> String {
        repo_id(&self.upstream.url("a.git"))
    }

    /// Waits until the newest checkpoint that `agent` knows of has the upstream's refs, and returns its number.
    pub(crate) async fn published(&self, agent: &Agent) -> Result<u64> {
        agent.fetch_now(&self.repo()).await?;
        let refs = self.origin.refs().await?;
        eventually(Duration::from_secs(60), "a checkpoint of the upstream's refs", async || {
            let answer = agent.post(&format!("/mirrors/{}/checkpoint", self.repo())).await?;
            ensure!(answer.status == 202, "{}", answer.text());
            let newest = self.newest()?.context("no checkpoint yet")?;
            let status = agent.mirror_status(&self.repo()).await?;
            // What a look shows is not what the mirror holds: that comes with the fetch.
            let names = refs.keys().filter(|name| name.starts_with("refs/") && !name.ends_with("^{}"));
            ensure!(status["refCount"] == names.count(), "the fetch is under way");
            ensure!(
                status["head"]["sha"].as_str() == refs.get("HEAD").map(String::as_str),
                "the fetch is under way"
            );
            ensure!(status["refsDigest"] == newest["refs"]["digest"], "the newest checkpoint is older");
            ensure!(status["refCount"] == newest["refs"]["count"], "the refs differ");
            ensure!(self.git.ls_remote(&agent.git_url(&self.repo())?).await? == refs, "the mirror is behind");
            newest["generation"].as_u64().context("a generation")
        })
        .await
    }

    /// All readable manifests in the store, oldest first.
    pub(crate) fn manifests(&self) -> Result<Vec<Value>> {
        let mut files = files(&self.objects().join("checkpoints"), "json")?;
        files.sort();
        let read = |path: &PathBuf| serde_json::from_slice(&std::fs::read(path).ok()?).ok();
        Ok(files.iter().filter_map(read).collect())
    }

    pub(crate) fn newest(&self) -> Result<Option<Value>> {
        Ok(self.manifests()?.pop())
    }

    /// The generations marked bad.
    pub(crate) fn bad(&self) -> Result<usize> {
        Ok(files(&self.objects().join("checkpoints"), "bad")?.len())
    }

    /// A clone through `agent` is whole and has the upstream's branch.
    pub(crate) async fn expect_clone(&self, agent: &Agent, name: &str) -> Result<()> {
        let clone =
            self.git.clone_repo(&agent.git_url(&self.repo())?, &self.dir.path().join(name), &[]).await?;
        clone.fsck().await?;
        let main = self.origin.refs().await?.get("refs/heads/main").cloned();
        ensure!(Some(clone.rev_parse("HEAD").await?) == main, "the clone is behind");
        Ok(())
    }
}

/// The files of `dir` with this ending; none where there is no such directory.
pub(crate) fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// The pack files of a manifest, as paths below the mirror's objects.
fn packs(manifest: &Value) -> Vec<String> {
    let packs = manifest["packs"].as_array().map(Vec::as_slice).unwrap_or_default();
    packs.iter().filter_map(|pack| Some(format!("packs/{}.pack", pack["name"].as_str()?))).collect()
}
