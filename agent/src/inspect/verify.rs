//! `tarn-agent store verify`.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use super::{
    Found, InspectError, Kind, mirrors,
    print::{print_json, print_table},
};
use crate::{
    blockfile::{Blame, BlockFile, Options, Source},
    checkpoint::{CheckpointError, parts::Parts, restore::Restore},
    config::VerifyArgs,
    files::remove_tree,
    generations::Generation,
    git::{Git, GitError, RefSet, pack},
    snapshot::{SnapshotError, shelf::Shelf},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    mirror: String,
    kind: Kind,
    generation: u64,
    /// `ok`, or what is wrong.
    result: String,
    /// The refs and their objects.
    tips: Option<BTreeMap<String, String>>,
    millis: u128,
}

/// Restores the newest checkpoint that is not marked bad of each mirror, and has git check every object; downloads
/// the newest snapshot, and compares its blocks with their digests.
pub(super) async fn run(args: &VerifyArgs) -> Result<(), InspectError> {
    let found = mirrors(&args.store).await?;
    let work = Scratch::new()?;
    let home = work.0.join("home");
    std::fs::create_dir(&home)?;
    let git = Git::detect(&home, work.0.as_os_str(), false).await?;
    let (progress, _) = watch::channel(None);
    let progress = Arc::new(progress);
    let (mut rows, mut damaged) = (Vec::new(), 0);
    for Found { name, lineage, shelf } in found {
        let generations = lineage.generations().await?;
        for generation in generations.good().take(if args.all { usize::MAX } else { 1 }) {
            let started = std::time::Instant::now();
            let (staged, parts) = (work.0.join("staged"), work.0.join("parts"));
            let restore = Restore {
                git: git.clone(),
                lineage: lineage.clone(),
                agent: String::new(),
                staged: staged.clone(),
                parts: Parts(parts.clone()),
                flights: Arc::new(Semaphore::new(8)),
                progress: progress.clone(),
                max: None,
            };
            let result = verified(&git, &restore, generation).await;
            remove_tree(&staged)?;
            remove_tree(&parts)?;
            let (result, refs) = match result {
                Ok(refs) => ("ok".to_owned(), Some(refs)),
                Err(InspectError::Checkpoint(
                    error @ (CheckpointError::Damaged { .. } | CheckpointError::Untrusted { .. }),
                )) => (error.to_string(), None),
                Err(InspectError::Git(error @ GitError::Failed { .. })) => (error.to_string(), None),
                Err(error) => return Err(error),
            };
            damaged += usize::from(refs.is_none());
            let tips = refs.map(|refs| {
                refs.refs().iter().map(|r| (r.name.to_string(), r.oid.to_hex())).collect::<BTreeMap<_, _>>()
            });
            let millis = started.elapsed().as_millis();
            let (mirror, kind, generation) = (name.clone(), Kind::Checkpoint, generation.0);
            rows.push(Verified { mirror, kind, generation, result, tips, millis });
        }
        for generation in shelf.generations().await?.good().take(if args.all { usize::MAX } else { 1 }) {
            let started = std::time::Instant::now();
            let result = match archive(&shelf, generation, &work.0.join("archive")).await {
                Ok(()) => "ok".to_owned(),
                Err(SnapshotError::Download(error)) if error.blame() != Blame::Object => {
                    return Err(SnapshotError::from(error).into());
                }
                Err(
                    error @ (SnapshotError::Damaged { .. }
                    | SnapshotError::Untrusted { .. }
                    | SnapshotError::Download(_)),
                ) => error.to_string(),
                Err(error) => return Err(error.into()),
            };
            damaged += usize::from(result != "ok");
            let millis = started.elapsed().as_millis();
            let (mirror, kind, generation) = (name.clone(), Kind::Snapshot, generation.0);
            rows.push(Verified { mirror, kind, generation, result, tips: None, millis });
        }
    }
    if args.store.json {
        print_json(&rows)?;
    } else {
        let cells = rows.iter().map(|row| {
            let seconds = format!("{:.1} s", row.millis as f64 / 1e3);
            vec![row.mirror.clone(), row.kind.name(), row.generation.to_string(), seconds, row.result.clone()]
        });
        print_table(&["MIRROR", "KIND", "GENERATION", "TOOK", "RESULT"], &cells.collect::<Vec<_>>())?;
    }
    if damaged == 0 { Ok(()) } else { Err(InspectError::Damaged(damaged)) }
}

async fn verified(git: &Git, restore: &Restore, generation: Generation) -> Result<Arc<RefSet>, InspectError> {
    let restored = restore.one(generation).await?;
    pack::fsck(git, &restore.staged).await?;
    Ok(restored.refs)
}

/// Downloads a snapshot's archive, and throws it away.
async fn archive(shelf: &Shelf, generation: Generation, place: &Path) -> Result<(), SnapshotError> {
    let snapshot = shelf.snapshot(generation).await?;
    let file = BlockFile::create(place, snapshot.bytes, snapshot.blocks.clone()).await?;
    let source = Source { store: shelf.store.clone(), key: snapshot.key(&shelf.keys), version: None };
    file.start(source, Options::default()).wait().await?;
    Ok(std::fs::remove_file(place)?)
}

/// A directory that goes when this does.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let name = format!("tarn-verify-{}-{:016x}", std::process::id(), rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about what cannot be removed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
