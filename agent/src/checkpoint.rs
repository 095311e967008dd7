//! A mirror in the store: what a new pod restores instead of cloning.
//!
//! A checkpoint is a lineage: a base pack and increments, each of them what the refs reached when it was made and
//! those of the checkpoint before did not. So publishing costs the delta, whichever agent publishes and however
//! its own packs lie. All of it is immutable and named by content; one small manifest, created last and by one
//! agent alone, makes a generation (P2).
//!
//! ```text
//! <repository>/packs/<digest>.{pack,idx,rev,bitmap}
//! <repository>/refs/<digest>.zst
//! <repository>/checkpoints/<generation, 20 digits>.json
//! <repository>/checkpoints/<generation, 20 digits>.bad    this generation failed its verification
//! <repository>/lease.json      only where the store ignores conditions: see [`lease`]
//! ```

pub mod failpoint;
pub mod error;
pub mod manifest;
pub mod plan;
pub mod lineage;
pub mod lease;
pub mod parts;
pub mod publish;
pub mod restore;
pub mod wipe;

use std::sync::Arc;

use tarn_crds::repo::RepoId;
use tokio::sync::{OnceCell, Semaphore};

use crate::{
    generations::keyring::Keyring,
    popularity::Popularity,
    store::{Capabilities, SharedStore, StoreError, probe::probe},
};
use lease::Lease;
use lineage::Lineage;
use manifest::{Checkpoint, Keys};
use publish::Publish;

pub use error::CheckpointError;

/// Blocks of all restores in flight: enough to fill a link to a distant bucket.
const FLIGHTS: usize = 16;

/// The store, as mirrors use it.
#[derive(Debug)]
pub struct Archive {
    /// The store.
    pub store: SharedStore,
    /// This agent's name.
    pub agent: String,
    /// Which manifests to trust.
    pub keyring: Keyring,
    /// Blocks in flight.
    pub flights: Arc<Semaphore>,
    /// How often mirrors are asked for.
    pub popularity: Popularity,
    capable: OnceCell<Capabilities>,
}

impl Archive {
    /// The store of the agent called `agent`, whose manifests `keyring` signs and verifies.
    pub fn new(store: SharedStore, agent: String, keyring: Keyring, popularity: Popularity) -> Self {
        Self {
            store,
            agent,
            keyring,
            flights: Arc::new(Semaphore::new(FLIGHTS)),
            popularity,
            capable: OnceCell::new(),
        }
    }

    /// What the store can do. Tried at the first call, and again at the next one where it did not answer.
    ///
    /// # Errors
    /// The store cannot be written to.
    pub async fn capabilities(&self) -> Result<Capabilities, StoreError> {
        self.capable.get_or_try_init(|| probe(&*self.store)).await.copied()
    }

    /// What the store can do, if that is known.
    pub fn capable(&self) -> Option<Capabilities> {
        self.capable.get().copied()
    }

    /// Publishes, alone where the store cannot tell who was first.
    ///
    /// # Errors
    /// As [`Publish::run`]; [`CheckpointError::Leased`] where another agent publishes.
    pub async fn publish(&self, mut publish: Publish) -> Result<Checkpoint, CheckpointError> {
        if self.capabilities().await?.conditional_create {
            return publish.run().await;
        }
        let key = publish.lineage.keys.lease();
        let lease = Lease::take(self.store.clone(), key, &self.agent).await?;
        publish.lease = Some(lease.clone());
        let made = tokio::select! {
            made = publish.run() => made,
            lost = lease.keep() => Err(lost),
        };
        lease.release().await;
        made
    }

    /// The checkpoints of `id`.
    pub fn lineage(&self, id: &RepoId) -> Lineage {
        Lineage { store: self.store.clone(), keys: Keys::of(id), keyring: self.keyring.clone() }
    }
}
