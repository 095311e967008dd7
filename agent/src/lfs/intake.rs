//! An object on its way to the disk: hashed as it is written.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::FetchError;
use crate::{protocol::lfs::LfsOid, spool::Sink};

/// When readers get what has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// At once, but for the last byte.
    Growing,
    /// Once all of it is known to be the object.
    Whole,
}

/// See the module.
pub struct Intake {
    oid: LfsOid,
    bytes: u64,
    shown: Shown,
    sink: Sink<FetchError>,
    hasher: Sha256,
    taken: u64,
}

impl Intake {
    /// The object `oid` will have `bytes`, and comes into `sink`.
    pub(super) fn new(oid: LfsOid, bytes: u64, shown: Shown, sink: Sink<FetchError>) -> Self {
        sink.growth().announce(bytes);
        Self { oid, bytes, shown, sink, hasher: Sha256::new(), taken: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are too many, or the disk is full.
    pub async fn take(mut self, chunks: Vec<Bytes>) -> Result<Self, FetchError> {
        let more: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if self.taken.saturating_add(more) > self.bytes {
            return Err(FetchError::Mismatch("it is longer"));
        }
        let mut hasher = self.hasher;
        let work = move || {
            chunks.iter().for_each(|chunk| hasher.update(chunk));
            (chunks, hasher)
        };
        (self.taken, self.hasher) = self.sink.append(work).await?;
        if self.shown == Shown::Growing {
            // Readers get the last byte when all of them are known to be right.
            self.sink.growth().grown(self.taken.min(self.bytes.saturating_sub(1)));
        }
        Ok(self)
    }

    /// Ends the object; returns its length.
    ///
    /// # Errors
    /// It is not what its name says.
    pub fn finish(self) -> Result<u64, FetchError> {
        if self.taken < self.bytes {
            return Err(FetchError::Mismatch("it is shorter"));
        }
        let right = self.oid.is_sum(&self.hasher.finalize());
        if right { Ok(self.bytes) } else { Err(FetchError::Mismatch("its SHA-256 is another")) }
    }
}
