//! The task that keeps one mirror's snapshot.

mod archive;
mod work;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{
    super::{Phase, Services, Settings, Trouble, View},
    Checked, Doing, Message, SnapshotView, Snapshots,
    plan::{self, Facts, Step, plan},
};
use crate::{
    backoff::retry_delay,
    blockfile::{BlockFile, BlockFileError, Download, Options, Reader},
    generations::Generation,
    never::or_never,
    peers::Peers,
    queue::Activity,
    snapshot::{SnapshotError, build::Build, manifest::Snapshot, shelf::Published},
};
use work::{Done, Work};

/// A mirror's view changes with every look; what matters here seldom does.
const SETTLE: Duration = Duration::from_millis(100);

/// See the module.
pub(in crate::mirror) struct Keeper {
    work: Work,
    view: watch::Receiver<View>,
    settings: watch::Receiver<Arc<Settings>>,
    inbox: mpsc::Receiver<Message>,
    out: watch::Sender<SnapshotView>,
    held: Option<Held>,
    /// A newer one, on its way to replace the one held.
    newer: Option<(Arc<Snapshot>, Download)>,
    job: Option<(Step, Job)>,
    since: Timestamp,
    /// The newest that the store was seen to have.
    newest: Generation,
    asked: Option<Timestamp>,
    /// When somebody last asked for a snapshot, and those who wait to see that begun.
    wanted: Option<Timestamp>,
    callers: Vec<oneshot::Sender<()>>,
    /// The generation whose archive seemed damaged once.
    suspect: Option<Generation>,
    /// The commit whose worktree is too large.
    refused: Option<String>,
    failures: u32,
    retry_at: Option<Timestamp>,
    trouble: Option<Trouble>,
}

/// The snapshot that is served.
struct Held {
    snapshot: Arc<Snapshot>,
    content: Content,
    checked: Checked,
}

enum Content {
    /// Whole, on the disk.
    Here(Reader),
    /// Arriving, for someone asked for it.
    Arriving(Download),
    /// In the store; nobody has asked for it here.
    Remote,
}

type Job = AbortOnDropHandle<Result<Done, SnapshotError>>;

enum Happened {
    Asked(Option<Message>),
    Finished(Step, Result<Done, SnapshotError>),
    Arrived(Result<(), BlockFileError>),
    NewerArrived(Result<(), BlockFileError>),
    Spoilt(BlockFileError),
    Changed,
}

impl Keeper {
    /// A keeper for the mirror that `settings` declare, and a handle on it.
    pub(in crate::mirror) fn new(
        services: &Services,
        packs: Arc<Mutex<()>>,
        view: watch::Receiver<View>,
        settings: watch::Receiver<Arc<Settings>>,
    ) -> (Self, Snapshots) {
        let work = Work::new(services, packs, settings.borrow().url.id());
        let (handle, inbox, out) = Snapshots::new();
        let keeper = Self {
            work,
            view,
            settings,
            inbox,
            out,
            held: None,
            newer: None,
            job: None,
            since: Timestamp::now(),
            newest: Generation::default(),
            asked: None,
            wanted: None,
            callers: Vec::new(),
            suspect: None,
            refused: None,
            failures: 0,
            retry_at: None,
            trouble: None,
        };
        (keeper, handle)
    }

    /// Runs until all handles are gone.
    pub(in crate::mirror) async fn run(mut self) {
        self.load().await;
        loop {
            self.let_go_if_suspended().await;
            let step = plan(&self.facts(), Timestamp::now());
            if self.job.is_none() {
                self.start(step);
            }
            self.tell(step);
            self.callers.clear();
            match self.next(step).await {
                Happened::Asked(Some(Message::Open(reply))) => drop(reply.send(self.open().await)),
                Happened::Asked(Some(Message::Want(reply))) => {
                    self.wanted = Some(Timestamp::now());
                    self.callers.push(reply);
                }
                Happened::Asked(Some(Message::Evict(reply))) => drop(reply.send(self.evict().await)),
                Happened::Asked(None) => return,
                Happened::Finished(step, result) => self.finished(step, result).await,
                Happened::Arrived(result) => self.arrived(result).await,
                Happened::NewerArrived(result) => self.newer_arrived(result).await,
                Happened::Spoilt(error) => self.spoilt(&error).await,
                Happened::Changed => {}
            }
        }
    }

    /// Takes up what an earlier process left whole. Every block is hashed again; what the disk has spoilt is
    /// fetched again, where there is a store.
    async fn load(&mut self) {
        let _turn = self.work.turn(Activity::Find).await;
        let local = self.work.local.clone();
        let found = tokio::task::spawn_blocking(move || {
            let found = local.find();
            let kept: Vec<_> = found.iter().map(|snapshot| snapshot.digest).collect();
            if let Err(error) = local.remove_others(&kept) {
                tracing::warn!(%error, "old snapshots cannot be removed");
            }
            found
        });
        let Ok(Some(snapshot)) = found.await else { return };
        let path = self.work.local.archive(snapshot.digest);
        let made = BlockFile::resume(&path, snapshot.bytes, snapshot.blocks.clone()).await;
        let Ok(file) =
            made.inspect_err(|error| tracing::warn!(%error, "a snapshot on the disk is of no use"))
        else {
            return;
        };
        let content = match self.work.source(&snapshot) {
            _ if file.progress().verified == snapshot.bytes => Content::Here(file.reader()),
            Some(source) => Content::Arriving(file.start(source, Options::default())),
            None => return,
        };
        tracing::info!(commit = snapshot.commit, bytes = snapshot.bytes, "snapshot found on the disk");
        self.held = Some(Held { snapshot: Arc::new(snapshot), content, checked: self.work.found() });
    }

    fn facts(&self) -> Facts {
        let (view, settings) = (self.view.borrow(), self.settings.borrow());
        let stored = view.stored.as_ref();
        let rank = self.work.peers.as_ref().map_or(Some(0), |peers| peers.rank(settings.url.id()));
        Facts {
            since: self.since,
            held: self.held.as_ref().map(|held| plan::Held {
                commit: held.snapshot.commit.clone(),
                time: held.snapshot.time,
                published: held.snapshot.generation.0 > 0,
                doubtful: held.checked == Checked::NotYet && matches!(held.content, Content::Here(_)),
            }),
            head: stored.and_then(|stored| stored.refs.head_oid()).map(|oid| oid.to_hex()),
            sound: view.phase.is_ready() && view.trouble().is_none() && !settings.suspend,
            refused: self.refused.clone(),
            suspended: settings.snapshot.suspend,
            on_demand: view.phase == Phase::OnDemand,
            wanted: self.wanted,
            shared: self.work.shelf.is_some(),
            asked: self.asked,
            retry_at: self.retry_at,
            interval: settings.snapshot.interval,
            max_age: settings.snapshot.max_age,
            patience: plan::patience(rank, self.held.is_some(), settings.snapshot.interval),
        }
    }

    fn start(&mut self, step: Step) {
        let work = self.work.clone();
        let run: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = match step {
            Step::Find => Box::pin(async move { work.find().await }),
            Step::Build => {
                let Some(build) = self.build() else { return };
                let provenance = self.view.borrow().entitlement.provenance();
                Box::pin(async move { work.build(build, provenance).await })
            }
            Step::Publish => {
                let Some(held) = &self.held else { return };
                let (snapshot, known) = (held.snapshot.clone(), self.newest);
                Box::pin(async move { work.publish(&snapshot, known).await })
            }
            Step::Compare => {
                let Some(held) = &self.held else { return };
                let snapshot = held.snapshot.clone();
                Box::pin(async move { work.compare(&snapshot).await })
            }
            Step::Wait(_) => return,
        };
        self.job = Some((step, AbortOnDropHandle::new(tokio::spawn(run.in_current_span()))));
    }

    fn build(&self) -> Option<Build> {
        let (view, settings) = (self.view.borrow(), self.settings.borrow());
        let agent = self.work.shelf.as_ref().map_or_else(|| "local".to_owned(), |shelf| shelf.agent.clone());
        Some(Build {
            git: self.work.git.clone(),
            dir: self.work.dir.clone(),
            work: self.work.disk.staging(),
            refs: view.stored.as_ref()?.refs.clone(),
            packs: self.work.packs.clone(),
            bytes: view.bytes,
            rules: self.work.rules,
            url: settings.url.as_str().to_owned(),
            agent,
            time: Timestamp::now(),
        })
    }

    /// Whether no snapshot can be made of the present `HEAD`.
    fn is_refused(&self) -> bool {
        let view = self.view.borrow();
        let head = view.stored.as_ref().and_then(|stored| stored.refs.head_oid());
        self.refused.is_some() && head.map(|oid| oid.to_hex()) == self.refused
    }

    fn tell(&self, step: Step) {
        let commits =
            self.view.borrow().stored.as_ref().is_none_or(|stored| stored.refs.head_oid().is_some());
        let doing = match self.job.as_ref().map_or(step, |(step, _)| *step) {
            Step::Find => Doing::Finding,
            Step::Build => Doing::Building,
            Step::Publish => Doing::Publishing,
            Step::Compare => Doing::Idle,
            _ if self.settings.borrow().snapshot.suspend => Doing::Suspended,
            Step::Wait(_) if self.held.is_some() => Doing::Idle,
            Step::Wait(_) if self.is_refused() => Doing::TooLarge,
            Step::Wait(_) if self.settings.borrow().suspend || !commits => Doing::Nothing,
            Step::Wait(_) => Doing::WaitingForMirror,
        };
        let reader = self.held.as_ref().and_then(|held| match &held.content {
            Content::Here(reader) => Some(reader.clone()),
            Content::Arriving(download) => Some(download.reader()),
            Content::Remote => None,
        });
        let known = self.held.as_ref().map(|held| held.snapshot.clone());
        let checked = self.held.as_ref().map(|held| held.checked).unwrap_or_default();
        self.out.send_replace(SnapshotView { known, reader, checked, doing, trouble: self.trouble.clone() });
    }

    async fn next(&mut self, step: Step) -> Happened {
        let job = self.job.as_mut().map(async |(step, job)| {
            let result = job.await;
            let result = result.unwrap_or_else(|error| Err(std::io::Error::other(error).into()));
            Happened::Finished(*step, result)
        });
        let held = async {
            match self.held.as_ref().map(|held| &held.content) {
                Some(Content::Arriving(download)) => Happened::Arrived(download.wait().await),
                Some(Content::Here(reader)) => Happened::Spoilt(reader.spoilt().await),
                Some(Content::Remote) | None => std::future::pending().await,
            }
        };
        let newer =
            self.newer.as_ref().map(async |(_, download)| Happened::NewerArrived(download.wait().await));
        let (view, settings) = (&mut self.view, &mut self.settings);
        let changed = async {
            let ended = tokio::select! {
                changed = view.changed() => changed.is_err(),
                changed = settings.changed() => changed.is_err(),
            };
            if ended {
                // The mirror's task is gone; the handles will be soon.
                std::future::pending::<()>().await;
            }
            time::sleep(SETTLE).await;
        };
        let others = self.work.peers.as_ref().map(Peers::changed);
        let timer = async {
            match step {
                Step::Wait(Some(at)) => {
                    let wait = at.duration_since(Timestamp::now()).max(SignedDuration::ZERO);
                    time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.inbox.recv() => Happened::Asked(message),
            finished = or_never(job) => finished,
            told = held => told,
            arrived = or_never(newer) => arrived,
            () = changed => Happened::Changed,
            () = timer => Happened::Changed,
            () = or_never(others) => Happened::Changed,
        }
    }

    async fn finished(&mut self, step: Step, result: Result<Done, SnapshotError>) {
        self.job = None;
        match result {
            Ok(done) => {
                (self.failures, self.retry_at, self.trouble) = (0, None, None);
                match done {
                    Done::Found(found) => {
                        self.asked = Some(Timestamp::now());
                        if let Some(found) = found {
                            self.newest = found.generation;
                            self.found(found).await;
                        }
                    }
                    Done::Built(Some((snapshot, reader))) => {
                        self.hold(snapshot, Content::Here(reader), Checked::Built).await;
                    }
                    Done::Compared(snapshot, compared) => self.compared(&snapshot, compared).await,
                    // HEAD led to a commit when this began; it is looked at again.
                    Done::Built(None) => {}
                    Done::Published(Published::Ours(snapshot)) => self.published(snapshot).await,
                    Done::Published(Published::Theirs(snapshot)) => {
                        tracing::info!(generation = %snapshot.generation, "another agent was faster");
                        self.newest = snapshot.generation;
                        self.hold(snapshot, Content::Remote, self.work.found()).await;
                    }
                }
            }
            Err(error) => {
                self.failures += 1;
                if let SnapshotError::WorktreeTooLarge { commit, .. } = &error {
                    self.refused = Some(commit.clone());
                }
                tracing::warn!(%error, ?step, failures = self.failures, "a snapshot failed; it will be retried");
                self.trouble = Some(Trouble::new(error.reason(), &error));
                self.retry_after(retry_delay(self.failures, rand::random()));
            }
        }
    }

    fn retry_after(&mut self, delay: Duration) {
        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::ZERO);
        self.retry_at = Timestamp::now().saturating_add(delay).ok();
    }
}
