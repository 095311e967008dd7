//! Reading a spooled file: while it grows, and afterwards.
//!
//! Each reader goes at its own speed; a slow one delays nobody. A reader learns that the file is whole only when its
//! maker said so: what a maker leaves half done ends in an error, never in a short file taken for whole.

use std::{
    fs, io,
    ops::Range,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::{
    buffer::spare_capacity,
    fs::{AtFlags, CWD, linkat},
    io::{Errno, IoSliceMut, ReadWriteFlags, pread, preadv2},
};
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use super::{
    SpoolError,
    ledger::{Ledger, OpenFile, Slot},
};
use crate::{files::blocking, metrics::Lookup};

/// Read at once: large enough to make the system calls cheap, small enough that hundreds of readers fit
/// into a few dozen megabytes.
pub(crate) const CHUNK: usize = 128 * 1024;

/// How exact the time of last use is on the disk, where it counts after a restart.
const TOUCH: Duration = Duration::from_secs(60);

/// How far a maker is.
#[derive(Debug)]
pub(super) struct Progress<E> {
    pub(super) length: u64,
    /// The length that the maker foretells.
    pub(super) announced: Option<u64>,
    pub(super) end: Option<Result<(), SpoolError<E>>>,
}

/// A file of the spool to read. While it grows, its maker goes on for as long as one of these, or of the streams that
/// come of it, is there.
#[derive(Debug)]
pub struct Follower<E> {
    pub(super) open: Arc<OpenFile>,
    pub(super) progress: watch::Receiver<Progress<E>>,
    pub(super) interest: Option<Arc<DropGuard>>,
    pub(super) lookup: Lookup,
    /// Whether nobody has asked for it before.
    pub(super) first: bool,
}

impl<E> Clone for Follower<E> {
    fn clone(&self) -> Self {
        let (open, progress) = (self.open.clone(), self.progress.clone());
        let (interest, lookup) = (self.interest.clone(), self.lookup.clone());
        Self { open, progress, interest, lookup, first: self.first }
    }
}

impl<E: Send + Sync + 'static> Follower<E> {
    /// How the request met the cache.
    pub fn lookup(&self) -> Lookup {
        self.lookup.clone()
    }

    /// Whether this is the first request for a file that was made ahead.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// The length of a whole file; `None` while it grows or after it failed.
    pub fn length(&self) -> Option<u64> {
        let progress = self.progress.borrow();
        progress.end.as_ref()?.as_ref().ok().map(|()| progress.length)
    }

    /// Waits until it is known how long the file will be, and says so; `None` where its maker never knew.
    ///
    /// # Errors
    /// It will never be whole.
    pub async fn announced(&self) -> Result<Option<u64>, SpoolError<E>> {
        let known = |progress: &Progress<E>| progress.announced.is_some() && progress.end.is_none();
        Ok(self.reached(known).await?.1)
    }

    /// Waits until the file is whole, and says how long it is.
    ///
    /// # Errors
    /// It will never be.
    pub async fn whole(&self) -> Result<u64, SpoolError<E>> {
        Ok(self.reached(|_| false).await?.0)
    }

    /// Waits until there is something to read, or the file is whole.
    ///
    /// # Errors
    /// There never will be.
    pub async fn begun(&self) -> Result<(), SpoolError<E>> {
        self.reached(|progress| progress.length > 0).await.map(drop)
    }

    /// Waits until the maker is so far, or at its end; gives the length, and the one foretold.
    async fn reached(&self, far: impl Fn(&Progress<E>) -> bool) -> Result<(u64, Option<u64>), SpoolError<E>> {
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| far(progress) || progress.end.is_some()).await;
        let reached = reached.map_err(|_| SpoolError::GivenUp)?;
        match &reached.end {
            Some(Err(error)) if !far(&reached) => Err(error.clone()),
            _ => Ok((reached.length, reached.announced)),
        }
    }

    /// Reads from the start, following the maker, to the end.
    pub fn read(&self) -> impl Stream<Item = Result<Bytes, SpoolError<E>>> + Send + use<E> {
        self.read_part(0..u64::MAX)
    }

    /// Reads this part, following the maker, as far as the file goes.
    pub fn read_part(
        &self,
        part: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, SpoolError<E>>> + Send + use<E> {
        let slot = Slot::new(self.open.clone(), self.interest.clone());
        let ledger = self.open.charge.ledger().clone();
        let registered = Registered { number: ledger.register(&slot), ledger };
        let state = (slot, registered, self.progress.clone(), part.start);
        stream::try_unfold(state, move |(slot, registered, mut progress, at)| async move {
            slot.asks();
            if at >= part.end {
                return Ok(None);
            }
            let length = {
                let wait = progress.wait_for(|progress| progress.length > at || progress.end.is_some());
                let Ok(progress) = wait.await else { return Err(SpoolError::GivenUp) };
                if progress.length <= at {
                    return match &progress.end {
                        Some(Err(error)) => Err(error.clone()),
                        _ => Ok(None),
                    };
                }
                progress.length
            };
            let Some(open) = slot.open() else { return Err(SpoolError::TooSlow) };
            let wanted = usize::try_from(length.min(part.end) - at).unwrap_or(CHUNK).min(CHUNK);
            let read = match open.file.get() {
                Some(file) => read_at(file, at, wanted).await,
                None => Err(io::ErrorKind::NotFound.into()),
            };
            let chunk = read.inspect_err(|_| open.charge.spoil())?;
            slot.took(chunk.len());
            let next = at + u64::try_from(chunk.len()).unwrap_or(0);
            Ok(Some((chunk, (slot, registered, progress, next))))
        })
    }

    /// Gives the whole file another name, or copies it where it has none any more.
    ///
    /// # Errors
    /// The disk's.
    pub fn link(&self, to: &Path) -> io::Result<()> {
        let file = self.open.file.get().ok_or(io::ErrorKind::NotFound)?;
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&**file));
        match linkat(CWD, name.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::XDEV | Errno::PERM | Errno::MLINK) => {
                // A descriptor of its own: the position of this one is shared with nobody.
                io::copy(&mut fs::File::open(name)?, &mut fs::File::create_new(to)?).map(drop)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Notes on the disk that the file was used, which counts after a restart.
    pub fn touch(&self) {
        let Some(file) = self.open.file.get().cloned() else { return };
        tokio::task::spawn_blocking(move || {
            let now = SystemTime::now();
            let used = file.metadata().and_then(|meta| meta.modified());
            if used.is_ok_and(|used| now.duration_since(used).unwrap_or_default() >= TOUCH) {
                // Where it fails, the file only looks older after a restart.
                let _ = file.set_modified(now);
            }
        });
    }
}

/// A reader in the books.
struct Registered {
    number: u64,
    ledger: Arc<Ledger>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.ledger.unregister(self.number);
    }
}

/// Reads a whole file that is no one's to spool.
pub fn read_file(file: Arc<fs::File>, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((file, 0), move |(file, at)| async move {
        let wanted = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
        if wanted == 0 {
            return Ok(None);
        }
        let chunk = read_at(&file, at, wanted).await?;
        let next = at + u64::try_from(chunk.len()).unwrap_or(0);
        Ok(Some((chunk, (file, next))))
    })
}

/// Reads up to `wanted` bytes: at once where they are in the page cache, which they nearly always are;
/// else on a thread that may block.
pub(crate) async fn read_at(file: &Arc<fs::File>, at: u64, wanted: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; wanted];
    match preadv2(file, &mut [IoSliceMut::new(&mut buffer)], at, ReadWriteFlags::NOWAIT) {
        Ok(0) => return Err(shorter()),
        Ok(count) => {
            buffer.truncate(count);
            return Ok(buffer.into());
        }
        Err(Errno::AGAIN | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let file = file.clone();
    let read = move || {
        let mut buffer = Vec::with_capacity(wanted);
        match pread(&file, spare_capacity(&mut buffer), at) {
            Ok(0) => Err(shorter()),
            Ok(_) => Ok(Bytes::from(buffer)),
            Err(error) => Err(error.into()),
        }
    };
    blocking(read).await
}

fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than its maker said")
}
