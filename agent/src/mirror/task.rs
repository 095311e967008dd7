//! The task that owns one mirror: it carries out what [`super::state`] decides.
//!
//! At most one look runs and one waits; at most one clone or fetch runs. Requests that arrive while a look
//! runs share the next one: an answer never rests on a look that began before its request (P1).

use std::{
    collections::{HashSet, VecDeque},
    fs, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bstr::BString;
use jiff::Timestamp;
use tarn_crds::repo::RepoId;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{
    BringError, Limits, LookAnswer, Message, Settings, Stored, Trouble, View,
    disk::{Disk, size},
    fetch::{Fetch, FetchError},
    state::{Action, Event, State, interval_delay, retry_delay},
    upkeep::{Facts, Place, Upkeep, plan},
};
use crate::{
    git::{
        Git, GitError, ObjectFormat, Oid, Ref, RefSet,
        remote::{self, Patience, Remote},
    },
    metrics::{Metrics, Outcome, Work},
    protocol::ls_refs::LsRefs,
    upstream::{LookError, Looker, credentials::Installed},
};

/// With fewer refs than this (2,000 take 150 kB) a look at all of them costs no more than a look at some.
const NARROW_FROM: usize = 2_000;
/// With more prefixes than this, an upstream takes longer to select than to send everything (5,000 take
/// git 0.12 s).
const MAX_PREFIXES: usize = 100;

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
    job: Option<Job>,
    fetch_due: bool,
    /// Wait for the running fetch.
    after_fetch: Vec<Wanted>,
    extras: VecDeque<Wanted>,
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
    result: AbortOnDropHandle<Result<RefSet, LookError>>,
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
        result: AbortOnDropHandle<Result<u64, FetchError>>,
    },
    Extra {
        wanted: Wanted,
        result: AbortOnDropHandle<Result<u64, FetchError>>,
    },
}

enum Finished {
    Look(Result<RefSet, LookError>),
    Job(Result<u64, FetchError>),
    Upkeep(Result<Option<PathBuf>, GitError>),
}

impl Task {
    pub(super) fn new(
        git: Git,
        disk: Arc<Disk>,
        metrics: Metrics,
        limits: Arc<Limits>,
        settings: Arc<Settings>,
    ) -> (Self, Ports) {
        let id = settings.url.id().clone();
        let dir = disk.mirror(&id);
        let view = View {
            phase: State::default().phase(),
            stored: None,
            seen: None,
            look_trouble: None,
            fetch_trouble: None,
            last_look: None,
            last_fetch: None,
            bytes: 0,
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
            job: None,
            fetch_due: false,
            after_fetch: Vec::new(),
            extras: VecDeque::new(),
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
        self.load().await;
        if self.settings.suspend {
            self.happened(Event::Suspended);
        } else {
            self.happened(Event::Started);
        }
        loop {
            self.start_what_is_due();
            self.publish();
            let upkeep_at = self.start_upkeep();
            let finished = next_finished(&mut self.look, &mut self.job, &mut self.upkeep);
            let timer = self.timer;
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.receive(message),
                    None => return,
                },
                finished = finished => match finished {
                    Finished::Look(result) => self.look_finished(result),
                    Finished::Job(result) => self.job_finished(result),
                    Finished::Upkeep(result) => self.upkeep_finished(result),
                },
                () = sleep_until(upkeep_at) => {}
                () = sleep_until(timer) => {
                    self.timer = None;
                    self.happened(Event::TimerFired);
                }
            }
        }
    }

    /// Finds what an earlier process left on the disk. What is damaged is moved out of the way, to be made
    /// anew.
    async fn load(&mut self) {
        let dir = self.dir.clone();
        let found = tokio::task::spawn_blocking(move || read_mirror(&dir)).await;
        let problem = match found.map_err(|error| error.to_string()) {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(refs))) => match self.check(&refs).await {
                Ok(()) => {
                    self.facts.head = refs.head_oid();
                    self.stored = Some(Stored::new(Arc::new(refs)));
                    self.bytes_now();
                    self.state.on_disk = true;
                    return;
                }
                Err(problem) => problem,
            },
            Ok(Err(error)) => error.to_string(),
            Err(error) => error,
        };
        tracing::warn!(problem, "the mirror on the disk is damaged; it will be made anew");
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || disk.discard(&dir)).await {
            tracing::warn!(%error, "the damaged mirror cannot be removed");
        }
    }

    /// Whether git can use the mirror, and has every object its refs name.
    async fn check(&self, refs: &RefSet) -> Result<(), String> {
        let tips: Vec<Oid> = refs.tips().collect();
        let missing = match remote::missing(&self.git, &self.dir, &tips).await {
            Ok(missing) => missing,
            Err(error @ GitError::Failed { .. }) => return Err(error.to_string()),
            // Git could not be asked: no reason to give a mirror up.
            Err(error) => {
                tracing::warn!(%error, "the mirror on the disk cannot be checked; it is taken as it is");
                return Ok(());
            }
        };
        missing
            .iter()
            .next()
            .map_or(Ok(()), |oid| Err(format!("{} objects are missing, such as {oid}", missing.len())))
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Look(prefixes, reply) => self.next_look.push(Waiter::Look(prefixes, reply)),
            Message::Settle(wants, reply) => self.settle(Wanted { wants, reply }),
            Message::Extra(wants, reply) => self.queue_extra(Wanted { wants, reply }),
            Message::Shallow => self.facts.shallow_asked = true,
            Message::Configure(settings) => self.configure(&settings),
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
        if settings.suspend {
            self.happened(Event::Suspended);
        } else {
            if was_suspended {
                tracing::info!("mirror resumed");
            }
            self.happened(Event::Started);
        }
    }

    fn happened(&mut self, event: Event) {
        let before = self.state.phase();
        let (state, action) = self.state.on(event);
        self.state = state;
        let phase = state.phase();
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
            self.start_look();
        }
        if self.job.is_none() {
            if mem::take(&mut self.fetch_due) {
                self.start_fetch();
            } else if let Some(wanted) = self.extras.pop_front() {
                self.start_extra(wanted);
            }
        }
    }

    fn start_look(&mut self) {
        let limit = self.settings.look_timeout;
        let prefixes = if mem::take(&mut self.look_due) { Vec::new() } else { self.narrow() };
        let looker =
            self.upstream.as_ref().map(|upstream| upstream.looker.clone()).map_err(|error| error.to_string());
        let asked = prefixes.clone();
        let look = async move {
            match looker {
                Ok(looker) => looker.look(&asked, limit).await,
                Err(message) => Err(LookError::Refused(message)),
            }
        };
        self.look = Some(RunningLook {
            prefixes,
            began: Instant::now(),
            began_at: Timestamp::now(),
            waiters: mem::take(&mut self.next_look),
            result: AbortOnDropHandle::new(tokio::spawn(look.in_current_span())),
        });
    }

    /// The prefixes that the waiting requests need, where asking for those alone is worth it; none to ask
    /// for everything.
    fn narrow(&self) -> Vec<BString> {
        let known =
            self.seen.as_ref().map(|(seen, _)| seen).or(self.stored.as_ref().map(|stored| &stored.refs));
        if known.is_none_or(|known| known.refs().len() < NARROW_FROM) {
            return Vec::new();
        }
        let mut union = Vec::new();
        for waiter in &self.next_look {
            match waiter {
                Waiter::Look(prefixes, _) if !prefixes.is_empty() => union.extend_from_slice(prefixes),
                _ => return Vec::new(),
            }
        }
        union.sort_unstable();
        union.dedup();
        if union.len() <= MAX_PREFIXES { union } else { Vec::new() }
    }

    fn look_finished(&mut self, result: Result<RefSet, LookError>) {
        let Some(look) = self.look.take() else { return };
        let outcome = result.as_ref().map_or_else(|error| error.kind().reason().as_str(), |_| "ok");
        self.metrics.looks.get_or_create(&Outcome { outcome }).inc();
        self.metrics.look_seconds.observe(look.began.elapsed().as_secs_f64());
        let answer = match result {
            Ok(refs) => {
                if self.look_trouble.take().is_some() {
                    tracing::info!("the upstream answers again");
                }
                let declared = &self.settings.refs;
                let refs = refs.filtered(|name| declared.selects(&String::from_utf8_lossy(name)));
                let refs = if look.prefixes.is_empty() {
                    self.looked(refs, look.began, look.began_at)
                } else {
                    self.glanced(refs, look.prefixes)
                };
                Ok((refs, look.began))
            }
            Err(error) => {
                if self.look_trouble.is_none() {
                    tracing::warn!(%error, "the upstream cannot be asked");
                }
                self.look_trouble =
                    Some(Trouble { reason: error.kind().reason(), message: error.to_string() });
                self.happened(Event::LookFailed);
                Err(Arc::new(error))
            }
        };
        // A fetch this look asks for starts now, so that those who wait for its objects can be told of it.
        self.start_what_is_due();
        self.publish();
        for waiter in look.waiters {
            match waiter {
                Waiter::Look(_, reply) => drop(reply.send(answer.clone())),
                Waiter::Settle(wanted) if self.fetching() => self.after_fetch.push(wanted),
                Waiter::Settle(wanted) => {
                    let settled = answer.as_ref().map(drop).map_err(|error| BringError::Look(error.clone()));
                    drop(wanted.reply.send(settled));
                }
            }
        }
    }

    fn fetching(&self) -> bool {
        self.fetch_due || matches!(self.job, Some(Job::Refs { .. }))
    }

    fn looked(&mut self, refs: RefSet, began: Instant, began_at: Timestamp) -> Arc<RefSet> {
        // Equal states share one value: memory does not grow with the number of looks.
        let known =
            self.stored.iter().map(|stored| &stored.refs).chain(self.seen.iter().map(|(seen, _)| seen));
        let refs =
            known.into_iter().find(|known| ***known == refs).cloned().unwrap_or_else(|| Arc::new(refs));
        let moved = self.stored.as_ref().is_none_or(|stored| *stored.refs != *refs);
        self.seen = Some((refs.clone(), began));
        self.last_look = Some(began_at);
        self.happened(if moved { Event::LookFoundMoves } else { Event::LookFoundNothing });
        refs
    }

    /// A look at some of the refs answers those who asked for them. What the mirror holds is always one
    /// whole state of the upstream, so a move seen here leads to a look at everything.
    fn glanced(&mut self, refs: RefSet, prefixes: Vec<BString>) -> Arc<RefSet> {
        let asked = LsRefs { prefixes, ..LsRefs::everything() };
        let known = self.stored.as_ref().map(|stored| asked.respond(&stored.refs));
        if known.is_none_or(|known| known != asked.respond(&refs)) {
            self.look_due = true;
        }
        Arc::new(refs)
    }

    fn start_fetch(&mut self) {
        let (Ok(upstream), Some((target, _))) = (&self.upstream, &self.seen) else {
            // Reconfigured since the look: look again, as the new declaration says.
            self.state.fetching = false;
            self.look_due = true;
            return;
        };
        let target = target.clone();
        let stored = self.stored.as_ref().map(|stored| stored.refs.clone());
        log_moves(stored.as_deref(), &target);
        let fetch = Fetch {
            git: self.git.clone(),
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            remote: upstream.remote(),
            stored,
            target: target.clone(),
            by_name: self.state.races > 0,
            patience: if self.state.caught_up { Patience::StallsFail } else { Patience::StallsAllowed },
            timeout: self.settings.timeout,
            progress: self.progress_out.clone(),
            limits: self.limits.clone(),
        };
        let tips = target.tips().collect();
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.run().in_current_span()));
        self.job = Some(Job::Refs { target, tips, began: Instant::now(), result });
    }

    fn start_extra(&mut self, wanted: Wanted) {
        let Ok(upstream) = &self.upstream else { return };
        let (git, dir, remote) = (self.git.clone(), self.dir.clone(), upstream.remote());
        let oids = wanted.wants.iter().copied().collect();
        let (timeout, progress) = (self.settings.timeout, self.progress_out.clone());
        let limits = self.limits.clone();
        let fetch = async move {
            let _place = limits.fetches.acquire().await;
            remote.fetch(&git, &dir, &oids, Patience::StallsFail, timeout, progress).await?;
            Ok(tokio::task::spawn_blocking(move || size(&dir)).await.unwrap_or(0))
        };
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.in_current_span()));
        self.job = Some(Job::Extra { wanted, result });
    }

    fn job_finished(&mut self, result: Result<u64, FetchError>) {
        match self.job.take() {
            Some(Job::Refs { target, began, .. }) => {
                let outcome = result.as_ref().map_or_else(|error| error.kind().reason().as_str(), |_| "ok");
                self.metrics.fetches.get_or_create(&Outcome { outcome }).inc();
                self.metrics.fetch_seconds.observe(began.elapsed().as_secs_f64());
                self.fetch_finished(target, result);
            }
            Some(Job::Extra { wanted, .. }) => {
                let answer = match result {
                    Ok(bytes) => {
                        self.bytes = bytes;
                        Ok(())
                    }
                    Err(error) => {
                        tracing::debug!(%error, "objects asked for by name cannot be fetched");
                        let missing = wanted.wants.first().copied();
                        Err(missing.map_or(BringError::Fetch(Arc::new(error)), BringError::Missing))
                    }
                };
                drop(wanted.reply.send(answer));
            }
            None => {}
        }
    }

    fn fetch_finished(&mut self, target: Arc<RefSet>, result: Result<u64, FetchError>) {
        match result {
            Ok(bytes) => {
                self.bytes = bytes;
                self.last_fetch = Some(Timestamp::now());
                self.facts.fetched = Some(Instant::now());
                self.facts.head = target.head_oid();
                self.fetch_trouble = None;
                let behind = self.seen.as_ref().is_none_or(|(seen, _)| *seen != target);
                let stored = Stored::new(target);
                tracing::info!(refs = stored.refs.refs().len(), bytes, behind, "fetched");
                self.stored = Some(stored.clone());
                self.happened(if behind { Event::FetchDoneBehind } else { Event::FetchDone });
                self.publish();
                for wanted in mem::take(&mut self.after_fetch) {
                    if behind && !wanted.wants.iter().all(|want| stored.tips.contains(want)) {
                        self.after_fetch.push(wanted);
                    } else {
                        drop(wanted.reply.send(Ok(())));
                    }
                }
            }
            Err(error) => {
                let raced = matches!(error, FetchError::Raced);
                let event = if raced { Event::FetchRaced } else { Event::FetchFailed };
                self.happened(event);
                if raced && self.look_due {
                    tracing::debug!("the upstream moved during the fetch; looking again");
                    let waiting = mem::take(&mut self.after_fetch).into_iter().map(Waiter::Settle);
                    self.next_look.extend(waiting);
                    return;
                }
                tracing::warn!(%error, failures = self.state.failures, "fetch failed; it will be retried");
                self.fetch_trouble =
                    Some(Trouble { reason: error.kind().reason(), message: error.to_string() });
                let error = Arc::new(error);
                for wanted in mem::take(&mut self.after_fetch) {
                    drop(wanted.reply.send(Err(BringError::Fetch(error.clone()))));
                }
            }
        }
    }

    /// Starts the upkeep that is due; otherwise says when to ask again.
    fn start_upkeep(&mut self) -> Option<time::Instant> {
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
            metrics: self.metrics.clone(),
            limits: self.limits.clone(),
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

    fn upkeep_finished(&mut self, result: Result<Option<PathBuf>, GitError>) {
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
    fn bytes_now(&mut self) {
        self.bytes = size(&self.dir);
    }

    fn publish(&self) {
        let view = View {
            phase: self.state.phase(),
            stored: self.stored.clone(),
            seen: self.seen.clone(),
            look_trouble: self.look_trouble.clone(),
            fetch_trouble: self.fetch_trouble.clone(),
            last_look: self.last_look,
            last_fetch: self.last_fetch,
            bytes: self.bytes,
            seed: self.seed.clone(),
            upstream: self.upstream.as_ref().ok().map(|upstream| upstream.looker.clone()),
        };
        self.view_out.send_replace(view);
    }
}

fn connect(git: &Git, disk: &Disk, settings: &Settings) -> Result<Upstream, Arc<LookError>> {
    let failed =
        |error: std::io::Error| LookError::Refused(format!("cannot write the credentials for git: {error}"));
    let installed = settings.credentials.install(&disk.private(), &settings.url).map_err(failed)?;
    let credentials = installed.as_ref().map(|installed| installed.config().to_owned());
    let remote = Remote { url: settings.url.as_str().to_owned(), credentials };
    let looker = Looker::new(git.clone(), settings.url.clone(), remote.clone(), &settings.credentials)?;
    Ok(Upstream { looker: Arc::new(looker), remote, _installed: installed })
}

/// Waits for the look or the job, whichever ends first; for ever where there is neither.
async fn next_finished(
    look: &mut Option<RunningLook>,
    job: &mut Option<Job>,
    upkeep: &mut Option<RunningUpkeep>,
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
                result.await.unwrap_or_else(|error| Err(FetchError::Disk(std::io::Error::other(error))))
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = look => Finished::Look(result),
        result = job => Finished::Job(result),
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

/// The refs of the mirror at `dir`; `None` where there is no mirror.
fn read_mirror(dir: &Path) -> Result<Option<RefSet>, crate::git::refs::RefsError> {
    if !dir.exists() {
        return Ok(None);
    }
    let config = fs::read_to_string(dir.join("config")).unwrap_or_default();
    let sha256 = config.to_ascii_lowercase().contains("objectformat = sha256");
    let format = if sha256 { ObjectFormat::Sha256 } else { ObjectFormat::Sha1 };
    RefSet::read(dir, format).map(Some)
}

/// At debug every ref that moves, at info their number.
fn log_moves(old: Option<&RefSet>, new: &RefSet) {
    let empty = RefSet::empty(new.format());
    let old = old.unwrap_or(&empty);
    let (mut added, mut moved, mut removed) = (0_usize, 0_usize, 0_usize);
    for Ref { name, oid, .. } in new.refs() {
        match old.get(name.as_ref()).map(|old| old.oid) {
            Some(before) if before == *oid => {}
            Some(before) => {
                moved += 1;
                tracing::debug!(%name, old = %before, new = %oid, "ref moves");
            }
            None => {
                added += 1;
                tracing::debug!(%name, new = %oid, "ref appears");
            }
        }
    }
    for Ref { name, oid, .. } in old.refs() {
        if new.get(name.as_ref()).is_none() {
            removed += 1;
            tracing::debug!(%name, old = %oid, "ref goes");
        }
    }
    tracing::info!(added, moved, removed, "fetching");
}
