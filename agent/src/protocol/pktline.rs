//! Packet lines: four hexadecimal digits of length, then data (gitprotocol-common(5)). Pure.
//!
//! Not gix-packetline: it refuses the empty packet `0004`, which git accepts, and does not say where a
//! broken packet lies.

use bstr::ByteSlice;

/// The most data one packet carries: LARGE_PACKET_DATA_MAX of git's pkt-line.h.
pub const MAX_DATA: usize = 65516;

/// The flush packet.
pub const FLUSH: &[u8] = b"0000";

/// The end of a section.
pub const DELIMITER: &[u8] = b"0001";

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A line, its trailing newline included.
    Data(&'a [u8]),
    /// `0000`: the end of a message.
    Flush,
    /// `0001`: the end of a section.
    Delimiter,
    /// `0002`: the end of a stateless response.
    ResponseEnd,
}

impl<'a> Packet<'a> {
    /// The line without its trailing newline; `None` for the special packets.
    pub fn line(&self) -> Option<&'a [u8]> {
        match self {
            Self::Data(data) => Some(data.strip_suffix(b"\n").unwrap_or(data)),
            _ => None,
        }
    }
}

/// Why bytes are no packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The four digits are none, or name an impossible length.
    #[error("bad packet length at byte {at}")]
    BadLength {
        /// Where the packet begins.
        at: usize,
    },
    /// The bytes end inside a packet.
    #[error("the packet at byte {at} is cut short")]
    Truncated {
        /// Where the packet begins.
        at: usize,
    },
}

/// Iterates over the packets in `bytes`; ends after the first error.
#[derive(Clone, Debug)]
pub struct Packets<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Packets<'a> {
    /// The packets in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, PacketError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (at, rest) = (self.at, self.rest());
        if rest.is_empty() {
            return None;
        }
        let packet = read(rest).map_err(|kind| match kind {
            Broken::Length => PacketError::BadLength { at },
            Broken::Cut => PacketError::Truncated { at },
        });
        self.at = match &packet {
            Ok((_, length)) => at + length,
            Err(_) => self.bytes.len(),
        };
        Some(packet.map(|(packet, _)| packet))
    }
}

enum Broken {
    Length,
    Cut,
}

fn read(bytes: &[u8]) -> Result<(Packet<'_>, usize), Broken> {
    let digits = bytes.get(..4).ok_or(Broken::Cut)?;
    // u32's own parser would also take a sign.
    let text = digits.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    let length = text.and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or(Broken::Length)?;
    match length {
        0 => Ok((Packet::Flush, 4)),
        1 => Ok((Packet::Delimiter, 4)),
        2 => Ok((Packet::ResponseEnd, 4)),
        3 => Err(Broken::Length),
        length if length > MAX_DATA + 4 => Err(Broken::Length),
        length => Ok((Packet::Data(bytes.get(4..length).ok_or(Broken::Cut)?), length)),
    }
}

/// Appends a data packet. Data beyond [`MAX_DATA`] is cut off: only ref names could be so long, and git
/// refuses those.
pub fn write(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum::<usize>().min(MAX_DATA);
    let start = out.len();
    out.extend_from_slice(format!("{:04x}", length + 4).as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.truncate(start + 4 + length);
}

/// An `ERR` packet: git prints its text to the person at the terminal and gives up.
pub fn error(message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    // No newline at the end: git prints the line as it is.
    write(&mut out, &[b"ERR ", message.as_bytes()]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn special_packets_and_lines_are_told_apart() {
        let packets: Result<Vec<_>, _> = Packets::new(b"0009want\n000100020000").collect();
        let expected = [Packet::Data(b"want\n"), Packet::Delimiter, Packet::ResponseEnd, Packet::Flush];
        assert_eq!(packets.unwrap(), expected);
        assert_eq!(Packet::Data(b"want\n").line(), Some(b"want".as_slice()));
    }

    #[test]
    fn broken_packets_say_where() {
        let last = |bytes: &'static [u8]| Packets::new(bytes).last().unwrap();
        assert_eq!(last(b"0000zzzz"), Err(PacketError::BadLength { at: 4 }));
        assert_eq!(last(b"0003"), Err(PacketError::BadLength { at: 0 }));
        assert_eq!(last(b"ffff"), Err(PacketError::BadLength { at: 0 }));
        assert_eq!(last(b"+005a"), Err(PacketError::BadLength { at: 0 }));
        assert_eq!(last(b"0009wan"), Err(PacketError::Truncated { at: 0 }));
        assert_eq!(last(b"00"), Err(PacketError::Truncated { at: 0 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            for packet in Packets::new(&bytes) {
                let _ = packet;
            }
        }

        #[test]
        fn written_packets_are_read_back(lines: Vec<Vec<u8>>) {
            let mut out = Vec::new();
            for line in &lines {
                write(&mut out, &[line]);
            }
            let read: Vec<_> = Packets::new(&out).map(|p| p.unwrap()).collect();
            let expected: Vec<_> = lines.iter().map(|l| Packet::Data(l)).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
