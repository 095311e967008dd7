//! All mirrors of this agent: which are declared, and their running tasks.

pub mod declarations;
pub mod last_known;
pub mod manifests;
pub mod cluster;
pub mod prewarm;
pub mod budget;
pub mod scrub;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::RwLock;
use tarn_crds::{repo::RepoId, v1alpha1::conditions::Reason};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    files::blocking,
    lfs::Lfs,
    mirror::{Mirror, Services, integrity::Integrity, room::Room},
    peers::placement::Placement,
    queue::Queue,
    supervisor::{Alarm, Owned},
};
use declarations::{Delta, Refused, Standing};

/// So many mirrors look at their upstreams at once when an agent finds them on its disk; …
const FEW: u64 = 20;
/// … each further one spreads the first looks over so many milliseconds more: fifty a second.
const EACH: u64 = 20;

/// How long a request waits for the first declarations of a new process, or for a new mirror's Secret.
const FIRST: Duration = Duration::from_secs(3);

/// The mirrors, for everyone who serves or reports.
pub struct Fleet {
    services: Services,
    /// Who is told when a mirror's task ends of itself.
    alarm: Alarm,
    declared: RwLock<Declared>,
    changed: Notify,
    /// How often what is declared was applied.
    applied: watch::Sender<u64>,
}

#[derive(Default)]
struct Declared {
    mirrors: BTreeMap<RepoId, Running>,
    /// The repositories of GitMirrors, by their names.
    names: BTreeMap<String, RepoId>,
    /// Declared, and not mirrored now.
    idle: BTreeMap<RepoId, Reason>,
    refused: Arc<Refused>,
    /// How much is known of what is declared.
    known: Known,
    /// Of each declaration it is known which repository it names.
    complete: bool,
    /// Repositories that have changed since [`Fleet::take_changed`].
    changed: BTreeSet<RepoId>,
}

impl Declared {
    /// Forgets that the GitMirror of this name declares `id`; it may declare another repository by now.
    fn forget_name(&mut self, name: &str, id: &RepoId) {
        if self.names.get(name) == Some(id) {
            self.names.remove(name);
        }
    }
}

/// How much is known of what is declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Known {
    /// Nothing yet.
    #[default]
    Nothing,
    /// What an earlier process knew: there may be more by now, or less.
    Earlier,
    /// All.
    All,
}

/// What is known of a repository.
#[derive(Clone)]
pub enum Found {
    /// It is mirrored.
    Mirror(Box<Mirror>),
    /// It is declared, and cannot be mirrored now.
    Refused(Reason),
    /// It is not known yet whether it is declared.
    Unknown,
    /// Nobody declares it.
    Undeclared,
}

/// What becomes of the data of a mirror that no longer runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Keep,
    Remove,
}

struct Running {
    mirror: Mirror,
    task: Owned,
}

impl Fleet {
    /// An empty fleet.
    pub fn new(services: Services, alarm: Alarm) -> Self {
        Self {
            services,
            alarm,
            declared: RwLock::default(),
            changed: Notify::new(),
            applied: watch::Sender::default(),
        }
    }

    /// The mirror of `id`, if it is declared.
    pub fn get(&self, id: &RepoId) -> Option<Mirror> {
        self.read(|declared| declared.mirrors.get(id).map(|running| running.mirror.clone()))
    }

    /// What is known of `id`. This waits a little for what is still being asked for, as in the first moments of a process.
    pub async fn find(&self, id: &RepoId) -> Found {
        let mut applied = self.applied.subscribe();
        let decided = async {
            loop {
                let nothing = *applied.borrow_and_update() == 0;
                match self.found(id) {
                    Found::Unknown if nothing => {}
                    Found::Refused(Reason::Pending) => {}
                    found => return found,
                }
                if applied.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(FIRST, decided).await.unwrap_or_else(|_| self.found(id))
    }

    fn found(&self, id: &RepoId) -> Found {
        self.read(|declared| match (declared.mirrors.get(id), declared.idle.get(id)) {
            (Some(running), _) => Found::Mirror(Box::new(running.mirror.clone())),
            (None, Some(reason)) => Found::Refused(*reason),
            (None, None) if declared.known < Known::All => Found::Unknown,
            (None, None) => Found::Undeclared,
        })
    }

    /// The mirror that the GitMirror of this name declares.
    pub fn named(&self, name: &str) -> Option<Mirror> {
        self.read(|declared| {
            let running = declared.mirrors.get(declared.names.get(name)?)?;
            Some(running.mirror.clone())
        })
    }

    /// All mirrors, ordered by repository.
    pub fn mirrors(&self) -> Vec<Mirror> {
        self.read(|declared| declared.mirrors.values().map(|running| running.mirror.clone()).collect())
    }

    /// What is declared but cannot be followed.
    pub fn refused(&self) -> Arc<Refused> {
        self.read(|declared| declared.refused.clone())
    }

    /// Waits until [`Self::apply`] was called again. For one listener.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The repositories that have changed since this was called last. For one listener.
    pub fn take_changed(&self) -> BTreeSet<RepoId> {
        self.write(|declared| std::mem::take(&mut declared.changed))
    }

    /// Who keeps which mirror, where not all agents keep all.
    pub fn placement(&self) -> Option<&Placement> {
        self.services.placement.as_ref()
    }

    /// Whose turn it is.
    pub fn queue(&self) -> &Queue {
        &self.services.queue
    }

    /// Whether the disk has room.
    pub fn room(&self) -> &Room {
        &self.services.room
    }

    /// The LFS objects of all mirrors.
    pub fn lfs(&self) -> &Lfs {
        &self.services.lfs
    }

    /// What is known of mirrors' files.
    pub fn integrity(&self) -> Integrity {
        self.services.integrity.clone()
    }

    /// Removes the damaged data of whole mirrors that were set aside before this Unix time.
    ///
    /// # Errors
    /// They cannot be removed.
    pub async fn forget_damage(&self, before: u64) -> std::io::Result<()> {
        let whole = self.mirrors().into_iter().filter(|mirror| mirror.view().stored.is_some());
        let whole: Vec<RepoId> = whole.map(|mirror| mirror.id().clone()).collect();
        let disk = self.services.disk.clone();
        blocking(move || whole.iter().try_for_each(|id| disk.forget_damage(id, before))).await
    }

    /// The repositories that are declared; `None` while it is not known of some whether they are.
    pub fn declared(&self) -> Option<BTreeSet<RepoId>> {
        self.read(|declared| {
            let all = declared.mirrors.keys().chain(declared.idle.keys());
            (declared.complete && declared.known == Known::All).then(|| all.cloned().collect())
        })
    }

    /// How much is known of what is declared.
    pub fn known(&self) -> Known {
        self.read(|declared| declared.known)
    }

    /// Counts the calls of [`Self::apply`].
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Makes the fleet what has been decided: starts, reconfigures and removes the mirrors that change, and touches no
    /// other. The data of a mirror that nobody declares any more go too. Nobody but this function changes the set, so
    /// calls must not overlap.
    pub async fn apply(&self, delta: Delta, known: Known) {
        let Delta { changes, refused, news, complete } = delta;
        tell(&news);
        let changed: Vec<RepoId> = changes.iter().map(|(id, _)| id.clone()).collect();
        let gone: Vec<(Running, Data)> = self.write(|declared| {
            declared.complete = false;
            declared.refused = refused.unwrap_or_else(|| declared.refused.clone());
            let stops = changes.iter().filter_map(|(id, standing)| {
                let data = match standing {
                    Standing::Runs(_) => return None,
                    Standing::Refused(reason) => {
                        declared.idle.insert(id.clone(), *reason);
                        Data::Keep
                    }
                    Standing::Undeclared => {
                        declared.idle.remove(id);
                        Data::Remove
                    }
                };
                let running = declared.mirrors.remove(id)?;
                declared.forget_name(&running.mirror.settings().name, id);
                Some((running, data))
            });
            stops.collect()
        });
        for (running, data) in gone {
            self.remove(running, data).await;
        }
        let starts: Vec<_> = changes
            .into_iter()
            .filter_map(|(id, standing)| match standing {
                Standing::Runs(settings) => Some((id, *settings)),
                Standing::Refused(_) | Standing::Undeclared => None,
            })
            .collect();
        let spread = u64::try_from(starts.len()).unwrap_or(0).saturating_sub(FEW).saturating_mul(EACH);
        self.services.spread.store(spread, Ordering::Relaxed);
        for (id, settings) in starts {
            let name = settings.name.clone();
            match self.get(&id) {
                Some(mirror) => {
                    let former = mirror.settings().name.clone();
                    mirror.configure(settings).await;
                    self.write(|declared| {
                        declared.forget_name(&former, &id);
                        declared.names.insert(name, id);
                    });
                }
                None => {
                    tracing::info!(repo = %id, url = %settings.url, "mirror declared");
                    let (mirror, task) = Mirror::start(&self.services, settings);
                    let task = self.alarm.watch("mirror", task);
                    self.write(|declared| {
                        declared.idle.remove(&id);
                        declared.names.insert(name, id.clone());
                        declared.mirrors.insert(id, Running { mirror, task })
                    });
                }
            }
        }
        // Not before all are what they are to be: who asks in between would take those that still start for undeclared, or
        // find nothing changed, and never ask again.
        self.write(|declared| {
            (declared.complete, declared.known) = (complete, declared.known.max(known));
            declared.changed.extend(changed);
        });
        self.changed.notify_one();
        self.applied.send_modify(|applied| *applied += 1);
    }

    async fn remove(&self, running: Running, data: Data) {
        let Running { mirror, task } = running;
        let (id, dir) = (mirror.id().clone(), mirror.dir().to_owned());
        task.stop().await;
        // Requests under way may hold the mirror a little longer; they lose its files, and say so.
        drop(mirror);
        if data == Data::Keep {
            return;
        }
        let disk = self.services.disk.clone();
        self.services.lfs.forget(&id);
        self.services.packs.forget(&id);
        let all = [dir, disk.snapshots(&id), disk.parts(&id), disk.damaged(&id), self.services.lfs.dir(&id)];
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
        work(&self.declared.read())
    }

    fn write<T>(&self, work: impl FnOnce(&mut Declared) -> T) -> T {
        work(&mut self.declared.write())
    }
}

fn tell(news: &Refused) {
    for rejected in &news.rejected {
        tracing::warn!(
            file = rejected.file,
            document = rejected.document,
            field = rejected.field,
            reason = rejected.reason,
            "manifest rejected"
        );
    }
    for stalled in &news.stalled {
        tracing::warn!(
            name = stalled.name,
            reason = stalled.reason.as_str(),
            message = stalled.message,
            "mirror stalled"
        );
    }
}
