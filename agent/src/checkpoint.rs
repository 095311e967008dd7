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
pub mod manifest;
pub mod plan;
pub mod lineage;
pub mod lease;
pub mod parts;
pub mod publish;
pub mod restore;
pub mod retain;
pub mod turns;
pub mod wipe;

use std::sync::Arc;

use tarn_crds::{repo::RepoId, v1alpha1::conditions::Reason};
use tokio::sync::{OnceCell, Semaphore};

use crate::{
    git::GitError,
    popularity::Popularity,
    store::{Capabilities, SharedStore, StoreError, probe::probe},
};
use lease::Lease;
use lineage::Lineage;
use manifest::Keys;
use publish::{Checkpoint, Publish};
use turns::Turns;

/// Blocks of all restores in flight: enough to fill a link to a distant bucket.
const FLIGHTS: usize = 16;

/// Restores at once beyond those that are brought before anyone asks: for mirrors that somebody waits for.
const AWAITED: usize = 2;

/// Publishings at once: a large one must not keep small ones waiting for long.
const PUBLISHES: usize = 2;

/// The store, as mirrors use it.
#[derive(Debug)]
pub struct Archive {
    /// The store.
    pub store: SharedStore,
    /// This agent's name.
    pub agent: String,
    /// Blocks in flight.
    pub flights: Arc<Semaphore>,
    /// Whose restore is next.
    pub restores: Turns,
    /// How often mirrors are asked for.
    pub popularity: Popularity,
    /// Publishings at once.
    pub publishes: Semaphore,
    capable: OnceCell<Capabilities>,
}

impl Archive {
    /// The store of the agent called `agent`, from which so many mirrors are restored at once that nobody waits for.
    pub fn new(store: SharedStore, agent: String, restores: usize, popularity: Popularity) -> Self {
        Self {
            store,
            agent,
            flights: Arc::new(Semaphore::new(FLIGHTS)),
            restores: Turns::new(restores, AWAITED, popularity.clone()),
            popularity,
            publishes: Semaphore::new(PUBLISHES),
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
        Lineage { store: self.store.clone(), keys: Keys::of(id) }
    }
}

/// Why a checkpoint could not be published or restored.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A generation that is incomplete or damaged.
    #[error("generation {generation} is damaged: {reason}")]
    Damaged {
        /// Which.
        generation: manifest::Generation,
        /// What is wrong with it.
        reason: String,
    },
    /// Git, on this side.
    #[error(transparent)]
    Git(#[from] GitError),
    /// This disk.
    #[error("cannot write to the data directory: {0}")]
    Disk(#[from] std::io::Error),
    /// Other agents publish faster than this one.
    #[error("other agents were faster {0} times in a row")]
    Outrun(u32),
    /// Another agent publishes, on a store where only one can at a time.
    #[error("{} holds the lease: it publishes, or was killed within the last minute", if .0.is_empty() { "another agent" } else { .0 })]
    Leased(String),
    /// Publishing would replace a good checkpoint by one without refs.
    #[error("the mirror has lost all its refs: not published, the last checkpoint stays")]
    NoRefs,
}

impl CheckpointError {
    /// The reason in status and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Store(StoreError::Unreachable(_)) => Reason::StoreUnreachable,
            Self::Store(StoreError::Denied(_)) => Reason::StoreDenied,
            Self::Store(StoreError::Local { .. }) | Self::Disk(_) => Reason::DiskFull,
            Self::Store(_) | Self::Outrun(_) | Self::Leased(_) => Reason::StoreError,
            Self::Damaged { .. } => Reason::CheckpointDamaged,
            Self::Git(error) => error.kind().reason(),
            Self::NoRefs => Reason::VerificationFailed,
        }
    }
}
