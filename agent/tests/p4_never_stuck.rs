//! P4: every state leads on. Whatever fails is retried; whatever SIGKILL leaves, the next start cleans up.

mod damage;
mod disk;
mod moving;
mod patience;
mod retry;
mod sigkill;

use std::path::{Path, PathBuf};

pub(crate) use disk::SmallDisk;

use anyhow::{Context, Result};
use tarn_testkit::agent::Agent;

/// The one mirror on an agent's disk.
pub(crate) fn mirror_dir(agent: &Agent) -> Result<PathBuf> {
    let mirrors = files(&agent.data().join("mirrors"))?;
    let head = mirrors.into_iter().find(|path| path.ends_with("packed-refs") || path.ends_with("HEAD"));
    Ok(head.context("no mirror on disk")?.parent().context("a file without a directory")?.to_owned())
}

/// Every file below a directory.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        // Directories may go while they are listed.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// What only unfinished work leaves: locks, and packs or objects under a temporary name.
fn leftovers(root: &Path) -> Result<Vec<PathBuf>> {
    let left = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".lock") || name.starts_with("tmp_") || name.starts_with(".tmp-")
    };
    Ok(files(root)?.into_iter().filter(left).collect())
}
