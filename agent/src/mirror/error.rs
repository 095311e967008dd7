//! Why a mirror cannot do what it is asked for.

use std::sync::Arc;

use super::fetch::FetchError;
use crate::{git::Oid, upstream::LookError};

/// Why objects a client wants cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BringError {
    /// Neither the mirror nor the upstream has it.
    #[error("upload-pack: not our ref {0}")]
    Missing(Oid),
    /// The fetch that would bring it failed.
    #[error("{0}")]
    Fetch(Arc<FetchError>),
    /// The upstream could not be asked.
    #[error("{0}")]
    Look(Arc<LookError>),
    /// Too many requests wait.
    #[error("the mirror is busy")]
    Busy,
    /// It is being removed.
    #[error("the mirror is being removed")]
    Removed,
}

/// How far a mirror went for objects that refs may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As far as a look leads that began after the question: what is not here, no ref leads to.
    Looked,
    /// As far as a fetch leads that began after the question: what had been shown by then is here.
    Fetched,
}

/// Why a mirror stays on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvictError {
    /// Somebody reads it, or works on it.
    #[error("it is in use")]
    Busy,
    /// Its newest state is not in the store, and the upstream was not seen to have it.
    #[error("its newest state is nowhere else")]
    OnlyHere,
    /// It could not be moved away.
    #[error("the disk fails")]
    Disk,
    /// It is being removed.
    #[error("it is being removed")]
    Removed,
}
