//! A mirror that the disk has damaged: it is set aside whole, and brought anew.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tarn_crds::v1alpha1::conditions::Reason;

use super::{Task, site::Site};
use crate::{
    metrics::Damaged,
    mirror::{BringError, Trouble, damage::Damages, demand, life::Event},
};

/// See the module.
pub(super) struct Healing {
    site: Arc<Site>,
    damages: Damages,
    /// What was wrong, until the mirror is whole again.
    trouble: Option<Trouble>,
    /// How often this process has replaced the mirror.
    replaced: u64,
}

impl Healing {
    pub(super) fn new(site: Arc<Site>) -> Self {
        let damages = Damages::at(site.disk.damages(&site.id));
        Self { site, damages, trouble: None, replaced: 0 }
    }

    /// Why the mirror is not whole, or why its disk counts as failing.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let failing = self.damages.failing(demand::now()).map(|_| Trouble {
            reason: Reason::DiskFailing,
            message: "the disk has damaged the mirror twice within an hour; replace the disk".into(),
        });
        failing.or_else(|| self.trouble.clone())
    }

    /// When that changes by itself.
    pub(super) fn changes_at(&self) -> Option<Instant> {
        self.damages.failing(demand::now()).map(|rest| Instant::now() + rest)
    }

    /// How often this process has replaced the mirror: what was made of the former ones may be damaged.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced
    }

    /// The mirror is whole again.
    pub(super) fn healed(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("the damaged mirror is whole again");
        }
    }

    /// Moves the damaged mirror aside and says how long to wait before another one is made.
    fn set_aside(&mut self, trouble: Trouble) -> Duration {
        let Trouble { reason, message } = &trouble;
        let now = demand::now();
        let wait = self.damages.found(now);
        tracing::warn!(
            reason = reason.as_str(),
            message,
            ?wait,
            "the mirror on the disk is damaged; it is made anew"
        );
        if let Err(error) = self.site.disk.set_aside(&self.site.id, now) {
            // What replaces it moves it away once more.
            tracing::warn!(%error, "the damaged mirror cannot be moved away");
        }
        self.site.metrics.integrity.damages.get_or_create(&Damaged::MIRROR).inc();
        self.trouble = Some(trouble);
        self.replaced += 1;
        wait
    }
}

impl Task {
    /// Takes the data out of service, whole, and brings the mirror anew: restored if the store has it, else cloned.
    /// Requests go to a peer or to the upstream meanwhile.
    pub(super) fn damaged(&mut self, trouble: Trouble) {
        if self.stored.is_some() {
            self.replace(trouble);
        }
    }

    /// The same of data that a start finds on the disk.
    pub(super) fn replace(&mut self, trouble: Trouble) {
        self.stored = None;
        let wait = self.healing.set_aside(trouble);
        let urgency = self.urgency;
        self.vacated(None);
        self.urgency = urgency;
        self.publish();
        let forwards = self.upstream.as_ref().is_ok_and(|upstream| upstream.looker.can_forward());
        if forwards || !wait.is_zero() {
            // They are answered by others sooner than from here.
            for wanted in self.fetches.take_waiting() {
                let missing = wanted.oids.first().copied();
                wanted.answer(Err(missing.map_or(BringError::Busy, BringError::Missing)));
            }
        }
        if wait.is_zero() {
            return self.want();
        }
        self.wanted = true;
        self.happened(Event::HeldBack);
        self.wait(wait);
    }
}
