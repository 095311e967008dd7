//! A store that ignores conditions: agents take turns by a lease.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use tarn_agent::checkpoint::lineage::Lineage;
use tarn_agent::checkpoint::manifest::{Checkpoint, Generation, Keys};
use tarn_agent::checkpoint::publish::Publish;
use tarn_agent::checkpoint::{Archive, CheckpointError};
use tarn_agent::generations::keyring::Keyring;
use tarn_agent::git::{Git as AgentGit, ObjectFormat, RefSet};
use tarn_agent::popularity::Popularity;
use tarn_agent::store::{PutMode, SharedStore, dir::DirStore};
use tarn_crds::repo::RepoId;
use tarn_testkit::git::Repo;

use crate::store::Careless;

/// One publisher of one mirror, with a repository of its own that runs ahead by itself.
struct Publisher {
    archive: Archive,
    git: AgentGit,
    origin: Repo,
    work: PathBuf,
}

impl Publisher {
    async fn new(store: SharedStore, dir: &Path, name: &str) -> Result<Self> {
        let home = dir.join(format!("{name}-home"));
        std::fs::create_dir(&home)?;
        let git = AgentGit::detect(&home, dir.as_os_str(), true).await?;
        let origin = Repo::seeded(dir.join(format!("{name}.git"))).await?;
        Ok(Self {
            archive: Archive::new(store, name.to_owned(), Keyring::default(), Popularity::default()),
            git,
            origin,
            work: dir.join(format!("{name}-work")),
        })
    }

    async fn publish(&self, number: usize) -> Result<Result<Checkpoint, CheckpointError>> {
        self.origin.commit("main", &[("file", &format!("{} {number}", self.archive.agent))]).await?;
        self.origin.git(&["pack-refs", "--all"]).await?;
        self.origin.git(&["repack", "-d", "-q"]).await?;
        let publish = Publish {
            git: self.git.clone(),
            lineage: lineage(self.archive.store.clone())?,
            agent: self.archive.agent.clone(),
            dir: self.origin.git_dir(),
            work: self.work.clone(),
            refs: Arc::new(RefSet::read(&self.origin.git_dir(), ObjectFormat::Sha1)?),
            provenance: tarn_agent::upstream::Provenance::Public,
            packs: Arc::default(),
            lease: None,
        };
        let made = self.archive.publish(publish).await;
        std::fs::remove_dir_all(&self.work)?;
        Ok(made)
    }
}

fn lineage(store: SharedStore) -> Result<Lineage> {
    Ok(Lineage { store, keys: Keys::of(&RepoId::from_route("example.org/a")?), keyring: Keyring::default() })
}

fn careless(dir: &Path) -> Result<SharedStore> {
    Ok(Arc::new(Careless(DirStore::open(&dir.join("store"))?)))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_conditions_two_publishers_make_one_lineage_by_a_lease() -> Result<()> {
    const ROUNDS: usize = 3;
    let dir = tempfile::tempdir()?;
    let store = careless(dir.path())?;
    let one = Publisher::new(store.clone(), dir.path(), "one").await?;
    let two = Publisher::new(store.clone(), dir.path(), "two").await?;
    let mut made = Vec::new();
    for round in 0..ROUNDS {
        // Both in the same moment.
        let (first, second) = tokio::join!(one.publish(round), two.publish(round));
        made.extend([first??, second??]);
    }
    let lineage = lineage(store)?;
    let generations = lineage.generations().await?;
    // Each saw its own checkpoint made, and none was lost by another one's being written over it.
    ensure!(generations.written.len() == 2 * ROUNDS, "{generations:?}");
    for checkpoint in &made {
        let manifest = lineage.manifest(checkpoint.generation).await?;
        ensure!(manifest.refs.digest == checkpoint.digest, "generation {} is lost", checkpoint.generation);
        let parent = Generation(checkpoint.generation.0 - 1);
        ensure!(manifest.parent.unwrap_or_default() == parent, "{:?}", manifest.parent);
    }
    let left = lineage.store.get(&lineage.keys.lease(), 4096).await;
    ensure!(left.is_err(), "a lease is left: {left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_lease_publishes_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = careless(dir.path())?;
    let one = Publisher::new(store.clone(), dir.path(), "one").await?;
    let lineage = lineage(store.clone())?;
    let key = lineage.keys.lease();
    let thief = async {
        // It believes to hold the lease, and has begun to pack.
        while !one.work.exists() {
            tokio::task::yield_now().await;
        }
        let other = r#"{"holder":{"agent":"thief","nonce":"0"}}"#;
        store.put(&key, other.into(), PutMode::Overwrite).await
    };
    let (made, stolen) = tokio::join!(one.publish(0), thief);
    stolen?;
    let error = made?.expect_err("it published");
    ensure!(error.to_string().contains("thief holds the lease"), "{error}");
    ensure!(lineage.generations().await?.written.is_empty(), "a manifest was written");
    Ok(())
}
