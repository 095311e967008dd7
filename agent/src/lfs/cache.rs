//! Objects on the disk, where they outlive the process.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::Stream;
use tarn_crds::repo::RepoId;

use super::FetchError;
use crate::{
    metrics::{Lookup, Metrics},
    protocol::lfs::LfsOid,
    spool::{Bounds, Follower, Keep, Sink, Spool, SpoolError, Usage},
};

/// The most objects that are kept: some hundred bytes of memory each.
const MAX_KEPT: usize = 1_000_000;

type Key = (RepoId, LfsOid);

/// The cache. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cache {
    pub(super) spool: Spool<Key, FetchError>,
    root: PathBuf,
    metrics: Metrics,
}

impl Cache {
    pub(super) fn open(root: PathBuf, incoming: &Path, budget: u64, metrics: Metrics) -> io::Result<Self> {
        let bounds = Bounds { bytes: budget, files: MAX_KEPT, age: None };
        let spool = Spool::new("lfs", incoming, bounds, &metrics)?;
        fs::create_dir_all(&root)?;
        let mut found = Vec::new();
        find_repositories(&root, &root, &mut found)?;
        found.sort_unstable_by_key(|object: &Object| object.used);
        for Object { key, path, bytes, .. } in found {
            spool.adopt(key, path, bytes);
        }
        spool.set_budget(budget);
        Ok(Self { spool, root, metrics })
    }

    pub(super) fn dir(&self, repo: &RepoId) -> PathBuf {
        self.root.join(repo.dir())
    }

    /// The object's length, if it is here; that counts as a use.
    pub(super) fn holds(&self, repo: &RepoId, oid: LfsOid) -> Option<u64> {
        self.spool.holds(&(repo.clone(), oid))
    }

    /// The object, if it is whole and here.
    pub(super) async fn kept(&self, repo: &RepoId, oid: LfsOid) -> Option<LfsReader> {
        let follower = self.spool.get(&(repo.clone(), oid)).await?;
        follower.touch();
        let bytes = follower.length()?;
        Some(LfsReader { bytes, follower: Arc::new(follower) })
    }

    /// The object: the kept or growing one, or a new one that `fill` writes, as in [`Spool::get_or_make`]. Returns once
    /// its length is known and there is something to read.
    pub(super) async fn open_or_fill<F>(
        &self,
        repo: &RepoId,
        oid: LfsOid,
        fill: impl FnOnce(Sink<FetchError>) -> F + Send + 'static,
    ) -> Result<LfsReader, Arc<FetchError>>
    where
        F: Future<Output = Result<u64, FetchError>> + Send + 'static,
    {
        let to = self.dir(repo).join(oid.path());
        let keep = Keep::As(Box::new(move |from| place(from, &to).map(|()| Some(to))));
        let follower = self.spool.get_or_make((repo.clone(), oid), keep, fill).await;
        self.metrics.lfs.lookups.get_or_create(&follower.lookup()).inc();
        if follower.lookup() == Lookup::HIT {
            follower.touch();
        }
        let announced = follower.announced().await.map_err(why)?;
        follower.begun().await.map_err(why)?;
        let bytes = announced.ok_or_else(|| Arc::new(FetchError::GivenUp))?;
        Ok(LfsReader { bytes, follower: Arc::new(follower) })
    }

    pub(super) fn forget(&self, repo: &RepoId) {
        self.spool.discard_all(|(of, _)| of == repo);
    }

    /// The objects of all repositories, each with its file.
    pub(super) fn objects(&self) -> io::Result<Vec<(RepoId, LfsOid, PathBuf)>> {
        let mut found = Vec::new();
        find_repositories(&self.root, &self.root, &mut found)?;
        Ok(found.into_iter().map(|Object { key: (repo, oid), path, .. }| (repo, oid, path)).collect())
    }

    pub(super) fn usage(&self) -> Usage {
        self.spool.usage()
    }
}

/// An object to read.
#[derive(Clone, Debug)]
pub struct LfsReader {
    /// Its length.
    pub bytes: u64,
    follower: Arc<Follower<FetchError>>,
}

impl LfsReader {
    /// Waits until all of it is here, and known to be right.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn whole(&self) -> Result<(), Arc<FetchError>> {
        self.follower.whole().await.map(drop).map_err(why)
    }

    /// Reads this part as it comes.
    pub fn read(
        &self,
        part: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, SpoolError<FetchError>>> + Send + use<> {
        self.follower.read_part(part)
    }

    /// Makes `to` another name of the object's file, which must be whole.
    ///
    /// # Errors
    /// The disk's.
    pub fn link(&self, to: &Path) -> io::Result<()> {
        self.follower.link(to)
    }
}

fn why(error: SpoolError<FetchError>) -> Arc<FetchError> {
    match error {
        SpoolError::Maker(error) => error,
        SpoolError::Disk(error) => Arc::new(io::Error::new(error.kind(), error).into()),
        SpoolError::NoRoom(_) | SpoolError::TooSlow | SpoolError::GivenUp => Arc::new(FetchError::GivenUp),
    }
}

/// Gives a file that is whole its final name.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    fs::File::open(from)?.sync_data()?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::rename(from, to)
}

/// An object that an earlier process kept.
struct Object {
    key: Key,
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Looks for repositories: the first directory on the way down whose name ends in `.git` is one.
fn find_repositories(root: &Path, dir: &Path, found: &mut Vec<Object>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        if !path.as_os_str().as_encoded_bytes().ends_with(b".git") {
            find_repositories(root, &path, found)?;
        } else if let Some(repo) = path.strip_prefix(root).ok().and_then(|dir| RepoId::from_dir(dir).ok()) {
            find_objects(&repo, &path, &path, found)?;
        }
    }
    Ok(())
}

/// Finds the objects of one repository: files whose place says that they are one.
fn find_objects(repo: &RepoId, root: &Path, dir: &Path, found: &mut Vec<Object>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, meta) = (entry.path(), entry.metadata()?);
        if meta.is_dir() {
            find_objects(repo, root, &path, found)?;
            continue;
        }
        let oid = entry.file_name().to_str().and_then(LfsOid::parse);
        let Some(oid) = oid.filter(|oid| root.join(oid.path()) == path) else { continue };
        let key = (repo.clone(), oid);
        found.push(Object { key, path, bytes: meta.len(), used: meta.modified()? });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
