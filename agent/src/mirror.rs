//! One mirrored repository: its handle for the rest of the agent, and the task behind it.
//!
//! *Architecture invariant:* a repository's whole state is in its [`task`]; others hold a [`Mirror`] to
//! read what it published last and to send it requests.

pub mod settings;
pub mod cold;
pub mod demand;
pub mod damage;
pub mod integrity;
pub mod room;
pub mod disk;
pub mod quota;
pub mod services;
pub mod missing;
pub mod entitlement;
pub mod fetch;
pub mod error;
pub mod life;
pub mod upkeep;
pub mod seed;
pub mod snapshots;
pub mod view;
pub mod findings;
pub mod worktree_lfs;
mod presence;
mod task;
pub mod examine;
pub mod freshness;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bstr::BString;
use tarn_crds::{repo::RepoId, v1alpha1::Phase};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    git::{Oid, RefSet},
    lfs::Lfs,
    queue::Priority,
    upstream::{LookError, Looker},
};
use demand::{Demand, Reading};
pub use error::{BringError, EvictError, Settled};
use integrity::Integrity;
pub use missing::MissingCredentials;
use presence::Presence;
pub use services::Services;
pub use settings::{CheckpointSettings, Settings, SnapshotSettings};
use snapshots::{Keeper, Snapshots};
pub use view::{Changes, Stored, Trouble, View};
use worktree_lfs::WorktreeLfs;

/// Requests that wait for one mirror's task; more are turned away, the client retries.
const MAX_QUEUED: usize = 4096;

/// What a request asks of the task.
enum Message {
    /// A look that begins after this message arrived, at refs with these prefixes at least.
    Look(Vec<BString>, oneshot::Sender<LookAnswer>),
    /// Look and fetch until the objects are there, as far as the upstream's refs lead to them.
    Settle {
        oids: Vec<Oid>,
        /// A look that began then or later need not be made again.
        asked: Instant,
        reply: oneshot::Sender<Result<Settled, BringError>>,
    },
    /// Fetch these objects by id, whatever refs lead to them; answers with those that the upstream does not have.
    ById(Vec<Oid>, oneshot::Sender<Result<HashSet<Oid>, BringError>>),
    /// Someone asks for all history, and no base fits.
    Base,
    /// Someone clones shallowly: a seed pays.
    Shallow,
    /// Publish a checkpoint now, if the refs have moved since the last.
    Checkpoint,
    /// Bring the mirror here, if it is not here yet.
    Want(Priority),
    /// The data on the disk are damaged, for this reason.
    Damaged(Trouble),
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
    presence: Presence,
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    settings: watch::Receiver<Arc<Settings>>,
    progress: watch::Receiver<Option<String>>,
    snapshots: Snapshots,
    lfs: Lfs,
    worktree_lfs: WorktreeLfs,
    demand: Demand,
    integrity: Integrity,
}

impl Mirror {
    /// Starts the task of the mirror that `settings` declare. What is on the disk is found and used.
    pub fn start(services: &Services, settings: Settings) -> (Self, JoinHandle<()>) {
        let (messages, inbox) = mpsc::channel(MAX_QUEUED);
        let id = settings.url.id().clone();
        let dir = services.disk.mirror(&id);
        let presence = Presence::new(services, id.clone());
        let demand = Demand::default();
        let (task, ports) = task::Task::new(services, Arc::new(settings), demand.clone());
        let task::Ports { view, settings, progress, packs } = ports;
        let (keeper, snapshots) = Keeper::new(services, packs, view.clone(), settings.clone());
        let span = tracing::info_span!("snapshots", repo = %id);
        let keeping = AbortOnDropHandle::new(tokio::spawn(keeper.run().instrument(span)));
        let (keeper, worktree_lfs) =
            worktree_lfs::Keeper::new(services, &id, snapshots.watch(), view.clone(), settings.clone());
        let span = tracing::info_span!("lfs", repo = %id);
        let keeping_lfs = AbortOnDropHandle::new(tokio::spawn(keeper.run().instrument(span)));
        let handle = tokio::spawn(async move {
            Box::pin(task.run(inbox)).await;
            drop((keeping, keeping_lfs));
        });
        let lfs = services.lfs.clone();
        let integrity = services.integrity.clone();
        let mirror = Self {
            id,
            dir,
            presence,
            messages,
            view,
            settings,
            progress,
            snapshots,
            lfs,
            worktree_lfs,
            demand,
            integrity,
        };
        (mirror, handle)
    }

    /// Which repository it mirrors.
    pub fn id(&self) -> &RepoId {
        &self.id
    }

    /// The bare repository on the disk; it may not be there yet.
    pub fn dir(&self) -> &Path {
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
        Changes::new(self.view.clone(), self.settings.clone(), self.snapshots.watch())
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
        let _ = self.messages.send(Message::Want(Priority::Background)).await;
    }

    /// Says that somebody asks for the mirror: it is brought before those that nobody asks for.
    pub fn asked(&self) {
        self.demand.touch();
        if self.view.borrow().stored.is_none() {
            // A full queue holds requests, which say as much.
            let _ = self.messages.try_send(Message::Want(Priority::Awaited));
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

    /// Says that git failed on its files, which are examined for that.
    pub fn doubt(&self, said: &str) {
        if self.view.borrow().stored.is_some() {
            self.integrity.doubt(&self.id, said);
        }
    }

    /// Says that an answer of this length was made from its files.
    pub fn made(&self, bytes: u64) {
        self.integrity.made(&self.id, bytes);
    }

    /// What cached answers made from its files are called by: another name once a damaged mirror was replaced.
    pub fn edition(&self) -> String {
        match self.view.borrow().replaced {
            0 => self.id.to_string(),
            replaced => format!("{}#{replaced}", self.id),
        }
    }

    /// Says that its data are damaged, as `trouble` tells people: they are set aside whole, and the mirror is made anew.
    pub async fn damaged(&self, trouble: Trouble) {
        let _ = self.messages.send(Message::Damaged(trouble)).await;
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

    /// Says that someone asks for all history, and that no pack fits as the base of the answer: making one pays.
    pub fn asked_base(&self) {
        let _ = self.messages.try_send(Message::Base);
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
    /// last asks the upstream for them by id. A dropped future stops waiting, not the fetch.
    ///
    /// # Errors
    /// They cannot be had.
    pub async fn bring(&self, wants: &[Oid]) -> Result<(), BringError> {
        let missing = self.bring_known(wants, Instant::now()).await?;
        wants
            .iter()
            .find(|want| missing.contains(want))
            .map_or(Ok(()), |want| Err(BringError::Missing(*want)))
    }

    /// Brings all of `oids` that can be had, and returns the others: one look, unless one has begun since `asked`, the
    /// fetch it leads to, and one fetch by id.
    ///
    /// # Errors
    /// The upstream cannot be asked, and not all of them are here.
    pub async fn bring_known(&self, oids: &[Oid], asked: Instant) -> Result<HashSet<Oid>, BringError> {
        if self.view.borrow().stored.is_some() && self.missing(oids).await.is_empty() {
            return Ok(HashSet::new());
        }
        loop {
            let settled = self.settle(oids, asked).await?;
            let missing = self.missing(oids).await;
            if missing.is_empty() {
                return Ok(missing);
            }
            if settled == Settled::Looked {
                let missing = missing.into_iter().collect();
                return self.request(|reply| Message::ById(missing, reply)).await;
            }
        }
    }

    /// Waits until the refs on the disk name `oids`, as far as a look since `asked` and the fetch after it lead there.
    /// A dropped future stops waiting, not the fetch.
    ///
    /// # Errors
    /// The look or the fetch fails.
    pub async fn settle(&self, oids: &[Oid], asked: Instant) -> Result<Settled, BringError> {
        if self.has_tips(oids) {
            return Ok(Settled::Looked);
        }
        self.request(|reply| Message::Settle { oids: oids.to_vec(), asked, reply }).await
    }

    /// Those of `oids` that are not on the disk.
    pub async fn missing(&self, oids: &[Oid]) -> HashSet<Oid> {
        if self.has_tips(oids) { HashSet::new() } else { self.presence.missing(oids).await }
    }

    fn has_tips(&self, wants: &[Oid]) -> bool {
        self.view
            .borrow()
            .stored
            .as_ref()
            .is_some_and(|stored| wants.iter().all(|want| stored.tips.contains(want)))
    }

    async fn request<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<T, BringError>>) -> Message,
    ) -> Result<T, BringError> {
        let (reply, answer) = oneshot::channel();
        self.messages.try_send(message(reply)).map_err(|_| BringError::Busy)?;
        answer.await.unwrap_or(Err(BringError::Removed))
    }
}
