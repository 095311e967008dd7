//! Leaving the disk, so that others have room: only what can be had again, and only while nobody reads it.

use tokio::sync::oneshot;

use super::Task;
use crate::{
    files::blocking,
    mirror::{EvictError, state::State, upkeep::Facts},
};

impl Task {
    /// Removes the mirror's data, if they may go, and tells how many bytes that were.
    pub(super) fn evict(&mut self, reply: oneshot::Sender<Result<u64, EvictError>>) {
        let result = self.leave();
        if let Ok(bytes) = result {
            tracing::info!(bytes, "evicted: others need the room; it comes back when it is asked for");
        }
        let _ = reply.send(result);
    }

    fn leave(&mut self) -> Result<u64, EvictError> {
        if self.stored.is_none() && self.job.is_none() {
            return Ok(0);
        }
        let looking = self.look.is_some() || self.look_due || !self.next_look.is_empty();
        let working = self.job.is_some() || self.fetch_due || self.upkeep.is_some() || self.publishing();
        let awaited = !self.extras.is_empty() || !self.after_fetch.is_empty();
        if looking || working || awaited {
            return Err(EvictError::Busy);
        }
        if !self.is_elsewhere() {
            return Err(EvictError::OnlyHere);
        }
        let packs = self.packs.clone();
        let Ok(_packs) = packs.try_lock() else { return Err(EvictError::Busy) };
        // Taken out of the view before the readers are counted: see `demand`.
        let stored = self.stored.take();
        self.publish();
        let aside = if self.demand.is_read() {
            Err(EvictError::Busy)
        } else {
            self.disk.aside(&self.dir).map_err(|error| {
                tracing::warn!(%error, "a mirror cannot be moved away to be removed");
                EvictError::Disk
            })
        };
        let aside = match aside {
            Ok(aside) => aside,
            Err(error) => {
                self.stored = stored;
                return Err(error);
            }
        };
        let leftovers = [aside, self.seed.take().map(|(seed, _)| seed), self.old_seed.take()];
        let disk = self.disk.clone();
        tokio::spawn(async move {
            let remove = move || leftovers.iter().flatten().try_for_each(|dir| disk.discard(dir));
            if let Err(error) = blocking(remove).await {
                tracing::warn!(%error, "what was evicted is removed at the next start");
            }
        });
        self.wanted = false;
        self.state = State { suspended: self.settings.suspend, ..State::default() };
        (self.timer, self.seen, self.facts) = (None, None, Facts::default());
        self.checkpoints.left();
        Ok(std::mem::take(&mut self.bytes))
    }

    /// Whether what is here can be had again: its newest state is in the store, or the upstream had it when it was last
    /// looked at, and answered.
    fn is_elsewhere(&self) -> bool {
        let Some(stored) = &self.stored else { return true };
        let newest = self.checkpoints.newest.as_ref().filter(|_| self.archive.is_some());
        if newest.is_some_and(|newest| newest.digest == stored.digest) {
            return true;
        }
        let well = self.look_trouble.is_none() && self.fetch_trouble.is_none() && !self.settings.suspend;
        let seen = self.seen.as_ref().is_some_and(|(seen, _)| *seen == stored.refs);
        well && self.state.caught_up && seen
    }
}
