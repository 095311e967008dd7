//! The data directory: layout, lock, staging, and cleaning at start.
//!
//! Other users cannot read it, whatever the umask: not the directory, if it is this user's own, nor those in it.
//!
//! ```text
//! DATA/lock                       held while an agent runs
//! DATA/mirrors/<host>/<path>.git  whole mirrors: they appear here by rename only
//! DATA/snapshots/<host>/<path>.git  archives that clients download, and those being downloaded
//! DATA/lfs/<host>/<path>.git      LFS objects, and archives of them
//! DATA/incoming/                  LFS objects on their way; emptied at start
//! DATA/staging/                   what is being made; emptied at start
//! DATA/damaged/<host>/<path>.git/<time>  mirrors that the disk has damaged, for a day
//! DATA/parts/<host>/<path>.git    what a restore under way has downloaded
//! DATA/packs/                     cached answers; emptied at start
//! DATA/private/                   files with credentials for git, unless they have a directory elsewhere; mode 0700, emptied at start
//! DATA/home/                      git's HOME, with the only configuration it reads
//! DATA/declarations.json          what was declared last, without anything secret; mode 0600
//! ```

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tarn_crds::repo::RepoId;

use crate::{
    files::{STAGED_SUFFIX, blocking, make_private, remove_tree},
    git::orphans,
};

/// How long an agent that is just ending may keep the lock: a killed one's last child holds it until that
/// has become git.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// How long the parts of a restore are kept for a process that goes on with it: a pod comes back within minutes, and
/// what is restored a day later is another checkpoint.
const PARTS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Why a data directory cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Another agent runs on it.
    #[error("{0} is in use by another tarn-agent: stop that one, or give this one its own --data")]
    InUse(PathBuf),
    /// It cannot be read or written.
    #[error("cannot use {path}: {source}; --data must name a directory that this user may read and write")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes that this user may still write.
    pub free: u64,
}

/// An open data directory. Its lock is held until this is dropped.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    credentials: PathBuf,
    _lock: fs::File,
    next: AtomicU64,
}

impl Disk {
    /// Opens and locks `root`, making it if need be; ends processes that a killed agent left behind, then removes its
    /// leftovers. Files with credentials go to the directory `credentials`, which is emptied, or below `root`.
    ///
    /// # Errors
    /// It is in use, or cannot be used.
    pub fn open(root: &Path, credentials: Option<PathBuf>) -> Result<Self, DiskError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::Io { path, source }
        };
        make_private(root).map_err(at(root))?;
        let root = root.canonicalize().map_err(at(root))?;
        let lock_path = root.join("lock");
        let lock = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(at(&lock_path))?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "runs once, before the runtime serves anything"
                    )]
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(fs::TryLockError::WouldBlock) => return Err(DiskError::InUse(root)),
                Err(fs::TryLockError::Error(source)) => return Err(at(&lock_path)(source)),
            }
        }
        let credentials = credentials.unwrap_or_else(|| root.join("private"));
        let disk = Self { root, credentials, _lock: lock, next: AtomicU64::new(0) };
        let ended = orphans::end(&disk.mark()).map_err(at(&disk.root))?;
        if ended > 0 {
            tracing::warn!(processes = ended, "ended processes that a killed agent left behind");
        }
        for name in ["mirrors", "snapshots", "lfs", "incoming", "damaged", "parts", "packs"] {
            let path = disk.root.join(name);
            make_private(&path).map_err(at(&path))?;
        }
        // An earlier agent may have left some where none are kept now.
        let private = disk.root.join("private");
        remove_tree(&private).map_err(at(&private))?;
        for path in [disk.root.join("staging"), disk.home(), disk.private()] {
            remove_tree(&path).and_then(|()| make_private(&path)).map_err(at(&path))?;
        }
        let private = disk.private();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).map_err(at(&private))?;
        let mirrors = disk.root.join("mirrors");
        let parts = disk.root.join("parts");
        clean_parts(&parts, &mirrors).map_err(at(&parts))?;
        let removed = clean(&mirrors).map_err(at(&mirrors))?;
        if removed > 0 {
            tracing::warn!(files = removed, "removed leftovers of unfinished work");
        }
        Ok(disk)
    }

    /// By what this directory's git children are recognised.
    pub fn mark(&self) -> OsString {
        self.root.clone().into_os_string()
    }

    /// Where a mirror lives, whether it is there or not.
    pub fn mirror(&self, id: &RepoId) -> PathBuf {
        self.root.join("mirrors").join(id.dir())
    }

    /// Where a mirror's snapshots are.
    pub fn snapshots(&self, id: &RepoId) -> PathBuf {
        self.root.join("snapshots").join(id.dir())
    }

    /// Where LFS objects are, of all mirrors.
    pub fn lfs(&self) -> PathBuf {
        self.root.join("lfs")
    }

    /// Where the restore of a mirror keeps what it has downloaded; a killed one's is found there again.
    pub fn parts(&self, id: &RepoId) -> PathBuf {
        self.root.join("parts").join(id.dir())
    }

    /// Where a mirror's damaged data are, each by the Unix time at which it was set aside.
    pub fn damaged(&self, id: &RepoId) -> PathBuf {
        self.root.join("damaged").join(id.dir())
    }

    /// When the mirror was found damaged, as far as its damaged data are still here.
    pub fn damages(&self, id: &RepoId) -> Vec<u64> {
        let entries = fs::read_dir(self.damaged(id)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Moves the damaged mirror aside whole, to be kept for a while; `now` is Unix time.
    ///
    /// # Errors
    /// It cannot be moved.
    pub fn set_aside(&self, id: &RepoId, now: u64) -> io::Result<()> {
        let kept = self.damaged(id);
        fs::create_dir_all(&kept)?;
        let aside = kept.join(now.to_string());
        // Twice within a second: the former one says as much.
        self.discard(&aside)?;
        match fs::rename(self.mirror(id), aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the mirror's damaged data that were set aside before this Unix time.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn forget_damage(&self, id: &RepoId, before: u64) -> io::Result<()> {
        let old = self.damages(id).into_iter().filter(|at| *at < before);
        old.map(|at| self.damaged(id).join(at.to_string())).try_for_each(|dir| self.discard(&dir))
    }

    /// Where LFS objects are while they arrive.
    pub fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Where cached answers go.
    pub fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    /// What the agent was told to mirror, for a start without whoever tells it.
    pub fn declarations(&self) -> PathBuf {
        self.root.join("declarations.json")
    }

    /// Git's HOME.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// Where files with credentials go.
    pub fn private(&self) -> PathBuf {
        self.credentials.clone()
    }

    /// A path for something that is being made, on the mirrors' file system; nothing is there yet.
    pub fn staging(&self) -> PathBuf {
        self.root.join("staging").join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Puts the finished `staged` in place of what is at `path`, if anything. The old one is moved aside, and removed
    /// only once the new one is there: that takes minutes for 100 GB. If it cannot be removed, the next start does.
    ///
    /// # Errors
    /// The rename fails; then the old one is in its place again.
    pub fn publish(&self, staged: &Path, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let old = self.aside(path)?;
        if let Err(error) = fs::rename(staged, path) {
            if let Some(old) = &old {
                fs::rename(old, path)?;
            }
            return Err(error);
        }
        if let Some(parent) = path.parent() {
            fs::File::open(parent)?.sync_all()?;
        }
        if let Some(Err(error)) = old.map(fs::remove_dir_all) {
            tracing::warn!(%error, "what a new directory has replaced is removed at the next start");
        }
        Ok(())
    }

    /// Removes the directory at `path`, at once for all who look: it is moved aside first.
    ///
    /// # Errors
    /// It cannot be moved or removed.
    pub fn discard(&self, path: &Path) -> io::Result<()> {
        self.aside(path)?.map_or(Ok(()), fs::remove_dir_all)
    }

    /// Moves the directory at `path`, if there is one, to a place from which the next start removes it.
    ///
    /// # Errors
    /// It cannot be moved.
    pub fn aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let aside = self.staging();
        match fs::rename(path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The volume that the data directory lies on.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn volume(&self) -> io::Result<Volume> {
        let found = rustix::fs::statvfs(&self.root)?;
        let block = found.f_frsize.max(1);
        Ok(Volume { total: found.f_blocks * block, free: found.f_bavail * block })
    }

    /// The bytes of clones, restores and archives that are on their way. Answers and LFS objects have books of their own.
    pub fn staged(&self) -> u64 {
        ["staging", "parts"].iter().map(|name| size(&self.root.join(name))).sum()
    }

    /// The data of mirrors that were set aside because the disk damaged them, each directory with its bytes.
    pub fn set_aside_data(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        repositories(&self.root.join("damaged"), &mut |path| {
            let bytes = size(&path);
            found.push((path, bytes));
        });
        found
    }

    /// The data of mirrors that `declared` does not name, each directory with its bytes.
    pub fn undeclared(&self, declared: &BTreeSet<RepoId>) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        for kind in ["mirrors", "snapshots", "lfs", "parts"] {
            let root = self.root.join(kind);
            let known: BTreeSet<PathBuf> = declared.iter().map(|id| root.join(id.dir())).collect();
            let mut take = |path: PathBuf| {
                if !known.contains(&path) {
                    let bytes = size(&path);
                    found.push((path, bytes));
                }
            };
            for host in fs::read_dir(&root).into_iter().flatten().flatten() {
                repositories(&host.path(), &mut take);
            }
        }
        found
    }

    /// Discards the work directory at `work`, off the runtime's threads. One that cannot be removed only takes room
    /// until the next start.
    pub async fn clear(self: &Arc<Self>, work: PathBuf) {
        let disk = self.clone();
        if let Err(error) = blocking(move || disk.discard(&work)).await {
            tracing::warn!(%error, "what was left in staging is removed at the next start");
        }
    }
}

/// Removes the parts of restores that nobody will go on with: those of mirrors that are whole, and those that are
/// [`PARTS_KEPT`] old.
fn clean_parts(parts: &Path, mirrors: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parts)? {
        let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
        let mirror = mirrors.join(&name);
        if !name.as_encoded_bytes().ends_with(b".git") {
            clean_parts(&path, &mirror)?;
        } else if mirror.exists() || !is_young(&path)? {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Whether anything in the directory has been written to lately.
fn is_young(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        // A clock that was set back makes nothing old.
        let age = entry?.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age < PARTS_KEPT {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Shows `each` the repositories' directories below `dir`: the first on the way down whose names end in `.git`.
fn repositories(dir: &Path, each: &mut impl FnMut(PathBuf)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().as_encoded_bytes().ends_with(b".git") {
            each(entry.path());
        } else {
            repositories(&entry.path(), each);
        }
    }
}

/// Bytes that the files below `dir` take, by their length. Files that vanish meanwhile count nothing.
pub fn size(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Removes what git and the agent leave unfinished when they are killed from all mirrors below `hosts`:
/// lock files, temporary packs and objects, staged refs. Returns how many there were.
fn clean(hosts: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for host in fs::read_dir(hosts)? {
        removed += clean_mirrors(&host?.path())?;
    }
    Ok(removed)
}

/// Looks for mirrors: the first directory on the way down whose name ends in `.git` is one. Names above it
/// are owners and groups, which may be called anything.
fn clean_mirrors(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let is_mirror = entry.file_name().as_encoded_bytes().ends_with(b".git");
            removed += if is_mirror { clean_mirror(&entry.path())? } else { clean_mirrors(&entry.path())? };
        }
    }
    Ok(removed)
}

fn clean_mirror(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, is_dir) = (entry.path(), entry.file_type()?.is_dir());
        if is_leftover(&entry.file_name()) {
            let removing = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removing?;
            removed += 1;
        } else if is_dir {
            removed += clean_mirror(&path)?;
        }
    }
    Ok(removed)
}

fn is_leftover(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    // tmp_pack_*, tmp_idx_*, tmp_rev_*, tmp_obj_*, tmp_objdir-*: object-file.c, pack-write.c, tmp-objdir.c.
    // .tmp-<pid>-pack-*: builtin/repack.c. A mirror has no loose refs, so no name in it is a user's.
    name.ends_with(STAGED_SUFFIX)
        || name.ends_with(".lock")
        || name.starts_with("tmp_")
        || name.starts_with(".tmp-")
        || name == "gc.pid"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_second_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = Disk::open(dir.path(), None).unwrap();
        let error = Disk::open(dir.path(), None).unwrap_err();
        assert!(error.to_string().contains("in use by another tarn-agent"), "{error}");
        drop(first);
        Disk::open(dir.path(), None).unwrap();
    }

    #[test]
    fn other_users_cannot_read_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let (data, credentials) = (dir.path().join("new"), dir.path().join("elsewhere/credentials"));
        for _ in 0..2 {
            fs::create_dir_all(&credentials).unwrap();
            fs::write(credentials.join("left"), "").unwrap();
            drop(Disk::open(&data, Some(credentials.clone())).unwrap());
            let below = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
            let dirs: Vec<_> = below.filter(|path| path.is_dir()).collect();
            assert!(dirs.len() > 8 && !dirs.contains(&data.join("private")), "{dirs:?}");
            for dir in dirs.iter().chain([&data, &credentials]) {
                assert_eq!(fs::metadata(dir).unwrap().mode() & 0o777, 0o700, "{}", dir.display());
                fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
            }
            assert_eq!(fs::read_dir(&credentials).unwrap().count(), 0);
        }
    }

    #[test]
    fn leftovers_go_and_mirrors_stay() {
        let dir = tempfile::tempdir().unwrap();
        drop(Disk::open(dir.path(), None).unwrap());
        let mirror = dir.path().join("mirrors/h.git/tmp_owner/group.lock/r.git");
        let pack = mirror.join("objects/pack");
        fs::create_dir_all(&pack).unwrap();
        fs::create_dir_all(mirror.join("objects/tmp_objdir-incoming-abc")).unwrap();
        fs::create_dir_all(dir.path().join("staging/0")).unwrap();
        let keep = [
            mirror.join("HEAD"),
            mirror.join("packed-refs"),
            pack.join("pack-1.pack"),
            pack.join("pack-1.idx"),
        ];
        let gone = [
            mirror.join("packed-refs.lock"),
            mirror.join("HEAD.tarn-new"),
            pack.join("tmp_pack_x"),
            pack.join(".tmp-1-pack-2.pack"),
        ];
        for file in keep.iter().chain(&gone) {
            fs::write(file, "").unwrap();
        }
        drop(Disk::open(dir.path(), None).unwrap());
        assert!(keep.iter().all(|file| file.exists()));
        assert!(gone.iter().all(|file| !file.exists()));
        assert!(!mirror.join("objects/tmp_objdir-incoming-abc").exists());
        assert!(!dir.path().join("staging/0").exists());
    }

    #[test]
    fn publishing_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), None).unwrap();
        let place = dir.path().join("mirrors/h/r.git");
        for content in ["old", "new"] {
            let staged = disk.staging();
            fs::create_dir(&staged).unwrap();
            fs::write(staged.join("x"), content).unwrap();
            disk.publish(&staged, &place).unwrap();
            assert_eq!(fs::read_to_string(place.join("x")).unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_replaced_stays() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), None).unwrap();
        let place = dir.path().join("mirrors/h/r.git");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("x"), "old").unwrap();
        disk.publish(&dir.path().join("staging/nothing"), &place).unwrap_err();
        assert_eq!(fs::read_to_string(place.join("x")).unwrap(), "old");
    }
}
