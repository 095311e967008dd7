//! What is known of a base's bytes: that they are as git wrote them, a checksum of each chunk, and the hash of all of them
//! behind the header of the answers that are put together from it.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex as AsyncMutex;

use super::grid::{CHUNK, Grid};
use crate::{
    files::blocking,
    git::{
        ObjectFormat, Oid,
        base::{Base, header},
    },
};

/// Bases from this size on are padded: hashing less takes no longer than sending it.
const PADDED: u64 = 16 << 20;

/// The most objects that padding adds: 16 bytes of the pack and 36 of its index each.
const MOST_PADDING: u32 = 8192;

/// See the module.
#[derive(Debug)]
pub struct Proof {
    base: Arc<Base>,
    /// A checksum of each chunk, once the base has been found whole.
    sums: OnceLock<Vec<u32>>,
    /// The number of objects in the header, and the hash of that and of the base's entries.
    prefix: Mutex<Option<(u32, PackHash)>>,
    /// Held by whoever reads all of it.
    reading: AsyncMutex<()>,
    damaged: AtomicBool,
}

/// The hash that ends a pack, as far as it is known.
#[derive(Clone, Debug)]
pub(super) enum PackHash {
    Sha1(Sha1),
    Sha256(Sha256),
}

impl PackHash {
    fn new(format: ObjectFormat) -> Self {
        match format {
            ObjectFormat::Sha1 => Self::Sha1(Sha1::default()),
            ObjectFormat::Sha256 => Self::Sha256(Sha256::default()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Bytes {
        match self {
            Self::Sha1(hash) => Bytes::copy_from_slice(&hash.finalize()),
            Self::Sha256(hash) => Bytes::copy_from_slice(&hash.finalize()),
        }
    }
}

impl Proof {
    /// Of a base of which nothing is known yet.
    pub fn new(base: Arc<Base>) -> Self {
        Self {
            base,
            sums: OnceLock::new(),
            prefix: Mutex::default(),
            reading: AsyncMutex::default(),
            damaged: AtomicBool::new(false),
        }
    }

    /// Whether the base has been found to be other than git wrote it.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// The base.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// How many objects an answer has with so many beside the base's: padded so that pushes to come need no more, if the
    /// base is large.
    pub fn total(&self, added: u32) -> u32 {
        let prefix = self.prefix.lock();
        let former = prefix.as_ref().map(|(count, _)| *count);
        total(self.base.index.count(), added, self.base.bytes, former)
    }

    /// The hash of a header that names `count` objects and the base's entries, read from `file`; `None` where that is the
    /// base as it is.
    ///
    /// # Errors
    /// It cannot be read, or is damaged ([`io::ErrorKind::InvalidData`]).
    pub(super) async fn prefix(&self, count: u32, file: &Arc<fs::File>) -> io::Result<Option<PackHash>> {
        let _reading = self.reading.lock().await;
        let known = |prefix: &Option<(u32, PackHash)>| {
            prefix.as_ref().filter(|(known, _)| *known == count).map(|(_, hash)| hash.clone())
        };
        let as_it_is = count == self.base.index.count();
        let found = known(&self.prefix.lock());
        if self.sums.get().is_some() && (as_it_is || found.is_some()) {
            return Ok(found);
        }
        let (base, file, whole) = (self.base.clone(), file.clone(), self.sums.get().is_some());
        let read = blocking(move || read_all(&base, &file, (!as_it_is).then_some(count), !whole)).await;
        let read = read.inspect_err(|error| self.judge(error))?;
        let _ = self.sums.set(read.sums);
        if let Some(hash) = &read.prefix {
            *self.prefix.lock() = Some((count, hash.clone()));
        }
        Ok(read.prefix)
    }

    /// The hash that ends the base.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn own(&self, file: &fs::File) -> io::Result<Bytes> {
        let mut own = vec![0; self.base.index.format().bytes()];
        file.read_exact_at(&mut own, self.base.end())?;
        Ok(own.into())
    }

    /// Compares the chunk of this number with what was read before, if anything was.
    ///
    /// # Errors
    /// It is another one.
    pub(super) fn compare<'a>(
        &self,
        number: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let Some(known) = self.sums.get().and_then(|sums| sums.get(number)) else { return Ok(()) };
        let mut sum = crc32fast::Hasher::new();
        pieces.for_each(|piece| sum.update(piece));
        if sum.finalize() == *known { Ok(()) } else { Err(damaged()).inspect_err(|error| self.judge(error)) }
    }

    fn judge(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::InvalidData {
            self.damaged.store(true, Ordering::Relaxed);
        }
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a pack of the mirror is not as git wrote it")
}

/// What reading all of a base gives.
struct Read {
    sums: Vec<u32>,
    prefix: Option<PackHash>,
}

/// Reads all of the base; with `check`, compares it with the hash that ends it.
fn read_all(base: &Base, file: &fs::File, count: Option<u32>, check: bool) -> io::Result<Read> {
    let format = base.index.format();
    let hash_of = |count: u32| {
        let mut hash = PackHash::new(format);
        hash.update(&header(count));
        hash
    };
    let (mut own, mut prefix) = (check.then(|| hash_of(base.index.count())), count.map(hash_of));
    let (grid, mut sums, mut chunk) = (Grid::of(base), Vec::new(), vec![0; CHUNK]);
    while let Some((from, length)) = grid.chunk(sums.len()) {
        chunk.resize(length, 0);
        file.read_exact_at(&mut chunk, from)?;
        sums.push(crc32fast::hash(&chunk));
        own.iter_mut().chain(&mut prefix).for_each(|hash| hash.update(&chunk));
    }
    if let Some(own) = own {
        let mut written = vec![0; format.bytes()];
        file.read_exact_at(&mut written, base.end())?;
        if own.finish() != written {
            return Err(damaged());
        }
    }
    Ok(Read { sums, prefix })
}

/// See [`Proof::total`]; `former` is the number that was hashed last.
fn total(base: u32, added: u32, bytes: u64, former: Option<u32>) -> u32 {
    let exact = base.saturating_add(added);
    if added == 0 || bytes < PADDED {
        return exact;
    }
    if let Some(former) =
        former.filter(|former| (exact..=exact.saturating_add(MOST_PADDING)).contains(former))
    {
        return former;
    }
    let room = added.saturating_mul(2).min(added.saturating_add(MOST_PADDING / 2)).max(MOST_PADDING / 8);
    base.checked_add(room).unwrap_or(exact)
}

/// So many blobs as entries of a pack; none that the base or the layer holds.
pub(super) fn padding(base: &Base, layer: &[Oid], count: u32) -> io::Result<Bytes> {
    let (mut entries, mut left, mut next) = (Vec::new(), count, 0_u32);
    while left > 0 {
        let blobs: Vec<(Oid, [u8; 4])> =
            (next..next.saturating_add(left)).filter_map(|number| blob(number, base)).collect();
        next = next.saturating_add(left);
        let oids: Vec<Oid> = blobs.iter().map(|(oid, _)| *oid).collect();
        let free = base.index.lacks(&oids)?;
        let mut free = free.iter().filter(|oid| layer.binary_search(oid).is_err()).peekable();
        for (_, content) in blobs.iter().filter(|(oid, _)| free.next_if(|free| *free == oid).is_some()) {
            entries.extend(entry(*content));
            left -= 1;
        }
    }
    Ok(entries.into())
}

/// A blob, and its name.
fn blob(number: u32, base: &Base) -> Option<(Oid, [u8; 4])> {
    let content = number.to_be_bytes();
    let mut hash = PackHash::new(base.index.format());
    hash.update(b"blob 4\0");
    hash.update(&content);
    Some((Oid::from_bytes(&hash.finish())?, content))
}

/// A blob of four bytes as a pack has it: its type and length, and the content, stored in a zlib stream (RFC 1950, 1951).
fn entry(content: [u8; 4]) -> [u8; 16] {
    let (a, b) =
        content.iter().fold((1_u32, 0_u32), |(a, b), byte| (a + u32::from(*byte), b + a + u32::from(*byte)));
    let [c0, c1, c2, c3] = content;
    let [s0, s1, s2, s3] = (b << 16 | a).to_be_bytes();
    [0x34, 0x78, 0x01, 0x01, 4, 0, 0xfb, 0xff, c0, c1, c2, c3, s0, s1, s2, s3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bases_are_hashed_once_for_many_pushes() {
        let large = PADDED;
        assert_eq!(total(1000, 0, large, None), 1000, "the base as it is");
        assert_eq!(total(1000, 7, PADDED - 1, None), 1007, "small ones are hashed each time");
        assert_eq!(total(1000, 7, large, None), 1000 + 1024);
        assert_eq!(total(1000, 1024, large, Some(2024)), 2024);
        assert_eq!(total(1000, 1025, large, Some(2024)), 1000 + 2050);
        assert_eq!(total(1000, 7, large, Some(90_000)), 1000 + 1024, "not for so many more");
        for added in [1, 500, 5000, 70_000] {
            let total = total(1000, added, large, None);
            assert!((1000 + added..=1000 + added + MOST_PADDING).contains(&total));
        }
        assert_eq!(total(u32::MAX - 5, 5, large, None), u32::MAX);
    }
}
