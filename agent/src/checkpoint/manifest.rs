//! A generation's manifest: which packs and refs make it. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tarn_crds::repo::RepoId;

use crate::{
    blockfile::{Digest, Layout},
    generations::Numbered,
    git::{Head, ObjectFormat, RefSet},
    upstream::Provenance,
};

pub use crate::generations::{Generation, Writer};

/// The format this agent writes and reads.
const FORMAT: u32 = 1;

/// The most packs a checkpoint has, the base included: each costs git a search per object, and a restore a
/// round trip.
pub const MAX_PACKS: usize = 12;

/// The most that a list of refs takes when unpacked: 100,000 refs are 7.5 MB.
const MAX_REFS: usize = 256 << 20;

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The format's version.
    pub format: u32,
    /// This generation.
    pub generation: Generation,
    /// The generation whose packs it continues; none where it began anew.
    pub parent: Option<Generation>,
    /// When it was made, by its writer's clock.
    pub time: Timestamp,
    /// Who made it.
    pub writer: Writer,
    /// `sha1` or `sha256`.
    pub object_format: String,
    /// The list of refs.
    pub refs: Refs,
    /// The base, then the increments, oldest first.
    pub packs: Vec<Pack>,
    /// With what it was fetched; older agents did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// A checkpoint in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number.
    pub generation: Generation,
    /// When it was made, by its writer's clock.
    pub time: Timestamp,
    /// The length of all it names.
    pub bytes: u64,
    /// The digest of its refs.
    pub digest: String,
    /// What this agent uploaded for it; 0 where another agent made it.
    pub uploaded: u64,
}

impl Checkpoint {
    pub(super) fn of(manifest: &Manifest, uploaded: u64) -> Self {
        let digest = manifest.refs.digest.clone();
        let (generation, time, bytes) = (manifest.generation, manifest.time, manifest.bytes());
        Self { generation, time, bytes, digest, uploaded }
    }
}

/// The object with the list of refs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Refs {
    /// BLAKE3 of the object: its name.
    pub name: Digest,
    /// The object's length in bytes.
    pub bytes: u64,
    /// The digest of the refs themselves, as status shows it: equal for equal refs.
    pub digest: String,
    /// How many refs there are.
    pub count: u64,
}

/// A pack and what belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pack {
    /// The name of all its files: see [`Pack::name_of`]. Whoever reads it only compares it.
    pub name: Digest,
    /// How many objects it has.
    pub objects: u64,
    /// The refs object whose reach this pack adds to; none for a base.
    pub since: Option<Digest>,
    /// The pack, its index and, for a base, its reverse index and bitmap.
    pub files: Vec<File>,
}

impl Pack {
    /// What files are called that belong together: BLAKE3 of the digests of all their blocks. So equal packs whose
    /// indexes or bitmaps differ, as those of two git versions do, have different names, and neither agent writes over
    /// what the other one's manifest names.
    pub fn name_of(files: &[File]) -> Digest {
        let blocks = files.iter().flat_map(|file| &file.blocks);
        Digest::of(blocks.map(Digest::to_string).collect::<String>().as_bytes())
    }

    /// The length of its files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One file of a pack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Which.
    pub kind: FileKind,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its blocks.
    pub blocks: Vec<Digest>,
}

/// The files that git keeps for a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// The objects.
    Pack,
    /// Where each is.
    Idx,
    /// The index turned round.
    Rev,
    /// What each commit reaches.
    Bitmap,
}

impl FileKind {
    /// All, in the order of a manifest.
    pub const SORTED: [Self; 4] = [Self::Pack, Self::Idx, Self::Rev, Self::Bitmap];

    /// The file name's ending.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Idx => "idx",
            Self::Rev => "rev",
            Self::Bitmap => "bitmap",
        }
    }
}

/// Why a text is no manifest, or a list of refs none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Manifest {
    /// The version that this agent writes.
    pub fn format_written() -> u32 {
        FORMAT
    }

    /// The text to store.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest holds only strings, numbers and lists")
    }

    /// Reads and checks the manifest of `generation`: after this its packs' names, lengths and digests fit
    /// together.
    ///
    /// # Errors
    /// What does not.
    pub fn parse(text: &[u8], generation: Generation) -> Result<Self, Malformed> {
        let malformed = |reason: String| Malformed(format!("its manifest {reason}"));
        let manifest: Self =
            serde_json::from_slice(text).map_err(|error| malformed(format!("is no manifest: {error}")))?;
        let is = |fits: bool, reason: &str| if fits { Ok(()) } else { Err(malformed(reason.to_owned())) };
        is(manifest.format == FORMAT, &format!("has format {}, not {FORMAT}", manifest.format))?;
        is(manifest.generation == generation, "belongs to another generation")?;
        is(ObjectFormat::from_name(&manifest.object_format).is_some(), "names no object format")?;
        is(manifest.packs.len() <= MAX_PACKS, "names too many packs")?;
        for (at, pack) in manifest.packs.iter().enumerate() {
            is(pack.since.is_none() == (at == 0), "mixes bases and increments up")?;
            for kind in [FileKind::Pack, FileKind::Idx] {
                is(pack.files.iter().any(|file| file.kind == kind), "names a pack without index")?;
            }
            for (file, after) in pack.files.iter().zip(pack.files.iter().skip(1)) {
                is(file.kind < after.kind, "names a file twice")?;
            }
            for file in &pack.files {
                let blocks = Layout::new(file.bytes).count();
                is(blocks == file.blocks.len(), "names too few or too many blocks")?;
            }
        }
        Ok(manifest)
    }

    /// The hash function of its objects.
    pub fn object_format(&self) -> ObjectFormat {
        ObjectFormat::from_name(&self.object_format).unwrap_or(ObjectFormat::Sha1)
    }

    /// The length of all it names, in bytes.
    pub fn bytes(&self) -> u64 {
        self.refs.bytes + self.packs.iter().map(Pack::bytes).sum::<u64>()
    }

    /// The files of all its packs, each with its pack's name.
    pub fn files(&self) -> impl Iterator<Item = (Digest, &File)> {
        self.packs.iter().flat_map(|pack| pack.files.iter().map(|file| (pack.name, file)))
    }

    /// The refs objects it needs: its own and those its increments add to.
    pub fn refs_objects(&self) -> impl Iterator<Item = Digest> + '_ {
        std::iter::once(self.refs.name).chain(self.packs.iter().filter_map(|pack| pack.since))
    }
}

impl Numbered for Manifest {
    fn read(text: &[u8], generation: Generation) -> Result<Self, String> {
        Self::parse(text, generation).map_err(|error| error.to_string())
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
        self.bytes()
    }

    fn objects(&self, repository: &str) -> Vec<String> {
        let keys = Keys { prefix: repository.to_owned() };
        let files = self.files().map(|(pack, file)| keys.file(pack, file.kind));
        files.chain(self.refs_objects().map(|name| keys.refs(name))).collect()
    }
}

/// The text of a refs object: HEAD on the first line, then `packed-refs`; compressed. Its name, too.
pub fn pack_refs(refs: &RefSet) -> (Digest, Vec<u8>) {
    let text = [refs.to_head(), refs.to_packed_refs()].concat();
    // 19 takes 6 ms for 1,000 refs and saves nothing to speak of: hashes do not compress.
    let packed = zstd::bulk::compress(&text, 3).expect("compressing into memory fails only without any");
    (Digest::of(&packed), packed)
}

/// Reads a refs object back.
///
/// # Errors
/// It is not the object called `name`, or holds what no agent writes.
pub fn unpack_refs(name: Digest, packed: &[u8], format: ObjectFormat) -> Result<RefSet, Malformed> {
    let malformed = |reason: &str| Malformed(format!("its list of refs {reason}"));
    if Digest::of(packed) != name {
        return Err(malformed("has another digest"));
    }
    let text = zstd::bulk::decompress(packed, MAX_REFS).map_err(|_| malformed("cannot be unpacked"))?;
    let end = text.iter().position(|byte| *byte == b'\n').ok_or_else(|| malformed("has no HEAD"))?;
    let (head, packed) = text.split_at(end + 1);
    RefSet::parse(packed, head, format).map_err(|_| malformed("has a line that is no ref"))
}

/// Whether `refs` name nothing: what no checkpoint is made of.
pub fn is_empty(refs: &RefSet) -> bool {
    refs.refs().is_empty() && !matches!(refs.head(), Head::Detached(_))
}

/// The keys of one repository's objects.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Those of `id`.
    pub fn of(id: &RepoId) -> Self {
        Self { prefix: format!("v1/{}/", id.store_prefix()) }
    }

    /// What all of them begin with.
    pub fn all(&self) -> &str {
        &self.prefix
    }

    /// What all files of packs begin with.
    pub fn packs(&self) -> String {
        format!("{}packs/", self.prefix)
    }

    /// What all refs objects begin with.
    pub fn all_refs(&self) -> String {
        format!("{}refs/", self.prefix)
    }

    /// Who may publish, where the store ignores conditions.
    pub fn lease(&self) -> String {
        format!("{}lease.json", self.prefix)
    }

    /// A file of a pack.
    pub fn file(&self, pack: Digest, kind: FileKind) -> String {
        format!("{}{pack}.{}", self.packs(), kind.extension())
    }

    /// A refs object.
    pub fn refs(&self, name: Digest) -> String {
        format!("{}{name}.zst", self.all_refs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::{Oid, Ref};

    fn refs() -> RefSet {
        let oid = Oid::from_hex(&[b'1'; 40]).unwrap();
        let main = Ref { name: "refs/heads/main".into(), oid, peeled: None };
        RefSet::new(ObjectFormat::Sha1, Head::Symbolic("refs/heads/main".into()), vec![main])
    }

    fn pack(since: Option<Digest>) -> Pack {
        let name = Digest::of(b"pack");
        let file = |kind| File { kind, bytes: 3, blocks: vec![Digest::of(b"abc")] };
        Pack { name, objects: 1, since, files: vec![file(FileKind::Pack), file(FileKind::Idx)] }
    }

    fn manifest(packs: Vec<Pack>) -> Manifest {
        let (name, packed) = pack_refs(&refs());
        let writer = Writer { agent: "a".into(), nonce: "b".into() };
        let refs = Refs { name, bytes: packed.len() as u64, digest: refs().digest(), count: 1 };
        let (generation, time) = (Generation(7), Timestamp::UNIX_EPOCH);
        Manifest {
            format: FORMAT,
            generation,
            parent: None,
            time,
            writer,
            object_format: "sha1".into(),
            refs,
            packs,
            provenance: None,
        }
    }

    #[test]
    fn a_manifest_is_read_back() {
        let older = manifest(vec![pack(None), pack(Some(Digest::of(b"refs")))]);
        let whole = Manifest { provenance: Some(Provenance::of("ci", Some("creds"))), ..older.clone() };
        for whole in [older, whole] {
            assert_eq!(Manifest::parse(&whole.to_json(), Generation(7)), Ok(whole));
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let parse =
            |packs| Manifest::parse(&manifest(packs).to_json(), Generation(7)).unwrap_err().to_string();
        assert!(parse(vec![pack(Some(Digest::of(b"x")))]).contains("mixes"));
        assert!(parse(vec![pack(None), pack(None)]).contains("mixes"));
        assert!(
            parse([vec![pack(None)], vec![pack(Some(Digest::of(b"x"))); 12]].concat())
                .contains("too many packs")
        );
        let mut short = pack(None);
        short.files[0].bytes = 70_000;
        assert!(parse(vec![short]).contains("blocks"));
        let mut bare = pack(None);
        bare.files.pop();
        assert!(parse(vec![bare]).contains("without index"));
        let other = Manifest::parse(&manifest(vec![]).to_json(), Generation(8));
        assert!(other.unwrap_err().to_string().contains("another generation"));
        assert!(Manifest::parse(b"", Generation(7)).is_err());
        assert!(Manifest::parse(b"{}", Generation(7)).is_err());
    }

    #[test]
    fn equal_packs_with_other_indexes_have_other_names() {
        let files = pack(None).files;
        let mut other = files.clone();
        other[1].blocks = vec![Digest::of(b"another git's")];
        assert_eq!(files[0], other[0]);
        assert_ne!(Pack::name_of(&files), Pack::name_of(&other));
        assert_eq!(Pack::name_of(&files), Pack::name_of(&files.clone()));
    }

    #[test]
    fn refs_are_read_back_and_only_under_their_own_name() {
        let (name, packed) = pack_refs(&refs());
        assert_eq!(unpack_refs(name, &packed, ObjectFormat::Sha1), Ok(refs()));
        assert!(unpack_refs(Digest::of(b"other"), &packed, ObjectFormat::Sha1).is_err());
        let junk = b"junk".as_slice();
        assert!(unpack_refs(Digest::of(junk), junk, ObjectFormat::Sha1).is_err());
    }
}
