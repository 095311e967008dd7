//! A repository's snapshots in the store: the newest, a new one, and what may go.

use std::{path::Path, time::Duration};

use super::{
    SnapshotError,
    manifest::{MAX_MANIFEST, Snapshot, SnapshotKeys},
};
use crate::{
    checkpoint::{
        lineage::{Generations, generations_below, mark_bad},
        manifest::Generation,
        retain::{self, Garbage},
    },
    store::{Meta, PutMode, SharedStore, StoreError, clock::store_clock, list_all},
};
use bytes::Bytes;

/// How many snapshots are kept: the newest, and one to fall back to.
const KEEP: usize = 2;

/// How long one that newer ones have pushed out is kept: whoever streams it is done by then. Shorter than for
/// checkpoints, for each snapshot is a whole repository.
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
    /// The newest snapshot that is not marked bad. One whose manifest makes no sense is marked and passed over.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(&self) -> Result<Option<Snapshot>, SnapshotError> {
        self.newest_of(&self.generations().await?).await
    }

    async fn newest_of(&self, generations: &Generations) -> Result<Option<Snapshot>, SnapshotError> {
        for generation in generations.good() {
            match self.snapshot(generation).await {
                Ok(found) => return Ok(Some(found)),
                Err(SnapshotError::Damaged { generation, reason }) => {
                    tracing::warn!(%generation, reason, "a snapshot is damaged; it is passed over");
                    self.mark_bad(generation, &reason).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
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
        let generations = self.generations().await?;
        if let Some(newer) = self.newest_of(&generations).await?.filter(|newest| newest.generation > known) {
            return Ok(Published::Theirs(newer));
        }
        self.store.put_file(&snapshot.key(&self.keys), archive).await?;
        let generation = generations.next();
        let ours = Snapshot { generation, ..snapshot.clone() };
        let (key, text) = (self.keys.manifest(generation), Bytes::from(ours.to_json()));
        match self.store.put(&key, text, PutMode::Create).await {
            Ok(()) => Ok(Published::Ours(ours)),
            // Perhaps this very one: created, but the answer got lost.
            Err(StoreError::Exists(_)) => match self.snapshot(generation).await? {
                winner if winner.writer == ours.writer => Ok(Published::Ours(ours)),
                winner => Ok(Published::Theirs(winner)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Marks `generation` bad: nobody downloads it from now on.
    ///
    /// # Errors
    /// The store's.
    pub async fn mark_bad(&self, generation: Generation, reason: &str) -> Result<(), StoreError> {
        mark_bad(&*self.store, &self.keys.bad(generation), &self.agent, reason).await
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
        let generations = self.generations().await?;
        let now = store_clock(&*self.store).await?;
        let outdated = retain::outdated(&generations, KEEP, grace, now);
        let mut kept = Vec::new();
        for generation in generations.written.keys().filter(|g| !outdated.contains(g)) {
            match self.snapshot(*generation).await {
                Ok(snapshot) => kept.push(snapshot.key(&self.keys)),
                Err(SnapshotError::Damaged { .. }) if generations.bad.contains(generation) => {}
                Err(error) => return Err(error),
            }
        }
        let there = list_all(&*self.store, self.keys.all()).await?;
        let archives = there.into_iter().filter(|meta| meta.key.ends_with(".tar.zst"));
        let gone = |meta: &Meta| !kept.contains(&meta.key) && retain::is_older(meta, grace, now);
        let marks = outdated.iter().filter(|g| generations.bad.contains(g)).map(|g| self.keys.bad(*g));
        Ok(Garbage {
            manifests: outdated.iter().map(|g| self.keys.manifest(*g)).chain(marks).collect(),
            objects: archives.filter(gone).collect(),
        })
    }

    /// Removes `garbage`: manifests first, so that none names what is gone.
    ///
    /// # Errors
    /// The store's; what is left goes the next time.
    pub async fn remove(&self, garbage: &Garbage) -> Result<(), StoreError> {
        retain::remove(&*self.store, self.keys.all(), garbage).await
    }

    /// Which there are.
    ///
    /// # Errors
    /// The store's.
    pub async fn generations(&self) -> Result<Generations, StoreError> {
        generations_below(&*self.store, self.keys.all()).await
    }

    /// The snapshot of this generation.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] where its manifest is not there or makes no sense.
    pub async fn snapshot(&self, generation: Generation) -> Result<Snapshot, SnapshotError> {
        let damaged = |reason: String| SnapshotError::Damaged { generation, reason };
        let got = self.store.get(&self.keys.manifest(generation), MAX_MANIFEST).await;
        let text =
            got.map_err(|error| if error.is_damage() { damaged(error.to_string()) } else { error.into() })?;
        let found = Snapshot::parse(&text).map_err(|error| damaged(error.to_string()))?;
        if found.generation != generation {
            return Err(damaged("its manifest belongs to another generation".into()));
        }
        Ok(found)
    }
}
