//! What a block must hash to: BLAKE3, which is faster than any disk or network here.

use std::{fmt, fs, io, os::unix::fs::FileExt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use super::layout::Layout;

/// Read and hashed at once: large enough for the widest vector instructions and cheap system calls.
const CHUNK: usize = 256 << 10;

/// The BLAKE3 digest of a block; as text, 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(blake3::Hash);

/// Why a text is no digest.
#[derive(Clone, Debug, thiserror::Error)]
#[error("a digest has 64 hexadecimal digits, not {0:?}")]
pub struct BadDigest(String);

impl Digest {
    /// The digest of a block held in memory.
    pub fn of(block: &[u8]) -> Self {
        Self(blake3::hash(block))
    }

    pub(super) fn finish(hasher: &blake3::Hasher) -> Self {
        Self(hasher.finalize())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        blake3::Hash::from_hex(text).map(Self).map_err(|_| BadDigest(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Digest {
    type Error = BadDigest;

    fn try_from(text: String) -> Result<Self, BadDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The length of a file and the digests of its blocks. The file must not change meanwhile. Blocks the thread.
pub fn digest_file(path: &Path) -> io::Result<(u64, Vec<Digest>)> {
    let file = fs::File::open(path)?;
    let layout = Layout::new(file.metadata()?.len());
    let digests = (0..layout.count()).map(|block| digest_block(&file, layout, block));
    Ok((layout.bytes(), digests.collect::<io::Result<_>>()?))
}

/// The digest of what is on the disk of one block.
pub(super) fn digest_block(file: &fs::File, layout: Layout, block: usize) -> io::Result<Digest> {
    let range = layout.range(block);
    let mut buffer = vec![0; CHUNK];
    let mut hasher = blake3::Hasher::new();
    let mut at = range.start;
    while at < range.end {
        let wanted = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
        let Some(part) = buffer.get_mut(..wanted) else { break };
        file.read_exact_at(part, at)?;
        hasher.update(part);
        at += u64::try_from(wanted).unwrap_or(0);
    }
    Ok(Digest::finish(&hasher))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockfile::layout::{LARGE, SMALL_UNTIL};

    #[test]
    fn a_files_digests_are_those_of_its_blocks() {
        let length = usize::try_from(SMALL_UNTIL + LARGE + 12_345).unwrap();
        let content: Vec<u8> = (0..length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &content).unwrap();
        let (bytes, digests) = digest_file(file.path()).unwrap();
        assert_eq!(bytes, u64::try_from(length).unwrap());
        let layout = Layout::new(bytes);
        assert_eq!(digests.len(), layout.count());
        for (block, digest) in digests.iter().enumerate() {
            let range = layout.range(block);
            let (start, end) = (range.start.try_into().unwrap(), range.end.try_into().unwrap());
            assert_eq!(*digest, Digest::of(&content[start..end]));
        }
    }

    #[test]
    fn a_digest_is_written_as_hexadecimal_and_read_back() {
        let digest = Digest::of(b"block");
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(text.len(), 66);
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
        for bad in ["\"\"", "\"zz\"", "3", &text.replace('"', "\"0")] {
            assert!(serde_json::from_str::<Digest>(bad).is_err());
        }
    }
}
