//! The disk's budget: above it, what can be had again leaves, the least recently used first.
//!
//! [`plan`] decides what; this carries it out. The mirrors judge for themselves whether they may go: not while somebody
//! reads them, nor while their newest state is nowhere else.

pub mod plan;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tarn_crds::{repo::RepoId, v1alpha1::Budget};
use tokio::time::{MissedTickBehavior, interval};

use super::Fleet;
use crate::{
    files::blocking,
    metrics::{Metrics, Work},
    mirror::{
        demand,
        disk::{Disk, Volume},
    },
    packs::Packs,
};
use plan::{Item, What, excess, low, plan};

/// How often the disk is looked at; a mirror that finds it full does not wait.
const EVERY: Duration = Duration::from_secs(5);

/// A mirror that finds the disk full is given this part of the budget, and again if that was not enough.
const PLEA: u64 = 10;

/// How often the last uses are noted for the next process.
const NOTE: u32 = 12;

/// How full the disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How much the agent's data may take.
    pub budget: u64,
    /// How much they take.
    pub used: u64,
    /// The volume they lie on.
    pub volume: Volume,
}

/// Keeps the budget. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    fleet: Arc<Fleet>,
    disk: Arc<Disk>,
    packs: Packs,
    budget: Budget,
    metrics: Metrics,
    usage: Arc<Mutex<Usage>>,
}

impl Keeper {
    /// Does nothing before [`Self::run`].
    pub fn new(fleet: Arc<Fleet>, disk: Arc<Disk>, packs: Packs, budget: Budget, metrics: Metrics) -> Self {
        Self { fleet, disk, packs, budget, metrics, usage: Arc::default() }
    }

    /// How full the disk was when it was last looked at.
    pub fn usage(&self) -> Usage {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the disk again and again, for ever.
    pub async fn run(self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stuck, mut round, limits) = (false, 0_u32, self.fleet.limits());
        let mut undeclared: Option<u64> = None;
        loop {
            let plea = tokio::select! {
                _ = ticks.tick() => false,
                () = limits.room.wanted() => true,
            };
            if undeclared.is_none() || round.is_multiple_of(NOTE) {
                undeclared = self.undeclared().await.map(|found| found.iter().map(|item| item.bytes).sum());
            }
            let usage = match self.measure(undeclared.unwrap_or(0)) {
                Ok(usage) => usage,
                Err(error) => {
                    tracing::warn!(%error, "cannot ask how full the disk is");
                    continue;
                }
            };
            let plea = if plea { usage.budget / PLEA } else { 0 };
            let need = excess(usage.used, usage.budget, usage.volume).max(plea);
            limits.room.set_tight(need > 0 || usage.used > low(usage.budget));
            if need > 0 {
                let freed = self.free(need).await;
                undeclared = None;
                let lacks = freed < need && plea == 0;
                if lacks && !stuck {
                    tracing::warn!(
                        need,
                        freed,
                        used = usage.used,
                        budget = usage.budget,
                        free = usage.volume.free,
                        "the disk is too full, and nothing more may go: grow the volume, or mirror less"
                    );
                }
                stuck = lacks;
            }
            round = round.wrapping_add(1);
            if round.is_multiple_of(NOTE) {
                self.note().await;
            }
        }
    }

    fn measure(&self, undeclared: u64) -> std::io::Result<Usage> {
        let volume = self.disk.volume()?;
        let mirrors = self.fleet.mirrors();
        let held = mirrors.iter().map(|mirror| mirror.bytes() + mirror.snapshots().bytes().here).sum::<u64>();
        let lfs = u64::try_from(self.metrics.lfs_bytes.get()).unwrap_or(0);
        let usage = Usage {
            budget: self.budget.bytes_of(volume.total),
            used: undeclared + held + lfs + self.packs.bytes(),
            volume,
        };
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
        Ok(usage)
    }

    /// Lets go of at least `need` bytes, as far as that may be; returns how many went.
    async fn free(&self, need: u64) -> u64 {
        let mut items = self.undeclared().await.unwrap_or_default();
        for mirror in self.fleet.mirrors() {
            let (id, used) = (mirror.id(), mirror.demand().used());
            let (bytes, snapshot) = (mirror.bytes(), mirror.snapshots().bytes().elsewhere);
            if bytes > 0 {
                items.push(Item { what: What::Mirror(id.clone()), bytes, used });
            }
            if snapshot > 0 {
                items.push(Item { what: What::Snapshot(id.clone()), bytes: snapshot, used });
            }
        }
        items.push(Item { what: What::Packs, bytes: self.packs.bytes(), used: 0 });
        let mut freed = 0_u64;
        // What may not go is found out by asking, and others go in its place.
        for item in plan(u64::MAX, items, demand::now()) {
            if freed >= need {
                break;
            }
            let went = self.let_go(&item.what, need - freed).await;
            if went > 0 {
                let kind = Work { work: item.what.label() };
                self.metrics.evictions.get_or_create(&kind).inc();
                self.metrics.evicted.inc_by(went);
                freed += went;
            }
        }
        freed
    }

    /// Returns how many bytes went.
    async fn let_go(&self, what: &What, need: u64) -> u64 {
        match what {
            What::Undeclared(path) => {
                let (disk, path) = (self.disk.clone(), path.clone());
                let name = path.display().to_string();
                let bytes = crate::mirror::disk::size(&path);
                match blocking(move || disk.discard(&path)).await {
                    Ok(()) => {
                        tracing::info!(path = name, bytes, "evicted: nobody declares it");
                        bytes
                    }
                    Err(error) => {
                        tracing::warn!(path = name, %error, "what nobody declares cannot be removed");
                        0
                    }
                }
            }
            What::Mirror(id) => {
                let Some(mirror) = self.fleet.get(id) else { return 0 };
                let went = mirror.evict().await.unwrap_or_else(|reason| {
                    tracing::debug!(repo = %id, %reason, "stays on the disk");
                    0
                });
                // Its snapshot is of no more use here than in the store.
                if went > 0 { went + mirror.snapshots().evict().await } else { 0 }
            }
            What::Snapshot(id) => match self.fleet.get(id) {
                Some(mirror) => mirror.snapshots().evict().await,
                None => 0,
            },
            What::Packs => {
                let before = self.packs.bytes();
                self.packs.shrink(before.saturating_sub(need));
                before.saturating_sub(self.packs.bytes())
            }
        }
    }

    /// Data of mirrors that nobody declares; `None` while it is not known what is declared.
    async fn undeclared(&self) -> Option<Vec<Item>> {
        let (disk, declared): (_, BTreeSet<RepoId>) = (self.disk.clone(), self.fleet.declared()?);
        let found = blocking(move || Ok(disk.undeclared(&declared))).await.unwrap_or_default();
        let item = |(path, bytes)| Item { what: What::Undeclared(path), bytes, used: 0 };
        Some(found.into_iter().map(item).collect())
    }

    /// Notes when mirrors were last used, for the next process.
    async fn note(&self) {
        let all = self.fleet.mirrors();
        let _ = blocking(move || {
            for mirror in all.iter().filter(|mirror| mirror.bytes() > 0) {
                if let Err(error) = mirror.demand().save(mirror.dir()) {
                    tracing::debug!(repo = %mirror.id(), %error, "the last use is not noted");
                }
            }
            Ok(())
        })
        .await;
    }
}
