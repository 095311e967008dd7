//! `tarn-agent store`: what is in a store, whether it restores, and what may go. Needs no running agent.

mod collect;
mod list;
mod print;
mod remove;
mod verify;

use std::{
    io,
    path::{Path, PathBuf},
};

use prometheus_client::metrics::counter::Counter;
use tarn_crds::repo::RepoId;

use crate::{
    checkpoint::{CheckpointError, lineage::Lineage, manifest::Keys},
    config::{StoreArgs, StoreCommand},
    generations::keyring::{Keyring, KeyringError},
    git::GitError,
    snapshot::{SnapshotError, shelf::Shelf},
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
    /// The keys.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Git.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Some are damaged.
    #[error("{0} of the checkpoints and snapshots do not verify")]
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
        StoreCommand::Ls(args) => list::run(&args).await,
        StoreCommand::Verify(args) => verify::run(&args).await,
        StoreCommand::Gc(args) => collect::run(&args).await,
        StoreCommand::Rm(args) => remove::run(args).await,
    }
}

/// A mirror in the store.
struct Found {
    name: String,
    lineage: Lineage,
    shelf: Shelf,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
enum Kind {
    Checkpoint,
    Snapshot,
}

impl Kind {
    fn name(self) -> String {
        match self {
            Self::Checkpoint => "checkpoint".to_owned(),
            Self::Snapshot => "snapshot".to_owned(),
        }
    }
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
    let keyring = args.flags.store_key.as_deref().map(|path| Keyring::open(path, Counter::default()));
    let keyring = keyring.transpose()?.unwrap_or_default();
    let found = |id: RepoId| {
        let lineage = Lineage { store: store.clone(), keys: Keys::of(&id), keyring: keyring.clone() };
        let shelf = Shelf::new(store.clone(), &id, String::new(), keyring.clone());
        Found { name: id.to_string(), lineage, shelf }
    };
    Ok(ids.into_iter().map(found).collect())
}
