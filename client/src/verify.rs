//! Verifies a snapshot before anything of it is used: every object is hashed, and every file of the worktree compared with
//! the commit. Afterwards the clone is as sound as one that `git clone` made through the same server.
//!
//! Nothing of the snapshot that only saves git time is believed: its index is made again, and what would say where objects
//! are, or what commits and trees hold, is removed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::git::{Git, GitError};

/// Why a snapshot is not what it should be, or cannot be told to be.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file differs from the commit's.
    #[error("the snapshot is refused: {0:?} is not as its commit has it")]
    Differs(String),
    /// A file is none of the commit's.
    #[error("the snapshot is refused: its commit has no {0:?}")]
    Extra(String),
    /// Objects are not what their names say.
    #[error("the snapshot is refused: its objects are not what their names say: {0}")]
    Objects(GitError),
    /// What no snapshot has.
    #[error("the snapshot is refused: it has {0:?}, which no snapshot has")]
    Unknown(String),
    /// Git.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The disk.
    #[error("cannot verify the snapshot: {0}")]
    Disk(#[from] io::Error),
}

impl VerifyError {
    /// Whether there was no room on the disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Git(error) | Self::Objects(error) => error.is_disk_full(),
            Self::Disk(error) => error.kind() == io::ErrorKind::StorageFull,
            Self::Differs(_) | Self::Extra(_) | Self::Unknown(_) => false,
        }
    }
}

/// Verifies the snapshot that was unpacked into `dir`; its index is a new one afterwards.
///
/// # Errors
/// It is refused, or git or the disk fails.
pub async fn verify(git: &Git, dir: &Path) -> Result<(), VerifyError> {
    let packs = strip(&dir.join(".git"))?;
    // One takes all processors for as long as there are deltas, the other waits for files.
    tokio::try_join!(objects(git, dir, packs), worktree(git, dir))?;
    Ok(())
}

/// Removes all but packs and their indexes, which are made again where they are wanted; gives back the indexes.
fn strip(dot_git: &Path) -> Result<Vec<PathBuf>, VerifyError> {
    let unknown = |path: &Path| {
        let name = path.strip_prefix(dot_git.parent().unwrap_or(dot_git)).unwrap_or(path);
        VerifyError::Unknown(name.to_string_lossy().chars().take(200).collect())
    };
    let shallow = dot_git.join("shallow");
    if shallow.exists() {
        return Err(unknown(&shallow));
    }
    let objects = dot_git.join("objects");
    for path in entries(&objects)? {
        match path.file_name().and_then(|name| name.to_str()) {
            Some("pack") => {}
            Some("info") => fs::remove_dir_all(&path)?,
            // An object of its own: git would take its name for what it is.
            _ => return Err(unknown(&path)),
        }
    }
    let mut packs = Vec::new();
    for path in entries(&objects.join("pack"))? {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("pack") if path.with_extension("idx").is_file() => {}
            Some("idx") if path.with_extension("pack").is_file() => packs.push(path),
            Some("pack") => return Err(unknown(&path)),
            _ => fs::remove_file(&path)?,
        }
    }
    Ok(packs)
}

/// What is in a directory, which may be missing.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// Hashes every object of the packs, and compares their indexes with what comes of it.
async fn objects(git: &Git, dir: &Path, indexes: Vec<PathBuf>) -> Result<(), VerifyError> {
    for index in indexes {
        let args = [OsString::from("verify-pack"), "--".into(), index.into_os_string()];
        match git.exactly(dir).args(args).run().await {
            Err(error @ GitError::Failed { .. }) if !error.is_disk_full() => {
                return Err(VerifyError::Objects(error));
            }
            result => drop(result?),
        }
    }
    Ok(())
}

/// Compares every file with the commit, by its content: the times in the snapshot's index are the snapshot's word.
async fn worktree(git: &Git, dir: &Path) -> Result<(), VerifyError> {
    let shown = |path: Vec<u8>| String::from_utf8_lossy(&path).chars().take(200).collect::<String>();
    match fs::remove_file(dir.join(".git/index")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // A new index knows no times: every file is read.
    git.exactly(dir).args(["read-tree", "HEAD"]).run().await?;
    git.exactly(dir).args(["update-index", "-q", "--refresh"]).run().await?;
    let changed = git.exactly(dir).args(["diff-files", "--name-only", "-z"]);
    if let Some(path) = changed.find_unfit(0, |_| false).await? {
        return Err(VerifyError::Differs(shown(path)));
    }
    // No list of what to ignore is read here.
    let others = git.exactly(dir).args(["ls-files", "--others", "-z"]);
    if let Some(path) = others.find_unfit(0, |_| false).await? {
        return Err(VerifyError::Extra(shown(path)));
    }
    // Git does not look into the directories of submodules.
    let staged = git.exactly(dir).args(["ls-files", "--stage", "-z"]);
    let empty = |entry: &[u8]| is_empty_if_submodule(dir, entry);
    match staged.find_unfit(0, empty).await? {
        Some(entry) => Err(VerifyError::Extra(shown(path_of(&entry).to_vec()))),
        None => Ok(()),
    }
}

/// Whether an entry of the index, `<mode> SP <name> SP <stage> TAB <path>`, is no submodule, or one whose directory is
/// empty.
fn is_empty_if_submodule(dir: &Path, entry: &[u8]) -> bool {
    if !entry.starts_with(b"160000 ") {
        return true;
    }
    let path = dir.join(std::ffi::OsStr::from_bytes(path_of(entry)));
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() => entries(&path).is_ok_and(|inside| inside.is_empty()),
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn path_of(entry: &[u8]) -> &[u8] {
    entry.splitn(2, |byte| *byte == b'\t').nth(1).unwrap_or_default()
}
