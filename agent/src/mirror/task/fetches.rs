//! Clones and fetches: at most one at a time, and who waits for it.
//!
//! A fetch brings all that the refs name which a look has shown; or objects by id, whatever leads to them. Where both are
//! due they alternate, so that neither starves.

mod by_id;
mod moves;
mod unknown;

use std::{
    collections::HashSet,
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
    git::{GitError, Oid, RefSet, remote::Patience, stderr::FailureKind},
    metrics::Outcome,
    mirror::{
        BringError, Settled, Trouble,
        disk::size,
        entitlement::Note,
        fetch::{Fetch, FetchError},
        quota::Writes,
        room::Room,
        services::Services,
    },
    queue::{Activity, Lift, Priority, Queue},
    upstream::{LookError, Looker, Provenance},
};
use by_id::Brought;
use unknown::Unknown;

/// Objects by id that wait for their turn; one fetch asks for them all. As many as one request may name.
const MAX_BY_ID: usize = 10_000;

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
    /// Wait for the next fetch by id.
    by_id: Vec<WantedById>,
    unknown: Unknown,
    /// The fetch before this one.
    former: Kind,
    last: Option<Timestamp>,
    trouble: Option<Trouble>,
    /// Attempts in a row that were given up because nothing was heard: the next one is more patient.
    given_up: u32,
}

/// A request that waits for objects which the refs may lead to.
pub(super) struct Wanted {
    pub(super) oids: Vec<Oid>,
    /// When it was asked for.
    pub(super) asked: Instant,
    pub(super) reply: oneshot::Sender<Result<Settled, BringError>>,
}

/// A request for objects by id; the answer holds those that the upstream does not have.
pub(super) struct WantedById {
    pub(super) oids: Vec<Oid>,
    pub(super) reply: oneshot::Sender<Result<HashSet<Oid>, BringError>>,
}

impl Wanted {
    pub(super) fn answer(self, answer: Result<Settled, BringError>) {
        // Whoever has gone needs none.
        let _ = self.reply.send(answer);
    }
}

impl WantedById {
    pub(super) fn answer(self, answer: Result<HashSet<Oid>, BringError>) {
        let _ = self.reply.send(answer);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Refs,
    ById,
}

/// Which fetch is next, where one of either kind is due: they alternate.
fn next(refs: bool, by_id: bool, former: Kind) -> Option<Kind> {
    match (refs, by_id) {
        (true, true) if former == Kind::Refs => Some(Kind::ById),
        (true, _) => Some(Kind::Refs),
        (false, true) => Some(Kind::ById),
        (false, false) => None,
    }
}

/// What is under way.
enum Running {
    Refs {
        fetch: Fetched,
        /// While it waits for its turn.
        lift: Lift,
        result: AbortOnDropHandle<Result<u64, FetchError>>,
    },
    ById {
        wanted: Vec<WantedById>,
        result: AbortOnDropHandle<Result<(Brought, u64), FetchError>>,
    },
}

/// A fetch of all that refs name.
pub(super) struct Fetched {
    pub(super) target: Arc<RefSet>,
    tips: HashSet<Oid>,
    /// When the look began that showed these refs.
    looked: Instant,
    began: Instant,
    /// With what it fetches.
    pub(super) provenance: Provenance,
}

impl Fetched {
    /// What this fetch, which has ended well, tells `wanted`; `None` where a later one may bring more of it. `behind` says
    /// that other refs have been seen meanwhile.
    fn answers(&self, wanted: &Wanted, behind: bool) -> Option<Settled> {
        let all = !behind || wanted.asked <= self.looked;
        if all || wanted.oids.iter().all(|oid| self.tips.contains(oid)) {
            Some(Settled::Looked)
        } else {
            // What was shown to whoever asks had been seen before this fetch began, and has arrived with what has
            // followed since: it is on the disk, though no ref names it any more.
            (wanted.asked <= self.began).then_some(Settled::Fetched)
        }
    }
}

/// A fetch of all that the refs name, as the task orders it.
pub(super) struct Order<'a> {
    pub(super) upstream: &'a Upstream,
    /// The refs to have afterwards, and when the look began that showed them.
    pub(super) target: (Arc<RefSet>, Instant),
    /// The refs on the disk.
    pub(super) stored: Option<Arc<RefSet>>,
    pub(super) by_name: bool,
    pub(super) patience: Patience,
    pub(super) timeout: Duration,
    /// How much it matters that the mirror comes soon.
    pub(super) urgency: Priority,
    /// Somebody waits for a look that led to it.
    pub(super) awaited: bool,
    /// With what the declaration fetches, whose look has succeeded.
    pub(super) provenance: Provenance,
}

/// What [`Fetches::result`] gives.
pub(super) enum Finished {
    Refs(Result<u64, FetchError>),
    ById(Result<(Brought, u64), FetchError>),
}

/// What a fetch has come to.
pub(super) enum Ended {
    /// A clone, or a fetch of all that the refs name; its waiters are still here.
    Refs { fetch: Fetched, result: Result<u64, FetchError> },
    /// A fetch by id has brought something, and the mirror has this size; who asked has been answered.
    ById { bytes: u64 },
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
            by_id: Vec::new(),
            unknown: Unknown::default(),
            former: Kind::ById,
            last: None,
            trouble: None,
            given_up: 0,
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

    /// What is to be started next; what is due is not due any more.
    pub(super) fn next(&mut self) -> Option<Kind> {
        let kind = next(self.due, !self.by_id.is_empty(), self.former)?;
        self.due &= kind != Kind::Refs;
        self.former = kind;
        Some(kind)
    }

    /// The upstream's refs have moved: it may have what it did not.
    pub(super) fn moved(&mut self) {
        self.unknown.forget();
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
            Some(Running::Refs { fetch, .. }) => wanted.oids.iter().all(|oid| fetch.tips.contains(oid)),
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

    /// Queues a fetch of objects by id, unless the upstream has just said that it has none of them.
    pub(super) fn ask(&mut self, wanted: WantedById) {
        let unknown = self.unknown.among(&wanted.oids, Instant::now());
        let queued: usize = self.by_id.iter().map(|wanted| wanted.oids.len()).sum();
        if unknown.len() == wanted.oids.len() {
            wanted.answer(Ok(unknown));
        } else if wanted.oids.len() > MAX_BY_ID {
            // No honest client lacks so much of what it was shown.
            let all = wanted.oids.iter().copied().collect();
            wanted.answer(Ok(all));
        } else if queued + wanted.oids.len() > MAX_BY_ID {
            wanted.answer(Err(BringError::Busy));
        } else {
            self.by_id.push(wanted);
        }
    }

    /// Starts the clone or fetch that `order` describes.
    pub(super) fn start(&mut self, order: Order<'_>) {
        let Order { upstream, target, stored, by_name, patience, timeout, urgency, awaited, provenance } =
            order;
        let (target, looked) = target;
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
            quota: self.site.quota(),
            packs: self.site.packs.clone(),
            upstream: upstream.looker.clone(),
            installed: upstream.installed(),
            stored,
            target: target.clone(),
            by_name,
            patience: patience.after(self.given_up),
            timeout,
            progress: self.site.progress.clone(),
            note: Note { provenance: provenance.clone(), confirmed: true, refusals: None },
            ticket,
        };
        let tips = target.tips().collect();
        let fetch = mannerly(upstream.looker.clone(), fetch.run());
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.in_current_span()));
        let fetch = Fetched { target, tips, looked, began: Instant::now(), provenance };
        self.running = Some(Running::Refs { fetch, lift, result });
    }

    /// Starts one fetch by id for all who wait for one.
    pub(super) fn start_by_id(&mut self, upstream: &Result<Upstream, Arc<LookError>>, timeout: Duration) {
        let wanted = mem::take(&mut self.by_id);
        let upstream = match upstream {
            Ok(upstream) => upstream,
            Err(error) => {
                for wanted in wanted {
                    wanted.answer(Err(BringError::Look(error.clone())));
                }
                return;
            }
        };
        let (site, looker, installed) = (self.site.clone(), upstream.looker.clone(), upstream.installed());
        let oids = wanted.iter().flat_map(|wanted| &wanted.oids).copied().collect();
        let patience = Patience::UPDATE.after(self.given_up);
        let mut ticket = self.queue.enter(Activity::Fetch, &site.id, Priority::Awaited);
        let quota = site.quota();
        let fetch = async move {
            ticket.called().await;
            let brought = by_id::fetch(oids, timeout, async |oids, limit| {
                let progress = site.progress.clone();
                let remote = looker.for_git().await?;
                remote.fetch(&site.git, &site.dir, &oids, patience, limit, progress).await
            });
            let writes = Writes::Into(site.dir.clone(), site.packs.clone());
            let brought = quota.hold(writes, brought, FetchError::from).await?;
            drop(installed);
            Ok((brought, tokio::task::spawn_blocking(move || size(&site.dir)).await.unwrap_or(0)))
        };
        let fetch = mannerly(upstream.looker.clone(), fetch);
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.in_current_span()));
        self.running = Some(Running::ById { wanted, result });
    }

    /// Waits for the running fetch; for ever where there is none. A dropped future loses nothing.
    pub(super) async fn result(&mut self) -> Finished {
        fn failed<T>(error: tokio::task::JoinError) -> Result<T, FetchError> {
            Err(FetchError::Disk(std::io::Error::other(error)))
        }
        match &mut self.running {
            Some(Running::Refs { result, .. }) => Finished::Refs(result.await.unwrap_or_else(failed)),
            Some(Running::ById { result, .. }) => Finished::ById(result.await.unwrap_or_else(failed)),
            None => std::future::pending().await,
        }
    }

    /// Takes in what [`Self::result`] gave.
    pub(super) fn ended(&mut self, finished: Finished) -> Option<Ended> {
        match (self.running.take()?, finished) {
            (Running::Refs { fetch, .. }, Finished::Refs(result)) => {
                match &result {
                    Ok(_) => self.given_up = 0,
                    Err(FetchError::Git(GitError::Silent { .. })) => self.given_up += 1,
                    Err(_) => {}
                }
                let metrics = &self.site.metrics;
                let outcome = Outcome::of(&result, |error| error.kind().reason());
                metrics.mirror.fetches.get_or_create(&outcome).inc();
                metrics.mirror.fetch_seconds.observe(fetch.began.elapsed().as_secs_f64());
                self.unknown.forget();
                if result.is_ok() {
                    (self.last, self.trouble) = (Some(Timestamp::now()), None);
                } else {
                    self.site.littered();
                }
                Some(Ended::Refs { fetch, result })
            }
            (Running::ById { wanted, .. }, Finished::ById(result)) => self.ended_by_id(wanted, result),
            // The result is of what runs.
            _ => None,
        }
    }

    fn ended_by_id(
        &mut self,
        wanted: Vec<WantedById>,
        result: Result<(Brought, u64), FetchError>,
    ) -> Option<Ended> {
        let (Brought { some, unknown, untried }, bytes) = match result {
            Ok(ended) => ended,
            Err(error) => {
                tracing::debug!(%error, "objects asked for by id cannot be fetched");
                self.site.littered();
                let error = Arc::new(error);
                for wanted in wanted {
                    wanted.answer(Err(BringError::Fetch(error.clone())));
                }
                return None;
            }
        };
        self.unknown.remember(unknown.iter().copied(), Instant::now());
        for wanted in wanted {
            let lacks = |oid: &&Oid| unknown.contains(*oid) || untried.contains(*oid);
            let missing = wanted.oids.iter().filter(lacks).copied().collect();
            wanted.answer(Ok(missing));
        }
        some.then_some(Ended::ById { bytes })
    }

    /// Answers those whose objects `fetch` has brought; `behind` says that other refs have been seen meanwhile.
    pub(super) fn answer(&mut self, fetch: &Fetched, behind: bool) {
        for wanted in self.take_waiting() {
            match fetch.answers(&wanted, behind) {
                Some(settled) => wanted.answer(Ok(settled)),
                None => self.waiting.push(wanted),
            }
        }
    }

    /// The fetch that ended has failed, and is retried later: all who wait are told.
    pub(super) fn failed(&mut self, error: FetchError, failures: u32) {
        tracing::warn!(%error, failures, "fetch failed; it will be retried");
        match error.kind() {
            FailureKind::Disk if error.pleads() => self.room.lacks(failures),
            FailureKind::Damaged => self.site.integrity.doubt(&self.site.id, &error.to_string()),
            _ => {}
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
            self.by_id.extend(wanted);
        }
    }
}

/// Runs a fetch unless the upstream has asked to be left alone, and notes if it does so now.
async fn mannerly<T>(
    looker: Arc<Looker>,
    fetch: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    let paused = |error: LookError| GitError::Failed {
        verb: "fetch".into(),
        kind: error.kind(),
        message: error.to_string(),
    };
    looker.may_ask().map_err(paused)?;
    let fetched = fetch.await;
    if fetched.as_ref().is_err_and(|error| error.kind() == FailureKind::RateLimited) {
        looker.limited();
    }
    fetched
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::ObjectFormat;

    #[test]
    fn the_kinds_of_fetches_alternate_where_both_are_due() {
        assert_eq!(next(true, true, Kind::Refs), Some(Kind::ById));
        assert_eq!(next(true, true, Kind::ById), Some(Kind::Refs));
        assert_eq!(next(true, false, Kind::Refs), Some(Kind::Refs));
        assert_eq!(next(false, true, Kind::ById), Some(Kind::ById));
        assert_eq!(next(false, false, Kind::Refs), None);
    }

    #[test]
    fn who_came_before_a_fetch_began_is_answered_when_it_ends_whatever_has_moved_since() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let oid = |digit| Oid::from_hex(&[digit; 40]).unwrap();
        let target = Arc::new(RefSet::empty(ObjectFormat::Sha1));
        let (tips, provenance) = (HashSet::from([oid(b'1')]), Provenance::Public);
        let fetch = Fetched { target, tips, looked: at(2), began: at(4), provenance };
        let wanted = |digit, asked| {
            let (reply, _) = oneshot::channel();
            Wanted { oids: vec![oid(digit)], asked: at(asked), reply }
        };
        let told = |digit, asked, behind| fetch.answers(&wanted(digit, asked), behind);
        assert_eq!(told(b'1', 9, true), Some(Settled::Looked), "a tip of it");
        assert_eq!(told(b'2', 1, true), Some(Settled::Looked), "the look was later than the question");
        assert_eq!(told(b'2', 3, true), Some(Settled::Fetched), "the fetch was, the look was not");
        assert_eq!(told(b'2', 5, true), None, "the next fetch answers");
        assert_eq!(told(b'2', 5, false), Some(Settled::Looked), "there is nothing newer");
    }
}
