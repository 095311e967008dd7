//! An object of the store as a sparse local file that fills up block by block, while many read it.
//!
//! A [`BlockFile`] is the file with room for the whole object; [`BlockFile::start`] makes it a running
//! [`Download`], whose [`Reader`]s wait only for the block they need. Invariants:
//! - No reader gets a byte of a block that has not been hashed and found right: as it arrives, and again, from the
//!   disk, by those who read it later.
//! - A file that nobody reads or writes holds no descriptor.
//! - Each block is fetched once, however many read it, and again only if that failed.
//! - A reader that leaves ends nothing. The download ends when its last handle goes.
//! - Memory is bounded: a quarter of a MiB and a chunk of the store's for each request in flight, no whole block.

mod digest;
mod download;
mod layout;
mod plan;
mod reader;
mod transfer;
mod opened;

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{fs::FallocateFlags, io::Errno};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
};

use crate::store::{SharedStore, StoreError, Version};
use opened::Opened;

pub use digest::{BadDigest, Digest, digest_file};
pub use download::{Download, Options};
pub use layout::Layout;
pub use reader::Reader;

/// A file is locked by whoever writes to it. A download that was dropped lets go within milliseconds, once a
/// write under way has ended.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// Why an object cannot be downloaded or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BlockFileError {
    /// The store did not give a block, in several attempts.
    #[error("cannot fetch block {block} of {key}: {source}")]
    Store {
        /// The object.
        key: Arc<str>,
        /// The block.
        block: usize,
        /// The last attempt's error.
        source: StoreError,
    },
    /// The store answered with fewer or more bytes than were asked for, in several attempts.
    #[error("the store has another number of bytes for block {block} of {key} than there should be")]
    Length {
        /// The object.
        key: Arc<str>,
        /// The block.
        block: usize,
    },
    /// What the store gave does not hash to what it should, in several attempts.
    #[error("block {block} of {key} is damaged")]
    Digest {
        /// The object.
        key: Arc<str>,
        /// The block.
        block: usize,
    },
    /// So many digests do not belong to an object of that length.
    #[error("{digests} digests for an object of {bytes} bytes, which has {blocks} blocks")]
    Digests {
        /// The object's length.
        bytes: u64,
        /// Its blocks.
        blocks: usize,
        /// How many digests there are.
        digests: usize,
    },
    /// The file cannot be made, written or read.
    #[error("cannot {verb} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: Arc<Path>,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// What is on this disk is no longer what was written there.
    #[error("block {block} of {} is damaged on this disk", path.display())]
    Spoilt {
        /// The file.
        path: Arc<Path>,
        /// The block.
        block: usize,
    },
    /// A range to be read does not lie in the object.
    #[error("bytes {start} to {end} do not lie within {bytes} bytes")]
    Range {
        /// Where it begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// The object's length.
        bytes: u64,
    },
    /// The last handle of the download was dropped.
    #[error("the download was given up")]
    GivenUp,
}

/// Whose fault an error is, which tells what to try next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The object is damaged, gone or not what the digests are of: another object may do.
    Object,
    /// The store cannot be reached or fails: the same may succeed later.
    Store,
    /// The disk on this side is full or fails.
    Disk,
    /// Whoever called: it gave up, or asked for what is not there.
    Caller,
}

impl BlockFileError {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Store { source, .. } => match source {
                StoreError::NotFound(_)
                | StoreError::Changed(_)
                | StoreError::BadKey(_)
                | StoreError::Corrupt(_)
                | StoreError::Short { .. } => Blame::Object,
                StoreError::Local { .. } => Blame::Disk,
                StoreError::Exists(_)
                | StoreError::TooLarge { .. }
                | StoreError::Unreachable(_)
                | StoreError::Denied(_)
                | StoreError::Full
                | StoreError::Failed(_) => Blame::Store,
            },
            Self::Length { .. } | Self::Digest { .. } | Self::Digests { .. } => Blame::Object,
            Self::Disk { .. } | Self::Spoilt { .. } => Blame::Disk,
            Self::Range { .. } | Self::GivenUp => Blame::Caller,
        }
    }

    /// Whether it says that the file is no longer there.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The block that failed, where it was one.
    pub fn block(&self) -> Option<usize> {
        match self {
            Self::Store { block, .. }
            | Self::Length { block, .. }
            | Self::Digest { block, .. }
            | Self::Spoilt { block, .. } => Some(*block),
            Self::Digests { .. } | Self::Disk { .. } | Self::Range { .. } | Self::GivenUp => None,
        }
    }
}

/// Where blocks come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The store.
    pub store: SharedStore,
    /// The object.
    pub key: String,
    /// The version it must have; without one the digests alone tell.
    pub version: Option<Version>,
}

/// How much of an object is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The object's length.
    pub bytes: u64,
    /// How many bytes are in blocks that have been verified.
    pub verified: u64,
}

/// A file with room for the whole object, and what is known to be in it.
#[derive(Debug)]
pub struct BlockFile {
    shared: Arc<Shared>,
    disk: Disk,
}

impl BlockFile {
    /// Makes an empty file with room for `bytes` bytes; one of that name is replaced. Fails at once where the
    /// disk has not so much room, and leaves nothing then.
    pub async fn create(path: &Path, bytes: u64, digests: Vec<Digest>) -> Result<Self, BlockFileError> {
        let layout = layout_for(bytes, &digests)?;
        let path: Arc<Path> = path.into();
        blocking(path.clone(), "create", move || {
            // What is read through an older file of that name stays as it is.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(disk_error("replace", &path, error));
                }
                _ => {}
            }
            let disk = Disk::open(&path, OnDisk::New)?;
            disk.reserve(bytes).inspect_err(|_| drop(fs::remove_file(&path)))?;
            Ok(Self::new(&disk, layout, digests, State::default()))
        })
        .await
    }

    /// Goes on with a file that an earlier download left, as after a restart: every block is hashed, and those
    /// that are right are not fetched again. Where there is no file, it is made. Takes as long as reading the
    /// file takes.
    pub async fn resume(path: &Path, bytes: u64, digests: Vec<Digest>) -> Result<Self, BlockFileError> {
        let layout = layout_for(bytes, &digests)?;
        let path: Arc<Path> = path.into();
        let disk = Disk::open_when_free(&path).await?;
        blocking(path, "verify", move || {
            disk.reserve(bytes)?;
            let mut state = State::default();
            for (block, expected) in digests.iter().enumerate() {
                let found = digest::digest_block(&disk.file, layout, block)
                    .map_err(|error| disk_error("verify", &disk.path, error))?;
                if found == *expected {
                    state.add(layout, block);
                }
            }
            Ok(Self::new(&disk, layout, digests, state))
        })
        .await
    }

    /// A reader of a file that is known to be whole: just written and hashed, say. Its length is checked here, and
    /// each block when it is read.
    pub async fn whole(path: &Path, bytes: u64, digests: Vec<Digest>) -> Result<Reader, BlockFileError> {
        let layout = layout_for(bytes, &digests)?;
        let path: Arc<Path> = path.into();
        blocking(path.clone(), "open", move || {
            let disk = Disk::open(&path, OnDisk::Any)?;
            let found = disk.file.metadata().map_err(|error| disk_error("read", &path, error))?.len();
            if found != bytes {
                let reason = io::Error::other(format!("it has {found} bytes, not {bytes}"));
                return Err(disk_error("use", &path, reason));
            }
            let mut state = State { end: Some(Ok(())), ..State::default() };
            (0..layout.count()).for_each(|block| state.add(layout, block));
            Ok(Reader::new(Self::new(&disk, layout, digests, state).shared))
        })
        .await
    }

    /// How much is here already.
    pub fn progress(&self) -> Progress {
        self.shared.progress()
    }

    /// Something to read with what is here already.
    pub fn reader(&self) -> Reader {
        Reader::new(self.shared.clone())
    }

    /// Starts to fetch what is missing. The download ends when the last clone of the handle is dropped.
    pub fn start(self, source: Source, options: Options) -> Download {
        Download::start(self.shared, self.disk, source, options)
    }

    fn new(disk: &Disk, layout: Layout, digests: Vec<Digest>, mut state: State) -> Self {
        state.there.resize(layout.count(), false);
        let shared = Shared {
            path: disk.path.clone(),
            opened: Mutex::default(),
            layout,
            digests,
            state: watch::Sender::new(state),
            readers: Mutex::default(),
            arrived: Notify::new(),
        };
        Self { shared: Arc::new(shared), disk: disk.clone() }
    }
}

/// The file as its writer has it: locked for as long as a clone of this lives.
#[derive(Clone, Debug)]
struct Disk {
    path: Arc<Path>,
    file: Arc<fs::File>,
}

/// Whether a file to be opened must be there.
#[derive(Clone, Copy, Debug)]
enum OnDisk {
    /// It must not be.
    New,
    /// It may be, and is left as it is.
    Any,
}

impl Disk {
    fn open(path: &Arc<Path>, on_disk: OnDisk) -> Result<Self, BlockFileError> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true);
        match on_disk {
            OnDisk::New => options.create_new(true),
            OnDisk::Any => options.create(true).truncate(false),
        };
        let file = options.open(path).map_err(|error| disk_error("create", path, error))?;
        file.try_lock().map_err(|error| disk_error("lock", path, error.into()))?;
        Ok(Self { path: path.clone(), file: Arc::new(file) })
    }

    async fn open_when_free(path: &Arc<Path>) -> Result<Self, BlockFileError> {
        for _ in 1..LOCK_ATTEMPTS {
            match Self::open(path, OnDisk::Any) {
                Err(BlockFileError::Disk { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(LOCK_WAIT).await;
                }
                opened => return opened,
            }
        }
        Self::open(path, OnDisk::Any)
    }

    /// Gives the file its length, and has the file system set the space aside where it can.
    fn reserve(&self, bytes: u64) -> Result<(), BlockFileError> {
        let reserve = || {
            self.file.set_len(bytes)?;
            if bytes == 0 {
                return Ok(());
            }
            loop {
                match rustix::fs::fallocate(&*self.file, FallocateFlags::empty(), 0, bytes) {
                    Err(Errno::INTR) => {}
                    // Not every file system can; the disk may then turn out full later.
                    Ok(()) | Err(Errno::OPNOTSUPP) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        reserve().map_err(|error| disk_error("reserve space for", &self.path, error))
    }
}

/// What a download and its readers share.
#[derive(Debug)]
struct Shared {
    path: Arc<Path>,
    opened: Mutex<Weak<Opened>>,
    layout: Layout,
    digests: Vec<Digest>,
    state: watch::Sender<State>,
    readers: Mutex<plan::Readers>,
    /// Told when a reader comes to a block.
    arrived: Notify,
}

impl Shared {
    fn progress(&self) -> Progress {
        Progress { bytes: self.layout.bytes(), verified: self.state.borrow().verified }
    }
}

/// Which blocks are there, and whether that is all there will be.
#[derive(Debug, Default)]
struct State {
    there: Vec<bool>,
    verified: u64,
    end: Option<Result<(), BlockFileError>>,
    /// What a reader has found wrong with the file on the disk.
    spoilt: Option<BlockFileError>,
}

impl State {
    fn has(&self, block: usize) -> bool {
        self.there.get(block).copied().unwrap_or(false)
    }

    fn add(&mut self, layout: Layout, block: usize) {
        if self.there.len() <= block {
            self.there.resize(block.saturating_add(1), false);
        }
        if let Some(there) = self.there.get_mut(block)
            && !*there
        {
            *there = true;
            let range = layout.range(block);
            self.verified += range.end - range.start;
        }
    }
}

fn layout_for(bytes: u64, digests: &[Digest]) -> Result<Layout, BlockFileError> {
    let layout = Layout::new(bytes);
    let (blocks, digests) = (layout.count(), digests.len());
    if blocks == digests { Ok(layout) } else { Err(BlockFileError::Digests { bytes, blocks, digests }) }
}

fn disk_error(verb: &'static str, path: &Path, error: io::Error) -> BlockFileError {
    BlockFileError::Disk { verb, path: path.into(), source: Arc::new(error) }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    path: Arc<Path>,
    verb: &'static str,
    work: impl FnOnce() -> Result<T, BlockFileError> + Send + 'static,
) -> Result<T, BlockFileError> {
    spawn_blocking(work).await.map_err(|error| disk_error(verb, &path, io::Error::other(error)))?
}

#[cfg(test)]
mod tests;
