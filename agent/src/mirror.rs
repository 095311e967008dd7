//! One mirrored repository: its handle for the rest of the agent, and the task behind it.
//!
//! *Architecture invariant:* a repository's whole state is in its [`task`]; others hold a [`Mirror`] to
//! read what it published last and to send it requests.

pub mod cold;
pub mod demand;
pub mod room;
pub mod disk;
pub mod findings;
pub mod fetch;
pub mod freshness;
pub mod missing;
pub mod state;
pub mod snapshots;
pub mod worktree_lfs;
mod task;
pub mod upkeep;

use std::{
    collections::HashSet,
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use bstr::BString;
use jiff::Timestamp;
use tarn_crds::{
    repo::{RepoId, UpstreamUrl},
    v1alpha1::{Access, OnUpstreamFailure, Phase, Prewarm, Refs, conditions::Reason},
};
use tokio::{
    sync::{OnceCell, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    checkpoint::{
        Archive,
        manifest::Checkpoint,
        turns::{Turns, Urgency},
    },
    git::{Git, Oid, RefSet, remote},
    lfs::Lfs,
    metrics::Metrics,
    peers::{Peers, placement::Placement},
    popularity::Popularity,
    queue::Queue,
    upstream::{Credentials, LookError, Looker},
};
use cold::Cold;
use demand::{Demand, Reading};
use disk::Disk;
use fetch::FetchError;
pub use missing::MissingCredentials;
use room::Room;
use snapshots::{Keeper, Snapshots};
use worktree_lfs::WorktreeLfs;

/// Requests that wait for one mirror's task; more are turned away, the client retries.
const MAX_QUEUED: usize = 4096;

/// Mirrors checked at once when an agent starts, and as many more that somebody waits for: each takes a child.
const LOADS: usize = 4;

/// How much all mirrors of the agent may do at once.
pub struct Limits {
    upkeep: Semaphore,
    /// Snapshots being built.
    snapshots: Semaphore,
    /// Mirrors whose newest snapshot the store is asked for.
    finds: Semaphore,
    /// Answers streamed from the store.
    cold: Cold,
    /// Whether the disk has room.
    pub room: Room,
    /// Whose turn it is.
    pub queue: Queue,
    /// Mirrors found on the disk at the start, while they are checked.
    loads: Turns,
    /// Over how many milliseconds the first looks of mirrors found on the disk are spread.
    pub spread: AtomicU64,
}

impl Limits {
    /// Upkeep takes turns, and so does the building of snapshots.
    pub fn new(popularity: Popularity, queue: Queue) -> Self {
        Self {
            upkeep: Semaphore::new(1),
            snapshots: Semaphore::new(1),
            finds: Semaphore::new(8),
            cold: Cold::default(),
            room: Room::default(),
            queue,
            loads: Turns::new(LOADS, LOADS, popularity),
            spread: AtomicU64::new(0),
        }
    }
}

/// What the user declared of a mirror, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The GitMirror's name.
    pub name: String,
    /// The upstream.
    pub url: UpstreamUrl,
    /// Time between background looks.
    pub interval: Duration,
    /// How long one fetch or clone may take.
    pub timeout: Duration,
    /// Serve what is on the disk; ask the upstream nothing.
    pub suspend: bool,
    /// Which refs are mirrored.
    pub refs: Refs,
    /// Answers may rest on a look at most this old.
    pub max_staleness: Duration,
    /// How long one look may take.
    pub look_timeout: Duration,
    /// What to answer while the upstream does not.
    pub on_upstream_failure: OnUpstreamFailure,
    /// Who may read, after the defaults.
    pub access: Access,
    /// Whether it is brought before anyone asks for it.
    pub prewarm: Prewarm,
    /// What the upstream is asked with, or why it cannot be asked.
    pub credentials: Result<Credentials, MissingCredentials>,
    /// What is kept in the store.
    pub checkpoint: CheckpointSettings,
    /// What clients download instead of cloning.
    pub snapshot: SnapshotSettings,
}

/// What is kept in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSettings {
    /// The shortest time between two checkpoints.
    pub interval: Duration,
    /// How many are kept.
    pub keep: usize,
}

/// When a snapshot is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// The shortest time between two.
    pub interval: Duration,
    /// One as old as this is replaced though `HEAD` did not move.
    pub max_age: Duration,
}

/// What all mirrors of an agent share.
#[derive(Clone)]
pub struct Shared {
    /// The installed git.
    pub git: Git,
    /// The data directory.
    pub disk: Arc<Disk>,
    /// Metrics.
    pub metrics: Metrics,
    /// How much all mirrors may do at once.
    pub limits: Arc<Limits>,
    /// Where checkpoints go and come from, if anywhere.
    pub archive: Option<Arc<Archive>>,
    /// The other agents that share the store, if there is one.
    pub peers: Option<Peers>,
    /// The LFS objects of all mirrors.
    pub lfs: Lfs,
    /// Who keeps which mirror, where not all agents keep all.
    pub placement: Option<Placement>,
}

/// What a mirror's task last published.
#[derive(Clone, Debug)]
pub struct View {
    /// Where it is in its life.
    pub phase: Phase,
    /// The refs on the disk, all of whose objects are there.
    pub stored: Option<Arc<Stored>>,
    /// The refs the upstream showed in the newest look, and when that look began.
    pub seen: Option<(Arc<RefSet>, Instant)>,
    /// Why the last look failed, if it did.
    pub look_trouble: Option<Trouble>,
    /// Why the last fetch failed, if it did.
    pub fetch_trouble: Option<Trouble>,
    /// When the newest look that succeeded began.
    pub last_look: Option<Timestamp>,
    /// When the newest fetch that succeeded ended.
    pub last_fetch: Option<Timestamp>,
    /// Bytes on the disk.
    pub bytes: u64,
    /// The newest checkpoint known.
    pub checkpoint: Option<Arc<Checkpoint>>,
    /// Why the last checkpoint could not be published, if so.
    pub store_trouble: Option<Trouble>,
    /// Why the last restore failed, or passed a checkpoint over, if so.
    pub restore_trouble: Option<Trouble>,
    /// A repository that serves shallow clones cheaply, and the commit it was made for.
    pub seed: Option<(PathBuf, Oid)>,
    /// The upstream, for requests that are handed on to it.
    pub upstream: Option<Arc<Looker>>,
}

impl View {
    /// What is wrong, the worst first; `None` while nothing is.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.look_trouble.as_ref().or(self.fetch_trouble.as_ref())
    }
}

/// What is wrong with a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In a word.
    pub reason: Reason,
    /// For people; holds no secret.
    pub message: String,
}

impl Trouble {
    fn new(reason: Reason, error: &impl fmt::Display) -> Self {
        Self { reason, message: error.to_string() }
    }
}

/// A state of the refs that is complete on the disk.
#[derive(Debug)]
pub struct Stored {
    /// The refs.
    pub refs: Arc<RefSet>,
    /// Their digest.
    pub digest: String,
    /// The objects they name.
    pub tips: HashSet<Oid>,
    /// A pack that holds all that they reach, as it was restored.
    pub pack: Option<Arc<WholePack>>,
}

impl Stored {
    fn new(refs: Arc<RefSet>) -> Self {
        Self { digest: refs.digest(), tips: refs.tips().collect(), refs, pack: None }
    }

    /// Keeps what `former` knew of the same refs.
    fn after(mut self, former: Option<&Self>) -> Self {
        let same = former.filter(|former| former.digest == self.digest);
        self.pack = same.and_then(|former| former.pack.clone());
        self
    }
}

/// A pack that holds all that the refs of a mirror reach. It goes when packs are put in order.
#[derive(Debug)]
pub struct WholePack {
    /// The file.
    pub path: PathBuf,
    /// Whether it holds nothing else, once somebody has asked.
    pub exact: OnceCell<bool>,
}

/// Why objects a client wants cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BringError {
    /// Neither the mirror nor the upstream has it.
    #[error("upload-pack: not our ref {0}")]
    Missing(Oid),
    /// The fetch that would bring it failed.
    #[error("{0}")]
    Fetch(Arc<FetchError>),
    /// The upstream could not be asked.
    #[error("{0}")]
    Look(Arc<LookError>),
    /// Too many requests wait.
    #[error("the mirror is busy")]
    Busy,
    /// It is being removed.
    #[error("the mirror is being removed")]
    Removed,
}

/// Why a mirror stays on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvictError {
    /// Somebody reads it, or works on it.
    #[error("it is in use")]
    Busy,
    /// Its newest state is not in the store, and the upstream was not seen to have it.
    #[error("its newest state is nowhere else")]
    OnlyHere,
    /// It could not be moved away.
    #[error("the disk fails")]
    Disk,
    /// It is being removed.
    #[error("it is being removed")]
    Removed,
}

/// What a request asks of the task.
enum Message {
    /// A look that begins after this message arrived, at refs with these prefixes at least.
    Look(Vec<BString>, oneshot::Sender<LookAnswer>),
    /// Look and fetch until the objects are there, as far as the upstream's refs lead to them.
    Settle(Vec<Oid>, oneshot::Sender<Result<(), BringError>>),
    /// Fetch these objects by name, whatever refs lead to them.
    Extra(Vec<Oid>, oneshot::Sender<Result<(), BringError>>),
    /// Someone clones shallowly: a seed pays.
    Shallow,
    /// Publish a checkpoint now, if the refs have moved since the last.
    Checkpoint,
    /// Bring the mirror here, if it is not here yet.
    Want(Urgency),
    /// Leave the disk.
    Evict(oneshot::Sender<Result<u64, EvictError>>),
    /// The user changed the declaration.
    Configure(Arc<Settings>),
}

/// A look's answer: the upstream's refs and when the look began.
type LookAnswer = Result<(Arc<RefSet>, Instant), Arc<LookError>>;

/// A handle on a mirror. Cheap to clone; the task ends when the last handle is gone.
#[derive(Clone)]
pub struct Mirror {
    id: RepoId,
    dir: PathBuf,
    git: Git,
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    settings: watch::Receiver<Arc<Settings>>,
    progress: watch::Receiver<Option<String>>,
    snapshots: Snapshots,
    lfs: Lfs,
    worktree_lfs: WorktreeLfs,
    demand: Demand,
}

/// Follows what is told of a mirror, and does not keep it.
pub struct Changes {
    view: watch::Receiver<View>,
    settings: watch::Receiver<Arc<Settings>>,
    snapshots: watch::Receiver<snapshots::SnapshotView>,
}

impl Changes {
    /// Waits until the mirror's view, settings or snapshots have changed since the last call; false once the mirror has
    /// been removed. A dropped future loses nothing.
    pub async fn next(&mut self) -> bool {
        let changed = tokio::select! {
            changed = self.view.changed() => changed,
            changed = self.settings.changed() => changed,
            changed = self.snapshots.changed() => changed,
        };
        changed.is_ok()
    }
}

impl Mirror {
    /// Starts the task of the mirror that `settings` declare. What is on the disk is found and used.
    pub fn start(shared: &Shared, settings: Settings) -> (Self, JoinHandle<()>) {
        let (messages, inbox) = mpsc::channel(MAX_QUEUED);
        let id = settings.url.id().clone();
        let (dir, git) = (shared.disk.mirror(&id), shared.git.clone());
        let packs = Arc::default();
        let demand = Demand::default();
        let settings = Arc::new(settings);
        let (task, ports) = task::Task::new(shared.clone(), settings, Arc::clone(&packs), demand.clone());
        let task::Ports { view, settings, progress } = ports;
        let (keeper, snapshots) = Keeper::new(shared, packs, view.clone(), settings.clone());
        let span = tracing::info_span!("snapshots", repo = %id);
        let keeping = AbortOnDropHandle::new(tokio::spawn(keeper.run().instrument(span)));
        let (keeper, worktree_lfs) =
            worktree_lfs::Keeper::new(shared, &id, snapshots.watch(), view.clone(), settings.clone());
        let span = tracing::info_span!("lfs", repo = %id);
        let keeping_lfs = AbortOnDropHandle::new(tokio::spawn(keeper.run().instrument(span)));
        let handle = tokio::spawn(async move {
            task.run(inbox).await;
            drop((keeping, keeping_lfs));
        });
        let lfs = shared.lfs.clone();
        let handles =
            Self { id, dir, git, messages, view, settings, progress, snapshots, lfs, worktree_lfs, demand };
        (handles, handle)
    }

    /// Which repository it mirrors.
    pub fn id(&self) -> &RepoId {
        &self.id
    }

    /// The bare repository on the disk; it may not be there yet.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// What the user declared.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// What the task last published.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Follows what is told of it.
    pub fn changes(&self) -> Changes {
        Changes {
            view: self.view.clone(),
            settings: self.settings.clone(),
            snapshots: self.snapshots.watch(),
        }
    }

    /// Its bytes on the disk.
    pub fn bytes(&self) -> u64 {
        self.view.borrow().bytes
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.view.borrow().phase
    }

    /// Waits until there is something on the disk to serve, but no longer than `patience`; says whether there is.
    pub async fn wait_for_data(&self, patience: Duration) -> bool {
        let mut view = self.view.clone();
        let there = timeout(patience, view.wait_for(|view| view.stored.is_some())).await;
        matches!(there, Ok(Ok(_)))
    }

    /// The latest progress line of a running clone or fetch.
    pub fn progress(&self) -> Option<String> {
        self.progress.borrow().clone()
    }

    /// Its snapshots.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// The LFS objects of all mirrors.
    pub fn lfs(&self) -> &Lfs {
        &self.lfs
    }

    /// The LFS objects that its worktree needs.
    pub fn worktree_lfs(&self) -> &WorktreeLfs {
        &self.worktree_lfs
    }

    /// The upstream, where it may be asked: not while the mirror is suspended.
    pub fn upstream(&self) -> Option<Arc<Looker>> {
        self.view.borrow().upstream.clone().filter(|_| !self.settings.borrow().suspend)
    }

    /// Tells the task of a changed declaration.
    pub async fn configure(&self, settings: Settings) {
        // The task ends only when all handles are gone, and this is one.
        let _ = self.messages.send(Message::Configure(Arc::new(settings))).await;
    }

    /// Brings the mirror to the disk, if it is not there or on its way.
    pub async fn want(&self) {
        let _ = self.messages.send(Message::Want(Urgency::Idle)).await;
    }

    /// Says that somebody asks for the mirror: it is brought before those that nobody asks for.
    pub fn asked(&self) {
        self.demand.touch();
        if self.view.borrow().stored.is_none() {
            // A full queue holds requests, which say as much.
            let _ = self.messages.try_send(Message::Want(Urgency::Awaited));
        }
    }

    /// Begins to read its files: they stay while this is held, if they are there when it is taken.
    pub fn read(&self) -> Reading {
        self.demand.read()
    }

    /// Who uses it.
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Takes its data off the disk; they come back when it is asked for. Returns their bytes.
    ///
    /// # Errors
    /// It is in use, or nowhere else.
    pub async fn evict(&self) -> Result<u64, EvictError> {
        let (reply, answer) = oneshot::channel();
        self.messages.try_send(Message::Evict(reply)).map_err(|_| EvictError::Busy)?;
        answer.await.unwrap_or(Err(EvictError::Removed))
    }

    /// Follows what the task publishes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Says that someone clones shallowly, so that the next one may be cheap.
    pub fn asked_shallow(&self) {
        // A full queue has better things to do.
        let _ = self.messages.try_send(Message::Shallow);
    }

    /// Says that a checkpoint is to be published now, and not only after the interval, if the refs have moved.
    ///
    /// # Errors
    /// Too many requests wait.
    pub fn checkpoint(&self) -> Result<(), BringError> {
        self.messages.try_send(Message::Checkpoint).map_err(|_| BringError::Busy)
    }

    /// Asks for a look that begins after this call, at the refs that start with one of `prefixes` at least
    /// (at all where there are none); concurrent calls share one.
    ///
    /// # Errors
    /// The look fails.
    pub async fn look(&self, prefixes: &[BString]) -> Result<(Arc<RefSet>, Instant), Arc<LookError>> {
        let busy = || Arc::new(LookError::Refused("too many requests wait for this mirror".into()));
        let (reply, answer) = oneshot::channel();
        self.messages.try_send(Message::Look(prefixes.to_vec(), reply)).map_err(|_| busy())?;
        answer.await.unwrap_or_else(|_| Err(busy()))
    }

    /// Makes sure that `wants` are on the disk: waits for the fetch that brings them, looks again, and at
    /// last asks the upstream for them by name. A dropped future stops waiting, not the fetch.
    ///
    /// # Errors
    /// They cannot be had.
    pub async fn bring(&self, wants: &[Oid]) -> Result<(), BringError> {
        if self.has_tips(wants) {
            return Ok(());
        }
        if self.view.borrow().stored.is_some() && self.missing(wants).await.is_empty() {
            return Ok(());
        }
        self.settle(wants).await?;
        if self.has_tips(wants) {
            return Ok(());
        }
        let missing = self.missing(wants).await;
        if missing.is_empty() {
            return Ok(());
        }
        self.request(|reply| Message::Extra(missing.into_iter().collect(), reply)).await
    }

    /// Waits until the refs on the disk name `oids`, as far as a look now and the fetch after it lead there.
    /// A dropped future stops waiting, not the fetch.
    ///
    /// # Errors
    /// The look or the fetch fails.
    pub async fn settle(&self, oids: &[Oid]) -> Result<(), BringError> {
        if self.has_tips(oids) {
            return Ok(());
        }
        self.request(|reply| Message::Settle(oids.to_vec(), reply)).await
    }

    fn has_tips(&self, wants: &[Oid]) -> bool {
        self.view
            .borrow()
            .stored
            .as_ref()
            .is_some_and(|stored| wants.iter().all(|want| stored.tips.contains(want)))
    }

    async fn missing(&self, wants: &[Oid]) -> HashSet<Oid> {
        // Where git cannot tell, the upstream is asked: at worst a needless fetch.
        remote::missing(&self.git, &self.dir, wants).await.unwrap_or_else(|_| wants.iter().copied().collect())
    }

    async fn request(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<(), BringError>>) -> Message,
    ) -> Result<(), BringError> {
        let (reply, answer) = oneshot::channel();
        self.messages.try_send(message(reply)).map_err(|_| BringError::Busy)?;
        answer.await.unwrap_or(Err(BringError::Removed))
    }
}
