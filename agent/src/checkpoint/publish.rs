//! Publishing: pin, pack what is new, upload it, and last of all create the manifest.
//!
//! Whoever loses the race for a generation builds on the winner's. An agent that dies on the way leaves objects
//! that no manifest names; [`crate::generations`] removes them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::{
    CheckpointError,
    error::is_doubtful,
    failpoint::FailPoint,
    lease::Lease,
    lineage::Lineage,
    manifest::{self, Checkpoint, File, FileKind, Generation, Manifest, Pack, Refs, Writer},
    plan::{Plan, plan},
};
use crate::{
    blockfile::{Digest, digest_file},
    files::blocking,
    generations::Created,
    git::{Git, Oid, RefSet, pack, remote},
    store::PutMode,
    upstream::Provenance,
};

/// Lost races in a row before an agent leaves publishing to the others.
const ATTEMPTS: u32 = 8;

/// What to publish, and with what.
pub struct Publish {
    /// The installed git.
    pub git: Git,
    /// Where to.
    pub lineage: Lineage,
    /// This agent's name.
    pub agent: String,
    /// The mirror.
    pub dir: PathBuf,
    /// A directory to work in, on the mirror's file system; nothing is there yet, and the caller removes it.
    pub work: PathBuf,
    /// The refs to publish; all their objects are in the mirror.
    pub refs: Arc<RefSet>,
    /// With what the mirror was fetched.
    pub provenance: Provenance,
    /// Held while the mirror's packs are linked, and by whoever repacks.
    pub packs: Arc<Mutex<()>>,
    /// Held by this agent for as long as this runs, where the store ignores conditions.
    pub lease: Option<Lease>,
}

/// The generation to build on, or the lack of one.
struct Parent {
    manifest: Option<Manifest>,
    next: Generation,
}

impl Publish {
    /// Runs it; returns the newest checkpoint, which another agent may have made of the same refs. A dropped
    /// future leaves unnamed objects at most.
    ///
    /// # Errors
    /// The store is as it was, but for objects that no manifest names.
    pub async fn run(self) -> Result<Checkpoint, CheckpointError> {
        FailPoint::PublishBegins.reached();
        if manifest::is_empty(&self.refs) {
            return Err(CheckpointError::NoRefs);
        }
        let mut parent = self.parent().await?;
        let (digest, mut view, mut uploaded) = (self.refs.digest(), None, 0);
        for _ in 0..ATTEMPTS {
            if let Some(manifest) = parent.manifest.as_ref().filter(|manifest| manifest.refs.digest == digest)
            {
                return Ok(Checkpoint::of(manifest, uploaded));
            }
            let view = match &view {
                Some(view) => view,
                None => view.insert(self.pin().await?),
            };
            FailPoint::PublishPinned.reached();
            let made = match self.make(&parent, view, &mut uploaded).await {
                // A list of refs to build on is lost or spoilt: the next attempt begins anew.
                Err(CheckpointError::Damaged { generation, reason }) => {
                    self.give_up(generation, &reason).await?;
                    parent = self.parent().await?;
                    continue;
                }
                made => made?,
            };
            FailPoint::PublishUploaded.reached();
            if let Some(lease) = &self.lease {
                lease.confirm().await?;
            }
            if self.lineage.numbered().create(&made).await? == Created::Ours {
                FailPoint::PublishCreated.reached();
                let length = made.to_json().len() as u64;
                return Ok(Checkpoint::of(&made, uploaded + length));
            }
            tracing::debug!(generation = %made.generation, "another agent was faster; building on its checkpoint");
            parent = self.parent().await?;
        }
        Err(CheckpointError::Outrun(ATTEMPTS))
    }

    /// The newest generation whose packs are all there. Damage is marked, so that nobody builds on it.
    async fn parent(&self) -> Result<Parent, CheckpointError> {
        let generations = self.lineage.generations().await?;
        let (next, mut found) = (generations.next(), None);
        if let Some(newest) = generations.parent() {
            let mut sound = self.lineage.whole(newest).await;
            if is_doubtful(&sound) {
                sound = self.lineage.whole(newest).await;
            }
            match sound {
                Ok(manifest) if manifest.object_format() == self.refs.format() => found = Some(manifest),
                Ok(_) => tracing::info!("the upstream's object format has changed; publishing anew"),
                // Nothing of it is used, and nothing is said of it to others.
                Err(error @ CheckpointError::Untrusted { .. }) => {
                    tracing::warn!(%error, "the newest checkpoint is not built on; publishing anew");
                }
                Err(CheckpointError::Damaged { generation, reason }) => {
                    self.give_up(generation, &reason).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Parent { manifest: found, next })
    }

    /// Marks the newest generation, so that nobody builds on it.
    async fn give_up(&self, generation: Generation, reason: &str) -> Result<(), CheckpointError> {
        tracing::warn!(%generation, reason, "the newest checkpoint is damaged; publishing anew");
        Ok(self.lineage.mark_bad(generation, &self.agent, reason).await?)
    }

    async fn pin(&self) -> Result<PathBuf, CheckpointError> {
        let view = self.work.join("view.git");
        let _packs = self.packs.lock().await;
        let (dir, to, refs) = (self.dir.clone(), view.clone(), self.refs.clone());
        blocking(move || pack::pin(&dir, &to, &refs)).await?;
        Ok(view)
    }

    /// Uploads what the next generation needs and the parent has not; returns its manifest.
    async fn make(
        &self,
        parent: &Parent,
        view: &Path,
        uploaded: &mut u64,
    ) -> Result<Manifest, CheckpointError> {
        let (mut packs, new) = match &parent.manifest {
            None => (Vec::new(), self.base(view).await?),
            Some(parent) => self.increment(parent, view).await?,
        };
        FailPoint::PublishPacked.reached();
        if let Some((path, objects, since)) = new {
            packs.push(self.upload(&path, objects, since, uploaded).await?);
        }
        let (name, packed) = manifest::pack_refs(&self.refs);
        let bytes = packed.len() as u64;
        let refs = Refs { name, bytes, digest: self.refs.digest(), count: self.refs.refs().len() as u64 };
        self.lineage
            .store
            .put(&self.lineage.keys.refs(name), Bytes::from(packed), PutMode::Overwrite)
            .await?;
        *uploaded += bytes;
        Ok(Manifest {
            format: Manifest::format_written(),
            generation: parent.next,
            parent: parent.manifest.as_ref().map(|parent| parent.generation),
            time: Timestamp::now(),
            writer: Writer::new(&self.agent),
            object_format: self.refs.format().name().to_owned(),
            refs,
            packs,
            provenance: Some(self.provenance.clone()),
        })
    }

    async fn base(&self, view: &Path) -> Result<Option<New>, CheckpointError> {
        let whole = pack::pack_whole(&self.git, view).await?;
        Ok(whole.map(|(path, objects)| (path, objects, None)))
    }

    /// The packs of the parent that stay, and the one to add.
    async fn increment(
        &self,
        parent: &Manifest,
        view: &Path,
    ) -> Result<(Vec<Pack>, Option<New>), CheckpointError> {
        let tips: Vec<Oid> = self.refs.tips().collect();
        let delta = self.since(parent, parent.refs.name, view, &tips).await?;
        let (objects, bytes) = match &delta {
            Some((path, objects, _)) => (*objects, fs::metadata(path)?.len()),
            None => (0, 0),
        };
        let keep = match plan(Some(parent), objects, bytes) {
            Plan::Base => return Ok((Vec::new(), self.base(view).await?)),
            Plan::Increment { keep } => keep,
        };
        let kept = parent.packs.iter().take(keep).cloned().collect();
        match parent.packs.get(keep).and_then(|merged| merged.since) {
            None => Ok((kept, delta)),
            Some(since) => Ok((kept, self.since(parent, since, view, &tips).await?)),
        }
    }

    /// What `tips` reach and the refs object `since` did not.
    async fn since(
        &self,
        parent: &Manifest,
        since: Digest,
        view: &Path,
        tips: &[Oid],
    ) -> Result<Option<New>, CheckpointError> {
        let (generation, format) = (parent.generation, parent.object_format());
        let mut old = self.lineage.refs(generation, since, format).await;
        if is_doubtful(&old) {
            old = self.lineage.refs(generation, since, format).await;
        }
        let old: Vec<Oid> = old?.tips().collect();
        // A branch that was reset or deleted may have left nothing here: then more is packed than needed.
        let missing = remote::missing(&self.git, view, &old).await?;
        let old: Vec<Oid> = old.into_iter().filter(|oid| !missing.contains(oid)).collect();
        let into = self.work.join(format!("since-{since}"));
        fs::create_dir_all(&into)?;
        let packed = pack::pack_since(&self.git, view, &into.join("pack"), tips, &old).await?;
        Ok(packed.map(|(path, objects)| (path, objects, Some(since))))
    }

    async fn upload(
        &self,
        path: &Path,
        objects: u64,
        since: Option<Digest>,
        uploaded: &mut u64,
    ) -> Result<Pack, CheckpointError> {
        let mut files = Vec::new();
        for kind in FileKind::SORTED {
            let path = path.with_extension(kind.extension());
            // A reverse index and a bitmap are made anew where they are wanted; an increment's are not.
            let spared = since.is_some() && matches!(kind, FileKind::Rev | FileKind::Bitmap);
            if spared || !path.exists() {
                continue;
            }
            let (bytes, blocks) = blocking(move || digest_file(&path)).await?;
            files.push(File { kind, bytes, blocks });
        }
        let name = Pack::name_of(&files);
        for file in &files {
            let key = self.lineage.keys.file(name, file.kind);
            self.lineage.store.put_file(&key, &path.with_extension(file.kind.extension())).await?;
            *uploaded += file.bytes;
            FailPoint::PublishFirstFile.reached();
        }
        Ok(Pack { name, objects, since, files })
    }
}

/// A pack on the disk, its number of objects, and the refs object it adds to.
type New = (PathBuf, u64, Option<Digest>);
