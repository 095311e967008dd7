//! A pack that answers to clients which have nothing begin with, byte for byte: it holds all that some objects, its tips,
//! reach. A note beside the refs says which pack that is, for a repository of many packs does not tell.
//!
//! The note is written where a pack is restored as the base, and after a repack where the largest pack holds just what the refs
//! reach. A fetch only adds packs, so the note stays true for as long as its pack is there.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    ObjectFormat, Oid,
    index::{self, PackIndex},
};
use crate::files;

/// The note: how many tips there are, the pack's file name, then a tip a line.
const NOTE: &str = "tarn-base";

/// The most bytes of a note that are read: some three million tips.
const NOTE_MAX: u64 = 128 << 20;

/// A pack's header: `PACK`, the version, and how many objects follow (gitformat-pack(5)).
pub const HEADER: u64 = 12;

/// The header of a pack of so many objects.
pub fn header(count: u32) -> [u8; HEADER as usize] {
    let mut header = *b"PACK\0\0\0\x02\0\0\0\0";
    header.iter_mut().skip(8).zip(count.to_be_bytes()).for_each(|(to, byte)| *to = byte);
    header
}

/// See the module.
#[derive(Debug)]
pub struct Base {
    /// The file.
    pub pack: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// All that these reach is in it.
    pub tips: Vec<Oid>,
    /// Which objects it holds.
    pub index: PackIndex,
}

impl Base {
    /// The base of the repository `dir`, if it has one.
    ///
    /// # Errors
    /// The note or the pack's index cannot be read.
    pub fn find(dir: &Path, format: ObjectFormat) -> io::Result<Option<Self>> {
        let Some((name, tips)) = read(dir)? else { return Ok(None) };
        match Self::open(dir.join("objects/pack").join(name), tips, format) {
            Ok(base) => Ok(Some(base)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(pack: PathBuf, tips: Vec<Oid>, format: ObjectFormat) -> io::Result<Self> {
        let index = PackIndex::open(&pack.with_extension("idx"), format)?;
        let bytes = fs::metadata(&pack)?.len();
        let mut header = [0; HEADER as usize];
        fs::File::open(&pack)?.read_exact(&mut header)?;
        if header != self::header(index.count()) || bytes < HEADER + format.bytes() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the pack and its index do not match"));
        }
        Ok(Self { pack, bytes, tips, index })
    }

    /// Where its entries end, and its checksum begins.
    pub fn end(&self) -> u64 {
        self.bytes - self.index.format().bytes() as u64
    }
}

/// Notes that the file `name` among the packs of the repository `dir` holds all that `tips` reach.
///
/// # Errors
/// The note cannot be written.
pub fn note(dir: &Path, name: &str, tips: impl IntoIterator<Item = Oid>) -> io::Result<()> {
    let tips: Vec<Oid> = tips.into_iter().collect();
    let mut text = format!("{}\n{name}\n", tips.len());
    for tip in tips {
        text.extend([&tip.to_hex(), "\n"]);
    }
    files::replace(&dir.join(NOTE), text.as_bytes())
}

/// The pack of the repository `dir` that may hold just what its refs reach: the largest. `None` where a pack is noted already.
///
/// # Errors
/// The note or the packs cannot be read.
pub fn candidate(dir: &Path) -> io::Result<Option<String>> {
    let mut packs = index::files(dir, "pack")?;
    if read(dir)?.is_some_and(|(name, _)| packs.contains(&dir.join("objects/pack").join(name))) {
        return Ok(None);
    }
    // Of what nothing reaches git makes a pack of its own, with times.
    packs.retain(|pack| !pack.with_extension("mtimes").exists());
    let size = |pack: &PathBuf| fs::metadata(pack).map_or(0, |meta| meta.len());
    let largest = packs.into_iter().max_by_key(size);
    let name = largest.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    Ok(name.map(str::to_owned))
}

/// The file's name, and the tips.
fn read(dir: &Path) -> io::Result<Option<(String, Vec<Oid>)>> {
    let text = match files::read_bounded(&dir.join(NOTE), NOTE_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    let mut lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let count = lines.next().and_then(|line| str::from_utf8(line).ok()?.parse::<usize>().ok());
    let Some(count) = count.filter(|count| *count > 0) else { return Ok(None) };
    let name = lines.next().and_then(|name| str::from_utf8(name).ok()).filter(|name| !name.contains('/'));
    let tips: Option<Vec<Oid>> = lines.map(Oid::from_hex).collect();
    // A damaged note is as good as none: one with fewer tips would be taken for true whatever has gone.
    Ok(name.map(str::to_owned).zip(tips.filter(|tips| tips.len() == count)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A base without objects, whose files are in `dir`.
    pub(crate) fn empty(dir: &Path) -> Base {
        let pack = dir.join("pack-1.pack");
        fs::write(&pack, [b"PACK\0\0\0\x02\0\0\0\0".as_slice(), &[0; 20]].concat()).unwrap();
        fs::write(pack.with_extension("idx"), [b"\xfftOc\0\0\0\x02".as_slice(), &[0; 1024]].concat())
            .unwrap();
        Base::open(pack, vec![], ObjectFormat::Sha1).unwrap()
    }

    #[test]
    fn a_note_is_read_back_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let tips: Vec<Oid> = [b'1', b'2'].map(|digit| Oid::from_hex(&[digit; 40]).unwrap()).into();
        note(dir.path(), "pack-1.pack", tips.clone()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(("pack-1.pack".into(), tips)));
        let one = "1".repeat(40);
        let cut = format!("2\npack-1.pack\n{one}\n");
        for damaged in ["", "1\n../pack-1.pack\n", "1\npack-1.pack\n1234\n", "0\npack-1.pack\n", &cut, &one] {
            fs::write(dir.path().join(NOTE), damaged).unwrap();
            assert_eq!(read(dir.path()).unwrap(), None, "{damaged}");
        }
    }
}
