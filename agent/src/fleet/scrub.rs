//! Compares the files on the disk with their checksums, before a client meets what the disk has damaged.
//!
//! What is due is decided by [`crate::mirror::integrity`]. A mirror on which git has failed is examined at once, as fast
//! as the disk reads; all others one after another, at [`PACE`].

use std::{
    collections::HashSet,
    fs,
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use sha2::{Digest, Sha256};
use tarn_crds::{repo::RepoId, v1alpha1::conditions::Reason};
use tokio::time;

use super::Fleet;
use crate::{
    files::blocking,
    git::Git,
    metrics::{Damaged, Metrics, Outcome},
    mirror::{
        Mirror, Trouble, damage, demand,
        examine::{Examiner, Verdict},
        integrity::{Cause, Integrity},
    },
    protocol::lfs::LfsOid,
};

/// The most bytes that are read a second of mirrors in which nobody has met damage.
const PACE: u64 = 32 * 1024 * 1024;

/// Bytes of an LFS object that are read between two pauses.
const SLICE: u64 = 1024 * 1024;

/// Mirrors in doubt that are examined at once.
const DOUBTS: usize = 3;

/// How often mirrors that came to the disk are noticed.
const EVERY: Duration = Duration::from_secs(30);

/// In a mirror's directory: its time of change says when its files were last found whole.
const EXAMINED: &str = "tarn-examined";

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Scrubber {
    fleet: Arc<Fleet>,
    git: Git,
    metrics: Metrics,
    integrity: Integrity,
    /// In which every mirror is examined once; `None` for never.
    interval: Option<Duration>,
}

impl Scrubber {
    /// Examines every mirror once in so many seconds; of 0, none for its age alone. Does nothing before [`Self::run`].
    pub fn new(fleet: Arc<Fleet>, git: Git, metrics: Metrics, seconds: u32) -> Self {
        let integrity = fleet.integrity();
        let interval = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        Self { fleet, git, metrics, integrity, interval }
    }

    /// Examines what is due, for ever.
    pub async fn run(self) {
        let doubts = join_all((0..DOUBTS).map(|_| self.examine_due(&[Cause::Doubt], None)));
        let rounds = self.examine_due(&[Cause::Use, Cause::Age], Some(PACE));
        tokio::join!(doubts, rounds, self.know_mirrors(), self.examine_objects());
    }

    /// Compares LFS objects with their names, each once in the interval.
    async fn examine_objects(&self) {
        let Some(interval) = self.interval else { return };
        let lfs = self.fleet.lfs();
        loop {
            time::sleep(interval.mul_f64(rand::random())).await;
            let all = lfs.clone();
            let objects = blocking(move || all.objects()).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "LFS objects cannot be listed");
                Vec::new()
            });
            for (repo, oid, path) in objects {
                match self.is_named(&path, oid).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!(%repo, %oid, "a kept LFS object is damaged; it is fetched again");
                        lfs.discard(&repo, oid);
                        self.metrics.integrity.damages.get_or_create(&Damaged::LFS).inc();
                    }
                    // Evicted meanwhile, for one.
                    Err(error) => tracing::debug!(%repo, %oid, %error, "an LFS object cannot be examined"),
                }
            }
        }
    }

    /// Whether the file holds the object `oid`.
    async fn is_named(&self, path: &Path, oid: LfsOid) -> std::io::Result<bool> {
        let path = path.to_owned();
        let mut file = blocking(move || fs::File::open(path)).await?;
        let mut hash = Sha256::new();
        loop {
            let count;
            (file, hash, count) = blocking(move || {
                let mut chunk = Vec::new();
                let count = Read::by_ref(&mut file).take(SLICE).read_to_end(&mut chunk)?;
                hash.update(&chunk);
                Ok((file, hash, u64::try_from(count).unwrap_or(SLICE)))
            })
            .await?;
            self.metrics.integrity.examined_bytes.inc_by(count);
            if count == 0 {
                return Ok(oid.is_sum(&hash.finalize()));
            }
            time::sleep(Duration::from_millis(count.saturating_mul(1000) / PACE)).await;
        }
    }

    async fn examine_due(&self, causes: &[Cause], pace: Option<u64>) {
        loop {
            let mut changed = std::pin::pin!(self.integrity.changed());
            // From now on nothing is missed.
            changed.as_mut().enable();
            match self.integrity.take(causes) {
                Ok((id, cause, said)) => self.examine(&id, cause, said, pace).await,
                Err(Some(at)) => {
                    let _ = time::timeout_at(at.into(), changed).await;
                }
                Err(None) => changed.await,
            }
        }
    }

    async fn examine(&self, id: &RepoId, cause: Cause, said: String, pace: Option<u64>) {
        let started = Instant::now();
        let thorough = cause == Cause::Doubt;
        let examiner = Examiner { git: self.git.clone(), metrics: self.metrics.clone(), pace, thorough };
        let mirror = self.fleet.get(id);
        let verdict = match &mirror {
            Some(mirror) => examiner.examine(mirror).await,
            None => Verdict::Unknown("nobody declares it any more".into()),
        };
        let took = started.elapsed();
        let outcome = match &verdict {
            Verdict::Whole => "whole",
            Verdict::Damaged(_) => "damaged",
            Verdict::Failing(_) => "failing",
            Verdict::Unknown(_) => "unknown",
        };
        self.metrics.integrity.examinations.get_or_create(&Outcome { outcome }).inc();
        let millis = took.as_millis();
        let trouble = |reason, message| Trouble { reason, message };
        let damage = match verdict {
            Verdict::Whole if cause == Cause::Doubt => {
                tracing::info!(repo = %id, said, millis, "git failed on the mirror, and its files are whole");
                None
            }
            Verdict::Whole => {
                tracing::debug!(repo = %id, ?cause, millis, "the mirror's files are whole");
                None
            }
            Verdict::Damaged(message) => Some(trouble(Reason::MirrorDamaged, message)),
            Verdict::Failing(message) => Some(trouble(Reason::DiskFailing, message)),
            Verdict::Unknown(reason) => {
                tracing::debug!(repo = %id, said, reason, "the mirror could not be examined");
                match cause {
                    Cause::Doubt => self.integrity.unresolved(id, said, took),
                    Cause::Use | Cause::Age => {
                        self.integrity.examined(id, cause, took, self.interval, false);
                    }
                }
                return;
            }
        };
        if let Some(mirror) = mirror {
            match &damage {
                Some(damage) => mirror.damaged(damage.clone()).await,
                None => note(&mirror).await,
            }
        }
        self.integrity.examined(id, cause, took, self.interval, damage.is_some());
    }

    /// Gives mirrors that come to the disk their turns, and forgets those that leave it.
    async fn know_mirrors(&self) {
        let mut ticks = time::interval(self.interval.map_or(EVERY, |interval| interval.min(EVERY)));
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let before = demand::now().saturating_sub(damage::KEPT.as_secs());
            if let Err(error) = self.fleet.forget_damage(before).await {
                tracing::warn!(%error, "damaged mirrors that were kept for a day cannot be removed");
            }
            let mirrors = self.fleet.mirrors();
            let here = mirrors.iter().filter(|mirror| mirror.view().stored.is_some());
            let on_disk: HashSet<RepoId> = here.map(|mirror| mirror.id().clone()).collect();
            self.integrity.know(&on_disk, |id| {
                let interval = self.interval?;
                let age = self.fleet.get(id).and_then(|mirror| age(mirror.dir()));
                // Many that nobody knows anything of are spread over the interval.
                let wait =
                    age.map_or_else(|| interval.mul_f64(rand::random()), |age| interval.saturating_sub(age));
                Some(Instant::now() + wait)
            });
        }
    }
}

/// How long ago the files of the mirror at `dir` were found whole.
fn age(dir: &Path) -> Option<Duration> {
    let noted = fs::metadata(dir.join(EXAMINED)).and_then(|meta| meta.modified()).ok()?;
    SystemTime::now().duration_since(noted).ok()
}

/// Notes for the next process that the mirror's files are whole.
async fn note(mirror: &Mirror) {
    let path = mirror.dir().join(EXAMINED);
    let noted = blocking(move || fs::File::create(path).map(drop)).await;
    if let Err(error) = noted {
        tracing::debug!(repo = %mirror.id(), %error, "it is not noted that the mirror is whole");
    }
}
