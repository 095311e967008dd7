//! Checkpoints: restoring one into an empty disk, publishing one when the refs have moved.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tarn_crds::v1alpha1::conditions::Reason;
use tokio::{sync::OnceCell, time};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{Job, Task};
use crate::{
    checkpoint::{
        Archive, CheckpointError,
        failpoint::FailPoint,
        manifest::Checkpoint,
        parts::Parts,
        publish::Publish,
        restore::{Outcome, Restore, Restored},
        retain,
        turns::Urgency,
    },
    files::blocking,
    git::RefSet,
    metrics::Outcome as Label,
    mirror::{
        Stored, Trouble, WholePack,
        state::{Event, interval_delay, retry_delay},
    },
    peers::{self, Peers, Turn},
};

/// How often a publisher looks for garbage; what it removes is a day old, so that an hour matters little.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

/// What a mirror knows of its checkpoints.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// A restore is to be tried before anything is cloned; heeded while nothing is on the disk.
    pub(super) restore_due: bool,
    /// Whether anyone has asked for the mirror since this process started.
    awaited: bool,
    /// The newest one known.
    pub(super) newest: Option<Arc<Checkpoint>>,
    /// Ends without one where no agent has published anything new, and it is not this one's turn.
    publishing: Option<AbortOnDropHandle<Result<Option<Checkpoint>, CheckpointError>>>,
    /// Not before this.
    publish_at: Option<Instant>,
    /// Someone wants a checkpoint now, whoever's turn it is.
    pub(super) ordered: bool,
    /// Since when the refs have been others than those of the newest one known.
    moved: Option<Instant>,
    failures: u32,
    collected: Option<Instant>,
    /// Why the last publishing failed, if it did.
    pub(super) store_trouble: Option<Trouble>,
    /// Why the last restore failed, or passed a generation over.
    pub(super) restore_trouble: Option<Trouble>,
}

impl Checkpoints {
    /// How much it matters that the mirror comes soon.
    pub(super) fn urgency(&self) -> Urgency {
        if self.awaited { Urgency::Awaited } else { Urgency::Idle }
    }

    /// The mirror has left the disk.
    pub(super) fn left(&mut self) {
        (self.awaited, self.ordered, self.moved) = (false, false, None);
        (self.store_trouble, self.restore_trouble) = (None, None);
    }

    /// Waits for the publishing under way; for ever where there is none.
    pub(super) async fn published(&mut self) -> Result<Option<Checkpoint>, CheckpointError> {
        match &mut self.publishing {
            Some(result) => {
                result.await.unwrap_or_else(|error| Err(CheckpointError::Disk(std::io::Error::other(error))))
            }
            None => std::future::pending().await,
        }
    }
}

impl Task {
    /// Whether a checkpoint is being published.
    pub(super) fn publishing(&self) -> bool {
        self.checkpoints.publishing.is_some()
    }

    /// Somebody asks for the mirror: if it is to be restored or cloned, then before those that nobody has asked for.
    pub(super) fn awaited(&mut self) {
        self.checkpoints.awaited = true;
        match &self.job {
            Some(Job::Restore { lift, .. }) => lift.lift(),
            Some(Job::Refs { lift, .. }) => lift.lift(),
            Some(Job::Extra { .. }) | None => {}
        }
    }

    pub(super) fn start_restore(&mut self, archive: &Arc<Archive>) {
        self.happened(Event::RestoreStarted);
        let restore = Restore {
            git: self.git.clone(),
            lineage: archive.lineage(&self.id),
            agent: archive.agent.clone(),
            staged: self.disk.staging(),
            parts: Parts(self.disk.parts(&self.id)),
            flights: archive.flights.clone(),
            progress: self.progress_out.clone(),
        };
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        let limits = self.limits.clone();
        let (mut turn, lift) = archive.restores.enter(&self.id, self.checkpoints.urgency());
        let run = async move {
            turn.called().await;
            let (staged, Parts(parts)) = (restore.staged.clone(), restore.parts.clone());
            let mut yields = true;
            let outcome = loop {
                limits.cold.over().await;
                tokio::select! {
                    outcome = restore.clone().run() => break outcome,
                    // Someone is being served from the store: the link is theirs, once and for a while. What has
                    // been downloaded stays.
                    () = limits.cold.begun(), if yields => yields = false,
                }
                let (disk, staged) = (disk.clone(), staged.clone());
                blocking(move || disk.discard(&staged)).await?;
            };
            let found = matches!(&outcome, Ok(Outcome { restored: Some(_), .. }));
            let place = move || {
                if found { disk.publish(&staged, &dir) } else { disk.discard(&staged) }?;
                // Only a process that ends leaves them: what failed here clones next, and needs the room.
                disk.discard(&parts)
            };
            blocking(place).await?;
            if found {
                FailPoint::RestorePlaced.reached();
            }
            drop(turn);
            outcome
        };
        let result = AbortOnDropHandle::new(tokio::spawn(run.in_current_span()));
        self.job = Some(Job::Restore { began: Instant::now(), lift, result });
    }

    pub(super) fn restore_finished(&mut self, began: Instant, result: Result<Outcome, CheckpointError>) {
        let label = match &result {
            Ok(Outcome { restored: Some(_), .. }) => "ok",
            Ok(_) => "none",
            Err(error) => error.reason().as_str(),
        };
        self.metrics.restores.get_or_create(&Label { outcome: label }).inc();
        self.metrics.restore_seconds.observe(began.elapsed().as_secs_f64());
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(%error, "cannot restore from the store; cloning from the upstream instead");
                if error.reason() == Reason::DiskFull {
                    self.limits.room.lacks(self.state.failures);
                }
                self.checkpoints.restore_trouble = Some(trouble(&error));
                return self.happened(Event::RestoreFailed);
            }
        };
        self.checkpoints.restore_trouble = outcome
            .passed_over
            .into_iter()
            .next()
            .map(|(generation, reason)| trouble(&CheckpointError::Damaged { generation, reason }));
        match outcome.restored {
            Some(Restored { refs, checkpoint, pack }) => {
                self.facts.head = refs.head_oid();
                let path = pack.map(|name| self.dir.join("objects/pack").join(name));
                let pack = path.map(|path| Arc::new(WholePack { path, exact: OnceCell::new() }));
                self.stored = Some(Arc::new(Stored { pack, ..Stored::new(refs) }));
                self.demand.touch();
                self.checkpoints.newest = Some(Arc::new(checkpoint));
                self.bytes_now();
                // The base brings its bitmap; the increments are indexed once it is quiet.
                (self.facts.repacked, self.facts.fetched) = (Some(began), Some(Instant::now()));
                self.happened(Event::Restored);
            }
            None => self.happened(Event::RestoreFailed),
        }
    }

    /// Starts to publish if that is due; otherwise says when to ask again.
    pub(super) fn start_publish(&mut self) -> Option<time::Instant> {
        let archive = self.archive.clone()?;
        let refs = self.publishable()?;
        let turn = match self.turn()? {
            Turn::Wait(wait) => return Some(time::Instant::now() + wait),
            turn => turn,
        };
        let publish = Publish {
            git: self.git.clone(),
            lineage: archive.lineage(&self.id),
            agent: archive.agent.clone(),
            dir: self.dir.clone(),
            work: self.disk.staging(),
            refs,
            packs: self.packs.clone(),
            lease: None,
        };
        self.checkpoints.ordered = false;
        let collect =
            turn != Turn::Ask && self.checkpoints.collected.is_none_or(|at| at.elapsed() >= COLLECT_EVERY);
        if collect {
            self.checkpoints.collected = Some(Instant::now());
        }
        let known = self.checkpoints.newest.as_ref().map(|newest| newest.generation);
        let (disk, work, keep) = (self.disk.clone(), publish.work.clone(), self.settings.checkpoint.keep);
        let run = async move {
            let lineage = publish.lineage.clone();
            if turn != Turn::Publish {
                let newest = lineage.newest().await?.filter(|newest| Some(newest.generation) > known);
                if newest.is_some() || turn == Turn::Ask {
                    return Ok(newest);
                }
                tracing::info!("no checkpoint comes from the agents whose turn it is; taking over");
            }
            let _turn = archive.publishes.acquire().await;
            let made = archive.publish(publish).await;
            disk.clear(work).await;
            if collect && made.is_ok() {
                collect_garbage(&lineage, keep).await;
            }
            made.map(Some)
        };
        self.checkpoints.publishing = Some(AbortOnDropHandle::new(tokio::spawn(run.in_current_span())));
        None
    }

    /// The refs to publish: those on the disk, if they have moved since the newest checkpoint, and nothing is
    /// wrong with the mirror (P3).
    fn publishable(&mut self) -> Option<Arc<RefSet>> {
        let stored = self.stored.as_ref()?;
        let sound = self.state.caught_up && self.look_trouble.is_none() && self.fetch_trouble.is_none();
        let idle = self.checkpoints.publishing.is_none() && !self.settings.suspend;
        let moved = self.checkpoints.newest.as_ref().is_none_or(|newest| newest.digest != stored.digest);
        if !moved {
            self.checkpoints.moved = None;
            // What a running fetch brings was meant as well.
            self.checkpoints.ordered &= self.job.is_some();
        }
        (sound && idle && moved).then(|| stored.refs.clone())
    }

    /// What to do about refs that have moved; nothing before the other agents are known.
    fn turn(&mut self) -> Option<Turn> {
        let (now, checkpoints) = (Instant::now(), &mut self.checkpoints);
        let moved = *checkpoints.moved.get_or_insert(now);
        if checkpoints.ordered {
            return Some(Turn::Publish);
        }
        if let Some(at) = checkpoints.publish_at.filter(|at| *at > now) {
            return Some(Turn::Wait(at - now));
        }
        let rank = self.peers.as_ref().map_or(Some(0), |peers| peers.rank(&self.id))?;
        Some(peers::turn(rank, now - moved, self.settings.checkpoint.interval))
    }

    /// Waits until the agents that share the store are others.
    pub(super) fn others_changed(&self) -> impl Future<Output = ()> + use<> {
        let changed = self.peers.as_ref().map(Peers::changed);
        async move {
            match changed {
                Some(changed) => changed.await,
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn publish_finished(&mut self, result: Result<Option<Checkpoint>, CheckpointError>) {
        self.checkpoints.publishing = None;
        let Some(result) = result.transpose() else {
            let wait = interval_delay(self.settings.checkpoint.interval, rand::random());
            self.checkpoints.publish_at = Some(Instant::now() + wait);
            return;
        };
        let label = match &result {
            Ok(made) if made.uploaded == 0 => "unchanged",
            Ok(_) => "ok",
            Err(error) => error.reason().as_str(),
        };
        self.metrics.publishes.get_or_create(&Label { outcome: label }).inc();
        let wait = match result {
            Ok(made) => {
                let Checkpoint { generation, bytes, uploaded, .. } = &made;
                tracing::info!(%generation, bytes, uploaded, "checkpoint");
                self.metrics.uploaded.inc_by(*uploaded);
                (self.checkpoints.failures, self.checkpoints.store_trouble) = (0, None);
                (self.checkpoints.newest, self.checkpoints.moved) = (Some(Arc::new(made)), None);
                interval_delay(self.settings.checkpoint.interval, rand::random())
            }
            Err(error) => {
                self.checkpoints.failures += 1;
                tracing::warn!(%error, failures = self.checkpoints.failures, "publishing failed; it will be retried");
                self.checkpoints.store_trouble = Some(trouble(&error));
                retry_delay(self.checkpoints.failures, rand::random())
            }
        };
        self.checkpoints.publish_at = Some(Instant::now() + wait);
    }
}

fn trouble(error: &CheckpointError) -> Trouble {
    Trouble::new(error.reason(), error)
}

/// Removes what may go; what cannot be removed now goes the next time.
async fn collect_garbage(lineage: &crate::checkpoint::lineage::Lineage, keep: usize) {
    let collected = async {
        let garbage = retain::find(lineage, keep, retain::GRACE).await?;
        retain::remove(&*lineage.store, &lineage.keys.all(), &garbage).await?;
        Ok::<_, CheckpointError>(garbage)
    };
    match collected.await {
        Ok(garbage) => {
            tracing::debug!(objects = garbage.objects.len(), bytes = garbage.bytes(), "garbage collected");
        }
        Err(error) => tracing::warn!(%error, "garbage in the store could not be collected"),
    }
}
