//! What can go wrong with a spooled file.

use std::{io, sync::Arc};

use super::ledger::NoRoom;

/// Why a reader cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError<E> {
    /// The maker failed; what was read is not the whole.
    #[error("{0}")]
    Maker(Arc<E>),
    /// This disk.
    #[error("cannot store or read the answer: {0}")]
    Disk(Arc<io::Error>),
    /// Too much is open.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The reader was cut, for others that need its room.
    #[error("read too slowly while others waited for room")]
    TooSlow,
    /// The maker was stopped, for nobody waited.
    #[error("the work was given up")]
    GivenUp,
}

impl<E> From<io::Error> for SpoolError<E> {
    fn from(error: io::Error) -> Self {
        Self::Disk(Arc::new(error))
    }
}

impl<E> Clone for SpoolError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Maker(error) => Self::Maker(error.clone()),
            Self::Disk(error) => Self::Disk(error.clone()),
            Self::NoRoom(error) => Self::NoRoom(*error),
            Self::TooSlow => Self::TooSlow,
            Self::GivenUp => Self::GivenUp,
        }
    }
}
