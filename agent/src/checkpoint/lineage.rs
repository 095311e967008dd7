//! One mirror's generations in the store: which there are, which are bad, what they say.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;

use super::{
    CheckpointError,
    manifest::{Checkpoint, Generation, Keys, MAX_MANIFEST, Manifest, unpack_refs},
};
use crate::{
    blockfile::Digest,
    git::{ObjectFormat, RefSet},
    store::{MAX_SMALL, PutMode, SharedStore, Store, StoreError, list_all},
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Where.
    pub store: SharedStore,
    /// The mirror's keys.
    pub keys: Keys,
}

/// The generations of one mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// When each manifest was written, by the store's clock.
    pub written: BTreeMap<Generation, Timestamp>,
    /// Those marked bad, whether their manifest is still there or not.
    pub bad: BTreeSet<Generation>,
}

impl Generations {
    /// Those to restore from, the newest first.
    pub fn good(&self) -> impl Iterator<Item = Generation> + '_ {
        self.written.keys().rev().copied().filter(|generation| !self.bad.contains(generation))
    }

    /// What the next generation may build on: nothing where a newer one is bad, for the damage may lie in what
    /// both name.
    pub fn parent(&self) -> Option<Generation> {
        let newest = self.good().next()?;
        (self.bad.last() < Some(&newest)).then_some(newest)
    }

    /// The number of the next generation.
    pub fn next(&self) -> Generation {
        self.written.keys().chain(&self.bad).max().copied().unwrap_or_default().next()
    }
}

impl Lineage {
    /// Which generations there are.
    ///
    /// # Errors
    /// The store's.
    pub async fn generations(&self) -> Result<Generations, StoreError> {
        generations_below(&*self.store, &self.keys.checkpoints()).await
    }

    /// The newest good generation, if there is one that can be read.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some(newest) = self.generations().await?.good().next() else { return Ok(None) };
        match self.manifest(newest).await {
            Ok(manifest) => Ok(Some(Checkpoint::of(&manifest, 0))),
            // Whoever publishes next marks it.
            Err(CheckpointError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The manifest of `generation`.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] where it is not there or makes no sense.
    pub async fn manifest(&self, generation: Generation) -> Result<Manifest, CheckpointError> {
        let text = self.object(generation, &self.keys.manifest(generation), MAX_MANIFEST).await?;
        Manifest::parse(&text, generation).map_err(|error| generation.damaged(error))
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
        let packed = self.object(generation, &self.keys.refs(name), MAX_SMALL).await?;
        unpack_refs(name, &packed, format).map_err(|error| generation.damaged(error))
    }

    /// A small object that `generation` needs.
    async fn object(&self, generation: Generation, key: &str, limit: u64) -> Result<Bytes, CheckpointError> {
        let got = self.store.get(key, limit).await;
        got.map_err(|error| if error.is_damage() { generation.damaged(error) } else { error.into() })
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
        mark_bad(&*self.store, &self.keys.bad(generation), agent, reason).await
    }
}

/// Creates the mark at `key`, unless somebody has.
///
/// # Errors
/// The store's.
pub async fn mark_bad(store: &dyn Store, key: &str, agent: &str, reason: &str) -> Result<(), StoreError> {
    let mark = json!({ "agent": agent, "time": Timestamp::now(), "reason": reason });
    match store.put(key, Bytes::from(mark.to_string()), PutMode::Create).await {
        Err(StoreError::Exists(_)) => Ok(()),
        result => result,
    }
}

/// The generations whose manifests and marks lie below `prefix`.
///
/// # Errors
/// The store's.
pub async fn generations_below(store: &dyn Store, prefix: &str) -> Result<Generations, StoreError> {
    let mut found = Generations::default();
    for object in list_all(store, prefix).await? {
        let name = object.key.strip_prefix(prefix).unwrap_or_default();
        let Some((digits, kind)) = name.split_once('.') else { continue };
        let Ok(number) = digits.parse() else { continue };
        match kind {
            "json" => drop(found.written.insert(Generation(number), object.modified)),
            "bad" => drop(found.bad.insert(Generation(number))),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generations(written: &[u64], bad: &[u64]) -> Generations {
        let written = written.iter().map(|n| (Generation(*n), Timestamp::UNIX_EPOCH)).collect();
        Generations { written, bad: bad.iter().map(|n| Generation(*n)).collect() }
    }

    #[test]
    fn nobody_builds_on_what_is_older_than_a_bad_one() {
        let parent = |written: &[u64], bad: &[u64]| generations(written, bad).parent().map(|g| g.0);
        assert_eq!(parent(&[1, 2, 3], &[]), Some(3));
        assert_eq!(parent(&[1, 2, 3], &[3]), None);
        assert_eq!(parent(&[1, 2, 3], &[2]), Some(3));
        assert_eq!(parent(&[1, 2], &[3]), None);
        assert_eq!(parent(&[], &[]), None);
    }

    #[test]
    fn a_number_is_never_used_twice() {
        assert_eq!(generations(&[], &[]).next(), Generation(1));
        assert_eq!(generations(&[4], &[7]).next(), Generation(8));
    }
}
