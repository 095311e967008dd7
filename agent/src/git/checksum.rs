//! Whether a repository's files are as git wrote them: packs, their indexes and bitmaps, the multi-pack index and the
//! commit-graph each end in a hash of everything before it (gitformat-pack(5), gitformat-commit-graph(5)).
//!
//! git rarely checks that hash itself. `pack-objects` even copies packed objects to a client without a look at them
//! (`write_reuse_object` checks a CRC only where the pack goes to a file), so a damaged pack gives answers that
//! `upload-pack` calls good and only the client's `index-pack` refuses.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use rustix::fs::{Advice, fadvise};

use super::object::ObjectFormat;

/// Bytes read at once.
const CHUNK: usize = 256 * 1024;

/// The files of the repository `dir` that end in a checksum of themselves, the small ones first.
///
/// # Errors
/// A directory cannot be listed.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for part in ["objects/pack", "objects/info", "objects/info/commit-graphs"] {
        let entries = match fs::read_dir(dir.join(part)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            // Files that git is about to remove or rename do not matter.
            if let Some(length) = fs::metadata(&path).ok().map(|meta| meta.len()).filter(|_| is_summed(&path))
            {
                found.push((length, path));
            }
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The first file of the repository `dir` that is not as git wrote it. Reads all of them.
///
/// # Errors
/// A file cannot be read.
pub fn first_altered(dir: &Path, format: ObjectFormat) -> io::Result<Option<PathBuf>> {
    for path in files(dir)? {
        if Summing::open(&path, format)?.read(u64::MAX)? == Some(false) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Whether git ends this file in a checksum of itself; unfinished files have other names.
fn is_summed(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("tmp_") || name.starts_with(".tmp-") {
        return false;
    }
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("pack" | "idx" | "rev" | "bitmap" | "mtimes" | "graph"))
        || matches!(&*name, "multi-pack-index" | "commit-graph")
}

/// A file that is being compared with its checksum, a slice at a time.
pub struct Summing {
    file: fs::File,
    hash: Context,
    trailer: usize,
    /// Bytes before the trailer that were not read yet; `None` where the file is too short for one.
    left: Option<u64>,
}

impl Summing {
    /// Opens the file at `path` of a repository whose objects have names of this `format`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path, format: ObjectFormat) -> io::Result<Self> {
        let algorithm = match format {
            ObjectFormat::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            ObjectFormat::Sha256 => &SHA256,
        };
        let (file, trailer) = (fs::File::open(path)?, algorithm.output_len());
        // Read once: it is not to push out what clients read again and again. Best effort.
        let _ = fadvise(&file, 0, None, Advice::NoReuse);
        let left = file.metadata()?.len().checked_sub(u64::try_from(trailer).unwrap_or(u64::MAX));
        Ok(Self { file, hash: Context::new(algorithm), trailer, left })
    }

    /// How many bytes are still to be read.
    pub fn left(&self) -> u64 {
        self.left.unwrap_or(0)
    }

    /// Reads about `bytes` more. Says at the end of the file whether it is intact, and nothing before.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&mut self, bytes: u64) -> io::Result<Option<bool>> {
        let Some(left) = &mut self.left else { return Ok(Some(false)) };
        let mut chunk = vec![0; CHUNK];
        let until = left.saturating_sub(bytes);
        while *left > until {
            let most = usize::try_from(*left).map_or(CHUNK, |left| left.min(CHUNK));
            let count = self.file.read(chunk.get_mut(..most).unwrap_or_default())?;
            if count == 0 {
                // Shorter than a moment ago: nothing of git's shrinks a file.
                return Ok(Some(false));
            }
            self.hash.update(chunk.get(..count).unwrap_or_default());
            *left -= u64::try_from(count).unwrap_or(*left);
        }
        if *left > 0 {
            return Ok(None);
        }
        let mut trailer = vec![0; self.trailer];
        match self.file.read_exact(&mut trailer) {
            Ok(()) => Ok(Some(self.hash.clone().finish().as_ref() == trailer)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(false)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intact(path: &Path, format: ObjectFormat, slice: u64) -> bool {
        let mut summing = Summing::open(path, format).unwrap();
        loop {
            if let Some(intact) = summing.read(slice).unwrap() {
                return intact;
            }
        }
    }

    #[test]
    fn any_changed_byte_and_any_length_but_the_right_one_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pack-1.pack");
        for (format, algorithm) in
            [(ObjectFormat::Sha1, &SHA1_FOR_LEGACY_USE_ONLY), (ObjectFormat::Sha256, &SHA256)]
        {
            let mut content: Vec<u8> = (0..700_000_u32).flat_map(u32::to_be_bytes).collect();
            let sum = ring::digest::digest(algorithm, &content);
            content.extend_from_slice(sum.as_ref());
            fs::write(&path, &content).unwrap();
            for slice in [1, 1_000_000, u64::MAX] {
                assert!(intact(&path, format, slice));
            }
            for at in [0, 1_234_567, content.len() - 21, content.len() - 1] {
                let mut spoilt = content.clone();
                spoilt[at] ^= 4;
                fs::write(&path, &spoilt).unwrap();
                assert!(!intact(&path, format, 1_000_000), "{at}");
            }
            for length in [0, 10, content.len() - 1] {
                fs::write(&path, &content[..length]).unwrap();
                assert!(!intact(&path, format, 1_000_000), "{length}");
            }
        }
    }

    #[test]
    fn whole_files_of_git_are_found_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (pack, info) = (dir.path().join("objects/pack"), dir.path().join("objects/info"));
        fs::create_dir_all(&pack).unwrap();
        fs::create_dir_all(info.join("commit-graphs")).unwrap();
        let summed = ["pack-1.pack", "pack-1.idx", "pack-1.rev", "pack-1.bitmap", "multi-pack-index"];
        let others = ["pack-1.keep", "tmp_pack_a.pack", ".tmp-1-pack-2.idx", "multi-pack-index.lock"];
        for name in summed.iter().chain(&others) {
            fs::write(pack.join(name), "").unwrap();
        }
        for name in
            ["commit-graph", "packs", "commit-graphs/graph-1.graph", "commit-graphs/commit-graph-chain"]
        {
            fs::write(info.join(name), "").unwrap();
        }
        assert_eq!(files(dir.path()).unwrap().len(), summed.len() + 2);
        assert!(files(&dir.path().join("nothing")).unwrap().is_empty());
    }
}
