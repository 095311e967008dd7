//! Who uses a mirror: when it was last asked for, and who reads its files now.
//!
//! Whoever reads holds a [`Reading`] from before it looks whether the data is there. The task takes the data out of the
//! view first and counts the readers then: so either the reader sees that the data is gone, or the task sees the reader.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

/// In a mirror's directory: its time of change says when the mirror was last asked for.
const USED: &str = "tarn-used";

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Demand(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Unix time.
    used: AtomicU64,
    readers: AtomicUsize,
}

impl Demand {
    /// Somebody uses it now.
    pub fn touch(&self) {
        self.used_at(now());
    }

    /// Somebody used it then.
    fn used_at(&self, second: u64) {
        let _ = self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |known| Some(later(known, second, now())));
    }

    /// Last use, in Unix time, never after now; 0 before the first.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed).min(now())
    }

    /// Begins to read.
    pub fn read(&self) -> Reading {
        self.0.readers.fetch_add(1, Ordering::SeqCst);
        Reading(self.clone())
    }

    /// Whether anyone reads.
    pub fn is_read(&self) -> bool {
        self.0.readers.load(Ordering::SeqCst) > 0
    }

    /// Takes up what an earlier process noted in the mirror at `dir`.
    pub fn load(&self, dir: &Path) {
        if let Ok(time) = fs::metadata(dir.join(USED)).and_then(|meta| meta.modified()) {
            self.used_at(seconds(time));
        }
    }

    /// Notes in the mirror at `dir` when it was last used, for the next process.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&self, dir: &Path) -> std::io::Result<()> {
        let file = fs::File::options().create(true).truncate(false).write(true).open(dir.join(USED))?;
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(self.used()))
    }
}

/// Somebody reads; dropped when done.
#[derive(Debug)]
pub struct Reading(Demand);

impl Clone for Reading {
    fn clone(&self) -> Self {
        self.0.read()
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.0.readers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Now, in Unix time.
pub fn now() -> u64 {
    seconds(SystemTime::now())
}

/// The later of two uses. A use after `now` was noted while the clock was ahead: it counts as a use now, so that it
/// protects a mirror no longer than any other.
fn later(known: u64, second: u64, now: u64) -> u64 {
    known.min(now).max(second.min(now))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_ahead_protects_nothing_longer_than_a_use_now() {
        let table = [((0, 5), 5), ((5, 3), 5), ((900, 3), 100), ((3, 900), 100), ((900, 800), 100)];
        for ((known, second), expected) in table {
            assert_eq!(later(known, second, 100), expected, "{known}, {second}");
        }
        let (dir, demand) = (tempfile::tempdir().unwrap(), Demand::default());
        let file = fs::File::create(dir.path().join(USED)).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(365 * 24 * 3600)).unwrap();
        let before = now();
        demand.load(dir.path());
        assert!((before..=now()).contains(&demand.used()), "{}", demand.used());
    }

    #[test]
    fn the_last_use_outlives_the_process_and_readers_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let demand = Demand::default();
        demand.used_at(1_700_000_000);
        demand.used_at(1_600_000_000);
        demand.save(dir.path()).unwrap();
        let next = Demand::default();
        next.load(dir.path());
        assert_eq!(next.used(), 1_700_000_000);
        let one = demand.read();
        let two = one.clone();
        drop(one);
        assert!(demand.is_read());
        drop(two);
        assert!(!demand.is_read());
    }
}
