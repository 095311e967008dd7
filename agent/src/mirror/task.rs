//! The task that owns one mirror: it carries out what [`super::state`] decides.
//!
//! At most one look runs and one waits; at most one clone or fetch runs. Requests that arrive while a look
//! runs share the next one: an answer never rests on a look that began before its request (P1).

mod checkpoints;
mod evict;
mod fetches;
mod gather;
mod load;
mod looks;
mod upkeep;

use std::{
    collections::{HashSet, VecDeque},
    mem,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bstr::BString;
use jiff::Timestamp;
use tarn_crds::{repo::RepoId, v1alpha1::Phase};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use checkpoints::Checkpoints;
use gather::Gather;

use super::{
    BringError, Limits, LookAnswer, Message, MissingCredentials, Settings, Shared, Stored, Trouble, View,
    demand::Demand,
    disk::Disk,
    fetch::FetchError,
    state::{Action, Event, State, interval_delay, retry_delay},
    upkeep::{Facts, Upkeep},
};
use crate::{
    checkpoint::{
        Archive, CheckpointError,
        manifest::Checkpoint,
        restore::Outcome,
        turns::{self, Urgency},
    },
    git::{Git, GitError, Oid, RefSet, remote::Remote},
    metrics::Metrics,
    peers::{Peers, placement::Placement},
    queue::Lift,
    upstream::{LookError, Looker, credentials::Installed},
};

/// Often enough to see that something moves, seldom enough not to fill the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Requests for objects by name that wait for their turn.
const MAX_EXTRAS: usize = 64;

/// What handles on the mirror read.
pub(super) struct Ports {
    pub(super) view: watch::Receiver<View>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) progress: watch::Receiver<Option<String>>,
}

/// See the module.
pub(super) struct Task {
    id: RepoId,
    dir: PathBuf,
    git: Git,
    disk: Arc<Disk>,
    metrics: Metrics,
    limits: Arc<Limits>,
    settings: Arc<Settings>,
    upstream: Result<Upstream, Arc<LookError>>,
    state: State,
    /// It is to be on the disk; otherwise nothing is done before somebody asks.
    wanted: bool,
    stored: Option<Arc<Stored>>,
    seen: Option<(Arc<RefSet>, Instant)>,
    last_look: Option<Timestamp>,
    last_fetch: Option<Timestamp>,
    bytes: u64,
    look_trouble: Option<Trouble>,
    fetch_trouble: Option<Trouble>,
    timer: Option<time::Instant>,
    look: Option<RunningLook>,
    /// Wait for the next look: the running one began too early for them.
    next_look: Vec<Waiter>,
    look_due: bool,
    /// Holds the next look back for those who come at once.
    gather: Gather,
    job: Option<Job>,
    fetch_due: bool,
    /// Wait for the running fetch.
    after_fetch: Vec<Wanted>,
    extras: VecDeque<Wanted>,
    archive: Option<Arc<Archive>>,
    peers: Option<Peers>,
    placement: Option<Placement>,
    checkpoints: Checkpoints,
    /// Held by whoever must not see packs disappear.
    packs: Arc<Mutex<()>>,
    demand: Demand,
    facts: Facts,
    upkeep: Option<RunningUpkeep>,
    seed: Option<(PathBuf, Oid)>,
    /// Stays until the next one is replaced: children may read it still.
    old_seed: Option<PathBuf>,
    view_out: watch::Sender<View>,
    settings_out: watch::Sender<Arc<Settings>>,
    progress_out: Arc<watch::Sender<Option<String>>>,
}

struct Upstream {
    looker: Arc<Looker>,
    remote: Remote,
    /// Keeps the files with credentials in place.
    _installed: Option<Arc<Installed>>,
}

impl Upstream {
    /// The upstream for git commands, where redirects have led.
    fn remote(&self) -> Remote {
        Remote { url: self.looker.url(), ..self.remote.clone() }
    }
}

struct RunningLook {
    /// What is looked at; everything where there are none.
    prefixes: Vec<BString>,
    began: Instant,
    began_at: Timestamp,
    waiters: Vec<Waiter>,
    result: AbortOnDropHandle<Result<Arc<RefSet>, LookError>>,
}

/// Upkeep and the seed it makes, if any.
type RunningUpkeep = (Upkeep, AbortOnDropHandle<Result<Option<PathBuf>, GitError>>);

enum Waiter {
    Look(Vec<BString>, oneshot::Sender<LookAnswer>),
    Settle(Wanted),
}

struct Wanted {
    wants: Vec<Oid>,
    reply: oneshot::Sender<Result<(), BringError>>,
}

enum Job {
    Refs {
        target: Arc<RefSet>,
        tips: HashSet<Oid>,
        began: Instant,
        /// While it waits for its turn.
        lift: Lift,
        result: AbortOnDropHandle<Result<u64, FetchError>>,
    },
    Extra {
        wanted: Wanted,
        result: AbortOnDropHandle<Result<u64, FetchError>>,
    },
    Restore {
        began: Instant,
        lift: turns::Lift,
        result: AbortOnDropHandle<Result<Outcome, CheckpointError>>,
    },
}

enum Finished {
    Look(Result<Arc<RefSet>, LookError>),
    Job(Result<u64, FetchError>),
    Restore(Result<Outcome, CheckpointError>),
    Publish(Result<Option<Checkpoint>, CheckpointError>),
    Upkeep(Result<Option<PathBuf>, GitError>),
}

impl Task {
    pub(super) fn new(
        shared: Shared,
        settings: Arc<Settings>,
        packs: Arc<Mutex<()>>,
        demand: Demand,
    ) -> (Self, Ports) {
        let Shared { git, disk, metrics, limits, archive, peers, lfs: _, placement } = shared;
        let id = settings.url.id().clone();
        let dir = disk.mirror(&id);
        let view = View {
            phase: Phase::OnDemand,
            stored: None,
            seen: None,
            look_trouble: None,
            fetch_trouble: None,
            last_look: None,
            last_fetch: None,
            bytes: 0,
            checkpoint: None,
            store_trouble: None,
            restore_trouble: None,
            seed: None,
            upstream: None,
        };
        let (view_out, view) = watch::channel(view);
        let (settings_out, settings_in) = watch::channel(settings.clone());
        let (progress_out, progress) = watch::channel(None);
        let task = Self {
            upstream: connect(&git, &disk, &settings),
            id,
            dir,
            git,
            disk,
            metrics,
            limits,
            settings,
            state: State::default(),
            wanted: false,
            stored: None,
            seen: None,
            last_look: None,
            last_fetch: None,
            bytes: 0,
            look_trouble: None,
            fetch_trouble: None,
            timer: None,
            look: None,
            next_look: Vec::new(),
            look_due: false,
            gather: Gather::default(),
            job: None,
            fetch_due: false,
            after_fetch: Vec::new(),
            extras: VecDeque::new(),
            archive,
            peers,
            placement,
            checkpoints: Checkpoints::default(),
            packs,
            demand,
            facts: Facts::default(),
            upkeep: None,
            seed: None,
            old_seed: None,
            view_out,
            settings_out,
            progress_out: Arc::new(progress_out),
        };
        (task, Ports { view, settings: settings_in, progress })
    }

    /// Runs until all handles are gone; then whatever is under way is ended.
    pub(super) async fn run(self, inbox: mpsc::Receiver<Message>) {
        let span = tracing::info_span!("mirror", repo = %self.id);
        let logged = log_progress(self.progress_out.subscribe()).instrument(span.clone());
        let _logged = AbortOnDropHandle::new(tokio::spawn(logged));
        self.serve(inbox).instrument(span).await;
    }

    async fn serve(mut self, mut inbox: mpsc::Receiver<Message>) {
        let Some(early) = self.wait_to_load(&mut inbox).await else { return };
        if self.stored.is_some() {
            self.begin();
        }
        early.into_iter().for_each(|message| self.receive(message));
        loop {
            self.start_what_is_due();
            self.publish();
            let upkeep_at = self.start_upkeep();
            // Before the look at the others: what changes after it must be noticed.
            let others_changed = self.others_changed();
            let publish_at = self.start_publish();
            let gathered = self.gather.until(Instant::now()).filter(|_| self.look.is_none());
            let finished =
                next_finished(&mut self.look, &mut self.job, &mut self.upkeep, &mut self.checkpoints);
            let timer = self.timer;
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.receive(message),
                    None => return,
                },
                finished = finished => match finished {
                    Finished::Look(result) => self.look_finished(result),
                    Finished::Job(result) => self.job_finished(result),
                    Finished::Restore(result) => {
                        if let Some(Job::Restore { began, .. }) = self.job.take() {
                            self.restore_finished(began, result);
                        }
                    }
                    Finished::Publish(result) => self.publish_finished(result),
                    Finished::Upkeep(result) => self.upkeep_finished(result),
                },
                () = sleep_until(gathered.map(Into::into)) => {}
                () = sleep_until(upkeep_at) => {}
                () = sleep_until(publish_at) => {}
                () = others_changed => {}
                () = sleep_until(timer) => {
                    self.timer = None;
                    // The store may be back before the upstream is.
                    self.checkpoints.restore_due = true;
                    self.happened(Event::TimerFired);
                }
            }
        }
    }

    fn receive(&mut self, message: Message) {
        if matches!(message, Message::Look(..) | Message::Settle(..) | Message::Extra(..)) {
            self.awaited();
            // A look is answered without the data, and requests for objects are handed on where that can be.
            if self.keeps() || !matches!(message, Message::Look(..)) {
                self.want();
            }
        }
        match message {
            Message::Want(Urgency::Idle) => self.want(),
            Message::Want(Urgency::Awaited) if self.keeps() => {
                self.awaited();
                self.want();
            }
            Message::Want(Urgency::Awaited) => {}
            Message::Look(prefixes, reply) => {
                self.next_look.push(Waiter::Look(prefixes, reply));
                self.gather.joined(Instant::now());
            }
            Message::Settle(wants, reply) => self.settle(Wanted { wants, reply }),
            Message::Extra(wants, reply) => self.queue_extra(Wanted { wants, reply }),
            Message::Evict(reply) => self.evict(reply),
            Message::Shallow => self.facts.shallow_asked = true,
            Message::Checkpoint => self.checkpoints.ordered = true,
            Message::Configure(settings) => self.configure(&settings),
        }
    }

    /// Whether it belongs here, and would stay; otherwise requests go to those that keep it.
    fn keeps(&self) -> bool {
        let owned = self.placement.as_ref().is_none_or(|placement| placement.keeps(&self.id));
        owned && !(self.stored.is_none() && self.limits.room.holds_off(&self.id))
    }

    /// From now on the mirror is to be here, and up to date.
    fn want(&mut self) {
        if mem::replace(&mut self.wanted, true) {
            return;
        }
        self.checkpoints.restore_due = true;
        self.happened(if self.settings.suspend { Event::Suspended } else { Event::Started });
    }

    /// Where it is in its life.
    fn phase(&self) -> Phase {
        match self.state.phase() {
            Phase::Absent if !self.wanted => Phase::OnDemand,
            phase => phase,
        }
    }

    fn settle(&mut self, wanted: Wanted) {
        match &self.job {
            // The usual case: the look that showed these objects to the client has started their fetch.
            Some(Job::Refs { tips, .. }) if wanted.wants.iter().all(|want| tips.contains(want)) => {
                self.after_fetch.push(wanted);
            }
            _ if self.settings.suspend => drop(wanted.reply.send(Ok(()))),
            _ => self.next_look.push(Waiter::Settle(wanted)),
        }
    }

    fn queue_extra(&mut self, wanted: Wanted) {
        if self.stored.is_none() || self.settings.suspend {
            let missing = wanted.wants.first().copied();
            let answer = missing.map_or(Ok(()), |oid| Err(BringError::Missing(oid)));
            drop(wanted.reply.send(answer));
        } else if self.extras.len() >= MAX_EXTRAS {
            drop(wanted.reply.send(Err(BringError::Busy)));
        } else {
            self.extras.push_back(wanted);
        }
    }

    fn configure(&mut self, settings: &Arc<Settings>) {
        if **settings == *self.settings {
            return;
        }
        let was_suspended = mem::replace(&mut self.settings, settings.clone()).suspend;
        self.upstream = connect(&self.git, &self.disk, settings);
        // What the old declaration let the agent see says nothing about the new one.
        self.seen = None;
        self.settings_out.send_replace(settings.clone());
        tracing::info!(url = %settings.url, suspend = settings.suspend, "mirror reconfigured");
        if !self.wanted {
            // Nothing is under way that the change concerns.
        } else if settings.suspend {
            self.happened(Event::Suspended);
        } else {
            if was_suspended {
                tracing::info!("mirror resumed");
            }
            self.happened(Event::Started);
        }
    }

    fn happened(&mut self, event: Event) {
        let before = self.phase();
        let (state, action) = self.state.on(event);
        self.state = state;
        let phase = self.phase();
        if phase != before {
            tracing::info!(from = ?before, to = ?phase, "phase");
        }
        match action {
            Some(Action::Look) => self.look_due = true,
            Some(Action::Fetch) => self.fetch_due = true,
            Some(Action::WaitInterval) => self.wait(interval_delay(self.settings.interval, rand::random())),
            Some(Action::WaitRetry) => self.wait(retry_delay(state.failures, rand::random())),
            None => {}
        }
    }

    fn wait(&mut self, delay: Duration) {
        self.timer = Some(time::Instant::now() + delay);
    }

    fn start_what_is_due(&mut self) {
        if self.look.is_none() && (self.look_due || !self.next_look.is_empty()) {
            let gathering = self.gather.until(Instant::now()).is_some();
            if self.look_due || !gathering {
                self.start_look();
            }
        }
        if self.job.is_none() {
            let restore = mem::take(&mut self.checkpoints.restore_due) && self.stored.is_none();
            if let Some(archive) = self.archive.clone().filter(|_| restore) {
                self.start_restore(&archive);
            } else if mem::take(&mut self.fetch_due) {
                self.start_fetch();
            } else if let Some(wanted) = self.extras.pop_front() {
                self.start_extra(wanted);
            }
        }
    }

    fn publish(&self) {
        let view = View {
            phase: self.phase(),
            stored: self.stored.clone(),
            seen: self.seen.clone(),
            look_trouble: self.look_trouble.clone(),
            fetch_trouble: self.fetch_trouble.clone(),
            last_look: self.last_look,
            last_fetch: self.last_fetch,
            bytes: self.bytes,
            checkpoint: self.checkpoints.newest.clone(),
            store_trouble: self.checkpoints.store_trouble.clone(),
            restore_trouble: self.checkpoints.restore_trouble.clone(),
            seed: self.seed.clone(),
            upstream: self.upstream.as_ref().ok().map(|upstream| upstream.looker.clone()),
        };
        self.view_out.send_replace(view);
    }
}

fn connect(git: &Git, disk: &Disk, settings: &Settings) -> Result<Upstream, Arc<LookError>> {
    let failed =
        |error: std::io::Error| LookError::Refused(format!("cannot write the credentials for git: {error}"));
    let missing = |missing: &MissingCredentials| LookError::NoCredentials(missing.message.clone());
    let given = settings.credentials.as_ref().map_err(missing)?;
    let installed = given.install(&disk.private(), &settings.url).map_err(failed)?;
    let credentials = installed.as_ref().map(|installed| installed.config().to_owned());
    let kept = installed.clone();
    let remote = Remote { url: settings.url.as_str().to_owned(), credentials };
    let (url, refs) = (settings.url.clone(), settings.refs.clone());
    let looker = Looker::new(git.clone(), url, remote.clone(), given, installed, refs)?;
    Ok(Upstream { looker: Arc::new(looker), remote, _installed: kept })
}

/// Waits for the look or the job, whichever ends first; for ever where there is neither.
async fn next_finished(
    look: &mut Option<RunningLook>,
    job: &mut Option<Job>,
    upkeep: &mut Option<RunningUpkeep>,
    checkpoints: &mut Checkpoints,
) -> Finished {
    let upkeep = async {
        match upkeep {
            Some((_, result)) => result.await.unwrap_or_else(|error| {
                Err(GitError::Io { verb: "repack".into(), source: std::io::Error::other(error) })
            }),
            None => std::future::pending().await,
        }
    };
    let look = async {
        match look {
            Some(look) => {
                (&mut look.result).await.unwrap_or_else(|error| Err(LookError::Refused(error.to_string())))
            }
            None => std::future::pending().await,
        }
    };
    let job = async {
        match job {
            Some(Job::Refs { result, .. } | Job::Extra { result, .. }) => {
                let done = result.await;
                Finished::Job(done.unwrap_or_else(|e| Err(FetchError::Disk(std::io::Error::other(e)))))
            }
            Some(Job::Restore { result, .. }) => {
                let done = result.await;
                Finished::Restore(done.unwrap_or_else(|e| Err(std::io::Error::other(e).into())))
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = look => Finished::Look(result),
        finished = job => finished,
        result = checkpoints.published() => Finished::Publish(result),
        result = upkeep => Finished::Upkeep(result),
    }
}

/// Logs the progress of clones and fetches, at most every [`PROGRESS_EVERY`].
async fn log_progress(mut progress: watch::Receiver<Option<String>>) {
    while progress.changed().await.is_ok() {
        // What is over by then was not worth a line.
        time::sleep(PROGRESS_EVERY).await;
        let line = progress.borrow_and_update().clone();
        if let Some(line) = line {
            tracing::info!(progress = line, "fetching");
        }
    }
}

async fn sleep_until(timer: Option<time::Instant>) {
    match timer {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
