//! Upkeep: starting what is due, and taking in what came of it.

use std::{sync::Arc, time::Instant};

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::site::Site;
use crate::{
    git::{GitError, RefSet, pack},
    metrics::Work,
    mirror::{
        seed::Seed,
        upkeep::{BASE_FAILED, Chore, Done, Facts, Workshop, plan, remade_from},
    },
    never::or_never,
    queue::Queue,
};

/// Seeds that are kept: what was made for the former one is in use when a new one comes.
const SEEDS: usize = 2;

/// See the module.
pub(super) struct Upkeep {
    site: Arc<Site>,
    queue: Queue,
    facts: Facts,
    running: Option<(Chore, Running)>,
    seeds: Vec<Arc<Seed>>,
}

type Running = AbortOnDropHandle<Result<Done, GitError>>;

impl Upkeep {
    pub(super) fn new(site: Arc<Site>, queue: Queue) -> Self {
        Self { site, queue, facts: Facts::default(), running: None, seeds: Vec::new() }
    }

    /// What serves shallow clones cheaply; the newest first.
    pub(super) fn seeds(&self) -> &[Arc<Seed>] {
        &self.seeds
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Someone clones shallowly.
    pub(super) fn shallow_asked(&mut self) {
        self.facts.shallow_asked = true;
    }

    /// Someone asks for all history, and no base fits.
    pub(super) fn base_asked(&mut self) {
        self.facts.base_asked = true;
    }

    /// The mirror with these refs was found on the disk.
    pub(super) fn found(&mut self, refs: &RefSet) {
        self.facts.head = refs.head_oid();
        if !pack::has_bitmaps(&self.site.dir) {
            // An agent was killed between the clone and the first repack.
            self.facts.fetched = Some(Instant::now());
        }
    }

    /// A clone or fetch has brought these refs.
    pub(super) fn fetched(&mut self, refs: &RefSet) {
        (self.facts.fetched, self.facts.head) = (Some(Instant::now()), refs.head_oid());
    }

    /// Another pack has come, and no ref has moved.
    pub(super) fn packed(&mut self) {
        self.facts.fetched = Some(Instant::now());
    }

    /// A restore that `began` then has brought these refs: the base with its bitmap; the increments are indexed once it
    /// is quiet.
    pub(super) fn restored(&mut self, refs: &RefSet, began: Instant) {
        self.fetched(refs);
        self.facts.repacked = Some(began);
    }

    /// The mirror has left the disk.
    pub(super) fn left(&mut self) {
        (self.running, self.facts, self.seeds) = (None, Facts::default(), Vec::new());
    }

    /// Starts the upkeep that is due for a mirror with these refs, of so many `bytes`; otherwise says when to ask again.
    pub(super) fn start(&mut self, refs: &Arc<RefSet>, bytes: u64) -> Option<Instant> {
        if self.running.is_some() {
            return None;
        }
        let chore = match plan(&self.facts, Instant::now())? {
            Ok(chore) => chore,
            Err(at) => return Some(at),
        };
        let workshop = Workshop {
            git: self.site.git.clone(),
            disk: self.site.disk.clone(),
            dir: self.site.dir.clone(),
            id: self.site.id.clone(),
            queue: self.queue.clone(),
            refs: refs.clone(),
            packs: self.site.packs.clone(),
            bytes,
            quota: self.site.quota(),
        };
        // What is fetched from now on is put in order the next time.
        if matches!(chore, Chore::Repack | Chore::Base) {
            self.facts.repacked = Some(Instant::now());
        }
        let run = workshop.run(chore, self.seeds.first().cloned()).in_current_span();
        self.running = Some((chore, AbortOnDropHandle::new(tokio::spawn(run))));
        None
    }

    /// Waits for what runs; for ever where nothing does. A dropped future loses nothing.
    pub(super) async fn result(&mut self) -> Result<Done, GitError> {
        let ended = or_never(self.running.as_mut().map(|(_, result)| result)).await;
        ended.unwrap_or_else(|error| {
            Err(GitError::Io { verb: "repack".into(), source: std::io::Error::other(error) })
        })
    }

    /// Takes in what [`Self::result`] gave; says whether the mirror may have changed its size.
    pub(super) fn ended(&mut self, result: Result<Done, GitError>) -> bool {
        let Some((chore, _)) = self.running.take() else { return false };
        let now = Instant::now();
        if result.is_ok() {
            self.facts.failures = 0;
            let work = match chore {
                Chore::Seed(_) => "seed",
                Chore::Repack => "repack",
                Chore::Base => "base",
            };
            self.site.metrics.mirror.upkeeps.get_or_create(&Work { work }).inc();
        }
        match (result, chore) {
            (Ok(Done { seed: Some(seed), took }), Chore::Seed(tip)) => {
                (self.facts.seeded, self.facts.seed_from) = (Some(tip), Some(remade_from(now, took)));
                self.seeds.insert(0, seed);
                self.seeds.truncate(SEEDS);
                false
            }
            (Ok(Done { took, .. }), Chore::Base) => {
                (self.facts.base_asked, self.facts.base_from) = (false, Some(remade_from(now, took)));
                true
            }
            (Ok(_), _) => true,
            (Err(error), _) => {
                self.facts.failures += 1;
                if chore == Chore::Base {
                    // The packs are put in order all the same, and whoever asks again has it tried again.
                    (self.facts.base_asked, self.facts.base_from) =
                        (false, Some(remade_from(now, BASE_FAILED)));
                }
                self.site.littered();
                tracing::warn!(%error, ?chore, failures = self.facts.failures, "upkeep failed; it will be tried again");
                self.site.doubt(&error);
                self.facts.failed = Some(Instant::now());
                self.facts.repacked = self.facts.repacked.filter(|_| matches!(chore, Chore::Seed(_)));
                false
            }
        }
    }
}
