//! Checkpoints: restoring one into an empty disk, publishing one when the refs have moved.

mod restores;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::site::Site;
use crate::{
    backoff::{interval_delay, retry_delay},
    checkpoint::{
        Archive, CheckpointError,
        lineage::{GRACE, Lineage},
        manifest::Checkpoint,
        publish::Publish,
        restore::{Outcome, Restored},
    },
    git::RefSet,
    metrics::Outcome as Label,
    mirror::{CheckpointSettings, Stored, Trouble, services::Services},
    never::or_never,
    peers::{self, Peers, Turn},
    queue::{Activity, Priority, Queue},
    upstream::Provenance,
};
use restores::Restores;

/// How often a publisher looks for garbage; what it removes is a day old, so that an hour matters little.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

/// See the module.
pub(super) struct Publishing {
    site: Arc<Site>,
    archive: Option<Arc<Archive>>,
    peers: Option<Peers>,
    queue: Queue,
    pub(super) restores: Restores,
    /// The newest one known.
    newest: Option<Arc<Checkpoint>>,
    /// Ends without one where no agent has published anything new, and it is not this one's turn.
    running: Option<AbortOnDropHandle<Result<Option<Checkpoint>, CheckpointError>>>,
    /// Not before this.
    at: Option<Instant>,
    /// Someone wants a checkpoint now, whoever's turn it is.
    ordered: bool,
    /// Since when the refs have been others than those of the newest one known.
    moved: Option<Instant>,
    failures: u32,
    collected: Option<Instant>,
    trouble: Option<Trouble>,
}

/// What has ended.
pub(super) enum Finished {
    Restore(Result<Outcome, CheckpointError>),
    Publish(Result<Option<Checkpoint>, CheckpointError>),
}

impl Publishing {
    pub(super) fn new(site: Arc<Site>, services: &Services) -> Self {
        Self {
            restores: Restores::new(site.clone(), services),
            site,
            archive: services.archive.clone(),
            peers: services.peers.clone(),
            queue: services.queue.clone(),
            newest: None,
            running: None,
            at: None,
            ordered: false,
            moved: None,
            failures: 0,
            collected: None,
            trouble: None,
        }
    }

    /// The newest checkpoint known.
    pub(super) fn newest(&self) -> Option<&Arc<Checkpoint>> {
        self.newest.as_ref()
    }

    /// Why the last publishing failed, if it did.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Whether a checkpoint is being published.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether the store has this state.
    pub(super) fn has(&self, stored: &Stored) -> bool {
        let newest = self.newest.as_ref().filter(|_| self.archive.is_some());
        newest.is_some_and(|newest| newest.digest == stored.digest)
    }

    /// A checkpoint is wanted now.
    pub(super) fn order(&mut self) {
        self.ordered = true;
    }

    /// The mirror has left the disk.
    pub(super) fn left(&mut self) {
        (self.running, self.ordered, self.moved, self.trouble) = (None, false, None, None);
        self.restores.left();
    }

    /// Starts a restore where there is a store, and says whether it did.
    pub(super) fn start_restore(&mut self, urgency: Priority) -> bool {
        let Some(archive) = &self.archive else { return false };
        self.restores.start(archive, urgency);
        true
    }

    /// Takes in how a restore has ended: see [`Restores::ended`].
    pub(super) fn restored(
        &mut self,
        result: Result<Outcome, CheckpointError>,
        failures: u32,
    ) -> Option<(Restored, Instant)> {
        let (restored, began) = self.restores.ended(result, failures)?;
        self.newest = Some(Arc::new(restored.checkpoint.clone()));
        Some((restored, began))
    }

    /// Waits for what runs; for ever where nothing does. A dropped future loses nothing.
    pub(super) async fn result(&mut self) -> Finished {
        let running = &mut self.running;
        let published = async {
            let ended = or_never(running.as_mut()).await;
            ended.unwrap_or_else(|error| Err(CheckpointError::Disk(std::io::Error::other(error))))
        };
        tokio::select! {
            restored = self.restores.result() => Finished::Restore(restored),
            published = published => Finished::Publish(published),
        }
    }

    /// Starts to publish `stored`, a sound state of the mirror (P3) fetched with `provenance`, if that is due; otherwise says when to ask again.
    /// `coming` says that a fetch runs.
    pub(super) fn start(
        &mut self,
        stored: &Stored,
        provenance: Provenance,
        sound: bool,
        coming: bool,
        settings: CheckpointSettings,
    ) -> Option<Instant> {
        let archive = self.archive.clone()?;
        let refs = self.publishable(stored, sound, coming)?;
        let turn = match self.turn(settings.interval)? {
            Turn::Wait(wait) => return Some(Instant::now() + wait),
            turn => turn,
        };
        let publish = Publish {
            git: self.site.git.clone(),
            lineage: archive.lineage(&self.site.id),
            agent: archive.agent.clone(),
            dir: self.site.dir.clone(),
            work: self.site.disk.staging(),
            refs,
            provenance,
            packs: self.site.packs.clone(),
            lease: None,
        };
        self.ordered = false;
        let collect = turn != Turn::Ask && self.collected.is_none_or(|at| at.elapsed() >= COLLECT_EVERY);
        if collect {
            self.collected = Some(Instant::now());
        }
        let known = self.newest.as_ref().map(|newest| newest.generation);
        let (site, queue) = (self.site.clone(), self.queue.clone());
        let (work, keep) = (publish.work.clone(), settings.keep);
        let run = async move {
            let lineage = publish.lineage.clone();
            if turn != Turn::Publish {
                let newest =
                    lineage.newest(&publish.agent).await?.filter(|newest| Some(newest.generation) > known);
                if newest.is_some() || turn == Turn::Ask {
                    return Ok(newest);
                }
                tracing::info!("no checkpoint comes from the agents whose turn it is; taking over");
            }
            // A repack under way is waited for outside the turn, which others can use.
            drop(site.packs.lock().await);
            let _turn = queue.acquire(Activity::Publish, &site.id, Priority::Background).await;
            let made = archive.publish(publish).await;
            site.disk.clear(work).await;
            if collect && made.is_ok() {
                collect_garbage(&lineage, keep).await;
            }
            made.map(Some)
        };
        self.running = Some(AbortOnDropHandle::new(tokio::spawn(run.in_current_span())));
        None
    }

    /// The refs to publish: those on the disk, if they are sound and have moved since the newest checkpoint.
    fn publishable(&mut self, stored: &Stored, sound: bool, coming: bool) -> Option<Arc<RefSet>> {
        let moved = self.newest.as_ref().is_none_or(|newest| newest.digest != stored.digest);
        if !moved {
            self.moved = None;
            // What a running fetch brings was meant as well.
            self.ordered &= coming;
        }
        (sound && self.running.is_none() && moved).then(|| stored.refs.clone())
    }

    /// What to do about refs that have moved; nothing before the other agents are known.
    fn turn(&mut self, interval: Duration) -> Option<Turn> {
        let now = Instant::now();
        let moved = *self.moved.get_or_insert(now);
        if self.ordered {
            return Some(Turn::Publish);
        }
        if let Some(at) = self.at.filter(|at| *at > now) {
            return Some(Turn::Wait(at - now));
        }
        let rank = self.peers.as_ref().map_or(Some(0), |peers| peers.rank(&self.site.id))?;
        Some(peers::turn(rank, now - moved, interval))
    }

    /// Waits until the agents that share the store are others than they were when this was called.
    pub(super) fn others_changed(&self) -> impl Future<Output = ()> + use<> {
        or_never(self.peers.as_ref().map(Peers::changed))
    }

    /// Takes in how a publishing has ended.
    pub(super) fn published(
        &mut self,
        result: Result<Option<Checkpoint>, CheckpointError>,
        interval: Duration,
    ) {
        self.running = None;
        let Some(result) = result.transpose() else {
            self.at = Some(Instant::now() + interval_delay(interval, rand::random()));
            return;
        };
        let label = match &result {
            Ok(made) if made.uploaded == 0 => "unchanged",
            Ok(_) => "ok",
            Err(error) => error.reason().as_str(),
        };
        self.site.metrics.checkpoint.publishes.get_or_create(&Label { outcome: label }).inc();
        let wait = match result {
            Ok(made) => {
                let Checkpoint { generation, bytes, uploaded, .. } = &made;
                tracing::info!(%generation, bytes, uploaded, "checkpoint");
                self.site.metrics.checkpoint.uploaded.inc_by(*uploaded);
                (self.failures, self.trouble) = (0, None);
                (self.newest, self.moved) = (Some(Arc::new(made)), None);
                interval_delay(interval, rand::random())
            }
            Err(error) => {
                self.failures += 1;
                tracing::warn!(%error, failures = self.failures, "publishing failed; it will be retried");
                if let CheckpointError::Git(error) = &error {
                    self.site.doubt(error);
                }
                self.trouble = Some(trouble(&error));
                retry_delay(self.failures, rand::random())
            }
        };
        self.at = Some(Instant::now() + wait);
    }
}

fn trouble(error: &CheckpointError) -> Trouble {
    Trouble::new(error.reason(), error)
}

/// Removes what may go; what cannot be removed now goes the next time.
async fn collect_garbage(lineage: &Lineage, keep: usize) {
    let collected = async {
        let garbage = lineage.garbage(keep, GRACE).await?;
        lineage.remove(&garbage).await?;
        Ok::<_, CheckpointError>(garbage)
    };
    match collected.await {
        Ok(garbage) => {
            tracing::debug!(objects = garbage.objects.len(), bytes = garbage.bytes(), "garbage collected");
        }
        Err(error) => tracing::warn!(%error, "garbage in the store could not be collected"),
    }
}
