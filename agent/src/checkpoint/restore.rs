//! Restoring: the newest good generation, its packs straight into place, checked before anyone sees it.
//!
//! A generation that is missing something, or holds other bytes than it should, is tried twice and then passed over for
//! the one before it. At most one is marked bad: several that fail on one machine may have nothing in common but that
//! machine, so that the next restore, perhaps another agent's, judges the next. Trouble with the store, the disk or
//! git marks nothing: the caller tries again, or clones.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use tokio::{
    sync::{Semaphore, watch},
    time,
};

use super::{
    CheckpointError,
    error::is_doubtful,
    failpoint::FailPoint,
    lineage::Lineage,
    manifest::{Checkpoint, File, FileKind, Generation, Manifest, Pack},
    parts::{self, Parts},
};
use crate::{
    blockfile::{Blame, BlockFileError, Digest, Download, Options, Source},
    files::remove_tree,
    git::{Git, Oid, RefSet, layer, pack, remote, stderr::Culprit},
    upstream::Provenance,
};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// What to restore, and with what.
#[derive(Clone)]
pub struct Restore {
    /// The installed git.
    pub git: Git,
    /// Where from.
    pub lineage: Lineage,
    /// This agent's name.
    pub agent: String,
    /// Where the mirror is made; nothing is there yet, and the caller removes what a failure leaves.
    pub staged: PathBuf,
    /// What is downloaded; an earlier restore may have left some of it. On the file system of `staged`; the caller
    /// removes it in the end.
    pub parts: Parts,
    /// Blocks in flight, of all restores.
    pub flights: Arc<Semaphore>,
    /// Where progress goes.
    pub progress: Arc<watch::Sender<Option<String>>>,
    /// The most bytes that the mirror may take.
    pub max: Option<u64>,
}

/// A restored mirror, in staging.
#[derive(Debug)]
pub struct Restored {
    /// Its refs, which are written.
    pub refs: Arc<RefSet>,
    /// What it was made from.
    pub checkpoint: Checkpoint,
    /// With what it was fetched, by whoever published it.
    pub provenance: Provenance,
}

/// What a restore came to.
#[derive(Debug)]
pub struct Outcome {
    /// The mirror; `None` where the store has no good generation.
    pub restored: Option<Restored>,
    /// Why generations were passed over, the newest first.
    pub passed_over: Vec<CheckpointError>,
}

impl Restore {
    /// Runs it.
    ///
    /// # Errors
    /// The store cannot be asked, or the disk not written.
    pub async fn run(self) -> Result<Outcome, CheckpointError> {
        FailPoint::RestoreBegins.reached();
        let generations = self.lineage.generations().await?;
        let (mut passed_over, mut marked) = (Vec::new(), false);
        for generation in generations.good() {
            remove_tree(&self.staged)?;
            let mut result = self.one(generation).await;
            if is_doubtful(&result) {
                remove_tree(&self.staged)?;
                result = self.one(generation).await;
            }
            match result {
                Ok(restored) => return Ok(Outcome { restored: Some(restored), passed_over }),
                Err(CheckpointError::Damaged { reason, .. }) => {
                    tracing::warn!(%generation, reason, "a checkpoint is damaged; it is passed over");
                    if !marked
                        && let Err(error) = self.lineage.mark_bad(generation, &self.agent, &reason).await
                    {
                        tracing::warn!(%generation, %error, "the damaged checkpoint cannot be marked");
                    }
                    marked = true;
                    passed_over.push(CheckpointError::Damaged { generation, reason });
                }
                // Agents with another key, or none, may trust it: it stays as it is.
                Err(error @ CheckpointError::Untrusted { .. }) => {
                    tracing::warn!(%error, mirror = self.lineage.keys.all(), "a checkpoint is passed over");
                    passed_over.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        remove_tree(&self.staged)?;
        Ok(Outcome { restored: None, passed_over })
    }

    /// Restores `generation`, and no other.
    ///
    /// # Errors
    /// As [`Restore::run`]; [`CheckpointError::Damaged`] where it is incomplete or damaged,
    /// [`CheckpointError::Untrusted`] where no key of this cache has signed it.
    pub async fn one(&self, generation: Generation) -> Result<Restored, CheckpointError> {
        let started = Instant::now();
        let manifest = self.lineage.manifest(generation).await?;
        let bytes = Checkpoint::of(&manifest, 0).bytes;
        if let Some(max) = self.max.filter(|max| bytes > *max) {
            return Err(CheckpointError::TooLarge { bytes, max });
        }
        let format = manifest.object_format();
        let refs = Arc::new(self.lineage.refs(generation, manifest.refs.name, format).await?);
        FailPoint::RestoreManifest.reached();
        remote::init(&self.git, &self.staged, format).await?;
        self.download(&manifest).await?;
        FailPoint::RestoreDownloaded.reached();
        let base_refs = self.check(&manifest, &refs).await?;
        FailPoint::RestoreChecked.reached();
        let (written, staged) = (refs.clone(), self.staged.clone());
        let write = move || written.write(&staged).map_err(io::Error::other);
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        // Without a bitmap, upkeep finds out later.
        let name = manifest.packs.first().and_then(base_name).filter(|_| pack::has_bitmaps(&self.staged));
        if let Some(name) = name {
            // Refs may have gone since the base was made, and no pack have come.
            let tips = base_refs.tips().collect();
            if let Err(error) = layer::note_closed(&self.git, &self.staged, name, tips).await {
                tracing::debug!(%error, "the restored base is not noted");
            }
        }
        FailPoint::RestoreStaged.reached();
        let checkpoint = Checkpoint::of(&manifest, 0);
        let (bytes, millis) = (checkpoint.bytes, started.elapsed().as_millis());
        tracing::info!(%generation, bytes, millis, packs = manifest.packs.len(), "restored from the store");
        let provenance = manifest.provenance.unwrap_or_default();
        Ok(Restored { refs, checkpoint, provenance })
    }

    /// Brings all files of all packs, in parallel, each block checked as it arrives.
    async fn download(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let (generation, started) = (manifest.generation, Instant::now());
        self.parts.prepare(manifest)?;
        let start = async |(pack, file): (Digest, &File)| {
            let made = self.parts.open(pack, file).await?;
            let there = made.progress().verified;
            let key = self.lineage.keys.file(pack, file.kind);
            let source = Source { store: self.lineage.store.clone(), key, version: None };
            let options = Options { flights: self.flights.clone(), ..Options::default() };
            Ok((made.start(source, options), there))
        };
        let downloads = try_join_all(manifest.files().map(start)).await;
        let downloads = downloads.map_err(|error| blamed(generation, &error))?;
        let total = manifest.packs.iter().map(Pack::bytes).sum::<u64>();
        let there = downloads.iter().map(|(_, there)| there).sum::<u64>();
        if there > 0 {
            tracing::info!(%generation, bytes = there, of = total, "going on with a restore that was cut short");
        }
        let downloads: Vec<Download> = downloads.into_iter().map(|(download, _)| download).collect();
        let all = try_join_all(downloads.iter().map(|download| async {
            let done = download.wait().await;
            FailPoint::RestoreFirstFile.reached();
            done
        }));
        let tell = async {
            loop {
                time::sleep(TELL_EVERY).await;
                let verified = downloads.iter().map(|download| download.progress().verified).sum();
                self.progress.send_replace(Some(line(verified, there, total, started.elapsed())));
            }
        };
        let result = tokio::select! {
            result = all => result.map(drop),
            () = tell => Ok(()),
        };
        self.progress.send_replace(None);
        result.map_err(|error| blamed(generation, &error))?;
        // Nothing writes to them any more.
        drop(downloads);
        Ok(self.parts.link(manifest, self.staged.clone()).await?)
    }

    /// Whether the packs hold all that the refs reach. The digests have proved the bytes; a missing increment
    /// shows only here: what the refs reach beyond the base's must be there, link by link. Gives the base's.
    async fn check(&self, manifest: &Manifest, refs: &Arc<RefSet>) -> Result<Arc<RefSet>, CheckpointError> {
        let generation = manifest.generation;
        let tips: Vec<Oid> = refs.tips().collect();
        let missing = remote::missing(&self.git, &self.staged, &tips).await?;
        if let Some(oid) = missing.iter().next() {
            return Err(generation
                .damaged(format!("it lacks {} objects that its refs name, such as {oid}", missing.len())));
        }
        let base = match manifest.packs.get(1).and_then(|first| first.since) {
            Some(since) => self.lineage.refs(generation, since, manifest.object_format()).await?,
            // A base alone: its publisher walked all of it.
            None => return Ok(refs.clone()),
        };
        let without: Vec<Oid> = base.tips().collect();
        match pack::check_closure(&self.git, &self.staged, &tips, &without).await {
            Err(error) if error.culprit() == Culprit::Repository => {
                Err(generation.damaged(format!("it is incomplete: {error}")))
            }
            result => result.map(|()| Arc::new(base)).map_err(Into::into),
        }
    }
}

/// The name of a pack's file in a repository.
fn base_name(pack: &Pack) -> Option<String> {
    let file = pack.files.iter().find(|file| file.kind == FileKind::Pack)?;
    Some(parts::name(pack.name, file))
}

/// An error of a download, as what it means for the generation.
fn blamed(generation: Generation, error: &BlockFileError) -> CheckpointError {
    match (error.blame(), error) {
        (Blame::Object, _) => generation.damaged(error),
        (_, BlockFileError::Store { source, .. }) => source.clone().into(),
        _ => CheckpointError::Disk(io::Error::other(error.to_string())),
    }
}

/// Bytes, rate and the time that is left, for people; `there` was on the disk already.
fn line(done: u64, there: u64, total: u64, elapsed: Duration) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let rate = done.saturating_sub(there) as f64 / elapsed.as_secs_f64().max(0.001);
    let left = if done <= there {
        "unknown".to_owned()
    } else {
        format!("{:.0} s", total.saturating_sub(done) as f64 / rate)
    };
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
    format!(
        "restoring: {percent} % of {:.0} MiB at {:.0} MiB/s, {left} left",
        mib(total),
        rate / f64::from(1 << 20)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_bytes_rate_and_time_left() {
        let told = line(50 << 20, 0, 200 << 20, Duration::from_secs(5));
        assert_eq!(told, "restoring: 25 % of 200 MiB at 10 MiB/s, 15 s left");
        let resumed = line(150 << 20, 100 << 20, 200 << 20, Duration::from_secs(5));
        assert_eq!(resumed, "restoring: 75 % of 200 MiB at 10 MiB/s, 5 s left");
        assert!(line(0, 0, 0, Duration::ZERO).contains("unknown left"));
    }
}
