//! What the machines of one mirror work on.

use std::{path::PathBuf, sync::Arc};

use tarn_crds::{allowed_hosts::AllowedHosts, repo::RepoId};
use tokio::sync::{Mutex, watch};

use crate::{
    git::{Git, GitError, stderr::FailureKind},
    metrics::Metrics,
    mirror::{disk::Disk, integrity::Integrity, services::Services},
};

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
        }
    }

    /// A command that works on the mirror alone has failed: unless that was for want of room, its files are examined.
    pub(super) fn doubt(&self, error: &GitError) {
        if error.kind() != FailureKind::Disk {
            self.integrity.doubt(&self.id, &error.to_string());
        }
    }
}
