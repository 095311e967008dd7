//! Clones and fetches: at most one at a time, and who waits for it.

mod moves;

use std::{
    collections::{HashSet, VecDeque},
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{site::Site, upstream::Upstream};
use crate::{
    git::{Oid, RefSet, remote::Patience, stderr::FailureKind},
    metrics::Outcome,
    mirror::{
        BringError, Stored, Trouble,
        disk::size,
        fetch::{Fetch, FetchError},
        room::Room,
        services::Services,
    },
    queue::{Activity, Lift, Priority, Queue},
};

/// Requests for objects by id that wait for their turn.
const MAX_BY_ID: usize = 64;

/// See the module.
pub(super) struct Fetches {
    site: Arc<Site>,
    queue: Queue,
    room: Arc<Room>,
    /// What was seen last is to be fetched.
    due: bool,
    running: Option<Running>,
    /// Wait for the fetch that is due or runs.
    waiting: Vec<Wanted>,
    /// Wait for a fetch of their objects by id.
    by_id: VecDeque<Wanted>,
    last: Option<Timestamp>,
    trouble: Option<Trouble>,
}

/// A request that waits for objects.
pub(super) struct Wanted {
    pub(super) oids: Vec<Oid>,
    pub(super) reply: oneshot::Sender<Result<(), BringError>>,
}

impl Wanted {
    pub(super) fn answer(self, answer: Result<(), BringError>) {
        // Whoever has gone needs none.
        let _ = self.reply.send(answer);
    }
}

enum Running {
    Refs {
        target: Arc<RefSet>,
        tips: HashSet<Oid>,
        began: Instant,
        /// While it waits for its turn.
        lift: Lift,
        result: AbortOnDropHandle<Result<u64, FetchError>>,
    },
    ById {
        wanted: Wanted,
        result: AbortOnDropHandle<Result<u64, FetchError>>,
    },
}

/// A fetch of all that the refs name, as the task orders it.
pub(super) struct Order<'a> {
    pub(super) upstream: &'a Upstream,
    /// The refs to have afterwards.
    pub(super) target: Arc<RefSet>,
    /// The refs on the disk.
    pub(super) stored: Option<Arc<RefSet>>,
    pub(super) by_name: bool,
    pub(super) patience: Patience,
    pub(super) timeout: Duration,
    /// How much it matters that the mirror comes soon.
    pub(super) urgency: Priority,
    /// Somebody waits for a look that led to it.
    pub(super) awaited: bool,
}

/// What a fetch has come to.
pub(super) enum Ended {
    /// A clone, or a fetch of all that the refs name; its waiters are still here.
    Refs { target: Arc<RefSet>, result: Result<u64, FetchError> },
    /// A fetch by id, with the mirror's size where it succeeded; who asked has been answered.
    ById(Option<u64>),
}

impl Fetches {
    pub(super) fn new(site: Arc<Site>, services: &Services) -> Self {
        Self {
            site,
            queue: services.queue.clone(),
            room: services.room.clone(),
            due: false,
            running: None,
            waiting: Vec::new(),
            by_id: VecDeque::new(),
            last: None,
            trouble: None,
        }
    }

    /// When the newest fetch that succeeded ended.
    pub(super) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// Why the last fetch failed, if it did.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Whether a fetch of either kind runs.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether nothing runs or is due, and nobody waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && !self.due && self.waiting.is_empty() && self.by_id.is_empty()
    }

    /// Whether what was seen last is being fetched, or will be.
    pub(super) fn is_coming(&self) -> bool {
        self.due || matches!(self.running, Some(Running::Refs { .. }))
    }

    /// What was seen last is to be fetched.
    pub(super) fn set_due(&mut self) {
        self.due = true;
    }

    /// Takes the fetch that is due, if one is.
    pub(super) fn take_due(&mut self) -> bool {
        mem::take(&mut self.due)
    }

    /// Somebody waits for the fetch, if one waits for its turn.
    pub(super) fn lift(&self) {
        if let Some(Running::Refs { lift, .. }) = &self.running {
            lift.lift();
        }
    }

    /// Whether the fetch that runs brings all that `wanted` names: the usual case, in which the look that showed these
    /// objects to the client has started their fetch.
    pub(super) fn brings(&self, wanted: &Wanted) -> bool {
        match &self.running {
            Some(Running::Refs { tips, .. }) => wanted.oids.iter().all(|oid| tips.contains(oid)),
            _ => false,
        }
    }

    /// Answers `wanted` when the fetch that is due or runs has ended.
    pub(super) fn wait(&mut self, wanted: Wanted) {
        self.waiting.push(wanted);
    }

    /// Those who wait for a fetch.
    pub(super) fn take_waiting(&mut self) -> Vec<Wanted> {
        mem::take(&mut self.waiting)
    }

    /// Queues a fetch of objects by id.
    pub(super) fn ask(&mut self, wanted: Wanted) {
        if self.by_id.len() >= MAX_BY_ID {
            wanted.answer(Err(BringError::Busy));
        } else {
            self.by_id.push_back(wanted);
        }
    }

    /// Starts the clone or fetch that `order` describes.
    pub(super) fn start(&mut self, order: Order<'_>) {
        let Order { upstream, target, stored, by_name, patience, timeout, urgency, awaited } = order;
        moves::log(stored.as_deref(), &target);
        let clone = stored.as_ref().is_none_or(|stored| stored.format() != target.format());
        let awaited =
            awaited || !self.waiting.is_empty() || (stored.is_none() && urgency == Priority::Awaited);
        let activity = if clone { Activity::Clone } else { Activity::Fetch };
        let priority = if awaited { Priority::Awaited } else { Priority::Background };
        let ticket = self.queue.enter(activity, &self.site.id, priority);
        let lift = ticket.lift();
        let fetch = Fetch {
            git: self.site.git.clone(),
            disk: self.site.disk.clone(),
            dir: self.site.dir.clone(),
            remote: upstream.remote(),
            stored,
            target: target.clone(),
            by_name,
            patience,
            timeout,
            progress: self.site.progress.clone(),
            ticket,
        };
        let tips = target.tips().collect();
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.run().in_current_span()));
        self.running = Some(Running::Refs { target, tips, began: Instant::now(), lift, result });
    }

    /// Starts the next fetch by id, if any waits.
    pub(super) fn start_by_id(&mut self, upstream: Option<&Upstream>, timeout: Duration) {
        let Some(wanted) = self.by_id.pop_front() else { return };
        let Some(upstream) = upstream else { return };
        let (site, remote) = (self.site.clone(), upstream.remote());
        let oids = wanted.oids.iter().copied().collect();
        let mut ticket = self.queue.enter(Activity::Fetch, &site.id, Priority::Awaited);
        let fetch = async move {
            ticket.called().await;
            let progress = site.progress.clone();
            remote.fetch(&site.git, &site.dir, &oids, Patience::StallsFail, timeout, progress).await?;
            Ok(tokio::task::spawn_blocking(move || size(&site.dir)).await.unwrap_or(0))
        };
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.in_current_span()));
        self.running = Some(Running::ById { wanted, result });
    }

    /// Waits for the running fetch; for ever where there is none. A dropped future loses nothing.
    pub(super) async fn result(&mut self) -> Result<u64, FetchError> {
        match &mut self.running {
            Some(Running::Refs { result, .. } | Running::ById { result, .. }) => {
                result.await.unwrap_or_else(|error| Err(FetchError::Disk(std::io::Error::other(error))))
            }
            None => std::future::pending().await,
        }
    }

    /// Takes in what [`Self::result`] gave.
    pub(super) fn ended(&mut self, result: Result<u64, FetchError>) -> Option<Ended> {
        Some(match self.running.take()? {
            Running::Refs { target, began, .. } => {
                let metrics = &self.site.metrics;
                let outcome = Outcome::of(&result, |error| error.kind().reason());
                metrics.fetches.get_or_create(&outcome).inc();
                metrics.fetch_seconds.observe(began.elapsed().as_secs_f64());
                if result.is_ok() {
                    (self.last, self.trouble) = (Some(Timestamp::now()), None);
                }
                Ended::Refs { target, result }
            }
            Running::ById { wanted, .. } => {
                let bytes = result.as_ref().ok().copied();
                let answer = result.map(drop).map_err(|error| {
                    tracing::debug!(%error, "objects asked for by name cannot be fetched");
                    let missing = wanted.oids.first().copied();
                    missing.map_or(BringError::Fetch(Arc::new(error)), BringError::Missing)
                });
                wanted.answer(answer);
                Ended::ById(bytes)
            }
        })
    }

    /// Answers those whose objects the fetch that made `stored` has brought: all, unless it is `behind` what was seen
    /// meanwhile.
    pub(super) fn answer(&mut self, stored: &Stored, behind: bool) {
        for wanted in self.take_waiting() {
            if behind && !wanted.oids.iter().all(|oid| stored.tips.contains(oid)) {
                self.waiting.push(wanted);
            } else {
                wanted.answer(Ok(()));
            }
        }
    }

    /// The fetch that ended has failed, and is retried later: all who wait are told.
    pub(super) fn failed(&mut self, error: FetchError, failures: u32) {
        tracing::warn!(%error, failures, "fetch failed; it will be retried");
        if error.kind() == FailureKind::Disk {
            self.room.lacks(failures);
        }
        self.trouble = Some(Trouble::new(error.kind().reason(), &error));
        let error = Arc::new(error);
        for wanted in self.take_waiting() {
            wanted.answer(Err(BringError::Fetch(error.clone())));
        }
    }

    /// The data have left the disk: what worked on them ends. Whoever waits goes on waiting.
    pub(super) fn left(&mut self) {
        self.due = false;
        if let Some(Running::ById { wanted, .. }) = self.running.take() {
            self.by_id.push_front(wanted);
        }
    }
}
