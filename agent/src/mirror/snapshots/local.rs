//! A mirror's snapshots on this disk: whole ones have their manifest beside them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{blockfile::Digest, files, snapshot::manifest::Snapshot};

/// The directory with one mirror's snapshots.
#[derive(Clone, Debug)]
pub(super) struct Local {
    dir: PathBuf,
}

impl Local {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where the archive called `digest` is, or will be.
    pub(super) fn archive(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}.tar.zst"))
    }

    fn manifest(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}.json"))
    }

    /// Makes the directory.
    pub(super) fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)
    }

    /// The newest whole snapshot that an earlier process left.
    pub(super) fn find(&self) -> Option<Snapshot> {
        let entries = fs::read_dir(&self.dir).ok()?;
        let manifests = entries.flatten().map(|entry| entry.path());
        let manifests = manifests.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let found = manifests.filter_map(|path| Snapshot::parse(&fs::read(path).ok()?).ok());
        let whole = found.filter(|snapshot| {
            fs::metadata(self.archive(snapshot.digest)).is_ok_and(|meta| meta.len() == snapshot.bytes)
        });
        whole.max_by_key(|snapshot| snapshot.time)
    }

    /// Says that the archive of `snapshot` is whole: it is found after a restart.
    pub(super) fn keep(&self, snapshot: &Snapshot) -> io::Result<()> {
        files::replace(&self.manifest(snapshot.digest), &snapshot.to_json())
    }

    /// Removes one archive; who reads it goes on.
    pub(super) fn remove(&self, digest: Digest) -> io::Result<()> {
        for path in [self.manifest(digest), self.archive(digest)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all but `kept`; who reads the others goes on.
    pub(super) fn remove_others(&self, kept: &[Digest]) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let stays = |path: &Path| kept.iter().any(|d| path == self.archive(*d) || path == self.manifest(*d));
        for entry in entries {
            let path = entry?.path();
            if !stays(&path) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}
