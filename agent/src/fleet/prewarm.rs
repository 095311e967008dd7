//! Mirrors that are brought before anyone asks for them: those of `prewarm: Always`, and the most cloned of the others.
//!
//! [`chosen`] decides which, and in which order; the [`Warmer`] has them brought, few at a time. Nothing waits for it:
//! a mirror that is asked for is brought whether it was chosen or not, and before those that nobody waits for. Each is
//! brought once; one that fails goes on trying by itself, and one that had to leave the disk comes back when it is
//! asked for.

use std::{
    collections::{BTreeSet, VecDeque},
    mem,
    num::NonZero,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tarn_crds::{
    repo::RepoId,
    v1alpha1::{Phase, Prewarm},
};
use tokio::time::{sleep, timeout};

use super::Fleet;
use crate::{
    metrics::{Metrics, Outcome},
    mirror::Mirror,
    never::or_never,
    popularity::{Popularity, day::Uses},
};

/// How long the first sum of what all agents have counted is waited for.
const KNOW: Duration = Duration::from_secs(10);

/// How long a mirror whose data is on the disk holds its place: a fetch seldom takes longer, and the others wait.
const CATCH_UP: Duration = Duration::from_secs(60);

/// How long it waits for room on the disk before it looks again.
const TIGHT: Duration = Duration::from_secs(5);

/// What to bring.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How many of the most cloned mirrors.
    pub most_cloned: usize,
    /// How many at a time.
    pub at_once: NonZero<usize>,
}

/// A declared mirror, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Which.
    pub id: RepoId,
    /// What its declaration says.
    pub prewarm: Prewarm,
    /// How often it was asked for.
    pub uses: Uses,
}

/// The mirrors to bring, the most important first: all of `Always`, then the `most` most cloned of `Auto`. Among those
/// that are used alike the name decides, so that a small fleet is brought whole though nobody has asked for anything.
pub fn chosen(mut candidates: Vec<Candidate>, most: usize) -> Vec<RepoId> {
    candidates.retain(|candidate| candidate.prewarm != Prewarm::Never);
    candidates.sort_by(|a, b| {
        let key = |candidate: &Candidate| (candidate.prewarm == Prewarm::Always, candidate.uses.order());
        key(b).cmp(&key(a)).then_with(|| a.id.cmp(&b.id))
    });
    let always = candidates.iter().filter(|candidate| candidate.prewarm == Prewarm::Always).count();
    candidates.truncate(always.saturating_add(most));
    candidates.into_iter().map(|candidate| candidate.id).collect()
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Mirrors that were chosen.
    pub total: usize,
    /// Of those, the ones that are here and up to date.
    pub warmed: usize,
    /// Being brought.
    pub under_way: usize,
    /// Given up for now.
    pub failed: usize,
}

/// Has mirrors brought. Cheap to clone.
#[derive(Clone)]
pub struct Warmer {
    fleet: Arc<Fleet>,
    popularity: Option<Popularity>,
    rules: Rules,
    metrics: Metrics,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    chosen: Vec<RepoId>,
    under_way: usize,
    failed: BTreeSet<RepoId>,
}

impl Warmer {
    /// Brings nothing before [`Self::run`].
    pub fn new(fleet: Arc<Fleet>, popularity: Option<Popularity>, rules: Rules, metrics: Metrics) -> Self {
        Self { fleet, popularity, rules, metrics, told: Arc::default() }
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        let told = self.told.lock();
        let ready = |id: &&RepoId| self.fleet.get(id).is_some_and(|mirror| mirror.phase().is_ready());
        Progress {
            total: told.chosen.len(),
            warmed: told.chosen.iter().filter(ready).count(),
            under_way: told.under_way,
            failed: told.failed.iter().filter(|id| !ready(id)).count(),
        }
    }

    /// Brings what is chosen, and what is chosen later because it was declared or has become popular. For ever.
    pub async fn run(self) {
        let mut applied = self.fleet.applied();
        // The fleet lives as long as this.
        let _ = applied.wait_for(|applied| *applied > 0).await;
        let mut sums = self.popularity.as_ref().map(Popularity::sums);
        if let Some(sums) = &mut sums
            && timeout(KNOW, sums.wait_for(|sums| *sums > 0)).await.is_err()
        {
            tracing::warn!("how often mirrors were cloned is not known yet; they are brought by their names");
        }
        let mut brought: BTreeSet<RepoId> = BTreeSet::new();
        let (mut running, mut queue) = (FuturesUnordered::new(), VecDeque::new());
        let (mut anew, mut placed) = (true, None);
        loop {
            if mem::take(&mut anew) {
                applied.mark_unchanged();
                // Before the choice: what changes after it must be noticed.
                placed = self.fleet.placement().map(|placement| Box::pin(placement.changed()));
                sums.iter_mut().for_each(|sums| sums.mark_unchanged());
                let chosen = self.choose();
                // What moves away and back is brought again.
                let kept: BTreeSet<&RepoId> = chosen.iter().collect();
                let here = |id: &RepoId| self.fleet.get(id).is_some_and(|mirror| mirror.bytes() > 0);
                brought.retain(|id| kept.contains(id) || here(id));
                queue = chosen.iter().filter(|id| !brought.contains(id)).cloned().collect();
                self.told.lock().chosen = chosen;
            }
            while running.len() < self.rules.at_once.get() && !self.fleet.room().is_tight() {
                let Some(id) = queue.pop_front() else { break };
                if let Some(mirror) = self.fleet.get(&id) {
                    brought.insert(id);
                    running.push(bring(mirror));
                }
            }
            self.told.lock().under_way = running.len();
            // Whoever counts lives as long as this.
            let summed = or_never(sums.as_mut().map(|sums| sums.changed()));
            tokio::select! {
                () = or_never(placed.as_mut()) => anew = true,
                Some((id, outcome)) = running.next() => {
                    self.metrics.prewarm.prewarms.get_or_create(&Outcome { outcome }).inc();
                    if outcome == "ok" {
                        self.told.lock().failed.remove(&id);
                        tracing::debug!(repo = %id, "brought before anyone asked");
                    } else {
                        tracing::warn!(repo = %id, outcome, "cannot be brought for now; the next one is");
                        self.told.lock().failed.insert(id);
                    }
                }
                _ = applied.changed() => anew = true,
                // There may be room again.
                () = sleep(TIGHT), if self.fleet.room().is_tight() => {}
                _ = summed => anew = true,
            }
        }
    }

    fn choose(&self) -> Vec<RepoId> {
        let uses = |id: &RepoId| self.popularity.as_ref().map_or(Uses::default(), |known| known.of(id));
        let kept = |mirror: &Mirror| self.fleet.placement().is_none_or(|known| known.keeps(mirror.id()));
        let candidates = self.fleet.mirrors().into_iter().filter(kept).map(|mirror| Candidate {
            id: mirror.id().clone(),
            prewarm: mirror.settings().prewarm,
            uses: uses(mirror.id()),
        });
        chosen(candidates.collect(), self.rules.most_cloned)
    }
}

/// Brings one mirror, and says what came of it: `ok`, `failed`, `timeout`, or `gone` where it is no longer declared.
async fn bring(mirror: Mirror) -> (RepoId, &'static str) {
    let id = mirror.id().clone();
    let (mut view, settings) = (mirror.watch(), mirror.settings());
    let short = settings.suspend || view.borrow().stored.is_some();
    let patience = if short { CATCH_UP } else { settings.timeout };
    mirror.want().await;
    drop(mirror);
    // What it was before it heard of this says nothing.
    let done = view.wait_for(|view| match view.phase {
        Phase::Ready | Phase::Fetching | Phase::Backoff => true,
        Phase::CatchingUp => settings.suspend || view.trouble().is_some(),
        Phase::Absent | Phase::OnDemand | Phase::Restoring | Phase::Cloning => false,
    });
    let outcome = match timeout(patience, done).await {
        Err(_) => "timeout",
        Ok(Err(_)) => "gone",
        Ok(Ok(view)) if view.stored.is_some() => "ok",
        Ok(Ok(_)) => "failed",
    };
    (id, outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, prewarm: Prewarm, clones: u64) -> Candidate {
        let id = RepoId::from_route(&format!("example.org/{name}")).unwrap();
        Candidate { id, prewarm, uses: Uses { clones, ..Uses::default() } }
    }

    fn names(candidates: Vec<Candidate>, most: usize) -> Vec<String> {
        chosen(candidates, most).iter().map(|id| id.path().to_owned()).collect()
    }

    #[test]
    fn always_comes_first_and_never_does_not_come() {
        use Prewarm::{Always, Auto, Never};
        let all = vec![
            candidate("seldom", Auto, 1),
            candidate("often", Auto, 9),
            candidate("never", Never, 99),
            candidate("always", Always, 0),
            candidate("now-and-then", Auto, 5),
        ];
        assert_eq!(names(all.clone(), 2), ["always", "often", "now-and-then"]);
        assert_eq!(names(all.clone(), 0), ["always"]);
        assert_eq!(names(all, 9), ["always", "often", "now-and-then", "seldom"]);
    }

    #[test]
    fn a_small_fleet_is_brought_whole_though_nothing_was_cloned() {
        let all = ["c", "a", "b"].map(|name| candidate(name, Prewarm::Auto, 0));
        assert_eq!(names(all.to_vec(), 20), ["a", "b", "c"]);
        assert_eq!(names(all.to_vec(), 2), ["a", "b"]);
    }
}
