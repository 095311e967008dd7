//! What the keeper has done in the background: finding, building, publishing and downloading.

use std::{io, path::PathBuf, sync::Arc};

use tarn_crds::repo::RepoId;
use tokio::{sync::Mutex, time};

use super::super::{Checked, local::Local};
use crate::{
    blockfile::{BlockFile, Download, Options, Reader, Source},
    files::blocking,
    generations::Generation,
    git::{Git, Oid},
    metrics::{Metrics, Outcome},
    mirror::{
        Services,
        cold::Cold,
        disk::Disk,
        quota::{Quota, Writes},
        upkeep::calm,
    },
    peers::Peers,
    queue::{Activity, Priority, Queue, Ticket},
    snapshot::{
        SnapshotError,
        build::{Build, WorktreeRules},
        compare::{Compare, Compared},
        manifest::Snapshot,
        shelf::{Published, Shelf},
    },
    upstream::Provenance,
};

/// What jobs work with.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) git: Git,
    pub(super) disk: Arc<Disk>,
    pub(super) metrics: Metrics,
    pub(super) id: RepoId,
    pub(super) queue: Queue,
    pub(super) cold: Arc<Cold>,
    pub(super) packs: Arc<Mutex<()>>,
    pub(super) dir: PathBuf,
    pub(super) local: Local,
    pub(super) shelf: Option<Shelf>,
    pub(super) peers: Option<Peers>,
    /// Whether nothing is found but what an agent of this cache has signed.
    signed: bool,
    pub(super) rules: WorktreeRules,
    quota: Quota,
}

/// What a job has done.
pub(super) enum Done {
    Found(Option<Snapshot>),
    Built(Option<(Snapshot, Reader)>),
    Published(Published),
    Compared(Snapshot, Compared),
}

impl Work {
    pub(super) fn new(services: &Services, packs: Arc<Mutex<()>>, id: &RepoId) -> Self {
        let shelf = services.archive.as_ref();
        let shelf = shelf.map(|archive| {
            Shelf::new(archive.store.clone(), id, archive.agent.clone(), archive.keyring.clone())
        });
        Self {
            git: services.git.clone(),
            disk: services.disk.clone(),
            metrics: services.metrics.clone(),
            id: id.clone(),
            queue: services.queue.clone(),
            cold: services.cold.clone(),
            packs,
            dir: services.disk.mirror(id),
            local: Local::new(services.disk.snapshots(id)),
            shelf,
            peers: services.peers.clone(),
            signed: services.archive.as_ref().is_some_and(|archive| archive.keyring.signs()),
            rules: services.worktrees,
            // A snapshot is no part of the mirror: it is bounded by the room that there is.
            quota: Quota::new(services.room.clone(), id.clone(), None),
        }
    }

    pub(super) async fn turn(&self, activity: Activity) -> Ticket {
        self.queue.acquire(activity, &self.id, Priority::Background).await
    }

    pub(super) async fn find(&self) -> Result<Done, SnapshotError> {
        let Some(shelf) = &self.shelf else { return Ok(Done::Found(None)) };
        let _turn = self.turn(Activity::Find).await;
        Ok(Done::Found(shelf.newest().await?))
    }

    pub(super) async fn build(&self, build: Build, provenance: Provenance) -> Result<Done, SnapshotError> {
        let _turn = self.turn(Activity::Snapshot).await;
        calm(&self.queue).await;
        let (began, work) = (time::Instant::now(), build.work.clone());
        let writes = Writes::Aside(vec![work.clone()]);
        let built = self.quota.hold(writes, build.run(), |why| io::Error::other(why).into()).await;
        let placed = match &built {
            Ok(Some((archive, snapshot))) => {
                let snapshot = Snapshot { provenance: Some(provenance), ..snapshot.clone() };
                self.place(archive.clone(), snapshot).await.map(Some)
            }
            _ => Ok(None),
        };
        self.disk.clear(work).await;
        let result = built.and(placed);
        self.metrics.snapshot.builds.get_or_create(&Outcome::of(&result, SnapshotError::reason)).inc();
        self.metrics.snapshot.build_seconds.observe(began.elapsed().as_secs_f64());
        if let Ok(Some((snapshot, _))) = &result {
            let (millis, bytes) = (began.elapsed().as_millis(), snapshot.bytes);
            tracing::info!(commit = snapshot.commit, bytes, millis, "snapshot built");
        }
        Ok(Done::Built(result?))
    }

    async fn place(&self, archive: PathBuf, snapshot: Snapshot) -> Result<(Snapshot, Reader), SnapshotError> {
        let (local, to) = (self.local.clone(), self.local.archive(snapshot.digest));
        let path = to.clone();
        let rename = move || local.prepare().and_then(|()| std::fs::rename(archive, to));
        blocking(rename).await?;
        let reader = BlockFile::whole(&path, snapshot.bytes, snapshot.blocks.clone()).await?;
        Ok((snapshot, reader))
    }

    pub(super) async fn publish(
        &self,
        snapshot: &Snapshot,
        known: Generation,
    ) -> Result<Done, SnapshotError> {
        let Some(shelf) = &self.shelf else { return Ok(Done::Found(None)) };
        let published = shelf.publish(snapshot, &self.local.archive(snapshot.digest), known).await?;
        match shelf.collect().await {
            Ok(removed) => tracing::debug!(bytes = removed.bytes(), "old snapshots collected"),
            Err(error) => tracing::warn!(%error, "old snapshots in the store could not be removed"),
        }
        Ok(Done::Published(published))
    }

    /// Compares the archive on the disk with the commit that it is said to be of.
    pub(super) async fn compare(&self, snapshot: &Snapshot) -> Result<Done, SnapshotError> {
        let Some(commit) = Oid::from_hex(snapshot.commit.as_bytes()) else {
            return Err(SnapshotError::GivenUp);
        };
        let _turn = self.turn(Activity::Snapshot).await;
        calm(&self.queue).await;
        let (work, archive) = (self.disk.staging(), self.local.archive(snapshot.digest));
        let compare =
            Compare { git: self.git.clone(), dir: self.dir.clone(), work: work.clone(), archive, commit };
        let compared = compare.run().await;
        self.disk.clear(work).await;
        let compared = compared?;
        self.metrics.snapshot.comparisons.get_or_create(&Outcome { outcome: compared.label() }).inc();
        Ok(Done::Compared(snapshot.clone(), compared))
    }

    /// Why what the store has is believed, before anyone looks.
    pub(super) fn found(&self) -> Checked {
        if self.signed { Checked::Signed } else { Checked::NotYet }
    }

    pub(super) fn source(&self, snapshot: &Snapshot) -> Option<Source> {
        let shelf = self.shelf.as_ref()?;
        Some(Source { store: shelf.store.clone(), key: snapshot.key(&shelf.keys), version: None })
    }

    pub(super) async fn download(&self, snapshot: &Snapshot) -> Result<Download, SnapshotError> {
        let Some(source) = self.source(snapshot) else { return Err(SnapshotError::GivenUp) };
        self.local.prepare()?;
        let path = self.local.archive(snapshot.digest);
        let blocks = snapshot.blocks.clone();
        // What a failed download has left is not fetched again.
        let made = if path.exists() {
            BlockFile::resume(&path, snapshot.bytes, blocks).await?
        } else {
            BlockFile::create(&path, snapshot.bytes, blocks).await?
        };
        Ok(made.start(source, Options::default()))
    }
}
