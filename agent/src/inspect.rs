//! `tarn-agent store`: what is in a store, whether it restores, and what may go. Needs no running agent.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tarn_crds::repo::RepoId;
use tokio::sync::{Semaphore, watch};

use crate::{
    checkpoint::{
        CheckpointError,
        lineage::Lineage,
        manifest::{Generation, Keys},
        parts::Parts,
        restore::Restore,
        retain,
    },
    config::{GcArgs, StoreArgs, StoreCommand, VerifyArgs},
    files::remove_tree,
    git::{Git, GitError, RefSet, pack},
    store::{self, SharedStore, StoreError, StoreLocation, list_all},
};

/// Why a command gave no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// No store.
    #[error("which store? give --store DIR or --store s3://BUCKET/PREFIX")]
    NoStore,
    /// The directory is not there: a slip of the pen must not make one.
    #[error("{} is no directory: --store must name one that an agent has used", .0.display())]
    NoDirectory(PathBuf),
    /// No such mirror.
    #[error("the store has no mirror {0}; `tarn-agent store ls` names those it has")]
    NoMirror(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Git.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Some do not restore.
    #[error("{0} of the checkpoints do not restore")]
    Damaged(usize),
    /// Nothing can be printed, or no temporary directory made.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs a command and prints its answer.
///
/// # Errors
/// The store cannot be read, or a checkpoint does not verify.
pub async fn run(command: StoreCommand) -> Result<(), InspectError> {
    match command {
        StoreCommand::Ls(args) => list(&args).await,
        StoreCommand::Verify(args) => verify(&args).await,
        StoreCommand::Gc(args) => collect(&args).await,
    }
}

/// A mirror in the store.
struct Found {
    name: String,
    lineage: Lineage,
}

async fn mirrors(args: &StoreArgs) -> Result<Vec<Found>, InspectError> {
    let location = args.flags.store.as_ref().ok_or(InspectError::NoStore)?;
    if let StoreLocation::Directory(path) = location
        && !path.is_dir()
    {
        return Err(InspectError::NoDirectory(path.clone()));
    }
    let store: SharedStore = store::open(location, args.flags.s3())?;
    let mut ids: Vec<RepoId> = Vec::new();
    for object in list_all(&*store, "v1/").await? {
        // On the disk and here, the first segment that ends in `.git` ends a repository's name.
        let Some((prefix, _)) = object.key.split_once(".git/") else { continue };
        let dir = format!("{}.git", prefix.strip_prefix("v1/").unwrap_or(prefix));
        let Ok(id) = RepoId::from_dir(Path::new(&dir)) else { continue };
        if ids.last() != Some(&id) {
            ids.push(id);
        }
    }
    let asked = args.mirror.as_deref().map(|name| name.trim_end_matches(".git"));
    ids.retain(|id| asked.is_none_or(|asked| asked == id.to_string()));
    if let (Some(asked), []) = (asked, ids.as_slice()) {
        return Err(InspectError::NoMirror(asked.to_owned()));
    }
    let found = |id: RepoId| {
        let lineage = Lineage { store: store.clone(), keys: Keys::of(&id) };
        Found { name: id.to_string(), lineage }
    };
    Ok(ids.into_iter().map(found).collect())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    mirror: String,
    generation: u64,
    time: Option<Timestamp>,
    refs: Option<u64>,
    packs: Option<usize>,
    bytes: Option<u64>,
    writer: Option<String>,
    /// `good`, `bad` (marked so), or what is wrong with the manifest.
    state: String,
}

async fn list(args: &StoreArgs) -> Result<(), InspectError> {
    let mut rows = Vec::new();
    for Found { name, lineage } in mirrors(args).await? {
        let generations = lineage.generations().await?;
        for generation in generations.written.keys().rev() {
            let bad = generations.bad.contains(generation);
            let manifest = match lineage.manifest(*generation).await {
                Ok(manifest) => Ok(manifest),
                Err(CheckpointError::Damaged { reason, .. }) => Err(reason),
                Err(error) => return Err(error.into()),
            };
            let state = if bad {
                "bad".to_owned()
            } else {
                manifest.as_ref().err().cloned().unwrap_or("good".into())
            };
            let manifest = manifest.ok();
            let of = manifest.as_ref();
            rows.push(Listed {
                mirror: name.clone(),
                generation: generation.0,
                time: of.map(|m| m.time),
                refs: of.map(|m| m.refs.count),
                packs: of.map(|m| m.packs.len()),
                bytes: of.map(|m| m.bytes()),
                writer: of.map(|m| m.writer.agent.clone()),
                state,
            });
        }
    }
    if args.json {
        return print_json(&rows);
    }
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
    let cells = rows.iter().map(|row| {
        vec![
            row.mirror.clone(),
            row.generation.to_string(),
            row.time.map_or("-".to_owned(), |time| format!("{time:.0}")),
            number(row.refs),
            number(row.packs.map(|packs| packs as u64)),
            row.bytes.map_or("-".to_owned(), size),
            row.state.clone(),
        ]
    });
    print_table(
        &["MIRROR", "GENERATION", "TIME", "REFS", "PACKS", "SIZE", "STATE"],
        &cells.collect::<Vec<_>>(),
    )
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verified {
    mirror: String,
    generation: u64,
    /// `ok`, or what is wrong.
    result: String,
    /// The refs and their objects.
    tips: Option<BTreeMap<String, String>>,
    millis: u128,
}

/// Restores the newest checkpoint that is not marked bad of each mirror, and has git check every object.
async fn verify(args: &VerifyArgs) -> Result<(), InspectError> {
    let found = mirrors(&args.store).await?;
    let work = Scratch::new()?;
    let home = work.0.join("home");
    std::fs::create_dir(&home)?;
    let git = Git::detect(&home, work.0.as_os_str(), false).await?;
    let (progress, _) = watch::channel(None);
    let progress = Arc::new(progress);
    let (mut rows, mut damaged) = (Vec::new(), 0);
    for Found { name, lineage } in found {
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
            };
            let result = verified(&git, &restore, generation).await;
            remove_tree(&staged)?;
            remove_tree(&parts)?;
            let (result, refs) = match result {
                Ok(refs) => ("ok".to_owned(), Some(refs)),
                Err(InspectError::Checkpoint(error @ CheckpointError::Damaged { .. })) => {
                    (error.to_string(), None)
                }
                Err(InspectError::Git(error @ GitError::Failed { .. })) => (error.to_string(), None),
                Err(error) => return Err(error),
            };
            damaged += usize::from(refs.is_none());
            let tips = refs.map(|refs| {
                refs.refs().iter().map(|r| (r.name.to_string(), r.oid.to_hex())).collect::<BTreeMap<_, _>>()
            });
            let millis = started.elapsed().as_millis();
            rows.push(Verified { mirror: name.clone(), generation: generation.0, result, tips, millis });
        }
    }
    if args.store.json {
        print_json(&rows)?;
    } else {
        let cells = rows.iter().map(|row| {
            let seconds = format!("{:.1} s", row.millis as f64 / 1e3);
            vec![row.mirror.clone(), row.generation.to_string(), seconds, row.result.clone()]
        });
        print_table(&["MIRROR", "GENERATION", "TOOK", "RESULT"], &cells.collect::<Vec<_>>())?;
    }
    if damaged == 0 { Ok(()) } else { Err(InspectError::Damaged(damaged)) }
}

async fn verified(git: &Git, restore: &Restore, generation: Generation) -> Result<Arc<RefSet>, InspectError> {
    let restored = restore.one(generation).await?;
    pack::fsck(git, &restore.staged).await?;
    Ok(restored.refs)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Collected {
    mirror: String,
    checkpoints: usize,
    objects: usize,
    bytes: u64,
    removed: bool,
}

async fn collect(args: &GcArgs) -> Result<(), InspectError> {
    let grace = Duration::from_secs(u64::from(args.grace_hours) * 3600);
    let mut rows = Vec::new();
    for Found { name, lineage } in mirrors(&args.store).await? {
        let garbage = retain::find(&lineage, usize::from(args.keep.max(1)), grace).await?;
        if !args.dry_run {
            retain::remove(&lineage, &garbage).await?;
        }
        rows.push(Collected {
            mirror: name,
            checkpoints: garbage.manifests.len(),
            objects: garbage.objects.len(),
            bytes: garbage.bytes,
            removed: !args.dry_run,
        });
    }
    if args.store.json {
        return print_json(&rows);
    }
    let verb = if args.dry_run { "WOULD FREE" } else { "FREED" };
    let cells = rows.iter().map(|row| {
        vec![row.mirror.clone(), row.checkpoints.to_string(), row.objects.to_string(), size(row.bytes)]
    });
    print_table(&["MIRROR", "CHECKPOINTS", "OBJECTS", verb], &cells.collect::<Vec<_>>())
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

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn print_json(rows: &impl Serialize) -> Result<(), InspectError> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, rows).map_err(io::Error::other)?;
    writeln!(out)?;
    Ok(())
}

/// Columns as wide as their widest cell.
fn print_table(head: &[&str], rows: &[Vec<String>]) -> Result<(), InspectError> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let width = |column: usize| {
        std::iter::once(&head)
            .chain(rows)
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = io::stdout().lock();
    for row in std::iter::once(&head).chain(rows) {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
    }
}
