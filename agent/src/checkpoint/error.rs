//! Why a checkpoint cannot be published or restored, and when damage is believed.

use std::fmt;

use tarn_crds::v1alpha1::conditions::Reason;

use super::manifest::Generation;
use crate::{
    generations::{GenerationError, keyring::Authenticity},
    git::GitError,
    store::StoreError,
};

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
        generation: Generation,
        /// What is wrong with it.
        reason: String,
    },
    /// A generation that no key of this cache has signed.
    #[error("generation {generation} is not trusted: {}; see --store-key", authenticity.as_str())]
    Untrusted {
        /// Which.
        generation: Generation,
        /// What its signature says.
        authenticity: Authenticity,
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
    /// The mirror may not take as many bytes.
    #[error("the checkpoint has {bytes} bytes, and spec.limits.maxBytes allows {max}")]
    TooLarge {
        /// What it has.
        bytes: u64,
        /// What it may have.
        max: u64,
    },
    /// Publishing would replace a good checkpoint by one without refs.
    #[error("the mirror has lost all its refs: not published, the last checkpoint stays")]
    NoRefs,
}

impl From<GenerationError> for CheckpointError {
    fn from(error: GenerationError) -> Self {
        match error {
            GenerationError::Store(error) => error.into(),
            GenerationError::Damaged { generation, reason } => Self::Damaged { generation, reason },
            GenerationError::Untrusted { generation, authenticity } => {
                Self::Untrusted { generation, authenticity }
            }
        }
    }
}

impl CheckpointError {
    /// The reason in status and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Store(StoreError::Unreachable(_)) => Reason::StoreUnreachable,
            Self::Store(StoreError::Denied(_)) => Reason::StoreDenied,
            Self::Store(StoreError::Local { .. }) | Self::Disk(_) => Reason::DiskFull,
            Self::Store(_) | Self::Outrun(_) | Self::Leased(_) => Reason::StoreError,
            Self::TooLarge { .. } => Reason::MirrorTooLarge,
            Self::Damaged { .. } => Reason::CheckpointDamaged,
            Self::Untrusted { .. } => Reason::StoreUntrusted,
            Self::Git(error) => error.kind().reason(),
            Self::NoRefs => Reason::VerificationFailed,
        }
    }
}

impl Generation {
    /// What is wrong with it, as an error.
    pub(super) fn damaged(self, reason: impl fmt::Display) -> CheckpointError {
        CheckpointError::Damaged { generation: self, reason: reason.to_string() }
    }
}

/// Whether `result` is to be tried once more before it is believed: it tells of damage, or git failed on this side. A
/// mark in the store binds every agent, so what one machine saw once is not enough.
pub(super) fn is_doubtful<T>(result: &Result<T, CheckpointError>) -> bool {
    match result {
        Err(error @ (CheckpointError::Damaged { .. } | CheckpointError::Git(GitError::Failed { .. }))) => {
            tracing::warn!(%error, "trying once more before this is believed");
            true
        }
        _ => false,
    }
}
