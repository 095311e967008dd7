//! One mirror's checkpoints in the store: which there are, what they say and need, which of it may go.

use std::{collections::BTreeMap, time::Duration};

use super::{
    CheckpointError,
    manifest::{Checkpoint, Generation, Keys, Manifest, unpack_refs},
};
use crate::{
    blockfile::Digest,
    generations::{
        Garbage, Generations, Numbers,
        keyring::{Authenticity, Keyring},
    },
    git::{ObjectFormat, RefSet},
    store::{MAX_SMALL, SharedStore, StoreError, list_all},
};

/// How long a generation that newer ones have pushed out, and an object without a manifest, are kept.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// See the module.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Where.
    pub store: SharedStore,
    /// The mirror's keys.
    pub keys: Keys,
    /// Which manifests to trust.
    pub keyring: Keyring,
}

impl Lineage {
    /// The numbered manifests.
    pub(super) fn numbered(&self) -> Generations<Manifest> {
        Generations::new(self.store.clone(), self.keys.all(), "checkpoints/", self.keyring.clone())
    }

    /// Which generations there are.
    ///
    /// # Errors
    /// The store's.
    pub async fn generations(&self) -> Result<Numbers, StoreError> {
        self.numbered().numbers().await
    }

    /// The newest good generation, if there is one that can be read.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(&self, agent: &str) -> Result<Option<Checkpoint>, CheckpointError> {
        let newest = self.numbered().newest(&self.generations().await?, agent).await?;
        Ok(newest.map(|manifest| Checkpoint::of(&manifest, 0)))
    }

    /// The manifest of `generation`.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] where it is not there or makes no sense; [`CheckpointError::Untrusted`] where no key
    /// of this cache has signed it.
    pub async fn manifest(&self, generation: Generation) -> Result<Manifest, CheckpointError> {
        Ok(self.numbered().read(generation).await?)
    }

    /// The manifest of `generation`, whoever wrote it, and what its signature says.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] where it is not there or makes no sense.
    pub async fn look(&self, generation: Generation) -> Result<(Manifest, Authenticity), CheckpointError> {
        Ok(self.numbered().look(generation).await?)
    }

    /// The refs object called `name`, which `generation` needs.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] where it is not there or makes no sense.
    pub async fn refs(
        &self,
        generation: Generation,
        name: Digest,
        format: ObjectFormat,
    ) -> Result<RefSet, CheckpointError> {
        let packed = match self.store.get(&self.keys.refs(name), MAX_SMALL).await {
            Err(error) if error.is_damage() => return Err(generation.damaged(error)),
            packed => packed?,
        };
        unpack_refs(name, &packed, format).map_err(|error| generation.damaged(error))
    }

    /// The manifest of `generation`, if the store has all that it names, in its length: packs, and every list of refs
    /// that increments add to.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] where it has not.
    pub async fn whole(&self, generation: Generation) -> Result<Manifest, CheckpointError> {
        let manifest = self.manifest(generation).await?;
        let mut there = list_all(&*self.store, &self.keys.packs()).await?;
        there.extend(list_all(&*self.store, &self.keys.all_refs()).await?);
        let there: BTreeMap<String, u64> = there.into_iter().map(|meta| (meta.key, meta.bytes)).collect();
        let packs = manifest.files().map(|(pack, file)| (self.keys.file(pack, file.kind), Some(file.bytes)));
        let since = manifest.refs_objects().skip(1).map(|name| (self.keys.refs(name), None));
        let refs = (self.keys.refs(manifest.refs.name), Some(manifest.refs.bytes));
        for (key, bytes) in packs.chain(since).chain([refs]) {
            let found = there.get(&key);
            if found.is_none_or(|found| bytes.is_some_and(|bytes| bytes != *found)) {
                let reason = format!("{key} is not in the store, or has another length");
                return Err(generation.damaged(reason));
            }
        }
        Ok(manifest)
    }

    /// Marks `generation` bad: nobody restores it or builds on it from now on.
    ///
    /// # Errors
    /// The store's.
    pub async fn mark_bad(
        &self,
        generation: Generation,
        agent: &str,
        reason: &str,
    ) -> Result<(), StoreError> {
        self.numbered().mark_bad(generation, agent, reason).await
    }

    /// What newer checkpoints have pushed out, and packs and lists of refs without a manifest, for longer than `grace`.
    ///
    /// # Errors
    /// The store's, or a manifest that is to stay cannot be read: then nothing may go.
    pub async fn garbage(&self, keep: usize, grace: Duration) -> Result<Garbage, CheckpointError> {
        let mut there = list_all(&*self.store, &self.keys.packs()).await?;
        there.extend(list_all(&*self.store, &self.keys.all_refs()).await?);
        Ok(self.numbered().garbage(there, keep, grace).await?)
    }

    /// Removes `garbage`, and uploads that nobody has ended.
    ///
    /// # Errors
    /// The store's; what is left goes the next time.
    pub async fn remove(&self, garbage: &Garbage) -> Result<(), StoreError> {
        self.numbered().remove(garbage, self.keys.all()).await
    }
}
