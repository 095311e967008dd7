//! A maker's side of a spooled file.

use std::{
    fs,
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    ledger::{Charge, NoRoom},
    reader::Progress,
};
use crate::files::blocking;

/// Where a maker puts its file.
#[derive(Debug)]
pub struct Sink<E> {
    pub(super) file: Arc<fs::File>,
    pub(super) length: u64,
    pub(super) growth: Growth<E>,
}

/// Tells readers how far a file has grown.
#[derive(Debug)]
pub struct Growth<E> {
    pub(super) progress: Arc<watch::Sender<Progress<E>>>,
    pub(super) charge: Arc<Charge>,
}

impl<E> Growth<E> {
    /// The first `length` bytes are there, and may be read.
    pub fn grown(&self, length: u64) {
        self.charge.grown(length);
        self.progress.send_if_modified(|progress| {
            let more = length > progress.length;
            progress.length = progress.length.max(length);
            more
        });
    }

    /// The file will have `length` bytes; readers may be told before they are there.
    pub fn announce(&self, length: u64) {
        self.progress.send_modify(|progress| progress.announced = Some(length));
    }

    /// Whether there is still room to begin; otherwise [`Self::room`] waits for it.
    pub fn has_room(&self) -> bool {
        self.charge.ledger().has_room()
    }

    /// Waits for room.
    ///
    /// # Errors
    /// There is none for too long.
    pub async fn room(&self) -> Result<(), NoRoom> {
        self.charge.ledger().room().await
    }
}

impl<E> Sink<E> {
    /// The file for a child to append to, and who tells readers of it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn for_child(self) -> io::Result<(fs::File, Growth<E>)> {
        Ok((self.file.try_clone()?, self.growth))
    }

    /// Appends what `work` gives, off the runtime's threads, where `work` runs too; returns the length and what else it
    /// gives. Readers have to be told by [`Self::growth`].
    ///
    /// # Errors
    /// A full disk, above all.
    pub async fn append<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> (Vec<Bytes>, T) + Send + 'static,
    ) -> io::Result<(u64, T)> {
        let file = self.file.clone();
        let added = blocking(move || {
            let (chunks, given) = work();
            let mut added = 0;
            for chunk in chunks {
                (&*file).write_all(&chunk)?;
                added += u64::try_from(chunk.len()).unwrap_or(0);
            }
            Ok((added, given))
        });
        let (added, given) = added.await?;
        self.length += added;
        // Readers may have less of it, the disk has all.
        self.growth.charge.grown(self.length);
        Ok((self.length, given))
    }

    /// Who tells readers how far the file has grown.
    pub fn growth(&self) -> &Growth<E> {
        &self.growth
    }
}
