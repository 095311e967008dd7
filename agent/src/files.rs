//! What the standard library does not say in one call.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The suffix of a file that is being written; the start removes leftovers.
pub const STAGED_SUFFIX: &str = ".tarn-new";

/// Removes the directory at `path` with all that is in it; one that is not there is no error.
///
/// # Errors
/// Something in it cannot be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives the file at `path` the content, all of it or none: it is written beside it, synced and renamed.
///
/// # Errors
/// The disk: a full one, above all.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(STAGED_SUFFIX);
    let staged = PathBuf::from(staged);
    let mut file = fs::File::create(&staged)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(staged, path)
}

/// Does `work` where it may block, off the runtime's own threads. It runs to its end even if nobody waits.
///
/// # Errors
/// Those of `work`, and its panic.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
