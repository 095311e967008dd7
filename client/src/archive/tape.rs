//! Reads tar: headers, the extensions that real archivers write, and nothing that a snapshot has no use for.

use std::fs::File;
use std::io::{self, Write as _};

use tar::{EntryType, Header, PaxExtensions};

use super::ArchiveError;
use super::blocks::Blocks;

/// Bytes of a header, and what contents are padded to.
const RECORD: usize = 512;

/// The longest extension: names are bounded, and a clone has no other attributes.
const EXTENSION: u64 = 64 * 1024;

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) size: u64,
    mode: u32,
    pub(super) modified: Modified,
}

impl Entry {
    /// The mode of a file in the worktree: git knows executable and not; the user's umask does the rest. What else
    /// the archive says, set-user-id included, is left out.
    pub(super) fn worktree_mode(&self) -> u32 {
        if self.mode & 0o100 == 0 { 0o666 } else { 0o777 }
    }
}

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// With its target.
    Symlink(Vec<u8>),
    /// Something that git does not know; says what.
    Other(&'static str),
}

/// When a file was last modified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modified {
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
}

/// What pax and GNU extensions said of the next entry.
#[derive(Debug, Default)]
struct Extended {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<Modified>,
}

/// An archive that is being read.
#[derive(Debug)]
pub(super) struct Tape<'scope> {
    blocks: Blocks<'scope>,
    /// Bytes until the next header: padding of the last content.
    padding: u64,
}

impl<'scope> Tape<'scope> {
    pub(super) fn new(blocks: Blocks<'scope>) -> Self {
        Self { blocks, padding: 0 }
    }

    /// The next entry, at whose content the tape then stands; none at the archive's end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = Extended::default();
        loop {
            let record = self.record()?;
            if record.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&record);
            check_sum(header, &record)?;
            let size = header.entry_size().map_err(damaged)?;
            match header.entry_type() {
                EntryType::XHeader => read_pax(&self.extension(size)?, &mut extended)?,
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => extended.name = Some(text(self.extension(size)?)),
                EntryType::GNULongLink => extended.target = Some(text(self.extension(size)?)),
                _ => return self.entry(header, size, extended).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, extended: Extended) -> Result<Entry, ArchiveError> {
        let Extended { name, target, size: longer, modified } = extended;
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                let short = || header.link_name_bytes().map(|name| name.into_owned());
                Kind::Symlink(target.or_else(short).unwrap_or_default())
            }
            EntryType::Link => Kind::Other("is a hard link"),
            EntryType::Char | EntryType::Block => Kind::Other("is a device"),
            EntryType::Fifo => Kind::Other("is a named pipe"),
            _ => Kind::Other("is of a kind that no clone has"),
        };
        let size = if kind == Kind::File { longer.unwrap_or(size) } else { 0 };
        self.padding = padding(size);
        let seconds = || header.mtime().ok().and_then(|time| i64::try_from(time).ok());
        Ok(Entry {
            name: name.unwrap_or_else(|| header.path_bytes().into_owned()),
            kind,
            size,
            mode: header.mode().map_err(damaged)?,
            modified: modified
                .or_else(|| Some(Modified { seconds: seconds()?, nanoseconds: 0 }))
                .ok_or_else(|| damaged(io::Error::other("a header with an impossible time")))?,
        })
    }

    /// Writes an entry's content to a file.
    pub(super) fn copy(&mut self, size: u64, file: &mut File, name: &[u8]) -> Result<(), ArchiveError> {
        self.content(size, |bytes| file.write_all(bytes).map_err(ArchiveError::disk(name)))
    }

    /// Passes an entry's content by.
    pub(super) fn skip(&mut self, size: u64) -> Result<(), ArchiveError> {
        self.content(size, |_| Ok(()))
    }

    /// Reads on to the end of the bytes, so that a cut or damaged archive is noticed whatever its tar says. Nothing
    /// but zeros follows the end of an archive.
    pub(super) fn finish(&mut self) -> Result<(), ArchiveError> {
        loop {
            let bytes = self.blocks.fill().map_err(damaged)?;
            if bytes.is_empty() {
                return Ok(());
            }
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(damaged(io::Error::other("something follows the end of the archive")));
            }
            let count = bytes.len();
            self.blocks.take(count);
        }
    }

    fn content(
        &mut self,
        size: u64,
        mut put: impl FnMut(&[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let mut left = size;
        while left > 0 {
            let bytes = self.blocks.fill().map_err(damaged)?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let Some(taken) = bytes.get(..count).filter(|taken| !taken.is_empty()) else {
                return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
            };
            put(taken)?;
            self.blocks.take(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn record(&mut self) -> Result<[u8; RECORD], ArchiveError> {
        let padding = std::mem::take(&mut self.padding);
        self.skip(padding)?;
        let (mut record, mut filled) = ([0; RECORD], 0);
        self.content(RECORD as u64, |bytes| {
            if let Some(to) = record.get_mut(filled..filled + bytes.len()) {
                to.copy_from_slice(bytes);
            }
            filled += bytes.len();
            Ok(())
        })?;
        Ok(record)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION {
            return Err(damaged(io::Error::other("a header with an extension that is too long")));
        }
        let mut bytes = Vec::new();
        self.content(size, |more| {
            bytes.extend_from_slice(more);
            Ok(())
        })?;
        self.padding = padding(size);
        Ok(bytes)
    }
}

/// Bytes from the end of a content to the next header.
fn padding(size: u64) -> u64 {
    let record = RECORD as u64;
    (record - size % record) % record
}

fn damaged(source: io::Error) -> ArchiveError {
    ArchiveError::Damaged { source }
}

/// A GNU name without the zero byte that ends it.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.pop_if(|last| *last == 0).is_some() {}
    bytes
}

/// The sum of a header's bytes, its own field taken as spaces: what tells tar from anything else.
fn check_sum(header: &Header, record: &[u8; RECORD]) -> Result<(), ArchiveError> {
    let own = 148..156;
    let byte = |(at, byte): (usize, &u8)| if own.contains(&at) { u32::from(b' ') } else { u32::from(*byte) };
    let sum: u32 = record.iter().enumerate().map(byte).sum();
    if header.cksum().is_ok_and(|told| told == sum) {
        return Ok(());
    }
    Err(damaged(io::Error::other("a header with a wrong sum")))
}

fn read_pax(bytes: &[u8], extended: &mut Extended) -> Result<(), ArchiveError> {
    let odd = || damaged(io::Error::other("a pax header that cannot be read"));
    for extension in PaxExtensions::new(bytes) {
        let extension = extension.map_err(damaged)?;
        let value = extension.value_bytes();
        let number = || std::str::from_utf8(value).ok();
        match extension.key_bytes() {
            b"path" => extended.name = Some(value.to_vec()),
            b"linkpath" => extended.target = Some(value.to_vec()),
            b"size" => extended.size = Some(number().and_then(|text| text.parse().ok()).ok_or_else(odd)?),
            b"mtime" => extended.modified = Some(number().and_then(parse_time).ok_or_else(odd)?),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(damaged(io::Error::other("a sparse file, which no snapshot has")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads `seconds[.fraction]`, of which nanoseconds are kept; before 1970 git has no times.
fn parse_time(text: &str) -> Option<Modified> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let nine: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let seconds: i64 = seconds.parse().ok()?;
    (digits && seconds >= 0).then_some(Modified { seconds, nanoseconds: nine.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds() {
        let time = |seconds, nanoseconds| Some(Modified { seconds, nanoseconds });
        assert_eq!(parse_time("1700000000"), time(1_700_000_000, 0));
        assert_eq!(parse_time("5.25"), time(5, 250_000_000));
        assert_eq!(parse_time("5.1234567899"), time(5, 123_456_789));
        for wrong in ["", "-5", "5.x", "5.-1", "x"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }
}
