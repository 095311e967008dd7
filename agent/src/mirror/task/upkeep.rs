//! Upkeep: starting what is due, and taking in what came of it.

use std::{mem, path::PathBuf, sync::Arc, time::Instant};

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::site::Site;
use crate::{
    git::{GitError, Oid, RefSet, pack},
    metrics::Work,
    mirror::upkeep::{Chore, Facts, Workshop, plan},
    queue::Queue,
};

/// See the module.
pub(super) struct Upkeep {
    site: Arc<Site>,
    queue: Queue,
    facts: Facts,
    running: Option<(Chore, Running)>,
    seed: Option<(PathBuf, Oid)>,
    /// Stays until the next one is replaced: children may read it still.
    old_seed: Option<PathBuf>,
}

/// Ends with the new seed, if one was made.
type Running = AbortOnDropHandle<Result<Option<PathBuf>, GitError>>;

impl Upkeep {
    pub(super) fn new(site: Arc<Site>, queue: Queue) -> Self {
        Self { site, queue, facts: Facts::default(), running: None, seed: None, old_seed: None }
    }

    /// A repository that serves shallow clones cheaply, and the commit it was made for.
    pub(super) fn seed(&self) -> Option<&(PathBuf, Oid)> {
        self.seed.as_ref()
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Someone clones shallowly.
    pub(super) fn shallow_asked(&mut self) {
        self.facts.shallow_asked = true;
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

    /// The mirror leaves the disk; gives what is left of it elsewhere.
    pub(super) fn left(&mut self) -> impl Iterator<Item = PathBuf> + use<> {
        (self.running, self.facts) = (None, Facts::default());
        self.seed.take().map(|(seed, _)| seed).into_iter().chain(self.old_seed.take())
    }

    /// Starts the upkeep that is due; otherwise says when to ask again.
    pub(super) fn start(&mut self) -> Option<Instant> {
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
            packs: self.site.packs.clone(),
        };
        let seed = self.seed.as_ref().map(|(seed, _)| seed.clone());
        // What is fetched from now on is put in order the next time.
        if chore == Chore::Repack {
            self.facts.repacked = Some(Instant::now());
        }
        let run = workshop.run(chore, seed).in_current_span();
        self.running = Some((chore, AbortOnDropHandle::new(tokio::spawn(run))));
        None
    }

    /// Waits for what runs; for ever where nothing does. A dropped future loses nothing.
    pub(super) async fn result(&mut self) -> Result<Option<PathBuf>, GitError> {
        match &mut self.running {
            Some((_, result)) => result.await.unwrap_or_else(|error| {
                Err(GitError::Io { verb: "repack".into(), source: std::io::Error::other(error) })
            }),
            None => std::future::pending().await,
        }
    }

    /// Takes in what [`Self::result`] gave; says whether the mirror may have changed its size.
    pub(super) fn ended(&mut self, result: Result<Option<PathBuf>, GitError>) -> bool {
        let Some((chore, _)) = self.running.take() else { return false };
        if result.is_ok() {
            let work = match chore {
                Chore::Seed(_) => "seed",
                Chore::Repack => "repack",
            };
            self.site.metrics.upkeeps.get_or_create(&Work { work }).inc();
        }
        match (result, chore) {
            (Ok(Some(view)), Chore::Seed(tip)) => {
                self.facts.seeded = Some(tip);
                let replaced = self.seed.replace((view, tip)).map(|(view, _)| view);
                if let Some(older) = mem::replace(&mut self.old_seed, replaced) {
                    let disk = self.site.disk.clone();
                    tokio::task::spawn_blocking(move || disk.discard(&older));
                }
                false
            }
            (Ok(_), _) => true,
            (Err(error), _) => {
                tracing::warn!(%error, ?chore, "upkeep failed; it will be tried again");
                self.site.doubt(&error);
                self.facts.failed = Some(Instant::now());
                self.facts.repacked = self.facts.repacked.filter(|_| chore != Chore::Repack);
                false
            }
        }
    }
}
