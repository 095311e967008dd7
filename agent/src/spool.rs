//! A cache of files that are made once, read by many while they grow, and kept while there is room.
//!
//! Whoever asks for a file that is there, or being made, reads that one; otherwise it is made by a task of its own, not by
//! the first client: clients come and go, and only when the last one has gone is an unfinished file given up.
//!
//! Three kinds of files take room: *kept* ones, which the next request may read; *growing* ones; and *pinned* ones, which were
//! evicted and are still read. Kept files have a budget in bytes and in number; the least recently used leave first, those
//! that nobody reads before others, and none has a descriptor open unless somebody reads it. While more than the budget is
//! growing and pinned, new work waits; beyond twice as much the slowest reader is cut ([`ledger`]).

mod disk;
mod error;
mod index;
mod ledger;
mod reader;
mod sink;

use std::{
    collections::HashMap,
    fs,
    hash::Hash,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

pub use error::SpoolError;
pub use ledger::{NoRoom, Tally, Usage};
pub(crate) use reader::{CHUNK, read_at};
pub use reader::{Follower, read_file};
pub use sink::{Growth, Sink};

use crate::{
    files::{blocking, make_private, remove_tree},
    metrics::{Lookup, Metrics},
};
use disk::{crowded, discard, fill, remove, whole};
use index::{Found, Growing, Index, Kept};
use ledger::{Charge, Ledger, OpenFile, Part};
use reader::Progress;

/// How often files that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// What a spool may keep.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of kept files.
    pub bytes: u64,
    /// Kept files.
    pub files: usize,
    /// Files that nobody used for this long leave even where there is room.
    pub age: Option<Duration>,
}

/// Gives a whole file its final name, if it is to be kept. May block.
pub type Naming = Box<dyn FnOnce(&Path) -> io::Result<Option<PathBuf>> + Send>;

/// What becomes of a whole file.
pub enum Keep {
    /// It is shared while it grows, and not kept.
    Nothing,
    /// It is kept under the name that this gives the file at the path, if it gives one.
    As(Naming),
}

/// The cache. Cheap to clone.
pub struct Spool<K: Hash + Eq, E> {
    inner: Arc<Inner<K, E>>,
}

impl<K: Hash + Eq, E> Clone for Spool<K, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<K: Hash + Eq, E> {
    dir: PathBuf,
    bounds: Bounds,
    ledger: Arc<Ledger>,
    next: AtomicU64,
    index: Mutex<Index<K, E>>,
}

/// Whether the request that begins a file waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Yes,
    Ahead,
}

impl<K, E> Spool<K, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// An empty cache called `name` in metrics. Files grow in `dir`, which is emptied.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(name: &'static str, dir: &Path, bounds: Bounds, metrics: &Metrics) -> io::Result<Self> {
        remove_tree(dir)?;
        make_private(dir)?;
        let index = Index { growing: HashMap::new(), kept: LruCache::unbounded() };
        let inner = Inner {
            dir: dir.into(),
            bounds,
            ledger: Ledger::new(name, bounds.bytes, metrics),
            next: AtomicU64::new(0),
            index: Mutex::new(index),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes up a whole file of an earlier process; the last one taken up counts as the last used.
    pub fn adopt(&self, key: K, path: PathBuf, length: u64) {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let charge = Charge::new(&self.inner.ledger, Part::Kept, length);
        self.keep(&mut self.inner.index.lock(), key, number, path, charge, length, true);
    }

    /// What the files take.
    pub fn usage(&self) -> Usage {
        self.inner.ledger.usage()
    }

    /// How many bytes kept files may take.
    pub fn budget(&self) -> u64 {
        self.inner.ledger.budget()
    }

    /// Bounds the kept files anew, as the disk has room.
    pub fn set_budget(&self, bytes: u64) {
        self.inner.ledger.set_budget(bytes.min(self.inner.bounds.bytes));
        remove(self.evict(&mut self.inner.index.lock()));
    }

    /// Evicts at least `need` bytes of what nobody reads, the least recently used first, as far as there are so many;
    /// returns how many went.
    pub async fn shrink(&self, need: u64) -> u64 {
        let (mut freed, mut paths) = (0, Vec::new());
        {
            let mut index = self.inner.index.lock();
            let idle = index.kept.iter().rev().filter(|(_, kept)| !kept.is_read());
            let mut chosen = Vec::new();
            for (key, kept) in idle {
                if freed >= need {
                    break;
                }
                freed += kept.length;
                chosen.push(key.clone());
            }
            paths.extend(chosen.iter().filter_map(|key| index.kept.pop(key)).map(Kept::evict));
        }
        let _ = blocking(move || {
            discard(&paths);
            Ok(())
        })
        .await;
        freed
    }

    /// Evicts what nobody has used for too long, again and again, for ever.
    pub async fn sweep(self) {
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            remove(self.evict(&mut self.inner.index.lock()));
        }
    }

    /// Whether the whole file is here, with its length; that counts as a use.
    pub fn holds(&self, key: &K) -> Option<u64> {
        let mut index = self.inner.index.lock();
        let kept = index.kept.get_mut(key)?;
        kept.used = Instant::now();
        Some(kept.length)
    }

    /// The whole or growing file.
    pub async fn get(&self, key: &K) -> Option<Follower<E>> {
        loop {
            let found = self.find(&mut self.inner.index.lock(), key)?;
            match found {
                Found::Follower(follower) => return Some(follower),
                Found::Closed { number, path, length, charge, first } => {
                    let opened = blocking(move || {
                        let file = fs::File::open(&path)?;
                        Ok((file.metadata()?.len(), file))
                    });
                    match opened.await {
                        Ok((there, file)) if there == length => {
                            return Some(self.opened(key, number, file, length, charge, first));
                        }
                        Err(error) if crowded(&error) => {
                            tracing::warn!(%error, "a kept file cannot be opened now");
                            return None;
                        }
                        // Evicted a moment ago, removed by somebody else, or cut short by the disk.
                        _ => self.remove(key, number),
                    }
                }
            }
        }
    }

    /// The file called `key`: the kept or growing one, or a new one that `make` fills.
    ///
    /// `make` runs in a task of its own, once there is room, and is dropped when nobody wants the file any more.
    pub async fn get_or_make<F>(
        &self,
        key: K,
        keep: Keep,
        make: impl FnOnce(Sink<E>) -> F + Send + 'static,
    ) -> Follower<E>
    where
        F: Future<Output = Result<u64, E>> + Send + 'static,
    {
        if let Some(follower) = self.get(&key).await {
            return follower;
        }
        let mut index = self.inner.index.lock();
        // Another may have been as quick; what is kept but cannot be opened is made again.
        match index.growing.contains_key(&key).then(|| self.find(&mut index, &key)).flatten() {
            Some(Found::Follower(follower)) => follower,
            _ => self.begin(&mut index, key, keep, Asked::Yes, make),
        }
    }

    /// Makes the file called `key` before anyone asks for it; `None` if it is there or being made.
    pub fn make_ahead<F>(
        &self,
        key: K,
        keep: Keep,
        make: impl FnOnce(Sink<E>) -> F + Send + 'static,
    ) -> Option<Follower<E>>
    where
        F: Future<Output = Result<u64, E>> + Send + 'static,
    {
        let mut index = self.inner.index.lock();
        let there = index.kept.contains(&key) || index.growing.get(&key).is_some_and(Growing::is_wanted);
        (!there).then(|| self.begin(&mut index, key, keep, Asked::Ahead, make))
    }

    /// Lets a whole file go that was made ahead, if nobody has asked for it since; says whether it went.
    pub fn discard_unasked(&self, key: &K) -> bool {
        let mut index = self.inner.index.lock();
        let unasked = index.kept.peek(key).is_some_and(|kept| !kept.asked);
        let gone = unasked.then(|| index.kept.pop(key)).flatten();
        drop(index);
        let went = gone.is_some();
        remove(gone.into_iter().map(Kept::evict).collect());
        went
    }

    /// Lets a whole file go.
    pub fn discard(&self, key: &K) {
        let gone = self.inner.index.lock().kept.pop(key);
        remove(gone.into_iter().map(Kept::evict).collect());
    }

    /// Lets go of all files whose keys `of` picks.
    pub fn discard_all(&self, of: impl Fn(&K) -> bool) {
        let mut index = self.inner.index.lock();
        // What is growing is not kept once it is whole.
        index.growing.retain(|key, _| !of(key));
        let keys: Vec<K> = index.kept.iter().map(|(key, _)| key).filter(|key| of(key)).cloned().collect();
        let gone = keys.iter().filter_map(|key| index.kept.pop(key)).map(Kept::evict).collect();
        drop(index);
        remove(gone);
    }

    /// Counts as a use.
    fn find(&self, index: &mut Index<K, E>, key: &K) -> Option<Found<E>> {
        if let Some(growing) = index.growing.get_mut(key) {
            let interest = growing.interest.upgrade();
            let follower = Follower {
                open: growing.open.clone(),
                progress: growing.progress.clone(),
                interest,
                lookup: Lookup::JOINED,
                first: !growing.asked,
            };
            if growing.is_wanted() {
                growing.asked = true;
                return Some(Found::Follower(follower));
            }
            // Its last reader has just gone: it is about to be given up.
            return None;
        }
        let damaged = index.kept.peek(key)?.charge.is_damaged();
        if damaged {
            tracing::warn!("a kept file is damaged; it is made again");
            remove(index.kept.pop(key).into_iter().map(Kept::evict).collect());
            return None;
        }
        let kept = index.kept.get_mut(key)?;
        let first = !kept.asked;
        (kept.used, kept.asked) = (Instant::now(), true);
        let (number, length, charge) = (kept.number, kept.length, kept.charge.clone());
        Some(match kept.open.upgrade() {
            Some(open) => Found::Follower(whole(open, length, first)),
            None => Found::Closed { number, path: kept.path.clone(), length, charge, first },
        })
    }

    /// A kept file that has been opened; who asks meanwhile reads the same one.
    fn opened(
        &self,
        key: &K,
        number: u64,
        file: fs::File,
        length: u64,
        charge: Arc<Charge>,
        first: bool,
    ) -> Follower<E> {
        let open = Arc::new(OpenFile { file: OnceLock::from(Arc::new(file)), charge });
        let mut index = self.inner.index.lock();
        if let Some(kept) = index.kept.peek_mut(key).filter(|kept| kept.number == number) {
            match kept.open.upgrade() {
                Some(theirs) => return whole(theirs, length, first),
                None => kept.open = Arc::downgrade(&open),
            }
        }
        whole(open, length, first)
    }

    /// Forgets a kept file that is not as it should be.
    fn remove(&self, key: &K, number: u64) {
        let mut index = self.inner.index.lock();
        if index.kept.peek(key).is_some_and(|kept| kept.number == number) {
            tracing::warn!("a kept file is gone or shorter than it was; it is made again");
            let gone = index.kept.pop(key).inspect(|kept| kept.charge.spoil());
            let gone = gone.into_iter().map(Kept::evict).collect();
            drop(index);
            remove(gone);
        }
    }

    fn begin<F>(
        &self,
        index: &mut Index<K, E>,
        key: K,
        keep: Keep,
        asked: Asked,
        make: impl FnOnce(Sink<E>) -> F + Send + 'static,
    ) -> Follower<E>
    where
        F: Future<Output = Result<u64, E>> + Send + 'static,
    {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.dir.join(number.to_string());
        let charge = Charge::new(&self.inner.ledger, Part::Growing, 0);
        let open = Arc::new(OpenFile { file: OnceLock::new(), charge: charge.clone() });
        let (sender, progress) = watch::channel(Progress { length: 0, announced: None, end: None });
        let sender = Arc::new(sender);
        let unwanted = CancellationToken::new();
        let interest = Arc::new(unwanted.clone().drop_guard());
        let growing = Growing {
            number,
            open: open.clone(),
            progress: progress.clone(),
            interest: Arc::downgrade(&interest),
            asked: asked == Asked::Yes,
        };
        // One that was given up ends by itself.
        index.growing.insert(key.clone(), growing);
        let follower = Follower {
            open: open.clone(),
            progress,
            interest: Some(interest),
            lookup: Lookup::MISS,
            first: false,
        };
        let spool = self.clone();
        tokio::spawn(async move {
            let growth = Growth { progress: sender.clone(), charge: charge.clone() };
            let made = tokio::select! {
                made = fill(&path, &open, growth, make) => made,
                () = unwanted.cancelled() => Err(SpoolError::GivenUp),
            };
            let whole = made.as_ref().ok().copied();
            if let Some(length) = whole {
                charge.grown(length);
            }
            sender.send_modify(|progress| {
                progress.length = whole.unwrap_or(progress.length);
                progress.end = Some(made.map(drop));
            });
            drop(open);
            let (from, policy) = (path.clone(), whole.map_or(Keep::Nothing, |_| keep));
            let placed = blocking(move || match policy {
                Keep::Nothing => Ok(None),
                Keep::As(place) => place(&from),
            });
            let placed = placed.await.unwrap_or_else(|error| {
                tracing::warn!(%error, "a whole file cannot be kept");
                None
            });
            spool.settle(&key, number, path, placed.zip(whole), charge);
        });
        follower
    }

    /// A file is no longer growing: it is kept, or goes when its readers have gone.
    fn settle(
        &self,
        key: &K,
        number: u64,
        path: PathBuf,
        placed: Option<(PathBuf, u64)>,
        charge: Arc<Charge>,
    ) {
        let mut index = self.inner.index.lock();
        // Another one may be growing by now, for this one was given up.
        let mine = index.growing.get(key).is_some_and(|growing| growing.number == number);
        let ended = if mine { index.growing.remove(key) } else { None };
        let gone = match placed.filter(|(placed, _)| mine || *placed != path) {
            Some((placed, length)) => {
                charge.to(Part::Kept);
                let asked = ended.as_ref().is_none_or(|growing| growing.asked);
                self.keep(&mut index, key.clone(), number, placed, charge, length, asked);
                if let (Some(kept), Some(ended)) = (index.kept.peek_mut(key), &ended) {
                    kept.open = Arc::downgrade(&ended.open);
                }
                self.evict(&mut index)
            }
            None => {
                charge.to(Part::Pinned);
                vec![path.into()]
            }
        };
        drop(index);
        remove(gone);
    }

    #[expect(clippy::too_many_arguments, reason = "one for each fact of the entry")]
    fn keep(
        &self,
        index: &mut Index<K, E>,
        key: K,
        number: u64,
        path: PathBuf,
        charge: Arc<Charge>,
        length: u64,
        asked: bool,
    ) {
        let kept = Kept {
            number,
            path: path.into(),
            length,
            used: Instant::now(),
            asked,
            open: Weak::new(),
            charge,
        };
        let name = kept.path.clone();
        let before = index.kept.put(key, kept).map(Kept::evict);
        // A file that takes the place of another under the same name has replaced it already.
        remove(before.into_iter().filter(|before| *before != name).collect());
    }

    /// Takes out of the index what is too much or too old; returns the paths to remove.
    fn evict(&self, index: &mut Index<K, E>) -> Vec<Arc<Path>> {
        let mut gone = Vec::new();
        let old = |kept: &Kept| self.inner.bounds.age.is_some_and(|age| kept.used.elapsed() > age);
        while index.kept.peek_lru().is_some_and(|(_, kept)| old(kept)) {
            gone.extend(index.kept.pop_lru().map(|(_, kept)| kept.evict()));
        }
        let over = |index: &Index<K, E>| {
            let much = self.inner.ledger.usage().kept.bytes > self.budget();
            much || index.kept.len() > self.inner.bounds.files
        };
        while over(index) {
            // Room comes back at once where nobody reads.
            let idle = index.kept.iter().rev().find(|(_, kept)| !kept.is_read());
            let Some(key) = idle.or_else(|| index.kept.peek_lru()).map(|(key, _)| key.clone()) else { break };
            gone.extend(index.kept.pop(&key).map(Kept::evict));
        }
        gone
    }
}

#[cfg(test)]
mod tests;
