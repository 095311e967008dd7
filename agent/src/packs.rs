//! Answers to requests for objects: each made once, followed by all who want it, kept while there is room.
//!
//! Object content never changes, so a kept answer never goes stale; it goes when room is needed, the least recently used
//! first, or after [`MAX_AGE`] without use ([`crate::spool`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tarn_crds::repo::RepoId;

use crate::{
    git::GitError,
    metrics::{Ahead, Metrics},
    protocol::{fetch::Key, pktline},
    spool::{Bounds, Follower, Keep, NoRoom, Sink, Spool, SpoolError, Usage},
    upstream::LookError,
};

/// Answers nobody asked for in this long go even where there is room.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// The most answers that are kept: 250 bytes of memory and a file each.
const MAX_KEPT: usize = 50_000;

/// How much of an answer is searched for the start of its pack; shallow boundaries come before it.
const SEARCHED: u64 = 1024 * 1024;

/// Why an answer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// No place for a child was free in time.
    #[error("too many requests wait")]
    Busy,
    /// Too much is open.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The child failed; its kind says whether the request, this machine or the repository is at fault.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The upstream failed.
    #[error(transparent)]
    Upstream(#[from] LookError),
    /// This disk.
    #[error("cannot store the answer: {0}")]
    Disk(#[from] io::Error),
}

/// An answer to read.
pub type Pack = Follower<MakeError>;

/// Why an answer cannot be read.
pub type PackError = SpoolError<MakeError>;

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Packs {
    /// By mirror, so that what is left of a removed one is found.
    spool: Spool<(RepoId, Key), MakeError>,
    metrics: Metrics,
}

impl Packs {
    /// An empty cache in `dir`, which is emptied, of at most `budget` bytes of whole answers.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(dir: &Path, budget: u64, metrics: Metrics) -> io::Result<Self> {
        let bounds = Bounds { bytes: budget, files: MAX_KEPT, age: Some(MAX_AGE) };
        Ok(Self { spool: Spool::new("packs", dir, bounds, &metrics)?, metrics })
    }

    /// Evicts what nobody has used for too long, for ever.
    pub async fn sweep(self) {
        self.spool.sweep().await;
    }

    /// The answer of the mirror `of` called `key`: the kept or growing one, or a new one that `make` fills, as in
    /// [`Spool::get_or_make`].
    pub async fn get_or_make<F>(
        &self,
        of: &RepoId,
        key: Key,
        keep: Keep,
        make: impl FnOnce(Sink<MakeError>) -> F + Send + 'static,
    ) -> Pack
    where
        F: Future<Output = Result<u64, MakeError>> + Send + 'static,
    {
        let pack = self.spool.get_or_make((of.clone(), key), keep, make).await;
        if pack.is_first() {
            self.metrics.packs.ahead.get_or_create(&Ahead::USED).inc();
        }
        self.metrics.packs.lookups.get_or_create(&pack.lookup()).inc();
        pack
    }

    /// Makes the answer called `key` before anyone asks for it, as in [`Spool::make_ahead`].
    pub fn make_ahead<F>(
        &self,
        of: &RepoId,
        key: Key,
        make: impl FnOnce(Sink<MakeError>) -> F + Send + 'static,
    ) -> Option<Pack>
    where
        F: Future<Output = Result<u64, MakeError>> + Send + 'static,
    {
        self.spool.make_ahead((of.clone(), key), if_it_holds_a_pack(), make)
    }

    /// Lets an answer go that was made before anyone asked, if nobody ever has.
    pub fn discard_unused(&self, of: &RepoId, key: Key) {
        if self.spool.discard_unasked(&(of.clone(), key)) {
            self.metrics.packs.ahead.get_or_create(&Ahead::UNUSED).inc();
        }
    }

    /// Whether the whole answer called `key` is there.
    pub fn holds(&self, of: &RepoId, key: Key) -> bool {
        self.spool.holds(&(of.clone(), key)).is_some()
    }

    /// The answer called `key`, if it is there or being made.
    pub async fn get(&self, of: &RepoId, key: Key) -> Option<Pack> {
        let pack = self.spool.get(&(of.clone(), key)).await?;
        self.metrics.packs.lookups.get_or_create(&pack.lookup()).inc();
        Some(pack)
    }

    /// What an answer has beyond a base: kept, growing, or filled by `make`. With `ahead` nobody has asked for it yet.
    /// The answer counts as a lookup, and not this.
    ///
    /// # Errors
    /// It has gone in this moment.
    pub async fn layer_or_make<F>(
        &self,
        of: &RepoId,
        key: Key,
        ahead: bool,
        make: impl FnOnce(Sink<MakeError>) -> F + Send + 'static,
    ) -> Result<Pack, PackError>
    where
        F: Future<Output = Result<u64, MakeError>> + Send + 'static,
    {
        let key = (of.clone(), key);
        if !ahead {
            return Ok(self.spool.get_or_make(key, always(), make).await);
        }
        match self.spool.make_ahead(key.clone(), always(), make) {
            Some(layer) => Ok(layer),
            None => self.spool.get(&key).await.ok_or(SpoolError::GivenUp),
        }
    }

    /// What an answer has beyond a base, if it is there.
    pub async fn layer(&self, of: &RepoId, key: Key) -> Option<Pack> {
        let layer = self.spool.get(&(of.clone(), key)).await?;
        if layer.is_first() {
            self.metrics.packs.ahead.get_or_create(&Ahead::USED).inc();
        }
        Some(layer)
    }

    /// Lets the whole answer called `key` go.
    pub fn discard(&self, of: &RepoId, key: Key) {
        self.spool.discard(&(of.clone(), key));
    }

    /// Lets all answers of a mirror go that is removed. Whoever reads one goes on.
    pub fn forget(&self, of: &RepoId) {
        self.spool.discard_all(|(owner, _)| owner == of);
    }

    /// What the answers take on the disk.
    pub fn usage(&self) -> Usage {
        self.spool.usage()
    }

    /// How many bytes kept answers may take.
    pub fn budget(&self) -> u64 {
        self.spool.budget()
    }

    /// Evicts at least `need` bytes of answers, as far as there are so many that nobody reads; returns how many went.
    pub async fn shrink(&self, need: u64) -> u64 {
        self.spool.shrink(need).await
    }
}

/// Keeps it, whatever is in it.
pub fn always() -> Keep {
    Keep::As(Box::new(|path| Ok(Some(path.to_owned()))))
}

/// Keeps an answer that holds a pack, and no round of negotiation.
pub fn if_it_holds_a_pack() -> Keep {
    Keep::As(Box::new(|path| Ok(holds_pack(path)?.then(|| PathBuf::from(path)))))
}

/// Keeps an answer that holds a pack and of which `whole` says by its end that it is.
pub fn if_it_holds_a_pack_and(whole: Arc<AtomicBool>) -> Keep {
    Keep::As(Box::new(move |path| {
        let kept = whole.load(Ordering::Relaxed) && holds_pack(path)?;
        Ok(kept.then(|| PathBuf::from(path)))
    }))
}

/// Whether the answer at `path` has a `packfile` section.
fn holds_pack(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, SEARCHED), &mut start)?;
    // The search may end inside a packet, hence map_while.
    let mut packets = pktline::Packets::new(&start).map_while(Result::ok);
    Ok(packets.any(|packet| packet.line() == Some(b"packfile")))
}

/// The error of a maker, where that is why an answer cannot be read.
pub fn maker(error: &PackError) -> Option<&MakeError> {
    match error {
        SpoolError::Maker(error) => Some(error),
        _ => None,
    }
}
