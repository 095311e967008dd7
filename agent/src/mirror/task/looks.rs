//! Looks: who shares which, and what follows from what they show.

use std::{mem, sync::Arc, time::Instant};

use bstr::BString;
use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{Job, RunningLook, Task, Waiter, gather::Gather};
use crate::{
    git::RefSet,
    metrics::Outcome,
    mirror::{BringError, Trouble, state::Event},
    protocol::ls_refs::LsRefs,
    queue::{Activity, Priority},
    upstream::LookError,
};

/// With fewer refs than this (2,000 take 150 kB) a look at all of them costs no more than a look at some.
const NARROW_FROM: usize = 2_000;
/// With more prefixes than this, an upstream takes longer to select than to send everything (5,000 take
/// git 0.12 s).
const MAX_PREFIXES: usize = 100;

impl Task {
    pub(super) fn start_look(&mut self) {
        let limit = self.settings.look_timeout;
        let prefixes = if mem::take(&mut self.look_due) { Vec::new() } else { self.narrow() };
        let looker = self.upstream.as_ref().map(|upstream| upstream.looker.clone());
        let looker = looker.map_err(|error| match &**error {
            LookError::NoCredentials(why) => LookError::NoCredentials(why.clone()),
            error => LookError::Refused(error.to_string()),
        });
        let asked = prefixes.clone();
        let priority = if self.next_look.is_empty() { Priority::Background } else { Priority::Awaited };
        let mut ticket = self.limits.queue.enter(Activity::Look, &self.id, priority);
        let look = async move {
            match looker {
                Ok(looker) => {
                    ticket.called().await;
                    looker.look(&asked, limit).await
                }
                Err(error) => Err(error),
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
    pub(super) fn narrow(&self) -> Vec<BString> {
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

    pub(super) fn look_finished(&mut self, result: Result<Arc<RefSet>, LookError>) {
        let Some(look) = self.look.take() else { return };
        let now = Instant::now();
        self.gather = Gather::after(look.waiters.len(), now.duration_since(look.began), now);
        (0..self.next_look.len()).for_each(|_| self.gather.joined(now));
        let outcome = Outcome::of(&result, |error| error.kind().reason());
        self.metrics.looks.get_or_create(&outcome).inc();
        self.metrics.look_seconds.observe(look.began.elapsed().as_secs_f64());
        let answer = match result {
            Ok(refs) => {
                if self.look_trouble.take().is_some() {
                    tracing::info!("the upstream answers again");
                }
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
                // Where the mirror does not belong, nobody would try again and find that it has passed.
                if self.wanted {
                    self.look_trouble = Some(Trouble::new(error.kind().reason(), &error));
                    self.happened(Event::LookFailed);
                }
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

    pub(super) fn fetching(&self) -> bool {
        self.fetch_due || matches!(self.job, Some(Job::Refs { .. }))
    }

    pub(super) fn looked(&mut self, refs: Arc<RefSet>, began: Instant, began_at: Timestamp) -> Arc<RefSet> {
        // Equal states share one value: memory does not grow with the number of looks.
        let known =
            self.stored.iter().map(|stored| &stored.refs).chain(self.seen.iter().map(|(seen, _)| seen));
        let refs = known.into_iter().find(|known| **known == refs).cloned().unwrap_or(refs);
        let moved = self.stored.as_ref().is_none_or(|stored| stored.refs != refs);
        self.seen = Some((refs.clone(), began));
        self.last_look = Some(began_at);
        if self.wanted {
            self.happened(if moved { Event::LookFoundMoves } else { Event::LookFoundNothing });
        }
        refs
    }

    /// A look at some of the refs answers those who asked for them. What the mirror holds is always one
    /// whole state of the upstream, so a move seen here leads to a look at everything.
    pub(super) fn glanced(&mut self, refs: Arc<RefSet>, prefixes: Vec<BString>) -> Arc<RefSet> {
        let asked = LsRefs { prefixes, ..LsRefs::everything() };
        let known = self.stored.as_ref().map(|stored| asked.respond(&stored.refs));
        if known.is_none_or(|known| known != asked.respond(&refs)) {
            self.look_due = true;
        }
        refs
    }
}
