//! Snapshots: a clone with its worktree as one `tar.zst`, which clients download instead of cloning.
//!
//! A snapshot is built in the background from a mirror that is sound, published to the store like a checkpoint
//! (the archive first, then one small manifest created by one agent alone) and served from the local disk; an
//! agent that has not got it serves it while it downloads it, once for all who ask.
//!
//! ```text
//! <repository>/snapshots/<commit>-<digest>.tar.zst
//! <repository>/snapshots/<generation, 20 digits>.json
//! <repository>/snapshots/<generation, 20 digits>.bad     this one failed its verification
//! ```

pub mod manifest;
pub mod archive;
pub mod build;
pub mod compare;
pub mod shelf;

use tarn_crds::v1alpha1::conditions::Reason;

use crate::{
    blockfile::{Blame, BlockFileError},
    generations::{Generation, GenerationError, keyring::Authenticity},
    git::{GitError, extent::Excess},
    store::StoreError,
};

/// Why a snapshot cannot be built, published or had.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A snapshot in the store that is incomplete or damaged.
    #[error("snapshot {generation} is damaged: {reason}")]
    Damaged {
        /// Which.
        generation: Generation,
        /// What is wrong with it.
        reason: String,
    },
    /// A snapshot in the store that no key of this cache has signed.
    #[error("snapshot {generation} is not trusted: {}; see --store-key", authenticity.as_str())]
    Untrusted {
        /// Which.
        generation: Generation,
        /// What its signature says.
        authenticity: Authenticity,
    },
    /// A file of the mirror is not as git wrote it.
    #[error("the mirror is damaged: {0} does not match its checksum")]
    Mirror(String),
    /// Git, on this side.
    #[error(transparent)]
    Git(#[from] GitError),
    /// This disk.
    #[error("cannot write a snapshot to the data directory: {0}")]
    Disk(#[from] std::io::Error),
    /// The download.
    #[error(transparent)]
    Download(#[from] BlockFileError),
    /// Building one would fill the disk.
    #[error(
        "a snapshot needs about {} MiB on the disk while it is built, and {} MiB are free",
        needed >> 20, free >> 20
    )]
    NoRoom {
        /// Bytes it may take: the archive, and the worktree.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// The worktree is a bomb, or larger than any that people check out.
    #[error("no snapshot is made of {commit}, whose worktree is too large: {excess}")]
    WorktreeTooLarge {
        /// The commit.
        commit: String,
        /// Of what there is too much.
        excess: Excess,
    },
    /// The build was given up.
    #[error("the snapshot is no longer wanted")]
    GivenUp,
}

impl SnapshotError {
    /// The reason in status and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Store(StoreError::Unreachable(_)) => Reason::StoreUnreachable,
            Self::Store(StoreError::Denied(_)) => Reason::StoreDenied,
            Self::Store(StoreError::Local { .. }) | Self::Disk(_) | Self::NoRoom { .. } => Reason::DiskFull,
            Self::Store(_) => Reason::StoreError,
            Self::Damaged { .. } | Self::Mirror(_) | Self::Download(BlockFileError::Spoilt { .. }) => {
                Reason::VerificationFailed
            }
            Self::Untrusted { .. } => Reason::StoreUntrusted,
            Self::WorktreeTooLarge { .. } => Reason::WorktreeTooLarge,
            Self::Git(error) => error.kind().reason(),
            Self::Download(error) => match (error.blame(), error) {
                (Blame::Object, _) => Reason::VerificationFailed,
                (Blame::Disk, _) => Reason::DiskFull,
                (_, BlockFileError::Store { source: StoreError::Denied(_), .. }) => Reason::StoreDenied,
                (_, BlockFileError::Store { source: StoreError::Unreachable(_), .. }) => {
                    Reason::StoreUnreachable
                }
                _ => Reason::StoreError,
            },
            Self::GivenUp => Reason::Retrying,
        }
    }
}

impl From<GenerationError> for SnapshotError {
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
