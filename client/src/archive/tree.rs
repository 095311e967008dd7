//! Creates files below one directory, through descriptors and never through a link.
//!
//! The directories on the way to the last file stay open, so that a file costs four system calls: open, write, set the
//! time, close. Every step down refuses links: whatever an archive holds, nothing is written outside the root.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, futimens, mkdirat, openat, symlinkat,
    utimensat,
};

use super::tape::Modified;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that is being filled.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The directories below the root that lead to the last file, each with its name.
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl Tree {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self { root: openat(CWD, root, DIRECTORY, Mode::empty())?, open: Vec::new() })
    }

    /// Makes a directory, which may be there.
    pub(super) fn directory(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.enter(parts).map(drop)
    }

    /// Makes a file, which must not be there.
    pub(super) fn file(&mut self, parts: &[&[u8]], mode: u32) -> io::Result<File> {
        let (name, parents) = parts.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.enter(parents)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(parent, *name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Makes a symlink, where nothing must be. Where it leads does not matter: git itself creates links to anywhere,
    /// and nothing here ever follows one.
    pub(super) fn symlink(&mut self, parts: &[&[u8]], target: &[u8], modified: Modified) -> io::Result<()> {
        let (name, parents) = parts.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.enter(parents)?;
        symlinkat(target, parent, *name)?;
        Ok(utimensat(parent, *name, &times(modified), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a directory, making what is missing on the way.
    fn enter(&mut self, parts: &[&[u8]]) -> io::Result<BorrowedFd<'_>> {
        let same = self.open.iter().zip(parts).take_while(|((name, _), part)| name == *part).count();
        self.open.truncate(same);
        for part in parts.get(same..).unwrap_or_default() {
            let parent = self.open.last().map_or(self.root.as_fd(), |(_, last)| last.as_fd());
            let next = match openat(parent, *part, DIRECTORY, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => {
                    mkdirat(parent, *part, Mode::from_bits_truncate(0o777))?;
                    openat(parent, *part, DIRECTORY, Mode::empty())?
                }
                opened => opened?,
            };
            self.open.push((part.to_vec(), next));
        }
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, last)| last.as_fd()))
    }
}

/// Sets when a written file was last modified: git compares it with its index.
pub(super) fn finish(file: &File, modified: Modified) -> io::Result<()> {
    Ok(futimens(file, &times(modified))?)
}

fn times(modified: Modified) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanoseconds },
    }
}
