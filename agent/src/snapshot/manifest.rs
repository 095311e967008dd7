//! A snapshot's manifest: of which commit it is, when it was made, and what its archive must hash to. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tarn_crds::repo::RepoId;

use crate::{
    blockfile::{Digest, Layout},
    checkpoint::manifest::Keys,
    generations::{Generation, Numbered, Writer},
    git::Oid,
    upstream::Provenance,
};

/// The format this agent writes and reads.
const FORMAT: u32 = 1;

/// Where a repository's snapshots are.
pub(super) const DIRECTORY: &str = "snapshots/";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// The format's version.
    pub format: u32,
    /// Counts a repository's snapshots from 1; 0 while it is in no store.
    pub generation: Generation,
    /// When its building began, by its builder's clock.
    pub time: Timestamp,
    /// Who built it.
    pub writer: Writer,
    /// The commit that is checked out.
    pub commit: String,
    /// The branch that is checked out, by its full name; none where the upstream's HEAD names a commit.
    pub branch: Option<String>,
    /// The name of the archive and its ETag: BLAKE3 of the digests of its blocks.
    pub digest: Digest,
    /// The archive's length.
    pub bytes: u64,
    /// BLAKE3 of its blocks.
    pub blocks: Vec<Digest>,
    /// With what the mirror was fetched that it was built of; older agents did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// Why a text is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its manifest {0}")]
pub struct Malformed(String);

impl Snapshot {
    /// The snapshot whose archive has these blocks, in no store yet.
    pub fn new(
        commit: Oid,
        branch: Option<String>,
        time: Timestamp,
        writer: Writer,
        (bytes, blocks): (u64, Vec<Digest>),
    ) -> Self {
        let digest = digest_of(&blocks);
        let (format, generation, commit) = (FORMAT, Generation(0), commit.to_hex());
        Self { format, generation, time, writer, commit, branch, digest, bytes, blocks, provenance: None }
    }

    /// The text to store.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest holds only strings, numbers and lists")
    }

    /// Reads and checks a manifest: after this its digests, its length and its commit fit together.
    ///
    /// # Errors
    /// What does not.
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let malformed = |reason: String| Malformed(reason);
        let found: Self =
            serde_json::from_slice(text).map_err(|error| malformed(format!("is no manifest: {error}")))?;
        let is = |fits: bool, reason: &str| if fits { Ok(()) } else { Err(malformed(reason.to_owned())) };
        is(found.format == FORMAT, &format!("has format {}, not {FORMAT}", found.format))?;
        is(Oid::from_hex(found.commit.as_bytes()).is_some(), "names no commit")?;
        is(Layout::new(found.bytes).count() == found.blocks.len(), "names too few or too many blocks")?;
        is(digest_of(&found.blocks) == found.digest, "has another digest than its blocks")?;
        Ok(found)
    }

    /// The key of its archive.
    pub fn key(&self, keys: &SnapshotKeys) -> String {
        format!("{}{}-{}.tar.zst", keys.all(), self.commit, self.digest)
    }
}

impl Numbered for Snapshot {
    fn read(text: &[u8], generation: Generation) -> Result<Self, String> {
        let found = Self::parse(text).map_err(|error| error.to_string())?;
        if found.generation == generation {
            Ok(found)
        } else {
            Err("its manifest belongs to another generation".into())
        }
    }

    fn text(&self) -> Vec<u8> {
        self.to_json()
    }

    fn generation(&self) -> Generation {
        self.generation
    }

    fn writer(&self) -> &Writer {
        &self.writer
    }

    fn total(&self) -> u64 {
        self.bytes
    }

    fn objects(&self, repository: &str) -> Vec<String> {
        vec![self.key(&SnapshotKeys { prefix: format!("{repository}{DIRECTORY}") })]
    }
}

/// What an archive with these blocks is called.
pub(crate) fn digest_of(blocks: &[Digest]) -> Digest {
    Digest::of(blocks.iter().map(Digest::to_string).collect::<String>().as_bytes())
}

/// The keys of one repository's snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotKeys {
    prefix: String,
}

impl SnapshotKeys {
    /// Those of `id`.
    pub fn of(id: &RepoId) -> Self {
        Self { prefix: format!("{}{DIRECTORY}", Keys::of(id).all()) }
    }

    /// What all of them begin with.
    pub fn all(&self) -> &str {
        &self.prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample(blocks: &[&[u8]]) -> Snapshot {
        let blocks: Vec<Digest> = blocks.iter().map(|block| Digest::of(block)).collect();
        let writer = Writer { agent: "a".into(), nonce: "n".into() };
        let commit = Oid::from_hex(&[b'1'; 40]).unwrap();
        let branch = Some("refs/heads/main".to_owned());
        Snapshot::new(commit, branch, Timestamp::UNIX_EPOCH, writer, (3, blocks))
    }

    #[test]
    fn a_manifest_is_read_back() {
        let written = sample(&[b"abc"]);
        assert_eq!(Snapshot::parse(&written.to_json()), Ok(written));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let refused = |spoil: fn(&mut Snapshot)| {
            let mut spoilt = sample(&[b"abc"]);
            spoil(&mut spoilt);
            Snapshot::parse(&spoilt.to_json()).unwrap_err().to_string()
        };
        assert!(refused(|s| s.bytes = 0).contains("blocks"));
        assert!(refused(|s| s.digest = Digest::of(b"x")).contains("digest"));
        assert!(refused(|s| s.commit = "../x".into()).contains("commit"));
        assert!(refused(|s| s.format = 2).contains("format"));
        assert!(Snapshot::parse(b"").is_err());
    }
}
