//! What becomes of the archive that is served: opened, fetched, replaced, evicted, found damaged.

use std::sync::Arc;

use super::{
    super::{super::Trouble, Checked, Offer, Unready},
    Content, Held, Keeper,
};
use crate::{
    backoff::retry_delay,
    blockfile::{Blame, BlockFileError},
    files::blocking,
    metrics::{Damaged, Outcome},
    snapshot::{SnapshotError, compare::Compared, manifest::Snapshot},
};

impl Keeper {
    /// Something to read the held snapshot with; its download begins with the first who asks. An archive that is gone
    /// from the disk is fetched again.
    pub(super) async fn open(&mut self) -> Result<Offer, Unready> {
        for _ in 0..2 {
            let Some(held) = self.held.as_mut() else { break };
            if matches!(held.content, Content::Remote) {
                let download = self.work.download(&held.snapshot).await.inspect_err(|error| {
                    tracing::warn!(%error, "a snapshot cannot be downloaded");
                    self.trouble = Some(Trouble::new(error.reason(), error));
                });
                let download = download.map_err(|error| Unready::Failed(error.to_string()))?;
                held.content = Content::Arriving(download);
            }
            let (reader, download) = match &held.content {
                Content::Here(reader) => (reader.clone(), None),
                Content::Arriving(download) => (download.reader(), Some(download.clone())),
                Content::Remote => break,
            };
            match reader.opened().await {
                Ok(reader) => {
                    let cold = download.map(|download| (download, self.work.cold.begin()));
                    return Ok(Offer { snapshot: held.snapshot.clone(), reader, cold });
                }
                Err(error) if error.is_gone() => self.spoilt(&error).await,
                // For want of a descriptor, say.
                Err(error) => return Err(Unready::Failed(error.to_string())),
            }
        }
        Err(Unready::Coming("the snapshot has just been found damaged".into()))
    }

    /// The archive on this disk is not what was written there: it is fetched again where the store has it, and built
    /// again otherwise. Clients that read it have been cut off.
    pub(super) async fn spoilt(&mut self, error: &BlockFileError) {
        let Some(held) = self.held.as_mut() else { return };
        let digest = held.snapshot.digest;
        tracing::warn!(%error, commit = held.snapshot.commit, "a snapshot on this disk is damaged; it is made again");
        self.work.metrics.integrity.damages.get_or_create(&Damaged::SNAPSHOT).inc();
        self.trouble = Some(Trouble::new(SnapshotError::from(error.clone()).reason(), error));
        held.content = Content::Remote;
        if held.snapshot.generation.0 == 0 || self.work.shelf.is_none() {
            self.held = None;
        }
        let local = self.work.local.clone();
        if let Err(error) = blocking(move || local.remove(digest)).await {
            tracing::warn!(%error, "a damaged snapshot cannot be removed");
        }
    }

    /// Takes the archive off the disk; it is streamed from the store to whoever asks next.
    pub(super) async fn evict(&mut self) -> u64 {
        let cold = self.view.borrow().stored.is_none();
        let idle = self.newer.is_none() && self.job.is_none();
        let whole = |held: &&mut Held| matches!(held.content, Content::Here(_));
        let Some(held) = self.held.as_mut().filter(|_| idle).filter(whole) else { return 0 };
        let bytes = held.snapshot.bytes;
        match &self.work.shelf {
            Some(_) if held.snapshot.generation.0 > 0 => held.content = Content::Remote,
            // Built anew from the mirror, once that is back.
            None if cold => self.held = None,
            _ => return 0,
        }
        let local = self.work.local.clone();
        if let Err(error) = blocking(move || local.remove_others(&[])).await {
            tracing::warn!(%error, "an evicted snapshot cannot be removed");
            return 0;
        }
        tracing::info!(bytes, "snapshot evicted: others need the room");
        bytes
    }

    /// Where the declaration wants no snapshot: removes what is on the disk. Whoever reads it goes on, and so does what is
    /// under way, which is removed when it ends.
    pub(super) async fn let_go_if_suspended(&mut self) {
        if !self.settings.borrow().snapshot.suspend || self.job.is_some() {
            return;
        }
        if self.held.is_some() {
            tracing::info!("snapshots are suspended: what there was is removed");
            (self.held, self.newer) = (None, None);
            self.tidy().await;
        }
        // Once they are resumed, all is tried again, and the store is asked first.
        (self.asked, self.refused) = (None, None);
        (self.trouble, self.failures, self.retry_at) = (None, 0, None);
    }

    /// Takes up the store's newest, if it is newer than what is held: where that is on the disk, once the newer
    /// one is as well.
    pub(super) async fn found(&mut self, found: Snapshot) {
        let checked = self.work.found();
        let Some(held) = &self.held else { return self.hold(found, Content::Remote, checked).await };
        let newer = match held.snapshot.generation.0 {
            0 => found.time >= held.snapshot.time,
            held => found.generation.0 > held,
        };
        if !newer || held.snapshot.digest == found.digest {
            return;
        }
        if matches!(held.content, Content::Remote) {
            return self.hold(found, Content::Remote, checked).await;
        }
        match self.work.download(&found).await {
            Ok(download) => self.newer = Some((Arc::new(found), download)),
            Err(error) => {
                tracing::warn!(%error, "a newer snapshot cannot be downloaded; the old one is served");
                self.trouble = Some(Trouble::new(error.reason(), &error));
                self.hold(found, Content::Remote, checked).await;
            }
        }
    }

    /// From now on this one is served.
    pub(super) async fn hold(&mut self, snapshot: Snapshot, content: Content, checked: Checked) {
        self.newer = None;
        self.held = Some(Held { snapshot: Arc::new(snapshot), content, checked });
        self.tidy().await;
    }

    pub(super) async fn published(&mut self, snapshot: Snapshot) {
        let Some(held) = self.held.as_mut().filter(|held| held.snapshot.digest == snapshot.digest) else {
            return;
        };
        tracing::info!(generation = %snapshot.generation, commit = snapshot.commit, bytes = snapshot.bytes, "snapshot");
        self.newest = snapshot.generation;
        held.snapshot = Arc::new(snapshot);
        self.tidy().await;
    }

    /// Writes down what is whole, and removes what is served no more.
    async fn tidy(&self) {
        let held = self.held.as_ref();
        let whole = held.filter(|held| matches!(held.content, Content::Here(_)));
        let whole = whole.map(|held| held.snapshot.clone());
        let newer = self.newer.as_ref().map(|(snapshot, _)| snapshot.digest);
        let kept: Vec<_> = held.map(|held| held.snapshot.digest).into_iter().chain(newer).collect();
        let local = self.work.local.clone();
        let tidied = blocking(move || {
            local.prepare()?;
            if let Some(whole) = whole {
                local.keep(&whole)?;
            }
            local.remove_others(&kept)
        });
        if let Err(error) = tidied.await {
            tracing::warn!(%error, "the directory of snapshots cannot be kept in order");
        }
    }

    pub(super) async fn arrived(&mut self, result: Result<(), BlockFileError>) {
        self.count(&result);
        let Some(held) = &mut self.held else { return };
        let Content::Arriving(download) = &held.content else { return };
        match result {
            Ok(()) => {
                held.content = Content::Here(download.reader());
                self.trouble = None;
                self.tidy().await;
            }
            Err(error) => {
                held.content = Content::Remote;
                let snapshot = held.snapshot.clone();
                self.lost(&snapshot, error).await;
            }
        }
    }

    pub(super) async fn newer_arrived(&mut self, result: Result<(), BlockFileError>) {
        self.count(&result);
        let Some((snapshot, download)) = self.newer.take() else { return };
        match result {
            Ok(()) => {
                let (content, checked) = (Content::Here(download.reader()), self.work.found());
                self.held = Some(Held { snapshot, content, checked });
                self.tidy().await;
            }
            Err(error) => self.lost(&snapshot, error).await,
        }
    }

    /// A download has failed for good. Where the object is to blame, nobody is to try it again.
    async fn lost(&mut self, snapshot: &Arc<Snapshot>, error: BlockFileError) {
        let blame = error.blame();
        // A mark binds all agents, so the object is fetched once more first, by a download that keeps what is right.
        if blame == Blame::Object && self.suspect.replace(snapshot.generation) != Some(snapshot.generation) {
            tracing::warn!(%error, commit = snapshot.commit, "a snapshot seems damaged; it is fetched once more");
            match (self.work.download(snapshot).await, &mut self.held) {
                (Ok(download), Some(held)) if held.snapshot.digest == snapshot.digest => {
                    held.content = Content::Arriving(download);
                }
                (Ok(download), _) => self.newer = Some((snapshot.clone(), download)),
                (Err(error), _) => self.trouble = Some(Trouble::new(error.reason(), &error)),
            }
            return;
        }
        let error = SnapshotError::from(error);
        tracing::warn!(%error, commit = snapshot.commit, "the download of a snapshot failed");
        self.trouble = Some(Trouble::new(error.reason(), &error));
        self.failures += 1;
        self.retry_after(retry_delay(self.failures, rand::random()));
        if blame != Blame::Object {
            return;
        }
        if let Some(shelf) = &self.work.shelf
            && let Err(error) = shelf.mark_bad(snapshot.generation, &error.to_string()).await
        {
            tracing::warn!(%error, "the damaged snapshot cannot be marked");
        }
        self.held = self.held.take().filter(|held| held.snapshot.digest != snapshot.digest);
        // There may be an older one.
        (self.asked, self.retry_at) = (None, None);
        self.tidy().await;
    }

    /// Takes in what a comparison came to. An archive that is not its commit's is served no more, by no agent: its blocks are
    /// as its manifest says, and what they hold was hashed up to the commit's name.
    pub(super) async fn compared(&mut self, snapshot: &Snapshot, compared: Compared) {
        let Some(held) = self.held.as_mut().filter(|held| held.snapshot.digest == snapshot.digest) else {
            return;
        };
        let (commit, generation) = (&snapshot.commit, snapshot.generation);
        match compared {
            Compared::Same => {
                tracing::info!(commit, "the snapshot that was found is its commit's");
                held.checked = Checked::Compared;
            }
            Compared::Unknown(reason) => {
                tracing::info!(
                    commit,
                    reason,
                    "the snapshot that was found cannot be compared with its commit"
                );
                held.checked = Checked::Unknown;
            }
            Compared::Differs(reason) => {
                tracing::error!(commit, %generation, reason, "a snapshot in the store is not its commit's: find out who else writes there");
                self.held = None;
                if let Some(shelf) = self.work.shelf.as_ref().filter(|_| generation.0 > 0)
                    && let Err(error) = shelf.mark_bad(generation, &reason).await
                {
                    tracing::warn!(%error, "the false snapshot cannot be marked");
                }
                // There may be an older one.
                (self.asked, self.retry_at) = (None, None);
                self.tidy().await;
            }
        }
    }

    fn count(&self, result: &Result<(), BlockFileError>) {
        let outcome = Outcome::of(result, |error| SnapshotError::from(error.clone()).reason());
        self.work.metrics.snapshot.downloads.get_or_create(&outcome).inc();
    }
}
