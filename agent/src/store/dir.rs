//! A store in a directory, which several agents may share.
//!
//! An object is a file that is never written under its name: it is made in `.staging`, synced, and then
//! linked (which fails where the name exists) or renamed. Readers hold a file open, so replacing or deleting
//! it takes nothing from them. Directories are synced from the object's up to the root before a write
//! returns, also those that someone else made a moment ago.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use jiff::Timestamp;
use rustix::{fs::OFlags, io::Errno};

use super::{
    Body, MAX_SMALL, Meta, Page, PutMode, STAGING, Store, StoreError, Version, check_key, check_prefix,
};

/// How much is read or copied in one go.
const CHUNK: usize = 256 << 10;

/// What lies in `.staging` unchanged for so long is not being written any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// The most objects in a page.
const PAGE: usize = 1000;

/// A store in a directory.
#[derive(Clone, Debug)]
pub struct DirStore {
    root: Arc<Path>,
}

impl DirStore {
    /// Opens the directory, making it where it is missing.
    ///
    /// # Errors
    /// It cannot be made or written to.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(root.join(STAGING)).map_err(|error| failed(root, &error))?;
        let root = fs::canonicalize(root).map_err(|error| failed(root, &error))?;
        // A directory that cannot be written to is told of now, not at the first checkpoint.
        drop(Staged::new(&root)?);
        Ok(Self { root: root.into() })
    }

    /// Runs `work` where it may block. It goes on to its end even if the future is dropped.
    fn blocking<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let root = self.root.clone();
        async move {
            let done = tokio::task::spawn_blocking(move || work(&root)).await;
            done.map_err(|error| StoreError::Failed(error.to_string()))?
        }
        .boxed()
    }
}

impl Store for DirStore {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> BoxFuture<'a, Result<(), StoreError>> {
        let key = key.to_owned();
        self.blocking(move |root| {
            let path = object_path(root, &key)?;
            if body.len() as u64 > MAX_SMALL {
                return Err(StoreError::TooLarge { key, limit: MAX_SMALL });
            }
            let mut staged = Staged::new(root)?;
            staged.write(&body)?;
            staged.publish(root, &path, &key, mode)
        })
    }

    fn put_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<(), StoreError>> {
        let (key, file) = (key.to_owned(), file.to_owned());
        self.blocking(move |root| {
            let path = object_path(root, &key)?;
            let mut source = File::open(&file).map_err(|error| StoreError::local(&file, &error))?;
            let mut staged = Staged::new(root)?;
            let mut chunk = vec![0; CHUNK];
            loop {
                let read = source.read(&mut chunk).map_err(|error| StoreError::local(&file, &error))?;
                match chunk.get(..read) {
                    Some([]) | None => break,
                    Some(bytes) => staged.write(bytes)?,
                }
            }
            staged.publish(root, &path, &key, PutMode::Overwrite)
        })
    }

    fn get<'a>(&'a self, key: &'a str, limit: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        let (key, limit) = (key.to_owned(), limit.min(MAX_SMALL));
        self.blocking(move |root| {
            let (path, file, known) = open_object(root, &key)?;
            if known.len() > limit {
                return Err(StoreError::TooLarge { key, limit });
            }
            let mut body = Vec::with_capacity(usize::try_from(known.len()).unwrap_or_default());
            file.take(limit).read_to_end(&mut body).map_err(|error| failed(&path, &error))?;
            if body.len() as u64 != known.len() {
                return Err(StoreError::Short { key, end: known.len() });
            }
            Ok(body.into())
        })
    }

    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: Range<u64>,
        version: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Body, StoreError>> {
        let (key, version) = (key.to_owned(), version.cloned());
        self.blocking(move |root| {
            let (path, file, known) = open_object(root, &key)?;
            if version.is_some_and(|version| version != version_of(&known)) {
                return Err(StoreError::Changed(key));
            }
            if range.start > range.end || range.end > known.len() {
                return Err(StoreError::Short { key, end: range.end });
            }
            Ok(read_range(key, path, file, range))
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Meta, Version), StoreError>> {
        let key = key.to_owned();
        self.blocking(move |root| {
            let (_, _, known) = open_object(root, &key)?;
            let version = version_of(&known);
            Ok((meta(key, &known), version))
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, from: Option<&'a str>) -> BoxFuture<'a, Result<Page, StoreError>> {
        let (prefix, from) = (prefix.to_owned(), from.unwrap_or_default().to_owned());
        self.blocking(move |root| {
            check_prefix(&prefix)?;
            let mut objects = Vec::new();
            walk(&Wanted { root, prefix: &prefix, from: &from }, "", &mut objects)?;
            let more = objects.len() > PAGE;
            objects.truncate(PAGE);
            let next = objects.last().filter(|_| more).map(|last| last.key.clone());
            Ok(Page { objects, next })
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        let key = key.to_owned();
        self.blocking(move |root| {
            let path = object_path(root, &key)?;
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if is_absent(&error) || error.kind() == ErrorKind::IsADirectory => return Ok(()),
                Err(error) => return Err(failed(&path, &error)),
            }
            // Directories go with their last object. A writer that loses one makes it anew.
            let mut parent = path.parent();
            while let Some(dir) = parent.filter(|dir| *dir != root) {
                if fs::remove_dir(dir).is_err() {
                    break;
                }
                parent = dir.parent();
            }
            parent.map_or(Ok(()), |dir| match sync_dir(dir) {
                Err(error) if !is_absent(&error) => Err(failed(dir, &error)),
                _ => Ok(()),
            })
        })
    }

    /// A file in `.staging` does not know its prefix, so all of them go that nobody has written to for
    /// `age`, and for a day.
    fn abort_uploads<'a>(
        &'a self,
        prefix: &'a str,
        age: Duration,
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        let prefix = prefix.to_owned();
        self.blocking(move |root| {
            check_prefix(&prefix)?;
            let staging = root.join(STAGING);
            let entries = match fs::read_dir(&staging) {
                Err(error) if is_absent(&error) => return Ok(0),
                entries => entries.map_err(|error| failed(&staging, &error))?,
            };
            let mut removed = 0;
            for entry in entries {
                let entry = entry.map_err(|error| failed(&staging, &error))?;
                let written = entry.metadata().and_then(|known| known.modified());
                let idle = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
                if idle.is_some_and(|idle| idle > age.max(ABANDONED)) && fs::remove_file(entry.path()).is_ok()
                {
                    removed += 1;
                }
            }
            Ok(removed)
        })
    }
}

/// A file in `.staging`; it goes when dropped.
struct Staged {
    path: PathBuf,
    file: File,
}

impl Staged {
    fn new(root: &Path) -> Result<Self, StoreError> {
        let staging = root.join(STAGING);
        let path = staging.join(format!("{:032x}", rand::random::<u128>()));
        let mut attempts = 0;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { path, file }),
                Err(error) if error.kind() == ErrorKind::NotFound && attempts == 0 => {
                    fs::create_dir_all(&staging).map_err(|error| failed(&staging, &error))?;
                    attempts += 1;
                }
                Err(error) => return Err(failed(&path, &error)),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|error| failed(&self.path, &error))
    }

    /// Makes the file the object at `path`, for good.
    fn publish(self, root: &Path, path: &Path, key: &str, mode: PutMode) -> Result<(), StoreError> {
        self.file.sync_all().map_err(|error| failed(&self.path, &error))?;
        let parent = path.parent().unwrap_or(root);
        let mut attempts = 0;
        loop {
            match fs::create_dir_all(parent) {
                // A delete takes directories away while they are made: it may leave the impression that one exists
                // and is none.
                Err(error)
                    if attempts < 20 && (is_absent(&error) || error.kind() == ErrorKind::AlreadyExists) =>
                {
                    attempts += 1;
                    continue;
                }
                made => made.map_err(|error| failed(parent, &error))?,
            }
            let named = match mode {
                PutMode::Create => fs::hard_link(&self.path, path),
                PutMode::Overwrite => fs::rename(&self.path, path),
            };
            match named {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(StoreError::Exists(key.into()));
                }
                // A delete took the directory that was just made.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts < 20 => attempts += 1,
                Err(error) if no_links(&error) && mode == PutMode::Create => {
                    let remedy = "the store's directory must be on a file system with hard links";
                    return Err(StoreError::Failed(format!("{}: {error}; {remedy}", path.display())));
                }
                Err(error) => return Err(failed(path, &error)),
            }
        }
        for dir in parent.ancestors().take_while(|dir| dir.starts_with(root)) {
            match sync_dir(dir) {
                // Whoever deleted the object meanwhile took its directory along.
                Err(error) if !is_absent(&error) => return Err(failed(dir, &error)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is none; otherwise [`DirStore::abort_uploads`] finds it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the object is. Links inside the store are refused: they could lead out of it.
fn object_path(root: &Path, key: &str) -> Result<PathBuf, StoreError> {
    check_key(key)?;
    let mut path = root.to_owned();
    for segment in key.split('/') {
        path.push(segment);
        if fs::symlink_metadata(&path).is_ok_and(|known| known.is_symlink()) {
            let path = path.display();
            return Err(StoreError::Failed(format!("{path} is a symbolic link, which no agent makes")));
        }
    }
    Ok(path)
}

fn open_object(root: &Path, key: &str) -> Result<(PathBuf, File, Metadata), StoreError> {
    let path = object_path(root, key)?;
    // Without waiting, should it be a pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
    let found = file.and_then(|file| Ok((file.metadata()?, file)));
    match found {
        Ok((known, file)) if known.is_file() => Ok((path, file, known)),
        Ok(_) => Err(StoreError::NotFound(key.into())),
        Err(error) if is_absent(&error) => Err(StoreError::NotFound(key.into())),
        Err(error) => Err(failed(&path, &error)),
    }
}

/// The range, which lies within the file, in chunks.
fn read_range(key: String, path: PathBuf, file: File, range: Range<u64>) -> Body {
    let file = Arc::new((key, path, file));
    stream::try_unfold((file, range), |(file, range)| async move {
        let left = range.end - range.start;
        if left == 0 {
            return Ok(None);
        }
        let reader = file.clone();
        let chunk = tokio::task::spawn_blocking(move || {
            let (key, path, file) = &*reader;
            let mut chunk = BytesMut::zeroed(usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK)));
            file.read_exact_at(&mut chunk, range.start).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => StoreError::Short { key: key.clone(), end: range.end },
                _ => failed(path, &error),
            })?;
            Ok(chunk.freeze())
        });
        let chunk = chunk.await.map_err(|error| StoreError::Failed(error.to_string()))??;
        let rest = range.start + chunk.len() as u64..range.end;
        Ok(Some((chunk, (file, rest))))
    })
    .boxed()
}

/// What a list is to hold.
struct Wanted<'a> {
    root: &'a Path,
    prefix: &'a str,
    from: &'a str,
}

/// Collects the objects below the directory `dir`, which is empty or ends in `/`, in the order of keys, until
/// there is one more than a page holds.
fn walk(wanted: &Wanted<'_>, dir: &str, objects: &mut Vec<Meta>) -> Result<(), StoreError> {
    let path = wanted.root.join(dir);
    let entries = match fs::read_dir(&path) {
        Err(error) if is_absent(&error) => return Ok(()),
        entries => entries.map_err(|error| failed(&path, &error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(&path, &error))?;
        let Ok(kind) = entry.file_type() else { continue };
        // A name that is no UTF-8 is in no key.
        let Ok(name) = entry.file_name().into_string() else { continue };
        // The slash counts in the order: `a-b` comes before `a/b`.
        if kind.is_dir() {
            names.push(format!("{dir}{name}/"));
        } else if kind.is_file() {
            names.push(format!("{dir}{name}"));
        }
    }
    names.sort_unstable();
    for name in names {
        if objects.len() > PAGE {
            break;
        }
        if let Some(inner) = name.strip_suffix('/') {
            let on_the_way = wanted.prefix.starts_with(&name) || name.starts_with(wanted.prefix);
            let passed = wanted.from > name.as_str() && !wanted.from.starts_with(&name);
            if on_the_way && !passed && check_key(inner).is_ok() {
                walk(wanted, &name, objects)?;
            }
        } else if name.starts_with(wanted.prefix) && name.as_str() > wanted.from && check_key(&name).is_ok() {
            // One that was deleted meanwhile is left out.
            if let Ok(known) = fs::symlink_metadata(wanted.root.join(&name)) {
                objects.push(meta(name, &known));
            }
        }
    }
    Ok(())
}

fn meta(key: String, known: &Metadata) -> Meta {
    let modified = known.modified().ok().and_then(|time| Timestamp::try_from(time).ok()).unwrap_or_default();
    Meta { key, bytes: known.len(), modified }
}

/// The old file is still there when the new one is made, so that at least the inodes differ.
fn version_of(known: &Metadata) -> Version {
    Version(format!("{:x}-{:x}.{:x}-{:x}", known.ino(), known.mtime(), known.mtime_nsec(), known.len()))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether there is nothing of that name; a file in the place of a directory leaves no room for it either.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn no_links(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS))
}

fn failed(path: &Path, error: &io::Error) -> StoreError {
    let path = path.display();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreError::Denied(format!(
            "{path}: {error}; the agent's user must be able to read and write the store's directory"
        )),
        _ => StoreError::Failed(format!("{path}: {error}")),
    }
}
