//! Where a clone grows before it has its name.
//!
//! Beside a directory that does not exist yet, `.DIR.tarn-XXXX`: the clone is renamed, in one instant. Inside one that
//! exists and is empty (it may be a mount, or somebody's current directory), `.tarn-XXXX`: its entries are moved up,
//! `.git` last. A staging directory is locked while its owner lives; those of the dead are removed by the next run.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// Why there is no place to clone to.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// As `git clone` says it.
    #[error("destination path '{}' already exists and is not an empty directory", dir.display())]
    Taken {
        /// The directory.
        dir: PathBuf,
    },
    /// A directory could not be made, read or renamed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StagingError {
    let path = path.to_owned();
    move |source| StagingError::Io { what, path, source }
}

/// A directory in which a clone grows; removed with all in it when dropped.
#[derive(Debug)]
pub struct Staging {
    place: Place,
    root: PathBuf,
    /// Held as long as this is: tells others that the owner lives.
    _lock: File,
    busy: Busy,
}

/// Where the clone is to be in the end.
#[derive(Debug)]
enum Place {
    /// A path where nothing is.
    New(PathBuf),
    /// An empty directory.
    Empty(PathBuf),
}

/// Held by threads that write into the staging directory, so that it is not removed under them.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<Mutex<()>>);

impl Busy {
    /// Marks the directory as being written to.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staging {
    /// Makes a staging directory for a clone at `dir`, and removes those that dead runs left there.
    ///
    /// # Errors
    /// `dir` is there and not empty; or nothing can be made there.
    pub fn make(dir: &Path) -> Result<Self, StagingError> {
        let taken = || StagingError::Taken { dir: dir.to_owned() };
        let (place, home, prefix) = match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = dir.file_name().ok_or_else(taken)?;
                let home = match dir.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
                    _ => PathBuf::from("."),
                };
                fs::create_dir_all(&home).map_err(failed("create", &home))?;
                let mut prefix = OsString::from(".");
                prefix.push(name);
                prefix.push(".tarn-");
                (Place::New(dir.to_owned()), home, prefix)
            }
            Err(error) => return Err(failed("look at", dir)(error)),
            Ok(_) if dir.is_dir() => (Place::Empty(dir.to_owned()), dir.to_owned(), OsString::from(".tarn-")),
            Ok(_) => return Err(taken()),
        };
        let home = home.canonicalize().map_err(failed("find", &home))?;
        remove_abandoned(&home, &prefix);
        if matches!(place, Place::Empty(_)) {
            let mut entries = fs::read_dir(&home).map_err(failed("read", &home))?;
            if entries.next().is_some() {
                return Err(taken());
            }
        }
        let (root, lock) = create(&home, &prefix)?;
        let staging = Self { place, root, _lock: lock, busy: Busy::default() };
        fs::create_dir(staging.clone_dir()).map_err(failed("create", &staging.root))?;
        Ok(staging)
    }

    /// Where the clone grows.
    pub fn clone_dir(&self) -> PathBuf {
        self.root.join("clone")
    }

    /// Where a file of the run's own may be.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The mark of threads that write here.
    pub fn busy(&self) -> Busy {
        self.busy.clone()
    }

    /// Starts over with an empty directory for the clone.
    ///
    /// # Errors
    /// The old one cannot be removed.
    pub fn clear(&self) -> Result<(), StagingError> {
        let dir = self.clone_dir();
        let _idle = self.busy.hold();
        remove(&dir).map_err(failed("remove", &dir))?;
        fs::create_dir(&dir).map_err(failed("create", &dir))
    }

    /// Gives the clone its name.
    ///
    /// # Errors
    /// Something else took the name meanwhile; or the file system fails.
    pub fn publish(self) -> Result<PathBuf, StagingError> {
        let from = self.clone_dir();
        let dir = match &self.place {
            Place::New(dir) => {
                fs::rename(&from, dir).map_err(|source| match source.kind() {
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
                        StagingError::Taken { dir: dir.clone() }
                    }
                    _ => failed("rename the clone to", dir)(source),
                })?;
                dir
            }
            Place::Empty(dir) => {
                move_up(&from, dir)?;
                dir
            }
        };
        dir.canonicalize().map_err(failed("find", dir))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _idle = self.busy.hold();
        // Whatever stays is removed by the next run: nobody holds its lock then.
        let _ = remove(&self.root);
    }
}

/// Moves every entry of the clone into `dir`, `.git` last: before that there is no repository in `dir`.
fn move_up(from: &Path, dir: &Path) -> Result<(), StagingError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(failed("read", from))? {
        names.push(entry.map_err(failed("read", from))?.file_name());
    }
    names.sort_by_key(|name| name == OsStr::new(".git"));
    for name in names {
        let to = dir.join(&name);
        if to.symlink_metadata().is_ok() {
            return Err(StagingError::Taken { dir: dir.to_owned() });
        }
        fs::rename(from.join(&name), &to).map_err(failed("move the clone to", &to))?;
    }
    Ok(())
}

/// Makes a directory that only this user may enter, and locks it.
fn create(home: &Path, prefix: &OsStr) -> Result<(PathBuf, File), StagingError> {
    // Process ids recur, also across machines that share a file system; the next number is taken then.
    for number in 0..1000_u32 {
        let mut name = prefix.to_owned();
        name.push(format!("{}-{number}", std::process::id()));
        let root = home.join(name);
        match DirBuilder::new().mode(0o700).create(&root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made.map_err(failed("create", &root))?,
        }
        if let Some(lock) = lock(&root) {
            return Ok((root, lock));
        }
    }
    Err(failed("create", &home.join(prefix))(io::Error::from(io::ErrorKind::AlreadyExists)))
}

/// Locks a staging directory; none if its owner lives, or it went away.
fn lock(root: &Path) -> Option<File> {
    let dir = File::open(root).ok()?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Whoever held it before may have removed it.
    let (held, named) = (dir.metadata().ok()?, fs::symlink_metadata(root).ok()?);
    ((held.dev(), held.ino()) == (named.dev(), named.ino())).then_some(dir)
}

/// Removes the staging directories whose owners are dead. What cannot be removed is left: it harms nobody.
fn remove_abandoned(home: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(home) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if let Some(_lock) = lock(&path) {
                let _ = remove(&path);
            }
        }
    }
}

/// Removes a directory; tries again for a while, because a child that was killed may still create files in it.
fn remove(dir: &Path) -> io::Result<()> {
    for _ in 0..50 {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => return done,
        }
    }
    fs::remove_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_appears_whole_and_nothing_else_stays() {
        let home = tempfile::tempdir().unwrap();
        for (name, there) in [("new", false), ("empty", true)] {
            let dir = home.path().join(name);
            if there {
                fs::create_dir(&dir).unwrap();
            }
            let staging = Staging::make(&dir).unwrap();
            fs::create_dir(staging.clone_dir().join(".git")).unwrap();
            fs::write(staging.clone_dir().join("file"), "x").unwrap();
            fs::write(staging.file("bundle"), "x").unwrap();
            staging.publish().unwrap();
            let mut names: Vec<_> =
                fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, [".git", "file"]);
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_the_dead_left_is_removed_and_what_the_living_use_is_not() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a");
        let living = Staging::make(&dir).unwrap();
        let dead = home.path().join(".a.tarn-1-7");
        fs::create_dir_all(dead.join("clone/.git")).unwrap();
        let other = home.path().join(".b.tarn-1-7");
        fs::create_dir(&other).unwrap();
        drop(Staging::make(&dir).unwrap());
        assert!(living.clone_dir().exists() && other.exists() && !dead.exists());
        drop(living);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_with_content_and_a_file_are_in_the_way() {
        let home = tempfile::tempdir().unwrap();
        let (dir, file) = (home.path().join("dir"), home.path().join("file"));
        fs::create_dir_all(dir.join("content")).unwrap();
        fs::write(&file, "").unwrap();
        for taken in [&dir, &file] {
            assert!(matches!(Staging::make(taken), Err(StagingError::Taken { .. })));
        }
        let late = home.path().join("late");
        let staging = Staging::make(&late).unwrap();
        fs::create_dir_all(late.join("content")).unwrap();
        assert!(matches!(staging.publish(), Err(StagingError::Taken { .. })));
    }
}
