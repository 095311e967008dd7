//! What a server holds on the disk while it works: the peak of its directory, with the files that it has deleted and
//! still holds open, and with each file counted once, however many names it has.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The time between two looks.
const OFTEN: Duration = Duration::from_millis(100);
/// Bytes of a block in `st_blocks`.
const BLOCK: u64 = 512;

/// A thread that looks until it is told to stop.
#[derive(Debug)]
pub(super) struct DiskUse {
    before: u64,
    stop: Sender<()>,
    thread: JoinHandle<u64>,
}

impl DiskUse {
    /// Starts to watch the directory of a process.
    pub(super) fn watch(directory: &Path, pid: u32) -> Self {
        let (directory, before) = (directory.to_owned(), held(directory, pid));
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut peak = before;
            while stopped.recv_timeout(OFTEN) == Err(RecvTimeoutError::Timeout) {
                peak = peak.max(held(&directory, pid));
            }
            peak.max(held(&directory, pid))
        });
        Self { before, stop, thread }
    }

    /// Stops and tells by how many bytes more than at the start were held at the peak.
    pub(super) fn beyond(self) -> u64 {
        // A thread that is gone has dropped its end; then nothing was seen.
        let _ = self.stop.send(());
        self.thread.join().unwrap_or_default().saturating_sub(self.before)
    }
}

/// Bytes on the disk in a directory, and in what a process holds open of it.
pub(super) fn held(directory: &Path, pid: u32) -> u64 {
    let mut files = HashMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        // What is gone by now is not held.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => directories.push(entry.path()),
                Ok(meta) => count(&mut files, &meta),
                Err(_) => {}
            }
        }
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let named: PathBuf = fs::read_link(entry.path()).unwrap_or_default();
        if named.starts_with(directory)
            && let Ok(meta) = fs::metadata(entry.path())
        {
            count(&mut files, &meta);
        }
    }
    files.values().sum()
}

fn count(files: &mut HashMap<(u64, u64), u64>, meta: &Metadata) {
    if meta.is_file() {
        files.insert((meta.dev(), meta.ino()), meta.blocks() * BLOCK);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn deleted_files_count_while_they_are_open_and_links_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let noise = vec![7; 1 << 20];
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("below/file"), &noise).unwrap();
        fs::hard_link(dir.path().join("below/file"), dir.path().join("link")).unwrap();
        let mut deleted = fs::File::create(dir.path().join("deleted")).unwrap();
        deleted.write_all(&noise).unwrap();
        deleted.sync_all().unwrap();
        fs::File::open(dir.path().join("link")).unwrap().sync_all().unwrap();
        let watch = DiskUse::watch(dir.path(), std::process::id());
        fs::remove_file(dir.path().join("deleted")).unwrap();
        let held = || held(dir.path(), std::process::id()) >> 20;
        assert_eq!(held(), 2);
        drop(deleted);
        assert_eq!(held(), 1);
        let more = dir.path().join("more");
        fs::write(&more, &noise).unwrap();
        fs::File::open(&more).unwrap().sync_all().unwrap();
        assert_eq!(watch.beyond() >> 20, 0, "two before, two after");
    }
}
