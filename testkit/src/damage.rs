//! What a failing disk does to files: content changes in place, under whoever has them open.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Overwrites up to `length` bytes at `at` with zeros, as a block does that was never written.
pub fn zeros(path: &Path, at: u64, length: u64) -> Result<()> {
    let end = fs::metadata(path)?.len();
    let length = length.min(end.saturating_sub(at));
    write(path, at, &vec![0; usize::try_from(length)?])
}

/// Flips one bit of the byte at `at`.
pub fn flip(path: &Path, at: u64) -> Result<()> {
    let content = fs::read(path)?;
    let byte = content.get(usize::try_from(at)?).context("beyond the end of the file")?;
    write(path, at, &[byte ^ 0x10])
}

/// Cuts the file off at `length`.
pub fn truncate(path: &Path, length: u64) -> Result<()> {
    Ok(open(path)?.set_len(length)?)
}

/// Zeros 4 KiB in the middle of the largest of these files and gives its path back.
pub fn zeros_in_the_largest(files: &[PathBuf]) -> Result<PathBuf> {
    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let largest = files.iter().max_by_key(|path| length(path)).context("no files")?;
    zeros(largest, length(largest) / 2, 4096)?;
    Ok(largest.clone())
}

/// Damages files at random; the same seed does the same to the same files.
#[derive(Debug)]
pub struct Spoiler(u64);

impl Spoiler {
    /// A new one.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Damages one of these files somewhere, in one of the ways above, and says what it did.
    pub fn spoil(&mut self, files: &[PathBuf]) -> Result<String> {
        ensure!(!files.is_empty(), "no files to damage");
        let path = files.get(self.below(files.len() as u64)? as usize).context("no such file")?;
        let length = fs::metadata(path)?.len();
        if length == 0 {
            return Ok(format!("{} is empty", path.display()));
        }
        let at = self.below(length)?;
        let what = match self.below(3)? {
            0 => {
                zeros(path, at, 4096)?;
                "zeros"
            }
            1 => {
                flip(path, at)?;
                "a flipped bit"
            }
            _ => {
                truncate(path, at)?;
                "the end"
            }
        };
        Ok(format!("{what} at {at} of {}", path.display()))
    }

    fn below(&mut self, bound: u64) -> Result<u64> {
        // xorshift64: a sequence is all that is asked of it.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(bound).context("nothing to choose from")
    }
}

fn write(path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let mut file = open(path)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(bytes)?)
}

/// Opens it for writing; git makes its packs read-only.
fn open(path: &Path) -> Result<fs::File> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    fs::File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_where_it_was_asked_for_and_repeats() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [7; 10]).unwrap();
        zeros(&path, 8, 4096).unwrap();
        flip(&path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [0x17, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
        let spoilt = || {
            fs::write(&path, [7; 1000]).unwrap();
            (Spoiler::new(3).spoil(std::slice::from_ref(&path)).unwrap(), fs::read(&path).unwrap())
        };
        assert_eq!(spoilt(), spoilt());
        assert_ne!(spoilt().1, [7; 1000]);
    }
}
