//! Numbered manifests in the store and the objects that they name: what checkpoints and snapshots have in common.
//!
//! A manifest is written last and by one agent alone, so that a generation is whole or absent. One that turns out to be
//! damaged is marked, and nobody uses it from then on. What newer ones have pushed out goes after a grace period, and so
//! does an object that no manifest names.
//!
//! ```text
//! <prefix><generation, 20 digits>.json    the manifest
//! <prefix><generation, 20 digits>.bad     this generation failed its verification
//! <prefix><generation, 20 digits>.<digest of the manifest>.mac    its signature, where the cache has a key
//! ```

mod garbage;
pub mod keyring;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::store::{Meta, PutMode, SharedStore, StoreError, list_all};
use keyring::{Authenticity, Keyring, MAX_SIGNATURE};

pub use garbage::Garbage;

/// No manifest is larger: 12 packs of 32 GB in all, or an archive of 100 GB, take less than 1 MB.
const MAX_MANIFEST: u64 = 16 << 20;

/// Counts a mirror's checkpoints, or its snapshots, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who made a manifest: a writer that lost the answer to its own creation recognises it by this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Writer {
    /// The agent.
    pub agent: String,
    /// Random, for each attempt.
    pub nonce: String,
}

impl Writer {
    /// An attempt of this agent, told from all others by its nonce.
    pub fn new(agent: &str) -> Self {
        Self { agent: agent.to_owned(), nonce: format!("{:032x}", rand::random::<u128>()) }
    }
}

/// A manifest: what makes a generation.
pub trait Numbered: Sized + Send + Sync {
    /// Reads and checks the text of a generation's manifest.
    ///
    /// # Errors
    /// What does not fit together.
    fn read(text: &[u8], generation: Generation) -> Result<Self, String>;

    /// The text to store.
    fn text(&self) -> Vec<u8>;

    /// Its number.
    fn generation(&self) -> Generation;

    /// Who made it.
    fn writer(&self) -> &Writer;

    /// The length of all it names, in bytes.
    fn total(&self) -> u64;

    /// The keys of the objects that it needs, below the repository's prefix.
    fn objects(&self, repository: &str) -> Vec<String>;
}

/// Why a generation cannot be read, created or collected.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The generation is incomplete or damaged.
    #[error("generation {generation} is damaged: {reason}")]
    Damaged {
        /// Its number.
        generation: Generation,
        /// What is wrong with it.
        reason: String,
    },
    /// No key of this cache has signed it. Others may trust it, so it is never marked.
    #[error("generation {generation} is not trusted: {}", authenticity.as_str())]
    Untrusted {
        /// Its number.
        generation: Generation,
        /// What its signature says.
        authenticity: Authenticity,
    },
}

/// What came of creating a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// This agent has made the generation.
    Ours,
    /// Another agent has.
    Theirs,
}

/// The generations that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// When each manifest was written, by the store's clock.
    pub written: BTreeMap<Generation, Timestamp>,
    /// Those marked bad, whether their manifest is still there or not.
    pub bad: BTreeSet<Generation>,
    /// Signatures, whether their manifest is still there or not.
    pub signatures: Vec<(Generation, Meta)>,
}

impl Numbers {
    /// Those to use, the newest first.
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

/// One repository's generations of manifests `M`.
#[derive(Clone, Debug)]
pub struct Generations<M> {
    store: SharedStore,
    /// What the repository's keys begin with.
    repository: String,
    /// What the keys of manifests and marks begin with.
    prefix: String,
    keyring: Keyring,
    manifest: PhantomData<fn() -> M>,
}

impl<M: Numbered> Generations<M> {
    /// Those whose manifests are in `directory` of the repository whose keys begin with `repository`; `keyring` signs new
    /// ones and says which to trust.
    pub fn new(store: SharedStore, repository: &str, directory: &str, keyring: Keyring) -> Self {
        let prefix = format!("{repository}{directory}");
        Self { store, repository: repository.to_owned(), prefix, keyring, manifest: PhantomData }
    }

    /// Which there are.
    ///
    /// # Errors
    /// The store's.
    pub async fn numbers(&self) -> Result<Numbers, StoreError> {
        let mut found = Numbers::default();
        for object in list_all(&*self.store, &self.prefix).await? {
            let name = object.key.strip_prefix(&self.prefix).unwrap_or_default();
            let Some((digits, kind)) = name.split_once('.') else { continue };
            let Ok(number) = digits.parse() else { continue };
            match kind {
                "json" => drop(found.written.insert(Generation(number), object.modified)),
                "bad" => drop(found.bad.insert(Generation(number))),
                _ if kind.ends_with(".mac") => found.signatures.push((Generation(number), object)),
                _ => {}
            }
        }
        Ok(found)
    }

    /// The manifest of `generation`, to be used.
    ///
    /// # Errors
    /// [`GenerationError::Damaged`] where it is not there or makes no sense; [`GenerationError::Untrusted`] where no key
    /// of this cache has signed it.
    pub async fn read(&self, generation: Generation) -> Result<M, GenerationError> {
        let text = self.text(generation).await?;
        let authenticity = self.judge(generation, &text).await?;
        if !authenticity.is_trusted() {
            return Err(GenerationError::Untrusted { generation, authenticity });
        }
        M::read(&text, generation).map_err(|reason| GenerationError::Damaged { generation, reason })
    }

    /// The manifest of `generation`, whoever wrote it, and what its signature says: to be looked at, not used.
    ///
    /// # Errors
    /// [`GenerationError::Damaged`] where it is not there or makes no sense.
    pub async fn look(&self, generation: Generation) -> Result<(M, Authenticity), GenerationError> {
        let text = self.text(generation).await?;
        let authenticity = self.judge(generation, &text).await?;
        let manifest = M::read(&text, generation);
        let manifest = manifest.map_err(|reason| GenerationError::Damaged { generation, reason })?;
        Ok((manifest, authenticity))
    }

    /// The manifest of `generation`, whoever wrote it: for what it names.
    async fn named(&self, generation: Generation) -> Result<M, GenerationError> {
        let text = self.text(generation).await?;
        M::read(&text, generation).map_err(|reason| GenerationError::Damaged { generation, reason })
    }

    async fn text(&self, generation: Generation) -> Result<Bytes, GenerationError> {
        match self.store.get(&self.key(generation), MAX_MANIFEST).await {
            Err(error) if error.is_damage() => {
                Err(GenerationError::Damaged { generation, reason: error.to_string() })
            }
            text => Ok(text?),
        }
    }

    async fn judge(&self, generation: Generation, text: &[u8]) -> Result<Authenticity, StoreError> {
        if !self.keyring.signs() {
            return Ok(Authenticity::Unchecked);
        }
        let signature = match self.store.get(&self.signature(generation, text), MAX_SIGNATURE).await {
            Ok(signature) => Some(signature),
            Err(error) if error.is_damage() => None,
            Err(error) => return Err(error),
        };
        Ok(self.keyring.judge(&self.key(generation), text, signature.as_deref()))
    }

    /// The newest of `numbers` that can be read and trusted. Those that cannot be read, in two attempts, are passed over,
    /// and the first of them is marked.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(&self, numbers: &Numbers, agent: &str) -> Result<Option<M>, StoreError> {
        let mut marked = false;
        for generation in numbers.good() {
            let mut found = self.read(generation).await;
            if matches!(found, Err(GenerationError::Damaged { .. })) {
                found = self.read(generation).await;
            }
            match found {
                Ok(found) => return Ok(Some(found)),
                Err(GenerationError::Store(error)) => return Err(error),
                Err(error @ GenerationError::Untrusted { .. }) => {
                    tracing::warn!(%error, key = self.key(generation), "a manifest in the store is not trusted; it is passed over");
                }
                Err(GenerationError::Damaged { reason, .. }) => {
                    tracing::warn!(%generation, reason, "a manifest in the store is damaged; it is passed over");
                    if !marked {
                        self.mark_bad(generation, agent, &reason).await?;
                    }
                    marked = true;
                }
            }
        }
        Ok(None)
    }

    /// Creates `manifest`, unless its number is taken. Where the answer gets lost, it is recognised by its writer.
    ///
    /// # Errors
    /// The store's.
    pub async fn create(&self, manifest: &M) -> Result<Created, StoreError> {
        let (key, text) = (self.key(manifest.generation()), manifest.text());
        // Before the manifest, and under a name that no other writer uses: whoever sees the one finds the other.
        if let Some(signature) = self.keyring.sign(&key, &text) {
            let place = self.signature(manifest.generation(), &text);
            self.store.put(&place, Bytes::from(signature), PutMode::Overwrite).await?;
        }
        match self.store.put(&key, Bytes::from(text), PutMode::Create).await {
            Ok(()) => Ok(Created::Ours),
            Err(StoreError::Exists(_)) => match self.read(manifest.generation()).await {
                Ok(winner) if winner.writer() == manifest.writer() => Ok(Created::Ours),
                Ok(_) | Err(GenerationError::Damaged { .. } | GenerationError::Untrusted { .. }) => {
                    Ok(Created::Theirs)
                }
                Err(GenerationError::Store(error)) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Marks `generation` bad: nobody uses it from now on.
    ///
    /// # Errors
    /// The store's.
    pub async fn mark_bad(
        &self,
        generation: Generation,
        agent: &str,
        reason: &str,
    ) -> Result<(), StoreError> {
        let mark = json!({ "agent": agent, "time": Timestamp::now(), "reason": reason });
        match self.store.put(&self.mark(generation), Bytes::from(mark.to_string()), PutMode::Create).await {
            Err(StoreError::Exists(_)) => Ok(()),
            result => result,
        }
    }

    fn key(&self, generation: Generation) -> String {
        format!("{}{:020}.json", self.prefix, generation.0)
    }

    fn mark(&self, generation: Generation) -> String {
        format!("{}{:020}.bad", self.prefix, generation.0)
    }

    fn signature(&self, generation: Generation, text: &[u8]) -> String {
        let digest = blake3::hash(text).to_hex();
        format!("{}{:020}.{}.mac", self.prefix, generation.0, digest.get(..32).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(written: &[u64], bad: &[u64]) -> Numbers {
        let written = written.iter().map(|n| (Generation(*n), Timestamp::UNIX_EPOCH)).collect();
        Numbers { written, bad: bad.iter().map(|n| Generation(*n)).collect(), signatures: Vec::new() }
    }

    #[test]
    fn nobody_builds_on_what_is_older_than_a_bad_one() {
        let parent = |written: &[u64], bad: &[u64]| numbers(written, bad).parent().map(|g| g.0);
        assert_eq!(parent(&[1, 2, 3], &[]), Some(3));
        assert_eq!(parent(&[1, 2, 3], &[3]), None);
        assert_eq!(parent(&[1, 2, 3], &[2]), Some(3));
        assert_eq!(parent(&[1, 2], &[3]), None);
        assert_eq!(parent(&[], &[]), None);
    }

    #[test]
    fn a_number_is_never_used_twice() {
        assert_eq!(numbers(&[], &[]).next(), Generation(1));
        assert_eq!(numbers(&[4], &[7]).next(), Generation(8));
    }
}
