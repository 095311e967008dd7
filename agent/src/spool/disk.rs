//! A spool's files: made, opened and removed off the runtime's threads.

use std::{fs, io, path::Path, sync::Arc};

use tokio::sync::watch;

use super::{
    SpoolError,
    ledger::OpenFile,
    reader::{Follower, Progress},
    sink::{Growth, Sink},
};
use crate::{files::blocking, metrics::Lookup};

pub(super) async fn fill<E, F>(
    path: &Path,
    open: &OpenFile,
    growth: Growth<E>,
    make: impl FnOnce(Sink<E>) -> F,
) -> Result<u64, SpoolError<E>>
where
    F: Future<Output = Result<u64, E>>,
{
    growth.room().await?;
    let path = path.to_owned();
    let files = blocking(move || {
        let file = fs::File::options().create_new(true).append(true).open(&path)?;
        Ok((file, fs::File::open(&path)?))
    });
    let (file, read) = files.await?;
    let _ = open.file.set(Arc::new(read));
    make(Sink { file: Arc::new(file), length: 0, growth })
        .await
        .map_err(|error| SpoolError::Maker(Arc::new(error)))
}

/// Follows a file that is whole.
pub(super) fn whole<E>(open: Arc<OpenFile>, length: u64, first: bool) -> Follower<E> {
    let (_, progress) = watch::channel(Progress { length, announced: Some(length), end: Some(Ok(())) });
    Follower { open, progress, interest: None, lookup: Lookup::HIT, first }
}

/// Whether this process has too many files open: nothing is wrong with the file.
pub(super) fn crowded(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// Removes the files, off the runtime's threads.
pub(super) fn remove(paths: Vec<Arc<Path>>) {
    if !paths.is_empty() {
        tokio::task::spawn_blocking(move || discard(&paths));
    }
}

pub(super) fn discard(paths: &[Arc<Path>]) {
    for path in paths {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a cached file cannot be removed");
        }
    }
}
