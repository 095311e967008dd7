//! Upkeep: starting what is due, and taking in what came of it.

use std::{mem, path::PathBuf, time::Instant};

use tokio::time;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::Task;
use crate::{
    git::GitError,
    metrics::Work,
    mirror::{
        disk::size,
        upkeep::{Place, Upkeep, plan},
    },
};

impl Task {
    /// Starts the upkeep that is due; otherwise says when to ask again.
    pub(super) fn start_upkeep(&mut self) -> Option<time::Instant> {
        if self.upkeep.is_some() || self.stored.is_none() {
            return None;
        }
        let upkeep = match plan(&self.facts, Instant::now())? {
            Ok(upkeep) => upkeep,
            Err(at) => return Some(at.into()),
        };
        let place = Place {
            git: self.git.clone(),
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            limits: self.limits.clone(),
            packs: self.packs.clone(),
        };
        let seed = self.seed.as_ref().map(|(seed, _)| seed.clone());
        // What is fetched from now on is put in order the next time.
        if upkeep == Upkeep::Repack {
            self.facts.repacked = Some(Instant::now());
        }
        let run = place.run(upkeep, seed).in_current_span();
        self.upkeep = Some((upkeep, AbortOnDropHandle::new(tokio::spawn(run))));
        None
    }

    pub(super) fn upkeep_finished(&mut self, result: Result<Option<PathBuf>, GitError>) {
        let Some((upkeep, _)) = self.upkeep.take() else { return };
        if result.is_ok() {
            let work = match upkeep {
                Upkeep::Seed(_) => "seed",
                Upkeep::Repack => "repack",
            };
            self.metrics.upkeeps.get_or_create(&Work { work }).inc();
        }
        match (result, upkeep) {
            (Ok(Some(view)), Upkeep::Seed(tip)) => {
                self.facts.seeded = Some(tip);
                let replaced = self.seed.replace((view, tip)).map(|(view, _)| view);
                if let Some(older) = mem::replace(&mut self.old_seed, replaced) {
                    let disk = self.disk.clone();
                    tokio::task::spawn_blocking(move || disk.discard(&older));
                }
            }
            (Ok(_), _) => self.bytes_now(),
            (Err(error), _) => {
                tracing::warn!(%error, ?upkeep, "upkeep failed; it will be tried again");
                self.facts.failed = Some(Instant::now());
                self.facts.repacked = self.facts.repacked.filter(|_| upkeep != Upkeep::Repack);
            }
        }
    }

    /// Measures the mirror: repacking changes its size.
    pub(super) fn bytes_now(&mut self) {
        self.bytes = size(&self.dir);
    }
}
