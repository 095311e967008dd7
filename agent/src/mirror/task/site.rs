//! What the machines of one mirror work on.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tarn_crds::{allowed_hosts::AllowedHosts, repo::RepoId};
use tokio::{
    sync::{Mutex, watch},
    time::sleep,
};

use crate::{
    git::{Git, GitError, pack, stderr::FailureKind},
    metrics::Metrics,
    mirror::{disk::Disk, integrity::Integrity, quota::Quota, room::Room, services::Services},
};

/// Often enough to see that something moves, seldom enough not to fill the log.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// No limit.
const UNLIMITED: u64 = u64::MAX;

/// See the module. Nothing in it is one machine's own.
pub(super) struct Site {
    pub(super) id: RepoId,
    /// The bare repository on the disk; it may not be there yet.
    pub(super) dir: PathBuf,
    pub(super) git: Git,
    pub(super) disk: Arc<Disk>,
    pub(super) metrics: Metrics,
    pub(super) integrity: Integrity,
    /// Which hosts may be asked.
    pub(super) allowed: Arc<AllowedHosts>,
    /// Held by whoever must not see packs disappear.
    pub(super) packs: Arc<Mutex<()>>,
    /// The latest progress line of a clone, fetch or restore.
    pub(super) progress: Arc<watch::Sender<Option<String>>>,
    room: Arc<Room>,
    /// The most bytes that the mirror may take.
    max: AtomicU64,
    /// Work has failed that may have left temporary packs in the mirror.
    littered: AtomicBool,
}

impl Site {
    pub(super) fn new(services: &Services, id: RepoId) -> Self {
        Self {
            dir: services.disk.mirror(&id),
            id,
            git: services.git.clone(),
            disk: services.disk.clone(),
            metrics: services.metrics.clone(),
            integrity: services.integrity.clone(),
            allowed: services.allowed.clone(),
            packs: Arc::default(),
            progress: Arc::new(watch::Sender::new(None)),
            room: services.room.clone(),
            max: AtomicU64::new(UNLIMITED),
            littered: AtomicBool::new(false),
        }
    }

    /// From now on the mirror may take so many bytes; says whether that is another number than before.
    pub(super) fn allow(&self, max: Option<u64>) -> bool {
        let max = max.unwrap_or(UNLIMITED);
        self.max.swap(max, Ordering::Relaxed) != max
    }

    /// How far the mirror may grow.
    pub(super) fn quota(&self) -> Quota {
        let max = Some(self.max.load(Ordering::Relaxed)).filter(|max| *max < UNLIMITED);
        Quota::new(self.room.clone(), self.id.clone(), max)
    }

    /// Says that a child which writes packs into the mirror has failed, or was ended: what it wrote is still there.
    pub(super) fn littered(&self) {
        self.littered.store(true, Ordering::Relaxed);
    }

    /// Takes away what children have left in the mirror, where any have. Nothing may write packs meanwhile.
    pub(super) fn tidy(&self) {
        if !self.littered.swap(false, Ordering::Relaxed) {
            return;
        }
        let aside = self.disk.staging();
        let moved = std::fs::create_dir(&aside).and_then(|()| pack::move_temporary(&self.dir, &aside));
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "temporary packs stay in the mirror until the next start");
            }
            _ => {}
        }
        // Files of gigabytes take their time to go.
        let disk = self.disk.clone();
        tokio::spawn(async move { disk.clear(aside).await });
    }

    /// A command that works on the mirror alone has failed: unless that was for want of room, its files are examined.
    pub(super) fn doubt(&self, error: &GitError) {
        if error.kind() != FailureKind::Disk {
            self.integrity.doubt(&self.id, &error.to_string());
        }
    }
}

/// Logs the progress of clones and fetches, at most every [`PROGRESS_EVERY`].
pub(super) async fn log_progress(mut progress: watch::Receiver<Option<String>>) {
    while progress.changed().await.is_ok() {
        // What is over by then was not worth a line.
        sleep(PROGRESS_EVERY).await;
        let line = progress.borrow_and_update().clone();
        if let Some(line) = line {
            tracing::info!(progress = line, "fetching");
        }
    }
}
