//! Looks: who shares which, and what they show.
//!
//! At most one look runs and one waits. Requests that arrive while a look runs share the next one: an answer never
//! rests on a look that began before its request (P1).

mod gather;

use std::{mem, sync::Arc, time::Instant};

use bstr::BString;
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{fetches::Wanted, upstream::Upstream};
use crate::{
    git::RefSet,
    metrics::{Metrics, Outcome},
    mirror::{LookAnswer, Settings, Stored, Trouble, life::Event},
    never::or_never,
    protocol::ls_refs::LsRefs,
    queue::{Activity, Priority, Queue},
    upstream::LookError,
};
use gather::Gather;

/// With fewer refs than this (2,000 take 150 kB) a look at all of them costs no more than a look at some.
const NARROW_FROM: usize = 2_000;
/// With more prefixes than this, an upstream takes longer to select than to send everything (5,000 take
/// git 0.12 s).
const MAX_PREFIXES: usize = 100;

/// See the module.
pub(super) struct Looks {
    metrics: Metrics,
    queue: Queue,
    /// A look at everything is due, whoever waits.
    due: bool,
    /// Wait for the next look: the running one began too early for them.
    waiting: Vec<Waiter>,
    /// Holds the next look back for those who come at once.
    gather: Gather,
    running: Option<Running>,
    /// The running look began under an earlier declaration.
    outdated: bool,
    seen: Option<(Arc<RefSet>, Instant)>,
    last: Option<Timestamp>,
    trouble: Option<Trouble>,
}

/// A request that waits for a look.
pub(super) enum Waiter {
    /// For the refs with these prefixes, or for all.
    Look(Vec<BString>, oneshot::Sender<LookAnswer>),
    /// For objects that the look may lead to.
    Settle(Wanted),
}

struct Running {
    /// What is looked at; everything where there are none.
    prefixes: Vec<BString>,
    began: Instant,
    began_at: Timestamp,
    waiters: Vec<Waiter>,
    result: AbortOnDropHandle<Result<Arc<RefSet>, LookError>>,
}

/// What a look has come to.
pub(super) struct Ended {
    /// What it means for the mirror's life, if anything.
    pub(super) event: Option<Event>,
    pub(super) answer: LookAnswer,
    /// They asked before it began.
    pub(super) waiters: Vec<Waiter>,
    /// It was of the present declaration.
    pub(super) current: bool,
}

impl Looks {
    pub(super) fn new(metrics: Metrics, queue: Queue) -> Self {
        Self {
            metrics,
            queue,
            due: false,
            waiting: Vec::new(),
            gather: Gather::default(),
            running: None,
            outdated: false,
            seen: None,
            last: None,
            trouble: None,
        }
    }

    /// The refs the upstream showed in the newest look, and when that look began.
    pub(super) fn seen(&self) -> Option<&(Arc<RefSet>, Instant)> {
        self.seen.as_ref()
    }

    /// When the newest look that succeeded began.
    pub(super) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// Why the last look failed, if it did.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Whether a look at everything comes next.
    pub(super) fn is_due(&self) -> bool {
        self.due
    }

    /// Whether none runs, and nobody waits for one.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && !self.due && self.waiting.is_empty()
    }

    /// Whether a request waits for the look that runs.
    pub(super) fn is_awaited(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.waiters.is_empty())
    }

    /// A look at everything comes next.
    pub(super) fn set_due(&mut self) {
        self.due = true;
    }

    /// Answers with a look that begins later.
    pub(super) fn ask(&mut self, prefixes: Vec<BString>, reply: oneshot::Sender<LookAnswer>) {
        self.waiting.push(Waiter::Look(prefixes, reply));
        self.gather.joined(Instant::now());
    }

    /// Gives `wanted` back once a look that begins later has ended.
    pub(super) fn settle(&mut self, wanted: impl IntoIterator<Item = Wanted>) {
        self.waiting.extend(wanted.into_iter().map(Waiter::Settle));
    }

    /// What was seen, and what a look under way will see, says nothing about the upstream as it is declared now.
    pub(super) fn forget(&mut self) {
        self.seen = None;
        self.outdated = self.running.is_some();
    }

    /// Until when the next look is held back; `None` where it is not, or one runs.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.gather.until(Instant::now()).filter(|_| self.running.is_none())
    }

    /// Starts a look at `upstream` if one is due; `stored` are the refs on the disk.
    pub(super) fn start(
        &mut self,
        upstream: &Result<Upstream, Arc<LookError>>,
        settings: &Settings,
        stored: Option<&RefSet>,
    ) {
        let wanted = self.due || (!self.waiting.is_empty() && self.held_until().is_none());
        if self.running.is_some() || !wanted {
            return;
        }
        let prefixes = if mem::take(&mut self.due) { Vec::new() } else { self.narrow(stored) };
        let looker = upstream.as_ref().map(|upstream| upstream.looker.clone());
        let looker = looker.map_err(|error| match &**error {
            LookError::NoCredentials(why) => LookError::NoCredentials(why.clone()),
            error => LookError::Refused(error.to_string()),
        });
        let (asked, limit) = (prefixes.clone(), settings.look_timeout);
        let priority = if self.waiting.is_empty() { Priority::Background } else { Priority::Awaited };
        let mut ticket = self.queue.enter(Activity::Look, settings.url.id(), priority);
        let look = async move {
            match looker {
                Ok(looker) => {
                    // Whom the upstream has asked to wait needs no turn to be told so.
                    looker.may_ask()?;
                    ticket.called().await;
                    looker.look(&asked, limit).await
                }
                Err(error) => Err(error),
            }
        };
        self.running = Some(Running {
            prefixes,
            began: Instant::now(),
            began_at: Timestamp::now(),
            waiters: mem::take(&mut self.waiting),
            result: AbortOnDropHandle::new(tokio::spawn(look.in_current_span())),
        });
    }

    /// The prefixes that the waiting requests need, where asking for those alone is worth it; none to ask
    /// for everything.
    fn narrow(&self, stored: Option<&RefSet>) -> Vec<BString> {
        let known = self.seen.as_ref().map(|(seen, _)| &**seen).or(stored);
        if known.is_none_or(|known| known.refs().len() < NARROW_FROM) {
            return Vec::new();
        }
        let mut union = Vec::new();
        for waiter in &self.waiting {
            match waiter {
                Waiter::Look(prefixes, _) if !prefixes.is_empty() => union.extend_from_slice(prefixes),
                _ => return Vec::new(),
            }
        }
        union.sort_unstable();
        union.dedup();
        if union.len() <= MAX_PREFIXES { union } else { Vec::new() }
    }

    /// Waits for the running look; for ever where there is none. A dropped future loses nothing.
    pub(super) async fn result(&mut self) -> Result<Arc<RefSet>, LookError> {
        let ended = or_never(self.running.as_mut().map(|running| &mut running.result)).await;
        ended.unwrap_or_else(|error| Err(LookError::Refused(error.to_string())))
    }

    /// Takes in what [`Self::result`] gave. `wanted` says whether the mirror is to be here.
    pub(super) fn ended(
        &mut self,
        result: Result<Arc<RefSet>, LookError>,
        stored: Option<&Stored>,
        wanted: bool,
    ) -> Option<Ended> {
        let Running { prefixes, began, began_at, waiters, result: _ } = self.running.take()?;
        let current = !mem::take(&mut self.outdated);
        let now = Instant::now();
        self.gather = Gather::after(waiters.len(), self.waiting.len(), now.duration_since(began), now);
        let outcome = Outcome::of(&result, |error| error.kind().reason());
        self.metrics.mirror.looks.get_or_create(&outcome).inc();
        self.metrics.mirror.look_seconds.observe(began.elapsed().as_secs_f64());
        let (event, answer) = match result {
            Ok(refs) if !current => (None, Ok((refs, began))),
            Err(error) if !current => (None, Err(Arc::new(error))),
            Ok(refs) => {
                if self.trouble.take().is_some() {
                    tracing::info!("the upstream answers again");
                }
                let (event, refs) = if prefixes.is_empty() {
                    self.last = Some(began_at);
                    let (event, refs) = self.looked(refs, began, stored);
                    (Some(event), refs)
                } else {
                    (None, self.glanced(refs, prefixes, stored))
                };
                (event, Ok((refs, began)))
            }
            Err(error) => {
                if self.trouble.is_none() {
                    tracing::warn!(%error, "the upstream cannot be asked");
                }
                // Where the mirror does not belong, nobody would try again and find that it has passed.
                if wanted {
                    self.trouble = Some(Trouble::new(error.kind().reason(), &error));
                }
                (Some(Event::LookFailed), Err(Arc::new(error)))
            }
        };
        Some(Ended { event: event.filter(|_| wanted), answer, waiters, current })
    }

    fn looked(&mut self, refs: Arc<RefSet>, began: Instant, stored: Option<&Stored>) -> (Event, Arc<RefSet>) {
        // Equal states share one value: memory does not grow with the number of looks.
        let known = stored.iter().map(|stored| &stored.refs).chain(self.seen.iter().map(|(seen, _)| seen));
        let refs = known.into_iter().find(|known| **known == refs).cloned().unwrap_or(refs);
        let moved = stored.is_none_or(|stored| stored.refs != refs);
        self.seen = Some((refs.clone(), began));
        (if moved { Event::LookFoundMoves } else { Event::LookFoundNothing }, refs)
    }

    /// A look at some of the refs answers those who asked for them. What the mirror holds is always one
    /// whole state of the upstream, so a move seen here leads to a look at everything.
    fn glanced(&mut self, refs: Arc<RefSet>, prefixes: Vec<BString>, stored: Option<&Stored>) -> Arc<RefSet> {
        let asked = LsRefs { prefixes, ..LsRefs::everything() };
        let known = stored.map(|stored| asked.respond(&stored.refs));
        if known.is_none_or(|known| known != asked.respond(&refs)) {
            self.due = true;
        }
        refs
    }
}
