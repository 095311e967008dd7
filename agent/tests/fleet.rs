//! More mirrors than an agent has disk, or a start has time: which of them are here, and when.

mod budget;
mod limits;
mod placement;
mod prewarm;
mod simulation;
mod start;

use std::path::Path;

use anyhow::{Result, ensure};
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::{Agent, manifest, repo_id};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::upstream::{Operation, Upstream};

/// Upstream repositories and manifests that declare them.
pub(crate) struct Repositories {
    pub(crate) upstream: Upstream,
    pub(crate) git: Git,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) yaml: String,
}

impl Repositories {
    /// Seeds repositories of these names; each has these lines in its spec.
    pub(crate) async fn new(names: &[(&str, &[&str])]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let upstream = Upstream::start(&root)?;
        let mut yaml = Vec::new();
        for (name, spec) in names {
            upstream.seed(&format!("{name}.git")).await?;
            yaml.push(manifest(name, &upstream.url(&format!("{name}.git")), spec));
        }
        Ok(Self { upstream, git: Git::new()?, dir, yaml: yaml.join("---\n") })
    }

    /// As [`Self::new`], with a commit of `bytes` that do not compress in each.
    pub(crate) async fn large(names: &[&str], bytes: usize) -> Result<Self> {
        let all: Vec<(&str, &[&str])> = names.iter().map(|name| (*name, &[][..])).collect();
        let scene = Self::new(&all).await?;
        for (name, seed) in names.iter().zip(1..) {
            scene.origin(name).grow("main", 1, bytes, seed).await?;
        }
        Ok(scene)
    }

    /// The upstream repository itself.
    pub(crate) fn origin(&self, name: &str) -> Repo {
        Repo::open(self.git.clone(), self.upstream.root().join(format!("{name}.git")))
    }

    /// What agents call the repository.
    pub(crate) fn repo(&self, name: &str) -> String {
        repo_id(&self.upstream.url(&format!("{name}.git")))
    }

    /// The repository.
    pub(crate) fn id(&self, name: &str) -> RepoId {
        RepoId::from_route(&self.repo(name)).expect("a name of the agent's")
    }

    /// How often the upstream was asked for anything of the repository.
    pub(crate) fn asked(&self, name: &str) -> usize {
        let name = format!("{name}.git");
        [Operation::Advertise, Operation::LsRefs, Operation::Fetch]
            .iter()
            .map(|what| self.upstream.count(&name, *what))
            .sum()
    }

    /// Clones through the agent, and has git check what came.
    pub(crate) async fn clone(&self, agent: &Agent, name: &str, place: &str) -> Result<()> {
        let place = self.place(place);
        let clone = self.git.clone_repo(&agent.git_url(&self.repo(name))?, &place, &[]).await?;
        clone.fsck().await
    }

    pub(crate) fn place(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

/// Writes into a store what some agent counted today.
pub(crate) fn counted(store: &Path, clones: &[(String, u64)]) -> Result<()> {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let dir = store.join(format!("v1/_clones/{today}"));
    std::fs::create_dir_all(&dir)?;
    let mirrors: serde_json::Map<_, _> =
        clones.iter().map(|(id, clones)| (id.clone(), serde_json::json!({ "clones": clones }))).collect();
    std::fs::write(dir.join("earlier.json"), serde_json::json!({ "mirrors": mirrors }).to_string())?;
    ensure!(dir.join("earlier.json").exists(), "written");
    Ok(())
}
