//! What the standard library does not say in one call.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How often a followed file is read: a mounted Secret changes by a link's moving, of which not every file system tells.
pub const LOOK_AGAIN: Duration = Duration::from_secs(2);

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

/// Makes the directory at `path`, if need be, and closes it to other users, if this user owns it: a volume's root belongs to
/// whoever mounted it.
///
/// # Errors
/// It cannot be made or changed.
pub fn make_private(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let meta = fs::metadata(path)?;
    let (mode, owner) = (meta.mode() & 0o7777, rustix::process::geteuid().as_raw());
    let private = private_mode(mode);
    if meta.uid() != owner || private == mode {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(private))
}

/// The mode of a private directory, which had `mode`: for its owner alone. Where the group is inherited it is the pod's own
/// (`fsGroup`), and the kubelet would give it back by changing every file of the volume.
fn private_mode(mode: u32) -> u32 {
    if mode & 0o2000 == 0 { 0o700 } else { mode & !0o007 }
}

/// Gives the file at `path` the content, all of it or none: it is written beside it, synced and renamed.
///
/// # Errors
/// The disk: a full one, above all.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, content, 0o666)
}

/// As [`replace`], in a file that other users cannot read.
///
/// # Errors
/// The disk: a full one, above all.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_with(path, content, 0o600)
}

fn replace_with(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(STAGED_SUFFIX);
    let staged = PathBuf::from(staged);
    let mut file = fs::File::options().create(true).truncate(true).write(true).mode(mode).open(&staged)?;
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

/// Whether the disk takes no more: it is full, over quota or read-only.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

/// Reads the whole file, which must not be longer than `limit`.
///
/// # Errors
/// It cannot be read, or is longer.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")));
    }
    Ok(content)
}

/// For how long a followed file may be away before that counts: it may be in the middle of being replaced.
const LOST: Duration = Duration::from_secs(30);

/// Gives `changed` the file's content whenever it is another than before, at first once more what it is now; for ever. A file
/// that cannot be read for half a minute is told once as well, and its content when it is back.
pub async fn follow(path: &Path, limit: u64, mut changed: impl FnMut(io::Result<&[u8]>)) {
    let (mut last, mut away): (Option<blake3::Hash>, _) = (None, None);
    loop {
        let of = path.to_owned();
        match blocking(move || read_bounded(&of, limit)).await {
            Ok(content) => {
                away = None;
                let digest = blake3::hash(&content);
                if last.replace(digest) != Some(digest) {
                    changed(Ok(&content));
                }
            }
            Err(error) => {
                let since = away.get_or_insert_with(Instant::now);
                if since.elapsed() >= LOST && last.take().is_some() {
                    changed(Err(error));
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_directories_are_their_owners_or_a_pods_group() {
        for (mode, private) in [(0o755, 0o700), (0o750, 0o700), (0o2775, 0o2770), (0o700, 0o700)] {
            assert_eq!(private_mode(mode), private, "{mode:o}");
        }
    }
}
