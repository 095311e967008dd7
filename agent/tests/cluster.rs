//! The agent in a cluster: what the API server declares is mirrored, and what is true of it is told. The API server is
//! the test kit's; a real one has its turn in the tests of the whole.

mod access;
mod declared;
mod deleted;
mod outage;
mod secrets;
mod told;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tarn_testkit::agent::{Agent, Builder, repo_id};
use tarn_testkit::apiserver::ApiServer;
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::Upstream;

use crate::scene::agent;

/// The pod that most tests run.
const POD: &str = "default-0";

/// How long anything may take: far longer than it does, for loaded machines.
const PATIENCE: Duration = Duration::from_secs(40);

/// An API server and an upstream.
struct Cluster {
    api: ApiServer,
    upstream: Upstream,
    git: Git,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        Ok(Self { api: ApiServer::start()?, upstream: Upstream::start(&root)?, git: Git::new()?, dir })
    }

    /// An upstream repository, and the GitMirror of the cache `default` that declares it.
    async fn declare(&self, name: &str) -> Result<Repo> {
        let origin = self.upstream.seed(&format!("{name}.git")).await?;
        self.api.mirror(name, "default", json!({"url": self.url(name)}));
        Ok(origin)
    }

    fn url(&self, name: &str) -> String {
        self.upstream.url(&format!("{name}.git"))
    }

    fn repo(&self, name: &str) -> String {
        repo_id(&self.url(name))
    }

    /// Starts a pod of the cache `default`.
    async fn pod(&self, name: &str) -> Result<Agent> {
        self.pod_of("default", name).await
    }

    async fn pod_of(&self, cache: &str, name: &str) -> Result<Agent> {
        self.builder(cache, name)?.env("TARN_AGENT_LOG", "info,tarn_agent=debug").start().await
    }

    fn builder(&self, cache: &str, name: &str) -> Result<Builder> {
        let kubeconfig = self.api.kubeconfig(self.dir.path())?;
        Ok(agent().in_cluster(&kubeconfig, cache, name))
    }

    /// Waits until a pod's entry fits, and gives it back.
    async fn entry(&self, name: &str, pod: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(PATIENCE, &format!("the entry of {pod} in {name}: {what}"), async || {
            let object = self.api.get("gitmirrors", name).with_context(|| format!("no GitMirror {name}"))?;
            let entry = self.api.entry(name, pod).with_context(|| format!("no entry: {object}"))?;
            ensure!(fits(&entry), "{entry}");
            Ok(entry)
        })
        .await
    }

    /// Waits until a pod tells that it has a repository's head.
    async fn head_told(&self, name: &str, pod: &str, origin: &Repo) -> Result<Value> {
        let head = origin.rev_parse("HEAD").await?;
        self.entry(name, pod, &format!("head {head}"), |entry| {
            entry["phase"] == "Ready" && entry["head"] == head.as_str()
        })
        .await
    }

    /// Waits until a mirror is gone from a pod.
    async fn gone(&self, agent: &Agent, name: &str) -> Result<()> {
        eventually(PATIENCE, &format!("{name} to be gone"), async || {
            let target = format!("/git/{}/info/refs?service=git-upload-pack", self.repo(name));
            let answer = agent.get(&target).await?;
            ensure!(answer.status == 404, "{}", answer.status);
            Ok(())
        })
        .await
    }

    /// Clones through a pod.
    async fn clones(&self, agent: &Agent, name: &str, place: &str) -> Result<()> {
        let url = agent.git_url(&self.repo(name))?;
        self.git.clone_repo(&url, &self.dir.path().join(place), &[]).await.map(drop)
    }

    /// How many entries were written so far.
    fn entries_written(&self) -> usize {
        self.api.writes().iter().filter(|write| write.kind == "gitmirrors").count()
    }
}
