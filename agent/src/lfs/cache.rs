//! Objects on the disk: kept while there is room, least recently used first to go, never one that is being read.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tarn_crds::repo::RepoId;
use tokio_util::sync::CancellationToken;

use super::{
    FetchError,
    intake::Intake,
    reading::{Failure, Lease, Reading},
};
use crate::{
    files::remove_tree,
    metrics::{Lookup, Metrics},
    protocol::lfs::{LfsOid, Object},
    tail::{Blame, Tail, tail},
};

/// How exact the time of last use is on the disk, where it counts after a restart.
const TOUCH: Duration = Duration::from_secs(60);

/// How much is left of the budget once it was exceeded, in hundredths: so that not every new object searches for the
/// oldest ones.
const LEFT: u64 = 95;

/// The cache. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    incoming: PathBuf,
    budget: u64,
    metrics: Metrics,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    whole: HashMap<(RepoId, LfsOid), Whole>,
    growing: HashMap<(RepoId, Object), Growing>,
    bytes: u64,
}

struct Whole {
    bytes: u64,
    used: SystemTime,
    /// Lives as long as someone reads the object.
    readers: Weak<Lease>,
}

struct Growing {
    number: u64,
    tail: Tail,
    failure: Failure,
    /// Lives as long as someone reads the object.
    readers: Weak<Lease>,
}

impl Cache {
    pub(super) fn open(root: PathBuf, incoming: PathBuf, budget: u64, metrics: Metrics) -> io::Result<Self> {
        remove_tree(&incoming)?;
        fs::create_dir_all(&incoming)?;
        fs::create_dir_all(&root)?;
        let mut state = State::default();
        find_repositories(&root, &root, &mut state)?;
        let (next, state) = (AtomicU64::new(0), Mutex::new(state));
        let cache = Self { shared: Arc::new(Shared { root, incoming, budget, metrics, next, state }) };
        cache.evict(&mut cache.lock());
        Ok(cache)
    }

    pub(super) fn dir(&self, repo: &RepoId) -> PathBuf {
        self.shared.root.join(repo.dir())
    }

    fn path(&self, repo: &RepoId, oid: LfsOid) -> PathBuf {
        self.dir(repo).join(oid.path())
    }

    fn incoming(&self, number: u64) -> PathBuf {
        self.shared.incoming.join(number.to_string())
    }

    /// Where an object is that is whole, or will soon be: it may be renamed between two looks.
    fn places(&self, repo: &RepoId, object: Object, number: u64) -> Vec<PathBuf> {
        let place = self.path(repo, object.oid);
        vec![place.clone(), self.incoming(number), place]
    }

    /// Whether the object is here; that counts as a use.
    pub(super) fn holds(&self, repo: &RepoId, object: Object) -> bool {
        let mut state = self.lock();
        let whole = state.whole.get_mut(&(repo.clone(), object.oid));
        whole
            .filter(|whole| whole.bytes == object.bytes)
            .map(|whole| whole.used = SystemTime::now())
            .is_some()
    }

    pub(super) fn kept(&self, repo: &RepoId, oid: LfsOid) -> Option<Reading> {
        self.kept_in(&mut self.lock(), repo, oid)
    }

    fn kept_in(&self, state: &mut State, repo: &RepoId, oid: LfsOid) -> Option<Reading> {
        let key = (repo.clone(), oid);
        let whole = state.whole.get_mut(&key)?;
        let path = self.path(repo, oid);
        let opened = fs::File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let file = match opened {
            Ok((length, file)) if length == whole.bytes => file,
            _ => {
                tracing::warn!(%repo, %oid, "a kept LFS object is gone or damaged; it is fetched again");
                state.bytes = state.bytes.saturating_sub(whole.bytes);
                state.whole.remove(&key);
                return None;
            }
        };
        let now = SystemTime::now();
        if now.duration_since(whole.used).unwrap_or_default() >= TOUCH {
            // Where it fails, the object only looks older after a restart.
            let _ = file.set_modified(now);
        }
        whole.used = now;
        let lease = whole.readers.upgrade().unwrap_or_default();
        whole.readers = Arc::downgrade(&lease);
        let (bytes, tail) = (whole.bytes, Tail::whole(file, whole.bytes));
        Some(Reading { bytes, tail, failure: Failure::default(), places: vec![path], lease })
    }

    /// The object: the kept or growing one, or a new one that `fill` writes. It runs in a task of its own, and is dropped
    /// when the last reader has gone.
    ///
    /// # Errors
    /// The file for a new object cannot be made: a full disk, above all.
    pub(super) fn open_or_fill<F>(
        &self,
        repo: &RepoId,
        object: Object,
        fill: impl FnOnce(Intake) -> F,
    ) -> io::Result<Reading>
    where
        F: Future<Output = Result<(), FetchError>> + Send + 'static,
    {
        let mut state = self.lock();
        let count = |lookup| self.shared.metrics.lfs_lookups.get_or_create(&lookup).inc();
        if let Some(kept) = self.kept_in(&mut state, repo, object.oid) {
            count(Lookup::HIT);
            return Ok(kept);
        }
        let key = (repo.clone(), object);
        if let Some(growing) = state.growing.get(&key)
            && let Some(lease) = growing.readers.upgrade()
            && growing.failure.get().is_none()
        {
            count(Lookup::JOINED);
            let (tail, failure) = (growing.tail.clone(), growing.failure.clone());
            let places = self.places(repo, object, growing.number);
            return Ok(Reading { bytes: object.bytes, tail, failure, places, lease });
        }
        count(Lookup::MISS);
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.incoming(number);
        let file = fs::File::options().create_new(true).append(true).open(&path)?;
        let (writer, tail) = tail(fs::File::open(&path)?);
        let unwanted = CancellationToken::new();
        let lease = Arc::new(Lease { _interest: Some(unwanted.clone().drop_guard()) });
        let failure = Failure::default();
        let growing =
            Growing { number, tail: tail.clone(), failure: failure.clone(), readers: Arc::downgrade(&lease) };
        state.growing.insert(key.clone(), growing);
        drop(state);
        let writer = Arc::new(writer);
        let filling = fill(Intake::new(object, file, Arc::clone(&writer)));
        let (own, why) = (self.clone(), failure.clone());
        tokio::spawn(async move {
            let filled = tokio::select! {
                filled = filling => filled,
                () = unwanted.cancelled() => Err(FetchError::GivenUp),
            };
            // Readers look for the reason when the file ends.
            let filled = filled.map_err(|error| drop(why.set(Arc::new(error))));
            match (Arc::into_inner(writer), &filled) {
                (Some(writer), Ok(())) => writer.finish(object.bytes),
                (Some(writer), Err(())) => writer.fail("the LFS object cannot be had", Blame::Request),
                // Its readers fail when the last one who could write lets go.
                (None, _) => {}
            }
            if let Some(error) = why.get().filter(|error| !matches!(***error, FetchError::GivenUp)) {
                tracing::warn!(repo = %key.0, oid = %object.oid, %error, "an LFS object cannot be had");
            }
            own.filled(key, number, path, filled.is_ok()).await;
        });
        let places = self.places(repo, object, number);
        Ok(Reading { bytes: object.bytes, tail, failure, places, lease })
    }

    /// Keeps an object that is whole, removes any other.
    async fn filled(&self, key: (RepoId, Object), number: u64, path: PathBuf, whole: bool) {
        let (from, to) = (path.clone(), self.path(&key.0, key.1.oid));
        let placed = whole && {
            let placed = tokio::task::spawn_blocking(move || place(&from, &to)).await;
            let placed = placed.map_err(io::Error::other).and_then(|placed| placed);
            placed.inspect_err(|error| tracing::warn!(%error, "an LFS object cannot be kept")).is_ok()
        };
        let mut state = self.lock();
        let mut readers = Weak::new();
        if let Some(growing) = state.growing.remove(&key) {
            // Another one may be growing by now, for this one was given up.
            if growing.number == number {
                readers = growing.readers;
            } else {
                state.growing.insert(key.clone(), growing);
            }
        }
        if !placed {
            discard(&path);
            return;
        }
        let (repo, Object { oid, bytes }) = key;
        let whole = Whole { bytes, used: SystemTime::now(), readers };
        if state.whole.insert((repo, oid), whole).is_none() {
            state.bytes = state.bytes.saturating_add(bytes);
        }
        self.evict(&mut state);
    }

    pub(super) fn forget(&self, repo: &RepoId) {
        let mut state = self.lock();
        state.whole.retain(|(of, _), _| of != repo);
        state.bytes = state.whole.values().map(|whole| whole.bytes).sum();
        self.tell(&state);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    pub(super) fn shrink(&self, need: u64) -> u64 {
        let mut state = self.lock();
        let before = state.bytes;
        self.evict_to(&mut state, before.saturating_sub(need));
        before - state.bytes
    }

    fn evict(&self, state: &mut State) {
        let Shared { budget, .. } = *self.shared;
        if state.bytes > budget {
            self.evict_to(state, budget / 100 * LEFT);
        } else {
            self.tell(state);
        }
    }

    fn evict_to(&self, state: &mut State, left: u64) {
        if state.bytes > left {
            let idle = state.whole.iter().filter(|(_, whole)| whole.readers.strong_count() == 0);
            let mut idle: Vec<_> = idle.map(|(key, whole)| (whole.used, key.clone(), whole.bytes)).collect();
            idle.sort_unstable_by_key(|(used, ..)| *used);
            for (_, key, bytes) in idle {
                if state.bytes <= left {
                    break;
                }
                discard(&self.path(&key.0, key.1));
                state.whole.remove(&key);
                state.bytes = state.bytes.saturating_sub(bytes);
            }
        }
        self.tell(state);
    }

    fn tell(&self, state: &State) {
        self.shared.metrics.lfs_bytes.set(i64::try_from(state.bytes).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is made whole before anything that could panic.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a file that is whole its final name.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    fs::File::open(from)?.sync_data()?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::rename(from, to)
}

fn discard(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "an LFS object cannot be removed");
    }
}

/// Looks for repositories: the first directory on the way down whose name ends in `.git` is one.
fn find_repositories(root: &Path, dir: &Path, state: &mut State) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        if !path.as_os_str().as_encoded_bytes().ends_with(b".git") {
            find_repositories(root, &path, state)?;
        } else if let Some(repo) = path.strip_prefix(root).ok().and_then(|dir| RepoId::from_dir(dir).ok()) {
            find_objects(&repo, &path, &path, state)?;
        }
    }
    Ok(())
}

/// Takes up the objects of one repository: files whose place says that they are one.
fn find_objects(repo: &RepoId, root: &Path, dir: &Path, state: &mut State) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, meta) = (entry.path(), entry.metadata()?);
        if meta.is_dir() {
            find_objects(repo, root, &path, state)?;
            continue;
        }
        let oid = entry.file_name().to_str().and_then(LfsOid::parse);
        let Some(oid) = oid.filter(|oid| root.join(oid.path()) == path) else { continue };
        let whole = Whole { bytes: meta.len(), used: meta.modified()?, readers: Weak::new() };
        state.bytes = state.bytes.saturating_add(whole.bytes);
        state.whole.insert((repo.clone(), oid), whole);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
