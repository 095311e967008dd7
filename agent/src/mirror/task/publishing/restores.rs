//! Restoring a checkpoint into an empty disk.

use std::{io, sync::Arc, time::Instant};

use tarn_crds::v1alpha1::conditions::Reason;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::super::site::Site;
use crate::{
    checkpoint::{
        Archive, CheckpointError,
        failpoint::FailPoint,
        parts::Parts,
        restore::{Outcome, Restore, Restored},
    },
    files::blocking,
    metrics::Outcome as Label,
    mirror::{
        Services, Trouble,
        cold::Cold,
        entitlement::{self, Note},
        quota::Writes,
        room::Room,
    },
    never::or_never,
    queue::{Activity, Lift, Priority, Queue},
};

/// See the module.
pub(in crate::mirror::task) struct Restores {
    site: Arc<Site>,
    queue: Queue,
    cold: Arc<Cold>,
    room: Arc<Room>,
    /// One is to be tried before anything is cloned.
    due: bool,
    running: Option<Running>,
    trouble: Option<Trouble>,
}

struct Running {
    began: Instant,
    lift: Lift,
    result: AbortOnDropHandle<Result<Outcome, CheckpointError>>,
}

impl Restores {
    pub(super) fn new(site: Arc<Site>, services: &Services) -> Self {
        let (queue, cold, room) = (services.queue.clone(), services.cold.clone(), services.room.clone());
        Self { site, queue, cold, room, due: false, running: None, trouble: None }
    }

    /// Why the last restore failed, or passed a generation over.
    pub(in crate::mirror::task) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    pub(in crate::mirror::task) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// A restore is to be tried; heeded while nothing is on the disk.
    pub(in crate::mirror::task) fn set_due(&mut self) {
        self.due = true;
    }

    /// Takes the restore that is due, if one is.
    pub(in crate::mirror::task) fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// Somebody waits for the restore, if one waits for its turn.
    pub(in crate::mirror::task) fn lift(&self) {
        if let Some(running) = &self.running {
            running.lift.lift();
        }
    }

    pub(super) fn left(&mut self) {
        self.trouble = None;
    }

    pub(super) fn start(&mut self, archive: &Archive, urgency: Priority) {
        let site = self.site.clone();
        let restore = Restore {
            git: site.git.clone(),
            lineage: archive.lineage(&site.id),
            agent: archive.agent.clone(),
            staged: site.disk.staging(),
            parts: Parts(site.disk.parts(&site.id)),
            flights: archive.flights.clone(),
            progress: site.progress.clone(),
            max: site.quota().max(),
        };
        let quota = site.quota();
        let cold = self.cold.clone();
        let mut ticket = self.queue.enter(Activity::Restore, &site.id, urgency);
        let lift = ticket.lift();
        let run = async move {
            ticket.called().await;
            let (staged, Parts(parts)) = (restore.staged.clone(), restore.parts.clone());
            let mut yields = true;
            let outcome = loop {
                cold.over().await;
                let writes = Writes::Aside(vec![staged.clone(), parts.clone()]);
                let run = quota.hold(writes, restore.clone().run(), |why| io::Error::other(why).into());
                tokio::select! {
                    outcome = run => break outcome,
                    // Someone is being served from the store: the link is theirs, once and for a while. What has
                    // been downloaded stays.
                    () = cold.begun(), if yields => yields = false,
                }
                let (disk, staged) = (site.disk.clone(), staged.clone());
                blocking(move || disk.discard(&staged)).await?;
            };
            let restored = outcome.as_ref().ok().and_then(|outcome| outcome.restored.as_ref());
            let note =
                restored.map(|restored| Note { provenance: restored.provenance.clone(), ..Note::default() });
            let found = note.is_some();
            let place = move || {
                let disk = &site.disk;
                if let Some(note) = &note {
                    entitlement::save(&staged, note)?;
                }
                if found { disk.publish(&staged, &site.dir) } else { disk.discard(&staged) }?;
                // Only a process that ends leaves them: what failed here clones next, and needs the room.
                disk.discard(&parts)
            };
            blocking(place).await?;
            if found {
                FailPoint::RestorePlaced.reached();
            }
            drop(ticket);
            outcome
        };
        let result = AbortOnDropHandle::new(tokio::spawn(run.in_current_span()));
        self.running = Some(Running { began: Instant::now(), lift, result });
    }

    /// Waits for the running restore; for ever where there is none. A dropped future loses nothing.
    pub(super) async fn result(&mut self) -> Result<Outcome, CheckpointError> {
        let ended = or_never(self.running.as_mut().map(|running| &mut running.result)).await;
        ended.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
    }

    /// Takes in what [`Self::result`] gave: what has been restored, if anything, and when that began. `failures` is how
    /// often the mirror has failed to come, in a row.
    pub(super) fn ended(
        &mut self,
        result: Result<Outcome, CheckpointError>,
        failures: u32,
    ) -> Option<(Restored, Instant)> {
        let Running { began, .. } = self.running.take()?;
        let label = match &result {
            Ok(Outcome { restored: Some(_), .. }) => "ok",
            Ok(_) => "none",
            Err(error) => error.reason().as_str(),
        };
        self.site.metrics.checkpoint.restores.get_or_create(&Label { outcome: label }).inc();
        self.site.metrics.checkpoint.restore_seconds.observe(began.elapsed().as_secs_f64());
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(%error, "cannot restore from the store; cloning from the upstream instead");
                if error.reason() == Reason::DiskFull {
                    self.room.lacks(failures);
                }
                self.trouble = Some(super::trouble(&error));
                return None;
            }
        };
        self.trouble = outcome.passed_over.first().map(super::trouble);
        outcome.restored.map(|restored| (restored, began))
    }
}
