//! An object that is being read: kept on the disk, or on its way there, for as long.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio_util::sync::DropGuard;

use super::FetchError;
use crate::tail::{Tail, TailError};

/// Keeps an object on the disk, or on its way there.
#[derive(Debug, Default)]
pub(super) struct Lease {
    pub(super) _interest: Option<DropGuard>,
}

pub(super) type Failure = Arc<OnceLock<Arc<FetchError>>>;

/// An object to read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Its length.
    pub bytes: u64,
    pub(super) tail: Tail,
    /// Why it cannot be had, where that is known.
    pub(super) failure: Failure,
    /// Where its file may be, in this order.
    pub(super) places: Vec<PathBuf>,
    pub(super) lease: Arc<Lease>,
}

impl Reading {
    /// Whether all of it is here, and right.
    pub fn is_whole(&self) -> bool {
        self.tail.length().is_some()
    }

    /// Waits until all of it is here.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn whole(&self) -> Result<(), Arc<FetchError>> {
        self.tail.ended().await.map_err(|error| self.why(&error))
    }

    /// Waits until there is something to read.
    ///
    /// # Errors
    /// It cannot be had.
    pub(super) async fn begun(&self) -> Result<(), Arc<FetchError>> {
        self.tail.begun().await.map_err(|error| self.why(&error))
    }

    /// Reads this part as it comes.
    pub fn read(&self, part: Range<u64>) -> impl Stream<Item = Result<Bytes, TailError>> + Send + use<> {
        let lease = self.lease.clone();
        self.tail.read_part(part).inspect(move |_| {
            let _held = &lease;
        })
    }

    /// Makes `to` another name of the object's file, which must be whole.
    ///
    /// # Errors
    /// The disk's.
    pub fn link(&self, to: &Path) -> io::Result<()> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut linked = Err(io::ErrorKind::NotFound.into());
        for place in &self.places {
            linked = fs::hard_link(place, to);
            if !linked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        linked
    }

    fn why(&self, error: &TailError) -> Arc<FetchError> {
        let unknown = || Arc::new(io::Error::other(error.to_string()).into());
        self.failure.get().cloned().unwrap_or_else(unknown)
    }
}
