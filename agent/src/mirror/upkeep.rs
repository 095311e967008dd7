//! What is done to a mirror while it serves: repacking, bitmaps, the seed for shallow clones.
//!
//! What is due is decided by [`plan`], a pure function. It takes its turn in the queue, runs with one thread, and waits a
//! while for a moment in which no child serves a client; the first seed does not.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tarn_crds::repo::RepoId;
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{
    disk::Disk,
    quota::{Quota, QuotaError, Writes},
    seed::Seed,
};
use crate::{
    backoff::backoff,
    files::blocking,
    git::{Git, GitError, Oid, RefSet, base::Base, layer, pack},
    queue::{Activity, Priority, Queue},
};

/// A seed or a base serves commits around those it was made for, at the price of what has changed since. Making another takes
/// at most this part of the time.
const REMADE_PART: u32 = 20;
/// A base that could not be made counts as one that took so long.
pub const BASE_FAILED: Duration = Duration::from_secs(60);

/// Packs are put in order once no fetch has come for this long, …
const QUIET: Duration = Duration::from_secs(5);
/// … or, where fetches never cease, this long after the last time.
const AT_MOST: Duration = Duration::from_secs(300);
/// The first retry of failed upkeep comes after this, …
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// … each further one twice as late, up to this: a repack that runs into its timeout has cost an hour.
const LAST_RETRY: Duration = Duration::from_secs(6 * 3600);

/// Mirrors from this size on are put in order one at a time, so that small ones do not wait for them.
const LARGE: u64 = 1 << 30;

/// Upkeep begins this long after it is due: whoever waits for the fetch that made it due is served first.
const YIELD: Duration = Duration::from_millis(500);
/// How long upkeep waits for the load to cease.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Make a seed for this commit.
    Seed(Oid),
    /// Repack, and index what is there.
    Repack,
    /// Make all that the refs reach one pack.
    Base,
}

/// What the decision rests on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The commit `HEAD` leads to.
    pub head: Option<Oid>,
    /// The commit the present seed was made for.
    pub seeded: Option<Oid>,
    /// Someone asked for a shallow clone since this process began.
    pub shallow_asked: bool,
    /// When the last clone or fetch ended; `None` before the first in this process.
    pub fetched: Option<Instant>,
    /// When the packs were last put in order.
    pub repacked: Option<Instant>,
    /// When another seed may be made.
    pub seed_from: Option<Instant>,
    /// Someone asked for all history, and there is no base that fits.
    pub base_asked: bool,
    /// When another base may be made.
    pub base_from: Option<Instant>,
    /// When upkeep last failed.
    pub failed: Option<Instant>,
    /// Failures in a row.
    pub failures: u32,
}

/// When what took so long may be made again, after it was made at `now`.
pub fn remade_from(now: Instant, took: Duration) -> Instant {
    now + took * REMADE_PART
}

/// What is due at `now`, or when to ask again; `None` until something happens.
pub fn plan(facts: &Facts, now: Instant) -> Option<Result<Chore, Instant>> {
    let retry = backoff(FIRST_RETRY, LAST_RETRY, facts.failures, 1.0);
    if let Some(again) = facts.failed.map(|failed| failed + retry).filter(|again| *again > now) {
        return Some(Err(again));
    }
    let moved = facts.head.filter(|head| facts.shallow_asked && facts.seeded != Some(*head));
    let seed = moved.map(|head| (Chore::Seed(head), facts.seed_from));
    let base = facts.base_asked.then_some((Chore::Base, facts.base_from));
    let mut later = None;
    for (chore, from) in seed.into_iter().chain(base) {
        match from.filter(|from| *from > now) {
            None => return Some(Ok(chore)),
            from => later = later.into_iter().chain(from).min(),
        }
    }
    let unordered = facts.fetched.filter(|fetched| facts.repacked.is_none_or(|repacked| repacked < *fetched));
    let Some(fetched) = unordered else { return later.map(Err) };
    // A new mirror is put in order at once: without bitmaps every clone costs five times as much.
    let due =
        facts.repacked.map_or(fetched, |repacked| (fetched + QUIET).min((repacked + AT_MOST).max(fetched)));
    Some(if due <= now { Ok(Chore::Repack) } else { Err(later.map_or(due, |later| due.min(later))) })
}

/// What upkeep works with.
pub struct Workshop {
    /// The installed git.
    pub git: Git,
    /// The data directory.
    pub disk: Arc<Disk>,
    /// The mirror.
    pub dir: PathBuf,
    /// Which.
    pub id: RepoId,
    /// Whose turn it is.
    pub queue: Queue,
    /// Held while packs may disappear.
    pub packs: Arc<Mutex<()>>,
    /// The refs on the disk.
    pub refs: Arc<RefSet>,
    /// The mirror's size.
    pub bytes: u64,
    /// How far the mirror may grow.
    pub quota: Quota,
}

/// What came of a chore.
pub struct Done {
    /// The new seed, if one was made.
    pub seed: Option<Arc<Seed>>,
    /// How long the work took, without the wait for its turn.
    pub took: Duration,
}

impl Workshop {
    /// Carries `chore` out; `seed` is the present one.
    ///
    /// # Errors
    /// Git fails; the mirror is as good as before.
    pub async fn run(self, chore: Chore, seed: Option<Arc<Seed>>) -> Result<Done, GitError> {
        // Before the turn: who waits for a calm moment keeps no other from working. Shallow clones without a seed are what
        // keeps it from being calm.
        match (chore, &seed) {
            (Chore::Seed(_), None) => sleep(YIELD).await,
            _ => calm(&self.queue).await,
        }
        let activity = if self.bytes < LARGE { Activity::Upkeep } else { Activity::LargeUpkeep };
        let _turn = self.queue.acquire(activity, &self.id, Priority::Background).await;
        let started = Instant::now();
        let made = match chore {
            Chore::Seed(tip) => Some(self.make_seed(tip, seed.as_ref().map(|seed| &*seed.dir)).await?),
            Chore::Repack | Chore::Base => {
                let _packs = self.packs.lock().await;
                let ended =
                    |why: QuotaError| GitError::Io { verb: "repack".into(), source: io::Error::other(why) };
                // As they are now: a pack is compared with them that git makes of what it finds a moment later.
                let (dir, format) = (self.dir.clone(), self.refs.format());
                let refs = blocking(move || RefSet::read(&dir, format).map_err(io::Error::other));
                let refs = refs.await.map_err(|source| GitError::Io { verb: "repack".into(), source })?;
                let repack = async {
                    match chore {
                        Chore::Base => pack::unite(&self.git, &self.dir).await,
                        _ => pack::put_in_order(&self.git, &self.dir).await,
                    }
                };
                self.quota.hold(Writes::Rewrites(self.dir.clone()), repack, ended).await?;
                if let Err(error) = layer::note_base(&self.git, &self.dir, &refs).await {
                    tracing::debug!(%error, "no pack is noted as the base");
                }
                None
            }
        };
        tracing::debug!(
            ?chore,
            millis = started.elapsed().as_millis(),
            packs = pack::count(&self.dir),
            "upkeep"
        );
        Ok(Done { seed: made, took: started.elapsed() })
    }

    async fn make_seed(&self, tip: Oid, old: Option<&Path>) -> Result<Arc<Seed>, GitError> {
        let view = self.disk.staging();
        let made = match pack::make_seed(&self.git, &self.dir, &view, old, tip).await {
            Ok(()) => Base::find(&view, tip.format())
                .and_then(|base| base.ok_or_else(|| io::ErrorKind::NotFound.into()))
                .map_err(|source| GitError::Io { verb: "pack-objects".into(), source }),
            Err(error) => Err(error),
        };
        if made.is_err() {
            // Removed at the next start at the latest.
            let _ = self.disk.discard(&view);
        }
        made.map(|base| Arc::new(Seed::new(view, tip, base, self.disk.clone())))
    }
}

/// Waits until no child serves anyone, but not for ever.
pub(super) async fn calm(queue: &Queue) {
    let calm = async {
        sleep(YIELD).await;
        queue.calm().await;
    };
    let _ = timeout(MAX_WAIT, calm).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(digit: u8) -> Oid {
        Oid::from_hex(&[digit; 40]).unwrap()
    }

    #[test]
    fn a_new_mirror_is_put_in_order_at_once_and_later_when_quiet() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let fresh = Facts { fetched: Some(at(0)), ..Facts::default() };
        assert_eq!(plan(&fresh, at(0)), Some(Ok(Chore::Repack)));
        let done = Facts { repacked: Some(at(1)), ..fresh };
        assert_eq!(plan(&done, at(9)), None);
        let again = Facts { fetched: Some(at(10)), ..done };
        assert_eq!(plan(&again, at(11)), Some(Err(at(15))));
        assert_eq!(plan(&again, at(15)), Some(Ok(Chore::Repack)));
    }

    #[test]
    fn fetches_that_never_cease_do_not_put_it_off_for_ever() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let facts = Facts { repacked: Some(at(0)), fetched: Some(at(400)), ..Facts::default() };
        assert_eq!(plan(&facts, at(400)), Some(Ok(Chore::Repack)));
    }

    #[test]
    fn seeds_follow_head_once_someone_clones_shallowly() {
        let now = Instant::now();
        let facts = Facts { head: Some(oid(b'1')), ..Facts::default() };
        assert_eq!(plan(&facts, now), None);
        let asked = Facts { shallow_asked: true, ..facts };
        assert_eq!(plan(&asked, now), Some(Ok(Chore::Seed(oid(b'1')))));
        let later = now + Duration::from_secs(9);
        let seeded = Facts { seeded: Some(oid(b'1')), seed_from: Some(later), ..asked };
        assert_eq!(plan(&seeded, now), None);
        let moved = Facts { head: Some(oid(b'2')), ..seeded };
        assert_eq!(plan(&moved, now), Some(Err(later)), "the former one still serves");
        assert_eq!(plan(&moved, later), Some(Ok(Chore::Seed(oid(b'2')))));
    }

    #[test]
    fn a_base_is_made_when_someone_asks_and_seldom() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let asked = Facts { base_asked: true, ..Facts::default() };
        assert_eq!(plan(&asked, now), Some(Ok(Chore::Base)));
        let again = Facts { base_from: Some(later), ..asked };
        assert_eq!(plan(&again, now), Some(Err(later)));
        assert_eq!(plan(&again, later), Some(Ok(Chore::Base)));
        let unordered = Facts { fetched: Some(now), ..again };
        assert_eq!(plan(&unordered, now), Some(Ok(Chore::Repack)), "meanwhile the packs are put in order");
    }

    #[test]
    fn failures_put_upkeep_off_for_longer_and_longer() {
        let now = Instant::now();
        let after = |failures| {
            let facts = Facts { failed: Some(now), failures, fetched: Some(now), ..Facts::default() };
            plan(&facts, now).and_then(Result::err).map(|at| (at - now).as_secs() / 60)
        };
        assert_eq!([1, 2, 3, 9, 99].map(after), [Some(1), Some(2), Some(4), Some(256), Some(360)]);
    }
}
