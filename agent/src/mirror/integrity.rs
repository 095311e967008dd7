//! Which mirror's files are to be compared with their checksums next, and why.
//!
//! A mirror is examined at once where git fails on it. One that answers are made from is examined soon after: git copies
//! packed objects to clients without a look at them. All others take turns, so that each is examined once in an interval.
//! What is due is decided by [`next`], a pure function.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tarn_crds::repo::RepoId;
use tokio::sync::{Notify, futures::Notified};

use crate::backoff::backoff;

/// A mirror that is in use is examined again after this at the earliest, …
const IN_USE: Duration = Duration::from_secs(10);
/// … and after so many times as long as that took: an examination reads all of the mirror.
const REST: u32 = 10;

/// A doubt that could not be resolved is heeded again after this: the mirror may have been about to be loaded.
const UNRESOLVED: Duration = Duration::from_secs(1);

/// A doubt that turned out to be none is heeded again after this, …
const FIRST_DOUBT: Duration = Duration::from_secs(60);
/// … each further one in a row twice as late, up to this: no client can make the agent read without end.
const LAST_DOUBT: Duration = Duration::from_secs(3600);

/// What is known of one mirror's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Since when the mirror is known.
    known: Instant,
    /// When they were last examined by this process.
    examined: Option<Instant>,
    /// When its turn comes among all mirrors.
    turn: Option<Instant>,
    /// How long that took.
    took: Duration,
    /// Bytes of answers made from them since.
    made: u64,
    /// Since when git's failures make them doubtful, and what it said first.
    doubt: Option<(Instant, String)>,
    /// Doubts in a row that were none.
    unfounded: u32,
    /// They are being examined.
    under_way: bool,
}

impl Standing {
    /// Of a mirror of which nothing is known at `now`.
    fn new(now: Instant) -> Self {
        Self {
            known: now,
            examined: None,
            turn: None,
            took: Duration::ZERO,
            made: 0,
            doubt: None,
            unfounded: 0,
            under_way: false,
        }
    }

    /// When they are to be examined because of `cause`; `None` where that does not apply.
    fn due(&self, cause: Cause) -> Option<Instant> {
        let again = |wait: Duration| self.examined.map_or(self.known, |at| at + wait.max(self.took * REST));
        match cause {
            _ if self.under_way => None,
            Cause::Doubt => {
                let (since, _) = self.doubt.as_ref()?;
                let heeded = match self.unfounded {
                    0 => *since,
                    count => again(backoff(FIRST_DOUBT, LAST_DOUBT, count, 1.0)),
                };
                Some(heeded.max(*since))
            }
            Cause::Use => (self.made > 0).then(|| again(IN_USE)),
            Cause::Age => self.turn,
        }
    }
}

/// Why a mirror's files are examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Git failed on them.
    Doubt,
    /// Answers were made from them.
    Use,
    /// It has been long.
    Age,
}

/// Which of `all` is due at `now` for one of `causes`, the first of these first; otherwise when to ask again.
///
/// Of several the one that is due longest comes first.
pub fn next<'a, K>(
    all: &(impl Iterator<Item = (K, &'a Standing)> + Clone),
    causes: &[Cause],
    now: Instant,
) -> Result<(K, Cause), Option<Instant>> {
    let mut earliest: Option<Instant> = None;
    for cause in causes {
        let due = all.clone().filter_map(|(key, standing)| Some((standing.due(*cause)?, key)));
        let Some((at, key)) = due.min_by_key(|(at, _)| *at) else { continue };
        if at <= now {
            return Ok((key, *cause));
        }
        earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
    }
    Err(earliest)
}

/// What is known of all mirrors' files: told from anywhere, cheap to clone.
#[derive(Clone, Default)]
pub struct Integrity(Arc<Inner>);

#[derive(Default)]
struct Inner {
    standings: Mutex<HashMap<RepoId, Standing>>,
    changed: Notify,
}

impl Integrity {
    /// Git failed on the mirror's files, which may be damaged. Doubts of one mirror are one.
    pub fn doubt(&self, id: &RepoId, said: &str) {
        let mut standings = self.0.standings.lock();
        let standing = standings.entry(id.clone()).or_insert_with(|| Standing::new(Instant::now()));
        if standing.doubt.is_none() {
            tracing::debug!(repo = %id, said, "git fails on the mirror; its files are examined");
            if standing.examined.is_none_or(|at| at.elapsed() > LAST_DOUBT) {
                standing.unfounded = 0;
            }
            standing.doubt = Some((Instant::now(), said.to_owned()));
            drop(standings);
            self.0.changed.notify_waiters();
        }
    }

    /// An answer of this length was made from the mirror's files.
    pub fn made(&self, id: &RepoId, bytes: u64) {
        let mut standings = self.0.standings.lock();
        let standing = standings.entry(id.clone()).or_insert_with(|| Standing::new(Instant::now()));
        let first = standing.made == 0;
        standing.made = standing.made.saturating_add(bytes.max(1));
        drop(standings);
        if first {
            self.0.changed.notify_waiters();
        }
    }

    /// Knows the mirrors that are on the disk, and forgets all others. The turn of one that had none comes when `turn`
    /// says.
    pub fn know(&self, on_disk: &HashSet<RepoId>, turn: impl Fn(&RepoId) -> Option<Instant>) {
        let mut standings = self.0.standings.lock();
        standings.retain(|id, standing| standing.under_way || on_disk.contains(id));
        for id in on_disk {
            let standing = standings.entry(id.clone()).or_insert_with(|| Standing::new(Instant::now()));
            if standing.turn.is_none() {
                standing.turn = turn(id);
            }
        }
        drop(standings);
        self.0.changed.notify_waiters();
    }

    /// Takes the mirror that is due for one of `causes`, and git's words where it is in doubt; otherwise says when to ask
    /// again. It is not due for anything before [`Self::examined`] is called.
    pub fn take(&self, causes: &[Cause]) -> Result<(RepoId, Cause, String), Option<Instant>> {
        let mut standings = self.0.standings.lock();
        let all = standings.iter().map(|(id, standing)| (id.clone(), standing));
        let (id, cause) = next(&all, causes, Instant::now())?;
        let standing = standings.entry(id.clone()).or_insert_with(|| Standing::new(Instant::now()));
        (standing.under_way, standing.made) = (true, 0);
        // A doubt that is raised from now on is another one.
        let said = standing.doubt.take().map(|(_, said)| said).unwrap_or_default();
        Ok((id, cause, said))
    }

    /// The mirror's files have been examined because of `cause`, which took so long. Its next turn comes after `interval`.
    pub fn examined(
        &self,
        id: &RepoId,
        cause: Cause,
        took: Duration,
        interval: Option<Duration>,
        damaged: bool,
    ) {
        let (now, mut standings) = (Instant::now(), self.0.standings.lock());
        if let Some(standing) = standings.get_mut(id) {
            (standing.under_way, standing.examined, standing.took) = (false, Some(now), took);
            standing.turn = interval.map(|interval| now + interval);
            match (damaged, cause) {
                // What failed is gone.
                (true, _) => (standing.unfounded, standing.doubt, standing.made) = (0, None, 0),
                (false, Cause::Doubt) => standing.unfounded = standing.unfounded.saturating_add(1),
                (false, Cause::Use | Cause::Age) => {}
            }
        }
        drop(standings);
        self.0.changed.notify_waiters();
    }

    /// The mirror's files could not be examined, which took so long: the doubt that `said` raised stays, and is heeded
    /// again after a while.
    pub fn unresolved(&self, id: &RepoId, said: String, took: Duration) {
        let mut standings = self.0.standings.lock();
        if let Some(standing) = standings.get_mut(id) {
            standing.under_way = false;
            standing.doubt.get_or_insert((Instant::now() + UNRESOLVED.max(took * REST), said));
        }
        drop(standings);
        self.0.changed.notify_waiters();
    }

    /// Waits until something has changed since the future was made.
    pub fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Cause] = &[Cause::Doubt, Cause::Use, Cause::Age];
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Of a mirror examined then, whose turn comes a day later.
    fn examined(at: Instant) -> Standing {
        Standing { examined: Some(at), turn: Some(at + DAY), ..Standing::new(at) }
    }

    /// What is due of mirrors `a`, `b`, … at `now`.
    fn due(standings: &[Standing], now: Instant) -> Result<(char, Cause), Option<Instant>> {
        next(&"abcdefgh".chars().zip(standings), ALL, now)
    }

    #[test]
    fn doubts_come_before_use_and_use_before_age() {
        let start = Instant::now();
        let now = start + 2 * DAY;
        let (old, fresh) = (examined(start), examined(now));
        let used = Standing { made: 5, ..examined(now - seconds(60)) };
        let doubtful = Standing { doubt: Some((now, String::new())), ..examined(now) };
        assert_eq!(due(&[old.clone(), used.clone(), doubtful], now), Ok(('c', Cause::Doubt)));
        assert_eq!(due(&[old.clone(), used], now), Ok(('b', Cause::Use)));
        assert_eq!(due(&[fresh.clone(), old], now), Ok(('b', Cause::Age)));
        assert_eq!(due(std::slice::from_ref(&fresh), now), Err(Some(now + DAY)));
        assert_eq!(due(&[Standing { turn: None, ..fresh }], now), Err(None));
    }

    #[test]
    fn the_oldest_is_examined_first_and_none_twice_at_once() {
        let start = Instant::now();
        let now = start + 3 * DAY;
        let [older, newer] = [start, start + DAY].map(examined);
        assert_eq!(due(&[newer.clone(), older.clone()], now), Ok(('b', Cause::Age)));
        let under_way = Standing { under_way: true, ..older };
        assert_eq!(due(&[newer, under_way], now), Ok(('a', Cause::Age)));
    }

    #[test]
    fn use_costs_a_tenth_of_the_time_at_most() {
        let now = Instant::now();
        let made = |took| Standing { made: 1, took: seconds(took), ..examined(now) };
        assert_eq!(due(&[made(0)], now), Err(Some(now + seconds(10))));
        assert_eq!(due(&[made(60)], now), Err(Some(now + seconds(600))));
        let new = Standing { made: 1, ..Standing::new(now) };
        assert_eq!(due(&[new], now), Ok(('a', Cause::Use)));
    }

    #[test]
    fn doubts_that_were_none_are_heeded_later_and_later() {
        let now = Instant::now();
        let wait = |unfounded, took| {
            let doubt = Some((now, String::new()));
            let standing = Standing { doubt, unfounded, took: seconds(took), ..examined(now) };
            match due(&[standing], now) {
                Ok(_) => 0,
                Err(at) => (at.unwrap() - now).as_secs(),
            }
        };
        assert_eq!([0, 1, 2, 3, 9].map(|unfounded| wait(unfounded, 1)), [0, 60, 120, 240, 3600]);
        assert_eq!(wait(1, 30), 300);
    }

    #[test]
    fn failures_of_one_mirror_are_one_doubt() {
        let (integrity, id) = (Integrity::default(), RepoId::from_route("h/o/r").unwrap());
        integrity.doubt(&id, "first");
        integrity.doubt(&id, "second");
        assert_eq!(integrity.take(ALL), Ok((id.clone(), Cause::Doubt, "first".to_owned())));
        assert_eq!(integrity.take(ALL), Err(None));
        // What fails meanwhile is looked into later, as the first turned out to be nothing.
        integrity.doubt(&id, "third");
        integrity.examined(&id, Cause::Doubt, Duration::ZERO, None, false);
        assert!(matches!(integrity.take(ALL), Err(Some(_))));
        // What was damaged is gone, and with it what was said of it.
        integrity.examined(&id, Cause::Doubt, Duration::ZERO, None, true);
        assert_eq!(integrity.take(ALL), Err(None));
        integrity.know(&HashSet::new(), |_| None);
        assert!(integrity.0.standings.lock().is_empty());
    }

    #[test]
    fn a_mirror_that_is_found_on_the_disk_gets_a_turn_once() {
        let (integrity, id) = (Integrity::default(), RepoId::from_route("h/o/r").unwrap());
        let (on_disk, soon) = (HashSet::from([id.clone()]), Instant::now() + DAY);
        integrity.know(&on_disk, |_| Some(soon));
        integrity.know(&on_disk, |_| Some(soon + DAY));
        assert_eq!(integrity.take(ALL), Err(Some(soon)));
    }

    #[test]
    fn a_doubt_that_could_not_be_resolved_stays() {
        let (integrity, id) = (Integrity::default(), RepoId::from_route("example.org/a").unwrap());
        integrity.doubt(&id, "bad object");
        let (taken, cause, said) = integrity.take(ALL).unwrap();
        assert_eq!((&taken, cause, said.as_str()), (&id, Cause::Doubt, "bad object"));
        integrity.unresolved(&id, said, seconds(0));
        let again = integrity.take(ALL).unwrap_err().unwrap();
        assert!(again <= Instant::now() + UNRESOLVED);
    }
}
