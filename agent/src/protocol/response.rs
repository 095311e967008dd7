//! The answer to a request for objects, as it passes by: whether it holds a pack, and whether it is whole. Pure.
//!
//! An upstream may end its HTTP answer properly in the middle of git's: a child died, and whatever stands before it does
//! not know. So the packets are followed. Of an answer only the present packet's head is remembered.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::pktline::MAX_DATA;
use crate::git::{ObjectFormat, upload_pack::ProtocolVersion};

/// How much of a line is looked at.
const LINE: usize = 160;

/// What the request leads one to expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The client has said all: the answer holds a pack.
    Pack,
    /// A round of negotiation, with or without one.
    Any,
}

/// Why an answer is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It ends in the middle.
    #[error("the answer ends before its end")]
    Cut,
    /// These are no packets.
    #[error("the answer is not made of packets")]
    Framing,
    /// The server gave up, in words.
    #[error("the server gives up: {0}")]
    GaveUp(String),
    /// Git would download packs from there, though nobody asked it to.
    #[error("the answer leads to other servers (packfile-uris)")]
    Elsewhere,
    /// A pack without packets whose checksum does not fit.
    #[error("the pack's checksum is wrong")]
    Checksum,
}

/// Follows one answer.
pub struct AnswerCheck {
    version: ProtocolVersion,
    format: ObjectFormat,
    expect: Expect,
    at: At,
    /// Whether the last packet was a flush.
    flushed: bool,
    /// The section that holds the pack has begun.
    pack: bool,
    packets: u64,
    broken: Option<Broken>,
    /// The byte before, for characters of two bytes.
    before: u8,
}

enum At {
    /// In the length of a packet.
    Head { digits: [u8; 4], filled: usize },
    /// In a packet.
    Packet { left: usize, band: Band, line: Vec<u8> },
    /// In a pack that comes without packets.
    Raw(Box<Raw>),
    /// Nothing more is understood.
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Band {
    /// The packet has just begun.
    Unknown,
    /// No band: a line.
    Line,
    Pack,
    Text,
    Error,
}

const HEAD: At = At::Head { digits: [0; 4], filled: 0 };

impl AnswerCheck {
    /// An answer of a repository of `format` in protocol `version`.
    pub fn new(version: ProtocolVersion, format: ObjectFormat, expect: Expect) -> Self {
        Self {
            version,
            format,
            expect,
            at: HEAD,
            flushed: false,
            pack: false,
            packets: 0,
            broken: None,
            before: 0,
        }
    }

    /// Whether a pack has begun.
    pub fn holds_pack(&self) -> bool {
        self.pack
    }

    /// Looks at the next bytes.
    pub fn see(&mut self, bytes: &[u8]) {
        self.walk(bytes, &mut |_| {});
    }

    /// Whether it leads to other servers: nothing of it from there on is for a client.
    pub fn leads_elsewhere(&self) -> bool {
        self.broken == Some(Broken::Elsewhere)
    }

    /// Looks at the next bytes, and blanks the control characters of what is text for people. Nothing is left where the
    /// answer leads to other servers.
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        let mut texts = Vec::new();
        self.walk(&chunk, &mut |range| texts.push(range));
        if self.leads_elsewhere() {
            return Bytes::new();
        }
        let before = self.before;
        self.before = chunk.last().copied().unwrap_or(before);
        let mut bad = Vec::new();
        for at in texts.into_iter().flatten() {
            let byte = chunk.get(at).copied().unwrap_or_default();
            let last = at.checked_sub(1).and_then(|last| chunk.get(last)).copied().unwrap_or(before);
            let control = (byte < b' ' && !matches!(byte, b'\n' | b'\r' | b'\t')) || byte == 0x7f;
            // U+0080 to U+009F, which some terminals obey.
            if control || (last == 0xc2 && (0x80..0xa0).contains(&byte)) {
                bad.push(at);
            }
        }
        if bad.is_empty() {
            return chunk;
        }
        let mut blanked = chunk.try_into_mut().unwrap_or_else(|chunk| BytesMut::from(&*chunk));
        for at in bad {
            // The second half of a character of two bytes becomes another second half: U+00A0, a space.
            if let Some(byte) = blanked.get_mut(at) {
                *byte = if *byte < 0x80 { b' ' } else { 0xa0 };
            }
        }
        blanked.freeze()
    }

    /// Judges the answer, all of which has been seen.
    ///
    /// # Errors
    /// It is not whole.
    pub fn end(self) -> Result<(), Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        match self.at {
            At::Raw(raw) => return if raw.ends_well(self.format) { Ok(()) } else { Err(Broken::Checksum) },
            At::Head { filled: 0, .. } => {}
            _ => return Err(Broken::Cut),
        }
        let closed = self.flushed || (self.version != ProtocolVersion::V2 && !self.pack && self.packets > 0);
        let enough = self.pack || self.expect == Expect::Any;
        if closed && enough { Ok(()) } else { Err(Broken::Cut) }
    }

    /// `text` gets the parts of `bytes` that are for people, or lines.
    fn walk(&mut self, bytes: &[u8], text: &mut dyn FnMut(Range<usize>)) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            match &mut self.at {
                At::Head { digits, filled } => {
                    for (slot, byte) in digits.iter_mut().skip(*filled).zip(rest) {
                        *slot = *byte;
                        *filled += 1;
                        at += 1;
                    }
                    if *filled == digits.len() {
                        let digits = *digits;
                        self.begin(digits);
                    }
                }
                At::Packet { left, band, line } => {
                    let mut part = rest.get(..rest.len().min(*left)).unwrap_or_default();
                    if *band == Band::Unknown {
                        *band = match part.first() {
                            Some(1) if self.pack || self.version != ProtocolVersion::V2 => Band::Pack,
                            Some(2) => Band::Text,
                            Some(3) => Band::Error,
                            // With sideband-all lines have a band, too.
                            _ => Band::Line,
                        };
                        if part.first().is_some_and(|band| *band <= 3) {
                            (at, *left) = (at + 1, *left - 1);
                            part = part.get(1..).unwrap_or_default();
                        }
                    }
                    if *band == Band::Pack {
                        self.pack = true;
                    } else {
                        text(at..at + part.len());
                        line.extend(part.iter().take(LINE - line.len().min(LINE)));
                    }
                    (at, *left) = (at + part.len(), *left - part.len());
                    if *left == 0 {
                        self.ended();
                    }
                }
                At::Raw(raw) => {
                    raw.push(rest, self.format);
                    return;
                }
                At::Lost => return,
            }
        }
    }

    /// A packet of this length begins.
    fn begin(&mut self, digits: [u8; 4]) {
        let old = self.version != ProtocolVersion::V2;
        if old && &digits == b"PACK" && !self.pack {
            self.pack = true;
            let mut raw = Raw::new(self.format);
            raw.push(&digits, self.format);
            self.at = At::Raw(Box::new(raw));
            return;
        }
        let hex = digits.iter().all(u8::is_ascii_hexdigit);
        let text = std::str::from_utf8(&digits).ok().filter(|_| hex);
        let length = text.and_then(|text| usize::from_str_radix(text, 16).ok());
        self.flushed = length == Some(0);
        self.packets += 1;
        self.at = match length {
            Some(0..=2 | 4) => HEAD,
            Some(length @ 5..) if length <= MAX_DATA + 4 => {
                At::Packet { left: length - 4, band: Band::Unknown, line: Vec::new() }
            }
            _ => {
                self.broken.get_or_insert(Broken::Framing);
                At::Lost
            }
        };
    }

    /// A packet has ended.
    fn ended(&mut self) {
        let At::Packet { band, line, .. } = std::mem::replace(&mut self.at, HEAD) else { return };
        let words = || String::from_utf8_lossy(&line).trim().to_owned();
        match band {
            Band::Error => drop(self.broken.get_or_insert_with(|| Broken::GaveUp(words()))),
            Band::Line if line.starts_with(b"ERR ") => {
                self.broken.get_or_insert_with(|| Broken::GaveUp(words()));
            }
            Band::Line if self.version == ProtocolVersion::V2 => match line.trim_ascii_end() {
                b"packfile" => self.pack = true,
                b"packfile-uris" if !self.pack => self.broken = Some(Broken::Elsewhere),
                _ => {}
            },
            _ => {}
        }
    }
}

/// A pack, whose last bytes are the checksum of those before.
struct Raw {
    context: Context,
    last: Vec<u8>,
}

impl Raw {
    fn new(format: ObjectFormat) -> Self {
        let algorithm = match format {
            ObjectFormat::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            ObjectFormat::Sha256 => &SHA256,
        };
        Self { context: Context::new(algorithm), last: Vec::new() }
    }

    fn trailer(format: ObjectFormat) -> usize {
        match format {
            ObjectFormat::Sha1 => 20,
            ObjectFormat::Sha256 => 32,
        }
    }

    fn push(&mut self, bytes: &[u8], format: ObjectFormat) {
        let keep = Self::trailer(format);
        if let Some((more, tail)) = bytes.len().checked_sub(keep).and_then(|at| bytes.split_at_checked(at)) {
            self.context.update(&self.last);
            self.context.update(more);
            self.last = tail.to_vec();
            return;
        }
        self.last.extend_from_slice(bytes);
        let over = self.last.len().saturating_sub(keep);
        self.context.update(self.last.get(..over).unwrap_or_default());
        self.last.drain(..over);
    }

    fn ends_well(self, format: ObjectFormat) -> bool {
        self.last.len() == Self::trailer(format) && self.context.finish().as_ref() == self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::pktline::write;

    fn packets(lines: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            match *line {
                b"" => out.extend_from_slice(b"0000"),
                b"--" => out.extend_from_slice(b"0001"),
                line => write(&mut out, &[line]),
            }
        }
        out
    }

    fn judge(version: ProtocolVersion, expect: Expect, bytes: &[u8]) -> Result<(), Broken> {
        let mut whole = AnswerCheck::new(version, ObjectFormat::Sha1, expect);
        whole.see(bytes);
        // However the bytes are cut.
        let mut slow = AnswerCheck::new(version, ObjectFormat::Sha1, expect);
        bytes.iter().for_each(|byte| slow.see(&[*byte]));
        assert_eq!(whole.holds_pack(), slow.holds_pack());
        let (whole, slow) = (whole.end(), slow.end());
        assert_eq!(whole, slow);
        whole
    }

    fn raw_pack() -> Vec<u8> {
        let mut pack = b"PACK\0\0\0\x02\0\0\0\0".to_vec();
        let sum = ring::digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, &pack);
        pack.extend_from_slice(sum.as_ref());
        pack
    }

    #[test]
    fn nothing_is_handed_on_of_an_answer_that_leads_to_other_servers() {
        let uris: [&[u8]; 5] =
            [b"packfile-uris\n", b"1111 http://h/pack\n", b"--", b"packfile\n", b"\x01PACK"];
        let answer = packets(&[&uris[..], &[b""]].concat());
        for size in 1..answer.len() {
            let mut check = AnswerCheck::new(ProtocolVersion::V2, ObjectFormat::Sha1, Expect::Pack);
            let chunks = answer.chunks(size).map(Bytes::copy_from_slice);
            let passed: Vec<u8> = chunks.flat_map(|chunk| check.pass(chunk)).collect();
            assert!(passed.len() < packets(&uris[..1]).len(), "{size}: {passed:?}");
            assert!(check.leads_elsewhere() && check.end() == Err(Broken::Elsewhere), "{size}");
        }
        // A pack's bytes and messages may be like it.
        let fine =
            packets(&[b"packfile\n", b"\x01PACK", b"\x02packfile-uris\n", b"\x01packfile-uris\n", b""]);
        assert_eq!(judge(ProtocolVersion::V2, Expect::Pack, &fine), Ok(()));
    }

    #[test]
    fn whole_answers_are_told_from_broken_ones() {
        use Expect::{Any, Pack};
        use ProtocolVersion::{V0, V2};
        let v2: &[&[u8]] =
            &[b"shallow-info\n", b"--", b"packfile\n", b"\x01PACK", b"\x02hello\n", b"\x01...", b""];
        assert_eq!(judge(V2, Pack, &packets(v2)), Ok(()));
        assert_eq!(judge(V2, Pack, &packets(&v2[..6])), Err(Broken::Cut));
        assert_eq!(judge(V2, Pack, &packets(&[b"acknowledgments\n", b"NAK\n", b""])), Err(Broken::Cut));
        assert_eq!(judge(V2, Any, &packets(&[b"acknowledgments\n", b"NAK\n", b""])), Ok(()));
        assert_eq!(judge(V2, Pack, b""), Err(Broken::Cut));
        let error = Err(Broken::GaveUp("pack-objects died".into()));
        let died: &[&[u8]] = &[b"packfile\n", b"\x01PACK", b"\x03pack-objects died\n", b""];
        assert_eq!(judge(V2, Pack, &packets(died)), error);
        assert_eq!(judge(V2, Any, &packets(&[b"ERR no"])), Err(Broken::GaveUp("ERR no".into())));
        let all: &[&[u8]] = &[b"\x01packfile\n", b"\x02x", b"\x01PACK", b""];
        assert_eq!(judge(V2, Pack, &packets(all)), Ok(()), "sideband-all");
        let v0: &[&[u8]] = &[b"shallow x\n", b"", b"NAK\n", b"\x02hello\n", b"\x01PACK", b""];
        assert_eq!(judge(V0, Pack, &packets(v0)), Ok(()));
        assert_eq!(judge(V0, Pack, &packets(&v0[..5])), Err(Broken::Cut));
        assert_eq!(judge(V0, Pack, &packets(&v0[..3])), Err(Broken::Cut));
        assert_eq!(judge(V0, Any, &packets(&v0[..3])), Ok(()));
        let raw = [packets(&[b"NAK\n"]), raw_pack()].concat();
        assert_eq!(judge(V0, Pack, &raw), Ok(()));
        assert_eq!(judge(V0, Pack, raw.split_last().unwrap().1), Err(Broken::Checksum));
        assert_eq!(judge(V2, Pack, b"<html>"), Err(Broken::Framing));
    }

    #[test]
    fn control_characters_of_texts_are_blanked_and_the_pack_is_not_touched() {
        let sent = packets(&[b"packfile\n", b"\x02a\x1b[2Jb\xc2\x9bc\r\n", b"\x01\x1b\x07", b""]);
        let wanted = packets(&[b"packfile\n", b"\x02a [2Jb\xc2\xa0c\r\n", b"\x01\x1b\x07", b""]);
        for size in [1, 3, sent.len()] {
            let mut response = AnswerCheck::new(ProtocolVersion::V2, ObjectFormat::Sha1, Expect::Pack);
            let passed = sent.chunks(size).map(|chunk| response.pass(Bytes::copy_from_slice(chunk)).to_vec());
            assert_eq!(passed.collect::<Vec<_>>().concat(), wanted, "{size}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_followed_without_panic(chunks: Vec<Vec<u8>>) {
            for version in [ProtocolVersion::V0, ProtocolVersion::V2] {
                let mut response = AnswerCheck::new(version, ObjectFormat::Sha1, Expect::Any);
                for chunk in &chunks {
                    prop_assert_eq!(response.pass(chunk.clone().into()).len(), chunk.len());
                }
                let _ = response.end();
            }
        }
    }
}
