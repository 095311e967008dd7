//! A repository's snapshots in the store: the newest, a new one, and what may go.

use std::{path::Path, time::Duration};

use tarn_crds::repo::RepoId;

use super::{
    SnapshotError,
    manifest::{DIRECTORY, Snapshot, SnapshotKeys},
};
use crate::{
    checkpoint::manifest::Keys,
    generations::{
        Created, Garbage, Generation, Generations, Numbers,
        keyring::{Authenticity, Keyring},
    },
    store::{SharedStore, StoreError, list_all},
};

/// How many snapshots are kept: the newest, and one to fall back to.
const KEEP: usize = 2;

/// How long one that newer ones have pushed out is kept, and longer if it is large. Shorter than for checkpoints, for
/// each snapshot is a whole repository.
const GRACE: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// Where.
    pub store: SharedStore,
    /// The repository's keys.
    pub keys: SnapshotKeys,
    /// This agent's name.
    pub agent: String,
    numbered: Generations<Snapshot>,
}

/// What came of publishing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is the newest in the store.
    Ours(Snapshot),
    /// Another agent was faster: this is the newest.
    Theirs(Snapshot),
}

impl Shelf {
    /// The snapshots of `id`, as `agent` reads and makes them; `keyring` says which to trust.
    pub fn new(store: SharedStore, id: &RepoId, agent: String, keyring: Keyring) -> Self {
        let numbered = Generations::new(store.clone(), Keys::of(id).all(), DIRECTORY, keyring);
        Self { store, keys: SnapshotKeys::of(id), agent, numbered }
    }

    /// The newest snapshot that is not marked bad and whose manifest can be read.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(&self) -> Result<Option<Snapshot>, SnapshotError> {
        Ok(self.numbered.newest(&self.generations().await?, &self.agent).await?)
    }

    /// Uploads the archive and makes the manifest the next generation's, unless there is a newer one than `known`:
    /// then that one serves as well as ours, and all agents are to serve the same.
    ///
    /// # Errors
    /// The store is as it was, but for an archive that no manifest names.
    pub async fn publish(
        &self,
        snapshot: &Snapshot,
        archive: &Path,
        known: Generation,
    ) -> Result<Published, SnapshotError> {
        let there = self.generations().await?;
        let newest = self.numbered.newest(&there, &self.agent).await?;
        if let Some(newer) = newest.filter(|newest| newest.generation > known) {
            return Ok(Published::Theirs(newer));
        }
        self.store.put_file(&snapshot.key(&self.keys), archive).await?;
        let ours = Snapshot { generation: there.next(), ..snapshot.clone() };
        match self.numbered.create(&ours).await? {
            Created::Ours => Ok(Published::Ours(ours)),
            Created::Theirs => Ok(Published::Theirs(self.snapshot(ours.generation).await?)),
        }
    }

    /// Marks `generation` bad: nobody downloads it from now on.
    ///
    /// # Errors
    /// The store's.
    pub async fn mark_bad(&self, generation: Generation, reason: &str) -> Result<(), StoreError> {
        self.numbered.mark_bad(generation, &self.agent, reason).await
    }

    /// Removes what newer snapshots have pushed out, and archives without a manifest.
    ///
    /// # Errors
    /// As [`Shelf::garbage`] and [`Shelf::remove`].
    pub async fn collect(&self) -> Result<Garbage, SnapshotError> {
        let garbage = self.garbage(GRACE).await?;
        self.remove(&garbage).await?;
        Ok(garbage)
    }

    /// What newer snapshots have pushed out, and archives without a manifest, for longer than `grace`.
    ///
    /// # Errors
    /// The store's, or a manifest that is to stay cannot be read: then nothing may go.
    pub async fn garbage(&self, grace: Duration) -> Result<Garbage, SnapshotError> {
        let mut there = list_all(&*self.store, self.keys.all()).await?;
        there.retain(|meta| meta.key.ends_with(".tar.zst"));
        Ok(self.numbered.garbage(there, KEEP, grace).await?)
    }

    /// Removes `garbage`, and uploads that nobody has ended.
    ///
    /// # Errors
    /// The store's; what is left goes the next time.
    pub async fn remove(&self, garbage: &Garbage) -> Result<(), StoreError> {
        self.numbered.remove(garbage, self.keys.all()).await
    }

    /// Which there are.
    ///
    /// # Errors
    /// The store's.
    pub async fn generations(&self) -> Result<Numbers, StoreError> {
        self.numbered.numbers().await
    }

    /// The snapshot of this generation.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] where its manifest is not there or makes no sense.
    pub async fn snapshot(&self, generation: Generation) -> Result<Snapshot, SnapshotError> {
        Ok(self.numbered.read(generation).await?)
    }

    /// The snapshot of this generation, whoever wrote it, and what its signature says.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] where its manifest is not there or makes no sense.
    pub async fn look(&self, generation: Generation) -> Result<(Snapshot, Authenticity), SnapshotError> {
        Ok(self.numbered.look(generation).await?)
    }
}
