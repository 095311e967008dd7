//! Clones and fetches: at most one at a time, and who waits for it.

use std::{mem, sync::Arc, time::Instant};

use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{Job, Task, Waiter, Wanted};
use crate::{
    checkpoint::turns::Urgency,
    git::{Ref, RefSet, remote::Patience, stderr::FailureKind},
    metrics::Outcome,
    mirror::{
        BringError, Stored, Trouble,
        disk::size,
        fetch::{Fetch, FetchError},
        state::Event,
    },
    queue::{Activity, Priority},
};

impl Task {
    pub(super) fn start_fetch(&mut self) {
        let (Ok(upstream), Some((target, _))) = (&self.upstream, &self.seen) else {
            // Reconfigured since the look: look again, as the new declaration says.
            self.state.fetching = false;
            self.look_due = true;
            return;
        };
        let target = target.clone();
        let stored = self.stored.as_ref().map(|stored| stored.refs.clone());
        log_moves(stored.as_deref(), &target);
        let clone = self.stored.as_ref().is_none_or(|stored| stored.refs.format() != target.format());
        let activity = if clone { Activity::Clone } else { Activity::Fetch };
        let ticket = self.limits.queue.enter(activity, &self.id, self.fetch_priority());
        let lift = ticket.lift();
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
            ticket,
        };
        let tips = target.tips().collect();
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.run().in_current_span()));
        self.job = Some(Job::Refs { target, tips, began: Instant::now(), lift, result });
    }

    /// Whether somebody waits for the fetch that starts now.
    fn fetch_priority(&self) -> Priority {
        let clone = self.stored.is_none() && self.checkpoints.urgency() == Urgency::Awaited;
        let look = self.look.as_ref().is_some_and(|look| !look.waiters.is_empty());
        if clone || look || !self.after_fetch.is_empty() { Priority::Awaited } else { Priority::Background }
    }

    pub(super) fn start_extra(&mut self, wanted: Wanted) {
        let Ok(upstream) = &self.upstream else { return };
        let (git, dir, remote) = (self.git.clone(), self.dir.clone(), upstream.remote());
        let oids = wanted.wants.iter().copied().collect();
        let (timeout, progress) = (self.settings.timeout, self.progress_out.clone());
        let mut ticket = self.limits.queue.enter(Activity::Fetch, &self.id, Priority::Awaited);
        let fetch = async move {
            ticket.called().await;
            remote.fetch(&git, &dir, &oids, Patience::StallsFail, timeout, progress).await?;
            Ok(tokio::task::spawn_blocking(move || size(&dir)).await.unwrap_or(0))
        };
        let result = AbortOnDropHandle::new(tokio::spawn(fetch.in_current_span()));
        self.job = Some(Job::Extra { wanted, result });
    }

    pub(super) fn job_finished(&mut self, result: Result<u64, FetchError>) {
        match self.job.take() {
            Some(Job::Refs { target, began, .. }) => {
                let outcome = Outcome::of(&result, |error| error.kind().reason());
                self.metrics.fetches.get_or_create(&outcome).inc();
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
            Some(Job::Restore { .. }) | None => {}
        }
    }

    pub(super) fn fetch_finished(&mut self, target: Arc<RefSet>, result: Result<u64, FetchError>) {
        match result {
            Ok(bytes) => {
                self.bytes = bytes;
                self.last_fetch = Some(Timestamp::now());
                self.facts.fetched = Some(Instant::now());
                self.facts.head = target.head_oid();
                self.fetch_trouble = None;
                if self.stored.is_none() {
                    self.demand.touch();
                }
                let behind = self.seen.as_ref().is_none_or(|(seen, _)| *seen != target);
                let stored = Arc::new(Stored::new(target).after(self.stored.as_deref()));
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
                if error.kind() == FailureKind::Disk {
                    self.limits.room.lacks(self.state.failures);
                }
                self.fetch_trouble = Some(Trouble::new(error.kind().reason(), &error));
                let error = Arc::new(error);
                for wanted in mem::take(&mut self.after_fetch) {
                    drop(wanted.reply.send(Err(BringError::Fetch(error.clone()))));
                }
            }
        }
    }
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
