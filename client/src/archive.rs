//! From the snapshot's bytes to files: zstd, tar and the disk in one pass, without a copy of the archive.
//!
//! One thread decompresses, the caller's writes. No entry is trusted: [`place`] says which names may become files at
//! all, [`tree`] creates them without following a link. Of `.git`, only the objects, the refs, HEAD and the index are
//! taken; configuration and hooks are git's own, made by `git init` before.

mod blocks;
mod place;
mod tape;
mod tree;

use std::io::{self, BufRead};
use std::path::Path;

use blocks::Blocks;
use place::{Place, judge};
use tape::{Kind, Tape};
use tree::Tree;

/// More files than any repository is known to have.
const MOST_ENTRIES: u64 = 10_000_000;

/// How much more than its compressed size an archive may hold: text shrinks to a tenth, so this is a bomb.
const MOST_GROWTH: u64 = 100;

/// What any archive may hold, however small it is.
const FREE_GROWTH: u64 = 1 << 30;

/// Why an archive did not become a clone.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The bytes end early, or are neither zstd nor tar.
    #[error("the snapshot is damaged: {source}")]
    Damaged {
        /// What was wrong.
        source: io::Error,
    },
    /// An entry that no snapshot has.
    #[error("the snapshot is refused: {name:?} {why}")]
    Refused {
        /// The entry's name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than any repository needs.
    #[error("the snapshot is refused: it holds too {what}")]
    TooLarge {
        /// Of what.
        what: &'static str,
    },
    /// A file could not be written.
    #[error("cannot write {name:?}: {source}")]
    Disk {
        /// The entry's name.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl ArchiveError {
    /// Whether there was no room on the disk.
    pub fn is_disk_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Disk { source, .. } if full.contains(&source.kind()))
    }

    fn refused(name: &[u8], why: &'static str) -> Self {
        Self::Refused { name: shown(name), why }
    }

    fn disk(name: &[u8]) -> impl FnOnce(io::Error) -> Self {
        let name = shown(name);
        move |source| Self::Disk { name, source }
    }
}

/// A name for a message: as much of it as a line has room for.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}

/// Whether a path is one of the worktree's, and leads nowhere else. Git removes the files that its index names
/// when it checks out something else, and takes the names in an index on trust.
pub fn is_in_worktree(path: &[u8]) -> bool {
    matches!(judge(path), Ok(Place::Worktree(_)))
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Files and symlinks.
    pub files: u64,
}

/// Unpacks the archive in `body`, `compressed` bytes long, into the directory `root`, where `git init` was run.
///
/// Returns when the whole archive has been read to its end. After an error, `root` holds a part of it.
///
/// # Errors
/// The archive is damaged, hostile or too large, or the disk fails.
pub fn unpack(body: impl BufRead + Send, compressed: u64, root: &Path) -> Result<Unpacked, ArchiveError> {
    let limit = compressed.saturating_mul(MOST_GROWTH).max(FREE_GROWTH);
    std::thread::scope(|scope| {
        let blocks = Blocks::decode(scope, body, limit);
        unpack_blocks(blocks, root)
    })
}

fn unpack_blocks(blocks: Blocks<'_>, root: &Path) -> Result<Unpacked, ArchiveError> {
    let mut tape = Tape::new(blocks);
    let mut tree = Tree::open(root).map_err(ArchiveError::disk(root.as_os_str().as_encoded_bytes()))?;
    let mut done = Unpacked { files: 0 };
    let mut entries = 0;
    while let Some(entry) = tape.next()? {
        entries += 1;
        if entries > MOST_ENTRIES {
            return Err(ArchiveError::TooLarge { what: "many files" });
        }
        let refused = |why| ArchiveError::refused(&entry.name, why);
        let disk = || ArchiveError::disk(&entry.name);
        let place = judge(&entry.name).map_err(refused)?;
        match (&entry.kind, place) {
            (Kind::Other(what), _) => return Err(refused(what)),
            (_, Place::Refused(why)) => return Err(refused(why)),
            (Kind::Directory, Place::Root | Place::Ignored) => {}
            (_, Place::Root) => return Err(refused("is the root, and no directory")),
            (Kind::Directory, Place::Worktree(parts) | Place::Git(parts)) => {
                tree.directory(&parts).map_err(disk())?;
            }
            (Kind::File, Place::Ignored) => tape.skip(entry.size)?,
            (Kind::Symlink(_), Place::Ignored) => {}
            (Kind::Symlink(_), Place::Git(_)) => return Err(refused("is a link within .git")),
            (Kind::Symlink(target), Place::Worktree(parts)) => {
                tree.symlink(&parts, target, entry.modified).map_err(disk())?;
                done.files += 1;
            }
            (Kind::File, Place::Worktree(parts)) => {
                let mut file = tree.file(&parts, entry.worktree_mode()).map_err(disk())?;
                tape.copy(entry.size, &mut file, &entry.name)?;
                tree::finish(&file, entry.modified).map_err(disk())?;
                done.files += 1;
            }
            (Kind::File, Place::Git(parts)) => {
                let mut file = tree.file(&parts, place::git_mode(&parts)).map_err(disk())?;
                tape.copy(entry.size, &mut file, &entry.name)?;
                tree::finish(&file, entry.modified).map_err(disk())?;
                done.files += 1;
            }
        }
    }
    tape.finish()?;
    Ok(done)
}

#[cfg(test)]
mod tests;
