//! Answers to `fetch` requests: each made once, followed by all who want it, kept while there is room.
//!
//! An answer is a file that grows while it is made ([`crate::tail`]); whoever asks for the same thing
//! meanwhile, or later, reads that file. Its maker is a task of its own, not the first client: clients
//! come and go, and only when the last one has gone is an unfinished answer given up. Object content
//! never changes, so a kept answer never goes stale; it goes when room is needed, least recently used
//! first, or after [`MAX_AGE`] without use.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    files::remove_tree,
    metrics::{Ahead, Lookup, Metrics},
    protocol::{fetch::Key, pktline},
    tail::{Tail, TailError, Writer, tail},
};

/// Answers nobody asked for in this long go even where there is room.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// How much of an answer is searched for the start of its pack; shallow boundaries come before it.
const SEARCHED: usize = 1024 * 1024;

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Packs {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    budget: u64,
    metrics: Metrics,
    next: AtomicU64,
    entries: Mutex<HashMap<Key, Entry>>,
}

struct Entry {
    number: u64,
    path: PathBuf,
    tail: Tail,
    /// Lives as long as someone reads the unfinished answer.
    interest: Weak<DropGuard>,
    /// Length once whole.
    bytes: Option<u64>,
    used: Instant,
    /// Made before anyone asked, and nobody has asked yet.
    ahead: bool,
}

impl Entry {
    /// `None` for an unfinished answer whose last reader has just gone: it is about to be given up.
    fn shelf(&self) -> Option<Shelf> {
        let interest = self.interest.upgrade();
        // It may be whole since a moment ago, and not yet looked at for what becomes of it.
        if interest.is_none() && self.tail.length().is_none() {
            return None;
        }
        let lookup = if self.bytes.is_some() { Lookup::HIT } else { Lookup::JOINED };
        Some(Shelf { tail: self.tail.clone(), lookup, interest })
    }
}

/// An answer to read.
#[derive(Debug)]
pub struct Shelf {
    tail: Tail,
    lookup: Lookup,
    /// Keeps the maker going; nothing once the answer is whole.
    interest: Option<Arc<DropGuard>>,
}

/// What becomes of a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is kept if it holds a pack.
    Packs,
    /// It is kept.
    Whole,
    /// It is shared while it grows, and not kept: it may rest on more than objects.
    Nothing,
}

/// Where a maker puts its answer.
pub struct Spool {
    /// The file, empty, to append to.
    pub file: fs::File,
    /// Who says how far it has grown.
    pub writer: Writer,
    /// Cancelled when nobody wants the answer any more.
    pub unwanted: CancellationToken,
}

impl Shelf {
    /// How the request met the cache.
    pub fn lookup(&self) -> Lookup {
        self.lookup.clone()
    }

    /// The answer's length, once it is whole.
    pub fn length(&self) -> Option<u64> {
        self.tail.length()
    }

    /// Waits until the answer is whole, and says how long it is.
    ///
    /// # Errors
    /// Its maker failed.
    pub async fn whole(self) -> Result<u64, TailError> {
        self.tail.ended().await.map(|()| self.tail.length().unwrap_or(0))
    }

    /// The answer from its first byte, as it grows.
    pub fn read(self) -> impl Stream<Item = Result<Bytes, TailError>> + Send {
        let Self { tail, interest, .. } = self;
        tail.read().inspect(move |_| {
            let _held = &interest;
        })
    }
}

impl Packs {
    /// An empty cache in `dir`, which is emptied, of at most `budget` bytes of whole answers.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(dir: &Path, budget: u64, metrics: Metrics) -> io::Result<Self> {
        remove_tree(dir)?;
        fs::create_dir_all(dir)?;
        let (next, entries) = (AtomicU64::new(0), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { dir: dir.into(), budget, metrics, next, entries }) })
    }

    /// The answer called `key`: the kept or growing one, or a new one that `make` is to fill.
    ///
    /// `make` gets a [`Spool`] and must end in [`Writer::finish`] or [`Writer::fail`]; it is to stop when
    /// the spool is unwanted. It runs in a task of its own. An answer without a pack, such as a round of
    /// negotiation, is shared while it grows but not kept.
    ///
    /// # Errors
    /// The file for a new answer cannot be made: a full disk, above all.
    pub fn get_or_make<F>(&self, key: Key, keep: Keep, make: impl FnOnce(Spool) -> F) -> io::Result<Shelf>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&key)
            && let Some(shelf) = entry.shelf()
        {
            entry.used = Instant::now();
            if std::mem::take(&mut entry.ahead) {
                self.shared.metrics.packs_ahead.get_or_create(&Ahead::USED).inc();
            }
            self.shared.metrics.pack_lookups.get_or_create(&shelf.lookup).inc();
            return Ok(shelf);
        }
        self.shared.metrics.pack_lookups.get_or_create(&Lookup::MISS).inc();
        self.begin(&mut entries, key, keep, false, make)
    }

    /// Makes the answer called `key` before anyone asks for it; `None` if it is there or being made.
    ///
    /// `make` is as in [`Self::get_or_make`], and the answer kept if it holds a pack. Who asks meanwhile follows it, and it is
    /// given up when neither they nor the holder of the [`Shelf`] are left.
    ///
    /// # Errors
    /// The file for the answer cannot be made: a full disk, above all.
    pub fn make_ahead<F>(&self, key: Key, make: impl FnOnce(Spool) -> F) -> io::Result<Option<Shelf>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut entries = self.lock();
        if entries.get(&key).and_then(Entry::shelf).is_some() {
            return Ok(None);
        }
        self.begin(&mut entries, key, Keep::Packs, true, make).map(Some)
    }

    /// Lets an answer go that was made before anyone asked, if nobody ever has.
    pub fn discard_unused(&self, key: &Key) {
        let mut entries = self.lock();
        if entries.get(key).is_some_and(|entry| entry.ahead && entry.bytes.is_some()) {
            entries.remove(key).iter().for_each(|entry| discard(&entry.path));
            self.shared.metrics.packs_ahead.get_or_create(&Ahead::UNUSED).inc();
            self.evict(&mut entries);
        }
    }

    /// How long all kept answers may be together, in bytes.
    pub fn budget(&self) -> u64 {
        self.shared.budget
    }

    fn begin<F>(
        &self,
        entries: &mut HashMap<Key, Entry>,
        key: Key,
        keep: Keep,
        ahead: bool,
        make: impl FnOnce(Spool) -> F,
    ) -> io::Result<Shelf>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.dir.join(format!("{number}.answer"));
        let file = fs::File::options().create_new(true).append(true).open(&path)?;
        let (writer, tail) = tail(fs::File::open(&path)?);
        let unwanted = CancellationToken::new();
        let interest = Arc::new(unwanted.clone().drop_guard());
        let made = make(Spool { file, writer, unwanted });
        let entry = Entry {
            number,
            path,
            tail: tail.clone(),
            interest: Arc::downgrade(&interest),
            bytes: None,
            used: Instant::now(),
            ahead,
        };
        if let Some(given_up) = entries.insert(key, entry) {
            discard(&given_up.path);
        }
        let (packs, whole) = (self.clone(), tail.clone());
        tokio::spawn(async move {
            made.await;
            let length = if whole.ended().await.is_ok() { whole.length() } else { None };
            packs.made(key, number, length.filter(|_| keep != Keep::Nothing), keep);
        });
        Ok(Shelf { tail, lookup: Lookup::MISS, interest: Some(interest) })
    }

    /// Keeps or removes a finished answer.
    fn made(&self, key: Key, number: u64, length: Option<u64>, keep: Keep) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&key).filter(|entry| entry.number == number) else { return };
        match length {
            Some(length) if keep == Keep::Whole || holds_pack(&entry.path) => entry.bytes = Some(length),
            _ => {
                discard(&entry.path);
                entries.remove(&key);
            }
        }
        self.evict(&mut entries);
    }

    /// The length of all whole answers.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.shared.metrics.pack_bytes.get()).unwrap_or(0)
    }

    /// Lets the least recently used answers go until `bytes` are left at most.
    pub fn shrink(&self, bytes: u64) {
        self.evict_to(&mut self.lock(), bytes);
    }

    fn evict(&self, entries: &mut HashMap<Key, Entry>) {
        self.evict_to(entries, self.shared.budget);
    }

    fn evict_to(&self, entries: &mut HashMap<Key, Entry>, budget: u64) {
        let mut whole: Vec<_> =
            entries.iter().filter_map(|(key, e)| Some((e.used, *key, e.bytes?))).collect();
        whole.sort_unstable_by(|a, b| b.cmp(a));
        let mut total = 0_u64;
        for (used, key, bytes) in whole {
            total = total.saturating_add(bytes);
            if total > budget || used.elapsed() > MAX_AGE {
                // Those who read it go on: the file lives until they are done.
                total -= bytes;
                if let Some(entry) = entries.remove(&key) {
                    discard(&entry.path);
                }
            }
        }
        self.shared.metrics.pack_bytes.set(i64::try_from(total).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        // Every change of the map is one call: a panic elsewhere leaves it whole.
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn discard(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, "a cached answer cannot be removed");
    }
}

/// Whether the answer at `path` has a `packfile` section.
fn holds_pack(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|file| {
        let searched = u64::try_from(SEARCHED).unwrap_or(u64::MAX);
        io::Read::read_to_end(&mut io::Read::take(file, searched), &mut start)
    });
    // The search may end inside a packet, hence map_while.
    read.is_ok()
        && pktline::Packets::new(&start)
            .map_while(Result::ok)
            .any(|packet| packet.line() == Some(b"packfile"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures_util::TryStreamExt;

    use super::*;

    fn packs(budget: u64) -> (tempfile::TempDir, Packs) {
        let dir = tempfile::tempdir().unwrap();
        let packs = Packs::new(&dir.path().join("packs"), budget, Metrics::new()).unwrap();
        (dir, packs)
    }

    fn answer(length: usize) -> Vec<u8> {
        let mut answer = b"000dpackfile\n".to_vec();
        pktline::write(&mut answer, &[&vec![1; length]]);
        answer
    }

    async fn read(shelf: Shelf) -> Result<Vec<u8>, TailError> {
        shelf
            .read()
            .try_fold(Vec::new(), |all, chunk| async move { Ok([all, chunk.to_vec()].concat()) })
            .await
    }

    async fn write(spool: Spool, content: Vec<u8>) {
        let Spool { mut file, writer, .. } = spool;
        file.write_all(&content).unwrap();
        writer.finish(u64::try_from(content.len()).unwrap());
    }

    fn never(_: Spool) -> std::future::Ready<()> {
        panic!("made twice")
    }

    #[tokio::test]
    async fn an_answer_is_made_once_and_kept() {
        let (_dir, packs) = packs(1 << 20);
        let content = answer(100);
        let made = packs.get_or_make([1; 32], Keep::Packs, |spool| write(spool, content.clone())).unwrap();
        let joined = packs.get_or_make([1; 32], Keep::Packs, never).unwrap();
        assert_eq!(read(made).await.unwrap(), content);
        assert_eq!(read(joined).await.unwrap(), content);
        assert_eq!(read(packs.get_or_make([1; 32], Keep::Packs, never).unwrap()).await.unwrap(), content);
    }

    #[tokio::test]
    async fn an_answer_made_ahead_is_there_for_the_first_who_asks_and_goes_if_nobody_does() {
        let (dir, packs) = packs(1 << 20);
        for key in [1, 2] {
            let made = packs.make_ahead([key; 32], |spool| write(spool, answer(9))).unwrap();
            assert_eq!(made.unwrap().whole().await.unwrap(), answer(9).len() as u64);
            settled(&packs).await;
        }
        assert!(packs.make_ahead([1; 32], never).unwrap().is_none());
        let shelf = packs.get_or_make([1; 32], Keep::Packs, never).unwrap();
        assert_eq!(shelf.lookup(), Lookup::HIT);
        for key in [1, 2] {
            packs.discard_unused(&[key; 32]);
        }
        let kept: Vec<u8> = packs.lock().keys().filter_map(|key| key.first().copied()).collect();
        assert_eq!(kept, [1]);
        assert_eq!(fs::read_dir(dir.path().join("packs")).unwrap().count(), 1);
        let count = |outcome| packs.shared.metrics.packs_ahead.get_or_create(&outcome).get();
        assert_eq!((count(Ahead::USED), count(Ahead::UNUSED)), (1, 1));
    }

    #[tokio::test]
    async fn an_answer_made_ahead_goes_on_for_who_joined_it() {
        let (_dir, packs) = packs(1 << 20);
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let slow = |spool: Spool| async move {
            tokio::select! {
                _ = gone => write(spool, answer(9)).await,
                () = spool.unwanted.cancelled() => {}
            }
        };
        let ahead = packs.make_ahead([1; 32], slow).unwrap().unwrap();
        let joined = packs.get_or_make([1; 32], Keep::Packs, never).unwrap();
        assert_eq!(joined.lookup(), Lookup::JOINED);
        drop(ahead);
        go.send(()).unwrap();
        assert_eq!(read(joined).await.unwrap(), answer(9));
    }

    #[tokio::test]
    async fn answers_without_a_pack_are_not_kept() {
        let (dir, packs) = packs(1 << 20);
        let shelf =
            packs.get_or_make([1; 32], Keep::Packs, |spool| write(spool, b"0008NAK\n0000".to_vec())).unwrap();
        read(shelf).await.unwrap();
        settled(&packs).await;
        assert_eq!(fs::read_dir(dir.path().join("packs")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_least_recently_used_go_first() {
        let (dir, packs) = packs(250);
        for key in [1, 2, 1, 3] {
            let shelf = packs.get_or_make([key; 32], Keep::Packs, |spool| write(spool, answer(80))).unwrap();
            read(shelf).await.unwrap();
            settled(&packs).await;
        }
        let kept: Vec<u8> = packs.lock().keys().filter_map(|key| key.first().copied()).collect();
        assert_eq!(kept.len(), 2);
        assert!(!kept.contains(&2), "{kept:?}");
        assert_eq!(fs::read_dir(dir.path().join("packs")).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn work_nobody_waits_for_is_given_up_and_can_begin_again() {
        let (_dir, packs) = packs(1 << 20);
        let stuck = |spool: Spool| async move {
            spool.unwanted.cancelled().await;
            spool.writer.fail("unwanted", crate::tail::Blame::File);
        };
        let first = packs.get_or_make([1; 32], Keep::Packs, stuck).unwrap();
        let second = packs.get_or_make([1; 32], Keep::Packs, never).unwrap();
        drop(first);
        assert_eq!(packs.lock().len(), 1);
        drop(second);
        let again = packs.get_or_make([1; 32], Keep::Packs, |spool| write(spool, answer(1))).unwrap();
        assert_eq!(read(again).await.unwrap(), answer(1));
        settled(&packs).await;
        assert!(packs.lock().get(&[1; 32]).unwrap().bytes.is_some());
    }

    /// Waits until no answer is growing.
    async fn settled(packs: &Packs) {
        while packs.lock().values().any(|entry| entry.bytes.is_none()) {
            tokio::task::yield_now().await;
        }
    }
}
