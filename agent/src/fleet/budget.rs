//! The disk's budget: above it, what can be had again leaves, the softest first, then the least recently used.
//!
//! Everything that grows counts: what is kept, what is being made, what is still read. [`plan`] decides what goes; this
//! carries it out. The mirrors judge for themselves whether they may go: not while somebody
//! reads them, nor while their newest state is nowhere else.

mod growth;
pub mod plan;
mod returns;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tarn_crds::{repo::RepoId, v1alpha1::Budget};
use tokio::time::sleep;

use super::Fleet;
use crate::{
    files::blocking,
    metrics::{Metrics, Work},
    mirror::{
        Mirror, demand,
        disk::{Disk, Volume, size},
        room::WriteKind,
    },
    packs::Packs,
};
use growth::Growth;
use plan::{Grower, Item, Need, Own, What, cut, explains, low, need, order};
use returns::Returns;

/// How often the disk is looked at, …
const EVERY: Duration = Duration::from_secs(5);
/// … and while something grows, which may do so by gigabytes a second. A mirror that finds the disk full does not wait.
const GROWING: Duration = Duration::from_secs(1);

/// How long what was ended may take to go from the disk; mirrors stay meanwhile.
const CLEARING: Duration = Duration::from_secs(10);

/// How often the last uses are noted for the next process, and leftovers counted.
const NOTE: Duration = Duration::from_secs(60);

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

/// What the keeper remembers from one look at the disk to the next.
#[derive(Default)]
struct Memory {
    growth: Growth,
    returns: Returns,
    /// Nothing more may go.
    stuck: bool,
    /// When work was last ended because the disk was short.
    cut: Option<Instant>,
}

impl Keeper {
    /// Does nothing before [`Self::run`].
    pub fn new(fleet: Arc<Fleet>, disk: Arc<Disk>, packs: Packs, budget: Budget, metrics: Metrics) -> Self {
        Self { fleet, disk, packs, budget, metrics, usage: Arc::default() }
    }

    /// How full the disk was when it was last looked at.
    pub fn usage(&self) -> Usage {
        *self.usage.lock()
    }

    /// Looks at the disk again and again, for ever.
    pub async fn run(self) {
        let (mut memory, room) = (Memory::default(), self.fleet.room());
        // Leftovers are seldom counted: they lie still.
        let (mut leftovers, mut counted, mut noted) = (0, false, Instant::now());
        let mut wait = Duration::ZERO;
        loop {
            let plea = tokio::select! {
                () = sleep(wait) => false,
                () = room.wanted() => true,
                // Looked at as often as what grows, from now on.
                () = room.begun(), if wait > GROWING => {
                    wait = GROWING;
                    continue;
                }
            };
            let note = noted.elapsed() >= NOTE;
            wait = if room.writing().is_empty() { EVERY } else { GROWING };
            if !counted || note {
                let found = self.leftovers().await.iter().map(|item| item.bytes).sum();
                // Counted again soon where it is not known yet what is declared.
                (leftovers, counted) = (found, self.fleet.declared().is_some());
            }
            let (own, usage) = match self.measure(leftovers).await {
                Ok(measured) => measured,
                Err(error) => {
                    tracing::warn!(%error, "cannot ask how full the disk is");
                    continue;
                }
            };
            let mirrors = self.fleet.mirrors();
            let sizes = mirrors.iter().map(|mirror| (mirror.id().clone(), mirror.bytes()));
            memory.growth.seen(sizes, demand::now());
            let mut need = need(own, usage.budget, usage.volume, plea);
            if let Some((id, cut)) = cut(&self.growers(), own.mirrors, usage.budget, usage.volume) {
                tracing::warn!(
                    repo = %id,
                    used = usage.used,
                    growing = own.growing,
                    budget = usage.budget,
                    free = usage.volume.free,
                    "the disk is short: the work on the mirror that grows most is ended, so that the others stay"
                );
                room.cut(&id, cut);
                memory.cut = Some(Instant::now());
            }
            // What it has written is about to go.
            if memory.cut.is_some_and(|cut| cut.elapsed() < CLEARING) {
                need.firm = 0;
            }
            room.set_tight(!need.is_none() || usage.used > low(usage.budget));
            if !need.is_none() {
                let freed = self.free(need, usage, &mut memory).await;
                counted = false;
                let lacks = freed < need.all && !plea;
                if lacks && !memory.stuck {
                    tracing::warn!(
                        need = need.all,
                        freed,
                        used = usage.used,
                        growing = own.growing,
                        budget = usage.budget,
                        free = usage.volume.free,
                        "the disk is too full, and nothing more may go: grow the volume, or mirror less"
                    );
                }
                memory.stuck = lacks;
            }
            if note {
                noted = Instant::now();
                self.note().await;
            }
        }
    }

    /// The mirrors that grow.
    fn growers(&self) -> Vec<Grower> {
        let mut growers: BTreeMap<RepoId, Grower> = BTreeMap::new();
        for writer in self.fleet.room().writing() {
            let bytes = self.fleet.get(&writer.id).map_or(0, |mirror| mirror.bytes());
            let new = || Grower { id: writer.id.clone(), bytes, grown: 0, stays: 0 };
            let grower = growers.entry(writer.id.clone()).or_insert_with(new);
            grower.grown += writer.grown;
            if writer.kind != WriteKind::Rewrite {
                grower.stays += writer.grown;
            }
        }
        growers.into_values().collect()
    }

    async fn measure(&self, leftovers: u64) -> std::io::Result<(Own, Usage)> {
        let volume = self.disk.volume()?;
        let all = self.fleet.mirrors();
        let mirrors = all.iter().map(Mirror::bytes).sum();
        let snapshots: u64 = all.iter().map(|mirror| mirror.snapshots().bytes().here).sum();
        let (answers, objects) = (self.packs.usage(), self.fleet.lfs().usage());
        let disk = self.disk.clone();
        let staged = blocking(move || Ok(disk.staged())).await?;
        let writing = self.fleet.room().writing();
        let in_place = writing.iter().filter(|writer| writer.kind != WriteKind::Staged);
        let in_place: u64 = in_place.map(|writer| writer.grown).sum();
        let own = Own {
            mirrors,
            soft: leftovers + snapshots + objects.kept.bytes + answers.kept.bytes,
            growing: staged + in_place + objects.open() + answers.open(),
        };
        let usage = Usage { budget: self.budget.bytes_of(volume.total), used: own.all(), volume };
        *self.usage.lock() = usage;
        Ok((own, usage))
    }

    /// Lets go of what is needed, as far as that may be; returns how many bytes went.
    async fn free(&self, need: Need, usage: Usage, memory: &mut Memory) -> u64 {
        let mut items = self.leftovers().await;
        for mirror in self.fleet.mirrors() {
            let (id, used) = (mirror.id(), mirror.demand().used());
            let (bytes, snapshot) = (mirror.bytes(), mirror.snapshots().bytes());
            if bytes > 0 {
                let blamed = explains(bytes + snapshot.here, memory.growth.of(id, bytes), need, usage.budget);
                items.push(Item {
                    what: What::Mirror(id.clone()),
                    bytes,
                    used: if blamed { 0 } else { used },
                });
            }
            if snapshot.elsewhere > 0 {
                items.push(Item { what: What::Snapshot(id.clone()), bytes: snapshot.elsewhere, used });
            }
        }
        items.push(Item { what: What::Packs, bytes: self.packs.usage().kept.bytes, used: 0 });
        items.push(Item { what: What::Lfs, bytes: self.fleet.lfs().usage().kept.bytes, used: 0 });
        let mut freed = 0_u64;
        // What may not go is found out by asking, and others go in its place.
        for item in order(items, demand::now()) {
            let lacks = need.of(&item.what).saturating_sub(freed);
            if lacks == 0 {
                continue;
            }
            let went = self.let_go(&item.what, lacks).await;
            if went > 0 {
                let kind = Work { work: item.what.label() };
                self.metrics.disk.evictions.get_or_create(&kind).inc();
                self.metrics.disk.evicted.inc_by(went);
                freed += went;
                if let What::Mirror(id) = item.what {
                    self.hold_off(id, memory);
                }
            }
        }
        freed
    }

    /// Keeps a mirror away for a while that leaves and comes back again and again.
    fn hold_off(&self, id: RepoId, memory: &mut Memory) {
        let Some(seconds) = memory.returns.evicted(&id, demand::now()) else { return };
        tracing::warn!(
            repo = %id,
            seconds,
            "the mirror leaves the disk and comes back again and again: the disk budget is too small for what clients \
             ask for; for now its requests are handed on to other agents and the upstream"
        );
        self.fleet.room().hold_off(id, Instant::now() + Duration::from_secs(seconds));
    }

    /// Returns how many bytes went.
    async fn let_go(&self, what: &What, need: u64) -> u64 {
        match what {
            What::Undeclared(path) => self.discard(path, "evicted: nobody declares it").await,
            What::Damaged(path) => self.discard(path, "evicted: damaged data that were set aside").await,
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
            What::Packs => self.packs.shrink(need).await,
            What::Lfs => self.fleet.lfs().shrink(need).await,
        }
    }

    async fn discard(&self, path: &Path, done: &'static str) -> u64 {
        let (disk, path) = (self.disk.clone(), path.to_owned());
        let name = path.display().to_string();
        let discarded = blocking(move || {
            let bytes = size(&path);
            disk.discard(&path).map(|()| bytes)
        });
        match discarded.await {
            Ok(bytes) => {
                tracing::info!(path = name, bytes, "{done}");
                bytes
            }
            Err(error) => {
                tracing::warn!(path = name, %error, "leftovers cannot be removed");
                0
            }
        }
    }

    /// Damaged data that were set aside and, once it is known what is declared, data of mirrors that nobody declares.
    async fn leftovers(&self) -> Vec<Item> {
        let (disk, declared): (_, Option<BTreeSet<RepoId>>) = (self.disk.clone(), self.fleet.declared());
        let found = blocking(move || {
            let undeclared = declared.map_or_else(Vec::new, |declared| disk.undeclared(&declared));
            Ok((undeclared, disk.set_aside_data()))
        });
        let (undeclared, damaged) = found.await.unwrap_or_default();
        let item = |what, bytes| Item { what, bytes, used: 0 };
        let undeclared = undeclared.into_iter().map(|(path, bytes)| item(What::Undeclared(path), bytes));
        undeclared.chain(damaged.into_iter().map(|(path, bytes)| item(What::Damaged(path), bytes))).collect()
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
