//! Leaving the disk: because others need the room, or because the data are damaged.

use std::path::PathBuf;

use tokio::sync::oneshot;

use super::Task;
use crate::{
    files::blocking,
    mirror::{EvictError, entitlement::Entitlement, life::Life},
    queue::Priority,
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
        let working = self.fetches.is_running() || self.publishing.restores.is_running();
        if self.stored.is_none() && !working {
            return Ok(0);
        }
        let kept = self.upkeep.is_running() || self.publishing.is_running();
        if working || kept || !self.looks.is_idle() || !self.fetches.is_idle() {
            return Err(EvictError::Busy);
        }
        if !self.is_elsewhere() {
            return Err(EvictError::OnlyHere);
        }
        let site = self.site.clone();
        let Ok(_packs) = site.packs.try_lock() else { return Err(EvictError::Busy) };
        // Taken out of the view before the readers are counted: see `demand`.
        let stored = self.stored.take();
        self.publish();
        let bytes = self.bytes;
        let aside = if self.demand.is_read() {
            Err(EvictError::Busy)
        } else {
            self.site.disk.aside(&self.site.dir).map_err(|error| {
                tracing::warn!(%error, "a mirror cannot be moved away to be removed");
                EvictError::Disk
            })
        };
        match aside {
            Ok(aside) => self.vacated(aside),
            Err(error) => {
                self.stored = stored;
                return Err(error);
            }
        }
        Ok(bytes)
    }

    /// Forgets all that was known of the data, which are gone or lie `aside`, and removes those. Nothing is wanted then,
    /// and what worked on them has ended.
    pub(super) fn vacated(&mut self, aside: Option<PathBuf>) {
        self.wanted = false;
        self.life = Life { suspended: self.settings.suspend, ..Life::default() };
        (self.timer, self.bytes, self.urgency) = (None, 0, Priority::Background);
        self.looks.forget();
        self.fetches.left();
        self.publishing.left();
        self.upkeep.left();
        self.entitled.change(Entitlement::leave);
        let disk = self.site.disk.clone();
        tokio::spawn(async move {
            let remove = move || aside.map_or(Ok(()), |aside| disk.discard(&aside));
            if let Err(error) = blocking(remove).await {
                tracing::warn!(%error, "what was moved away is removed at the next start");
            }
        });
    }

    /// Whether what is here can be had again: its newest state is in the store, or the upstream had it when it was last
    /// looked at, and answered.
    fn is_elsewhere(&self) -> bool {
        let Some(stored) = &self.stored else { return true };
        let seen = self.looks.seen().is_some_and(|(seen, _)| *seen == stored.refs);
        self.publishing.has(stored) || (self.is_sound() && !self.settings.suspend && seen)
    }
}
