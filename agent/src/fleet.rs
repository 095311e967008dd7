//! All mirrors of this agent: which are declared, and their running tasks.

pub mod desired;
pub mod manifests;
pub mod cluster;
pub mod prewarm;
pub mod budget;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, atomic::Ordering},
};

use tarn_crds::repo::RepoId;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use crate::{
    files::blocking,
    mirror::{Limits, Mirror, Shared},
    peers::placement::Placement,
};
use desired::{Desired, Rejected, Stalled};

/// So many mirrors look at their upstreams at once when an agent finds them on its disk; …
const FEW: u64 = 20;
/// … each further one spreads the first looks over so many milliseconds more: fifty a second.
const EACH: u64 = 20;

/// The mirrors, for everyone who serves or reports.
pub struct Fleet {
    shared: Shared,
    declared: RwLock<Declared>,
    changed: Notify,
    /// How often what is declared was applied.
    applied: watch::Sender<u64>,
}

#[derive(Default)]
struct Declared {
    mirrors: BTreeMap<RepoId, Running>,
    stalled: Vec<Stalled>,
    rejected: Vec<Rejected>,
    /// All declarations could be read.
    complete: bool,
}

/// What becomes of the data of a mirror that no longer runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Keep,
    Remove,
}

struct Running {
    mirror: Mirror,
    task: JoinHandle<()>,
}

/// What is declared but not mirrored, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Mirrors that cannot be set up as declared.
    pub stalled: Vec<Stalled>,
    /// Documents that are no valid declarations.
    pub rejected: Vec<Rejected>,
}

impl Fleet {
    /// An empty fleet.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            declared: RwLock::default(),
            changed: Notify::new(),
            applied: watch::Sender::default(),
        }
    }

    /// The mirror of `id`, if it is declared.
    pub fn get(&self, id: &RepoId) -> Option<Mirror> {
        self.read(|declared| declared.mirrors.get(id).map(|running| running.mirror.clone()))
    }

    /// All mirrors, ordered by repository.
    pub fn mirrors(&self) -> Vec<Mirror> {
        self.read(|declared| declared.mirrors.values().map(|running| running.mirror.clone()).collect())
    }

    /// What is declared but not mirrored.
    pub fn refused(&self) -> Refused {
        self.read(|declared| Refused {
            stalled: declared.stalled.clone(),
            rejected: declared.rejected.clone(),
        })
    }

    /// Waits until [`Self::apply`] was called again. For one listener.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Who keeps which mirror, where not all agents keep all.
    pub fn placement(&self) -> Option<&Placement> {
        self.shared.placement.as_ref()
    }

    /// How much all mirrors may do at once.
    pub fn limits(&self) -> Arc<Limits> {
        self.shared.limits.clone()
    }

    /// The repositories that are declared; `None` while it is not known of some whether they are.
    pub fn declared(&self) -> Option<BTreeSet<RepoId>> {
        self.read(|declared| {
            let stalled = declared.stalled.iter().map(|stalled| stalled.repo.clone());
            declared.complete.then(|| declared.mirrors.keys().cloned().chain(stalled).collect())
        })
    }

    /// Counts the calls of [`Self::apply`].
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Makes the fleet what `desired` says: starts, reconfigures and removes mirrors. A removed mirror's
    /// data go too; nobody but this function changes the set, so calls must not overlap.
    pub async fn apply(&self, desired: Desired) {
        let Desired { mirrors, stalled, rejected, pending } = desired;
        let complete = rejected.is_empty() && pending == 0;
        // Declared, though it cannot run: its data stay for when it can.
        let kept: BTreeSet<RepoId> = stalled.iter().map(|stalled| stalled.repo.clone()).collect();
        let wanted: BTreeSet<RepoId> = mirrors.iter().map(|settings| settings.url.id().clone()).collect();
        for refused in &rejected {
            tracing::warn!(
                file = refused.file,
                document = refused.document,
                field = refused.field,
                reason = refused.reason,
                "manifest rejected"
            );
        }
        for stalled in &stalled {
            tracing::warn!(
                name = stalled.name,
                reason = stalled.reason.as_str(),
                message = stalled.message,
                "mirror stalled"
            );
        }
        let gone: Vec<Running> = self.write(|declared| {
            (declared.stalled, declared.rejected) = (stalled, rejected);
            declared.complete = complete;
            let (keep, gone) =
                std::mem::take(&mut declared.mirrors).into_iter().partition(|(id, _)| wanted.contains(id));
            declared.mirrors = keep;
            let gone: BTreeMap<RepoId, Running> = gone;
            gone.into_values().collect()
        });
        for running in gone {
            let keep = kept.contains(running.mirror.id());
            self.remove(running, if keep { Data::Keep } else { Data::Remove }).await;
        }
        let spread = u64::try_from(mirrors.len()).unwrap_or(0).saturating_sub(FEW).saturating_mul(EACH);
        self.shared.limits.spread.store(spread, Ordering::Relaxed);
        for settings in mirrors {
            let id = settings.url.id().clone();
            match self.get(&id) {
                Some(mirror) => mirror.configure(settings).await,
                None => {
                    tracing::info!(repo = %id, url = %settings.url, "mirror declared");
                    let (mirror, task) = Mirror::start(&self.shared, settings);
                    self.write(|declared| declared.mirrors.insert(id, Running { mirror, task }));
                }
            }
        }
        self.changed.notify_one();
        self.applied.send_modify(|applied| *applied += 1);
    }

    async fn remove(&self, running: Running, data: Data) {
        let Running { mirror, task } = running;
        let (id, dir) = (mirror.id().clone(), mirror.dir().to_owned());
        // Requests under way may hold the mirror a little longer; they lose its files, and say so.
        drop(mirror);
        task.abort();
        let _ = task.await;
        if data == Data::Keep {
            return;
        }
        let disk = self.shared.disk.clone();
        self.shared.lfs.forget(&id);
        let all = [dir, disk.snapshots(&id), disk.parts(&id), self.shared.lfs.dir(&id)];
        let discard = move || all.iter().try_for_each(|dir| disk.discard(dir));
        match blocking(discard).await {
            Ok(()) => tracing::info!(repo = %id, "mirror removed"),
            Err(error) => {
                tracing::warn!(repo = %id, %error, "the removed mirror's data are still on the disk");
            }
        }
    }

    // A panic while the lock is held leaves whole values behind: each closure replaces them at once.
    fn read<T>(&self, work: impl FnOnce(&Declared) -> T) -> T {
        work(&self.declared.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, work: impl FnOnce(&mut Declared) -> T) -> T {
        work(&mut self.declared.write().unwrap_or_else(PoisonError::into_inner))
    }
}
