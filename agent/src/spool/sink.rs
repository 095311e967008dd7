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

/// The disk is looked at before the first byte, and each time so many have come.
const LOOK: u64 = 32 << 20;

/// A growing file ends where the disk has less free than this part of it, …
const FLOOR_PART: u64 = 100;
/// … but not before it has no more than this.
const FLOOR_MOST: u64 = 2 << 30;

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
        let (file, length) = (self.file.clone(), self.length);
        let announced = self.growth.progress.borrow().announced;
        let added = blocking(move || {
            let (chunks, given) = work();
            let more: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
            if length == 0 || length / LOOK != (length + more) / LOOK {
                let stat = rustix::fs::fstatvfs(&*file)?;
                let (total, free) = (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize);
                check_room(length, announced, total, free)?;
            }
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

/// Whether a file of so many bytes, which is to become as long as was `announced`, may go on growing on a disk of which so
/// much is free. Whoever says how long it will be may be wrong, or lie.
fn check_room(length: u64, announced: Option<u64>, total: u64, free: u64) -> io::Result<()> {
    let lacks = announced.is_some_and(|all| all.saturating_sub(length) > free);
    // What is short is served on a disk that others have filled.
    let grows = length > 0 && free < (total / FLOOR_PART).min(FLOOR_MOST);
    if lacks || grows {
        let text = format!("the disk has {free} bytes left: too few for a file that has grown to {length}");
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_the_disk_cannot_hold_is_ended_before_it_fills_it() {
        let fits = |length, announced, free| check_room(length, announced, 10_000, free).is_ok();
        assert!(fits(0, Some(500), 500) && fits(400, Some(500), 100) && fits(0, None, 1));
        assert!(!fits(0, Some(501), 500), "nothing of it is taken");
        assert!(!fits(0, Some(u64::MAX), 500));
        assert!(!fits(400, None, 99), "it may be endless");
        assert!(fits(400, None, 100));
    }
}
