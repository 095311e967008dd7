//! Packs as files: which there are, and which objects they hold.

use std::{
    cmp::Ordering,
    fs,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{ObjectFormat, Oid};

/// The files with this extension among the packs of the repository `dir`.
///
/// # Errors
/// They cannot be listed.
pub fn files(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.join("objects/pack"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Which objects a pack holds, by its index (gitformat-pack(5), version 2).
#[derive(Debug)]
pub struct PackIndex {
    path: PathBuf,
    format: ObjectFormat,
    /// How many objects have names that begin with a byte up to this one.
    fanout: Vec<u32>,
}

impl PackIndex {
    /// Where the names begin: after magic, version and the table.
    const NAMES: u64 = 8 + 256 * 4;

    /// The index at `path`, of a repository whose objects have names of this `format`.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn open(path: &Path, format: ObjectFormat) -> io::Result<Self> {
        let mut head = [0; Self::NAMES as usize];
        fs::File::open(path)?.read_exact(&mut head)?;
        let (magic, table) = head.split_at(8);
        if magic != b"\xfftOc\0\0\0\x02" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the index of a pack has an unknown version",
            ));
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
        let fanout: Vec<u32> = table.chunks_exact(4).map(number).collect();
        if !fanout.is_sorted() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index of a pack is out of order"));
        }
        Ok(Self { path: path.to_owned(), format, fanout })
    }

    /// The hash function of the objects' names.
    pub fn format(&self) -> ObjectFormat {
        self.format
    }

    /// How many objects there are.
    pub fn count(&self) -> u32 {
        self.fanout.last().copied().unwrap_or(0)
    }

    /// Those of `oids` that the pack does not hold, in their order. May block.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn lacks<'a>(&self, oids: impl IntoIterator<Item = &'a Oid>) -> io::Result<Vec<Oid>> {
        let mut sorted: Vec<(&Oid, usize)> = oids.into_iter().zip(0..).collect();
        sorted.sort_unstable();
        let file = fs::File::open(&self.path)?;
        let (size, mut names, mut read) = (self.format.bytes(), Vec::new(), None);
        let mut lacking = Vec::new();
        for (oid, at) in sorted {
            let bytes = oid.as_bytes();
            let first = usize::from(bytes.first().copied().unwrap_or(0));
            if read != Some(first) {
                let until = self.fanout.get(first).copied().unwrap_or(0);
                let from =
                    first.checked_sub(1).and_then(|before| self.fanout.get(before)).copied().unwrap_or(0);
                names.resize(usize::try_from(until - from).unwrap_or(0) * size, 0);
                file.read_exact_at(&mut names, Self::NAMES + u64::from(from) * size as u64)?;
                read = Some(first);
            }
            if !holds(&names, bytes) {
                lacking.push((at, *oid));
            }
        }
        lacking.sort_unstable();
        Ok(lacking.into_iter().map(|(_, oid)| oid).collect())
    }
}

/// Whether `name` is among the sorted `names`, which are as long as it is and follow one another.
fn holds(names: &[u8], name: &[u8]) -> bool {
    let (mut from, mut until) = (0, names.len() / name.len().max(1));
    while from < until {
        let middle = from + (until - from) / 2;
        match names.get(middle * name.len()..(middle + 1) * name.len()).map(|found| found.cmp(name)) {
            Some(Ordering::Less) => from = middle + 1,
            Some(Ordering::Greater) => until = middle,
            Some(Ordering::Equal) => return true,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_where_they_are_and_nowhere_else() {
        let names: Vec<u8> = (0..100_u8).flat_map(|at| [at * 2, 7]).collect();
        for at in 0..100_u8 {
            assert!(holds(&names, &[at * 2, 7]));
            assert!(!holds(&names, &[at * 2 + 1, 7]) && !holds(&names, &[at * 2, 6]));
        }
        assert!(!holds(&[], &[1, 2]));
    }
}
