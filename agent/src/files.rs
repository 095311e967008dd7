//! What the standard library does not say in one call.

use std::{fs, io, path::Path};

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
