//! The answer to a `fetch` as it arrives: sections, side bands, and the pack, which is checked and forgotten.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use sha1::{Digest as _, Sha1};

use super::pktline::{self, Header};

/// The longest line outside the pack that is kept; `shallow` and `ACK` lines have 60 bytes.
const LINE: usize = 4_096;
/// Bytes of a pack's trailer.
const TRAILER: usize = 20;

/// How well a pack is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Its header, its object count, and that the answer is complete.
    Shape,
    /// Also its trailer against a SHA-1 of all bytes; costs the client about as much as the server pays.
    Trailer,
}

/// What one answer held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the pack.
    pub pack_bytes: u64,
    /// Objects that the pack's header announces.
    pub objects: u32,
    /// The pack's own checksum, in hexadecimal.
    pub trailer: String,
    /// Commits that the answer declared shallow.
    pub shallow: usize,
    /// When the first byte of the pack arrived.
    pub first_byte: Instant,
}

/// Takes an answer apart, in pieces of any size.
#[derive(Debug)]
pub(super) struct Demux {
    state: State,
    in_pack: bool,
    line: Vec<u8>,
    shallow: usize,
    first_byte: Option<Instant>,
    pack: Pack,
}

/// What the next byte is.
#[derive(Debug, Clone, Copy)]
enum State {
    Header { digits: [u8; 4], have: usize },
    Line { left: usize },
    Band { left: usize },
    PackData { left: usize },
    Progress { left: usize },
    Fatal { left: usize },
    Done,
}

const HEADER: State = State::Header { digits: [0; 4], have: 0 };

impl Demux {
    /// Expects the beginning of an answer.
    pub(super) fn new(check: Check) -> Self {
        let hash = (check == Check::Trailer).then(Sha1::new);
        Self {
            state: HEADER,
            in_pack: false,
            line: Vec::new(),
            shallow: 0,
            first_byte: None,
            pack: Pack { bytes: 0, head: Vec::new(), tail: Vec::new(), hash },
        }
    }

    /// Takes the next piece, which arrived now.
    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Result<()> {
        while !piece.is_empty() {
            piece = self.step(piece)?;
        }
        Ok(())
    }

    /// Checks that the answer was whole.
    pub(super) fn finish(self) -> Result<Received> {
        ensure!(matches!(self.state, State::Done), "the answer ends without a flush ({:?})", self.state);
        let Some(first_byte) = self.first_byte else { bail!("the answer holds no pack") };
        let (objects, trailer) = self.pack.finish()?;
        let Self { shallow, .. } = self;
        Ok(Received { pack_bytes: self.pack_bytes(), objects, trailer, shallow, first_byte })
    }

    /// Handles the beginning of a piece and gives back the rest.
    fn step<'a>(&mut self, piece: &'a [u8]) -> Result<&'a [u8]> {
        match self.state {
            State::Header { mut digits, have } => {
                let (here, rest) = piece.split_at(piece.len().min(4 - have));
                for (place, digit) in digits.iter_mut().skip(have).zip(here) {
                    *place = *digit;
                }
                let have = have + here.len();
                self.state = if have < 4 {
                    State::Header { digits, have }
                } else {
                    self.announced(pktline::header(digits)?)?
                };
                Ok(rest)
            }
            State::Line { left } => {
                let (here, left, rest) = take(piece, left);
                self.keep(here)?;
                self.state = if left > 0 { State::Line { left } } else { self.whole_line()? };
                Ok(rest)
            }
            State::Band { left } => {
                let Some((band, rest)) = piece.split_first() else { return Ok(piece) };
                self.state = match (band, left) {
                    (1..=2, 0) => HEADER,
                    (1, left) => State::PackData { left },
                    (2, left) => State::Progress { left },
                    (3, left) => State::Fatal { left },
                    (band, _) => bail!("side band {band}"),
                };
                Ok(rest)
            }
            State::PackData { left } => {
                let (here, left, rest) = take(piece, left);
                self.first_byte.get_or_insert_with(Instant::now);
                self.pack.push(here)?;
                self.state = if left > 0 { State::PackData { left } } else { HEADER };
                Ok(rest)
            }
            State::Progress { left } => {
                let (_, left, rest) = take(piece, left);
                self.state = if left > 0 { State::Progress { left } } else { HEADER };
                Ok(rest)
            }
            State::Fatal { left } => {
                let (here, left, rest) = take(piece, left);
                self.keep(here)?;
                if left == 0 {
                    bail!("the server says: {}", String::from_utf8_lossy(&self.line).trim_end());
                }
                self.state = State::Fatal { left };
                Ok(rest)
            }
            State::Done => bail!("{} bytes after the end of the answer", piece.len()),
        }
    }

    /// What follows a packet's header.
    fn announced(&mut self, header: Header) -> Result<State> {
        Ok(match header {
            Header::Flush => State::Done,
            Header::Delimiter if self.in_pack => bail!("a delimiter within the pack"),
            Header::Delimiter => HEADER,
            Header::ResponseEnd => bail!("a response-end packet in an answer over HTTP"),
            Header::Data(0) => bail!("an empty packet"),
            Header::Data(left) if self.in_pack => State::Band { left: left - 1 },
            Header::Data(left) => State::Line { left },
        })
    }

    /// Adds to a line outside the pack.
    fn keep(&mut self, bytes: &[u8]) -> Result<()> {
        ensure!(self.line.len() + bytes.len() <= LINE, "a line of more than {LINE} bytes");
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Handles a whole line outside the pack.
    fn whole_line(&mut self) -> Result<State> {
        let line = std::mem::take(&mut self.line);
        let line = line.trim_ascii_end();
        if let Some(reason) = line.strip_prefix(b"ERR ") {
            bail!("the server says: {}", String::from_utf8_lossy(reason));
        }
        if line.starts_with(b"shallow ") {
            self.shallow += 1;
        }
        self.in_pack = line == b"packfile";
        Ok(HEADER)
    }

    fn pack_bytes(&self) -> u64 {
        self.pack.bytes
    }
}

/// The part of a piece that belongs to a run of `left` bytes, what is left of the run, and the rest.
fn take(piece: &[u8], left: usize) -> (&[u8], usize, &[u8]) {
    let (here, rest) = piece.split_at(piece.len().min(left));
    (here, left - here.len(), rest)
}

/// A pack of which only both ends are kept.
#[derive(Debug)]
struct Pack {
    bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    hash: Option<Sha1>,
}

impl Pack {
    fn push(&mut self, data: &[u8]) -> Result<()> {
        if self.head.len() < 12 {
            let wanted = data.len().min(12 - self.head.len());
            self.head.extend_from_slice(data.split_at(wanted).0);
            ensure!(b"PACK".starts_with(self.head.split_at(self.head.len().min(4)).0), "not a pack");
        }
        self.bytes += data.len() as u64;
        // The trailer is not part of what it sums up, so the last 20 bytes so far always wait.
        if data.len() >= TRAILER {
            let (body, tail) = data.split_at(data.len() - TRAILER);
            if let Some(hash) = &mut self.hash {
                hash.update(&self.tail);
                hash.update(body);
            }
            self.tail.clear();
            self.tail.extend_from_slice(tail);
        } else {
            self.tail.extend_from_slice(data);
            let body = self.tail.drain(..self.tail.len().saturating_sub(TRAILER));
            match &mut self.hash {
                Some(hash) => hash.update(body.as_slice()),
                None => drop(body),
            }
        }
        Ok(())
    }

    /// Checks both ends; gives the number of objects and the trailer.
    fn finish(&self) -> Result<(u32, String)> {
        let Some((b"PACK", rest)) = self.head.split_first_chunk::<4>() else { bail!("not a pack") };
        let Some(([0, 0, 0, 2], count)) = rest.split_first_chunk::<4>() else {
            bail!("not a pack of version 2")
        };
        let Some((count, _)) = count.split_first_chunk::<4>() else {
            bail!("a pack without an object count")
        };
        let objects = u32::from_be_bytes(*count);
        ensure!(objects > 0, "a pack without objects");
        ensure!(self.bytes >= 12 + TRAILER as u64, "a pack of {} bytes", self.bytes);
        if let Some(hash) = &self.hash {
            let sum = hash.clone().finalize();
            ensure!(sum.as_slice() == self.tail, "the pack's trailer is not the hash of its bytes");
        }
        Ok((objects, super::hex(&self.tail)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(objects: u32) -> Vec<u8> {
        let mut pack = b"PACK\0\0\0\x02".to_vec();
        pack.extend(objects.to_be_bytes());
        pack.extend((0..900_u32).flat_map(u32::to_be_bytes));
        let sum = Sha1::digest(&pack);
        pack.extend_from_slice(&sum);
        pack
    }

    fn packet(out: &mut Vec<u8>, band: u8, data: &[u8]) {
        out.extend(format!("{:04x}", data.len() + 5).bytes());
        out.push(band);
        out.extend(data);
    }

    fn answer(pack: &[u8], chunk: usize) -> Vec<u8> {
        let mut body = Vec::new();
        pktline::line(&mut body, "shallow-info\n");
        pktline::line(&mut body, "shallow 1111111111111111111111111111111111111111");
        pktline::delimiter(&mut body);
        pktline::line(&mut body, "packfile\n");
        packet(&mut body, 2, b"Counting objects\r");
        for data in pack.chunks(chunk) {
            packet(&mut body, 1, data);
            packet(&mut body, 1, b"");
        }
        pktline::flush(&mut body);
        body
    }

    fn receive(body: &[u8], piece: usize) -> Result<Received> {
        let mut demux = Demux::new(Check::Trailer);
        body.chunks(piece).try_for_each(|piece| demux.feed(piece))?;
        demux.finish()
    }

    #[test]
    fn a_pack_is_recognised_in_pieces_of_any_size() {
        let pack = pack(7);
        for chunk in [1, 7, 19, 20, 21, 1000, 60_000] {
            for piece in [1, 2, 3, 5, 64, 4096, 1 << 20] {
                let got = receive(&answer(&pack, chunk), piece).unwrap();
                assert_eq!((got.pack_bytes, got.objects, got.shallow), (pack.len() as u64, 7, 1));
                assert!(got.trailer.len() == 40);
            }
        }
    }

    #[test]
    fn damage_is_noticed() {
        let good = answer(&pack(7), 1000);
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let says = |body: &[u8]| receive(body, 777).unwrap_err().to_string();
        assert!(says(&flipped).contains("trailer"), "{}", says(&flipped));
        assert!(says(&good[..good.len() - 4]).contains("without a flush"));
        assert!(says(&good[..good.len() - 3]).contains("without a flush"));
        assert!(says(&[&good[..], b"0000"].concat()).contains("after the end"));
        assert!(says(&answer(&pack(0), 1000)).contains("without objects"));
        assert!(says(b"0000").contains("no pack"));
        assert!(says(b"000bERR no\n").contains("no"));
        let mut fatal = b"000dpackfile\n".to_vec();
        packet(&mut fatal, 3, b"out of memory\n");
        assert!(says(&fatal).contains("out of memory"));
    }
}
