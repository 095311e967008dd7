//! A directory as `tar.zst`: entries in the order of their names, owned by root, in frames of their own that
//! several processors compress at once.
//!
//! Memory is bounded by the frames under way, whatever the directory holds.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, Scope, ScopedJoinHandle},
};

use tar::{Builder, EntryType, Header};

/// What a frame holds before compression: large enough that a frame's header is nothing, small enough that a
/// few of them are no memory to speak of.
const FRAME: usize = 4 << 20;

/// Git's packs do not compress, and zstd sees that soon at any level; text does, at 3 as fast as it is read.
const LEVEL: i32 = 3;

/// More compress no faster than one thread reads.
const MAX_THREADS: usize = 4;

/// Nobody waits for the archive any more. Not [`io::ErrorKind::Interrupted`], upon which writers try again for ever.
#[derive(Debug, thiserror::Error)]
#[error("nobody waits for the archive any more")]
pub struct Unwanted;

impl Unwanted {
    /// Whether that is what an error says.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// What time, in seconds, the entry of this name has.
pub type Times<'a> = &'a dyn Fn(&Path) -> i64;

/// Writes the directory `dir` into `out` as a compressed archive rooted at `.`. Blocks the thread, and ends early
/// once `unwanted` is set.
///
/// # Errors
/// A file cannot be read or written; [`Unwanted`] within where it is unwanted.
pub fn write(dir: &Path, times: Times<'_>, out: &mut fs::File, unwanted: &AtomicBool) -> io::Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    thread::scope(|scope| {
        let frames =
            Frames { scope, out, unwanted, threads, filling: Vec::new(), under_way: VecDeque::new() };
        let mut tar = Builder::new(frames);
        tar.follow_symlinks(false);
        add(&mut tar, times, dir, Path::new(""))?;
        tar.into_inner()?.finish()
    })
}

/// Adds `path`, which is `name` in the archive (the root is `.`), and what is below it.
fn add(tar: &mut Builder<Frames<'_, '_>>, times: Times<'_>, path: &Path, name: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let mut header = Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(times(name)).unwrap_or(0));
    let entry = if name.as_os_str().is_empty() { Path::new(".") } else { name };
    // What another user's umask would make of them; git records only whether a file is executable.
    let executable = meta.mode() & 0o100 != 0;
    let kind = meta.file_type();
    if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        return tar.append_link(&mut header, entry, fs::read_link(path)?);
    }
    if kind.is_file() {
        header.set_entry_type(EntryType::Regular);
        let writable = meta.mode() & 0o200 != 0;
        header.set_mode(if executable { 0o755 } else { 0o444 | if writable { 0o200 } else { 0 } });
        header.set_size(meta.len());
        return tar.append_data(&mut header, entry, fs::File::open(path)?);
    }
    if !kind.is_dir() {
        return Err(io::Error::other(format!("{} is no file", path.display())));
    }
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, entry, io::empty())?;
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name());
    }
    names.sort_unstable();
    names.iter().try_for_each(|entry| add(tar, times, &path.join(entry), &name.join(entry)))
}

/// Takes bytes, and writes them as frames in their order.
struct Frames<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    out: &'env mut fs::File,
    unwanted: &'env AtomicBool,
    threads: usize,
    filling: Vec<u8>,
    under_way: VecDeque<ScopedJoinHandle<'scope, io::Result<Vec<u8>>>>,
}

impl Frames<'_, '_> {
    fn cut(&mut self) -> io::Result<()> {
        if self.unwanted.load(Ordering::Relaxed) {
            return Err(io::Error::other(Unwanted));
        }
        while self.under_way.len() >= self.threads {
            self.write_first()?;
        }
        let content = std::mem::take(&mut self.filling);
        self.under_way.push_back(self.scope.spawn(move || zstd::bulk::compress(&content, LEVEL)));
        Ok(())
    }

    fn write_first(&mut self) -> io::Result<()> {
        let Some(first) = self.under_way.pop_front() else { return Ok(()) };
        let frame = first.join().map_err(|_| io::Error::other("compression failed"))??;
        self.out.write_all(&frame)
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.filling.is_empty() {
            self.cut()?;
        }
        while !self.under_way.is_empty() {
            self.write_first()?;
        }
        self.out.sync_data()
    }
}

impl Write for Frames<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = FRAME.saturating_sub(self.filling.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
        if self.filling.capacity() == 0 {
            self.filling.reserve_exact(FRAME);
        }
        self.filling.extend_from_slice(taken);
        if self.filling.len() >= FRAME {
            self.cut()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    fn archived(dir: &Path) -> Vec<u8> {
        let mut out = tempfile::tempfile().unwrap();
        write(dir, &|_| 7, &mut out, &AtomicBool::new(false)).unwrap();
        io::Seek::rewind(&mut out).unwrap();
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn entries_are_sorted_owned_by_root_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let long = "l".repeat(120);
        // Two frames and a bit, so that their order shows.
        let big: Vec<u8> = (0..2 * FRAME + 100).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b").join(&long), &big).unwrap();
        fs::write(dir.path().join("a"), "a").unwrap();
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("a", dir.path().join("c")).unwrap();
        let bytes = archived(dir.path());
        let tar = zstd::stream::decode_all(bytes.as_slice()).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert_eq!(entry.header().uid().unwrap(), 0);
            seen.push((entry.path().unwrap().into_owned(), entry.header().mode().unwrap(), content));
        }
        let names: Vec<_> = seen.iter().map(|(name, mode, _)| (name.to_str().unwrap(), *mode)).collect();
        let long = format!("b/{long}");
        let expected = [(".", 0o755), ("a", 0o755), ("b", 0o755), (long.as_str(), 0o644), ("c", 0o777)];
        assert_eq!(names, expected);
        assert_eq!(seen[3].2, big);
    }

    #[test]
    fn equal_directories_make_equal_archives() {
        let [one, two] = [["x", "y"], ["y", "x"]].map(|names| {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                fs::write(dir.path().join(name), name).unwrap();
            }
            archived(dir.path())
        });
        assert_eq!(one, two);
    }

    #[test]
    fn what_is_unwanted_ends_early() {
        let dir = tempfile::tempdir().unwrap();
        // Noticed at the end of the archive, and at the end of a frame.
        for bytes in [1, FRAME + 1] {
            fs::write(dir.path().join("a"), vec![1; bytes]).unwrap();
            let mut out = tempfile::tempfile().unwrap();
            let error = write(dir.path(), &|_| 7, &mut out, &AtomicBool::new(true)).unwrap_err();
            assert!(Unwanted::is(&error), "{error}");
        }
    }
}
