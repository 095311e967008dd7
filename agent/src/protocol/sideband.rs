//! A pack as the last section of an answer to `fetch` (gitprotocol-v2(5)), in packets whose first byte says what they
//! are. Pure.

use bytes::{BufMut, Bytes, BytesMut};

use super::pktline::{FLUSH, MAX_DATA, write};

/// The section's first packet.
pub const PACKFILE: &[u8] = b"000dpackfile\n";

/// Says that a packet holds a piece of the pack.
const DATA: u8 = 1;

/// Says that a packet holds the reason why there is no more.
const ERROR: u8 = 3;

/// A packet's length, and that byte.
pub const HEAD: usize = 5;

/// The most of a pack that one packet holds.
pub const PIECE: usize = MAX_DATA - 1;

/// A piece of a pack, in packets.
pub fn data(piece: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(piece.len() + HEAD * piece.len().div_ceil(PIECE));
    for part in piece.chunks(PIECE) {
        out.put_slice(&head(part.len()));
        out.put_slice(part);
    }
    out.freeze()
}

/// What stands before so much of a pack in one packet.
pub fn head(length: usize) -> [u8; HEAD] {
    let digit = |shift: usize| {
        let digit = u8::try_from((length + HEAD) >> shift & 15).unwrap_or(0);
        if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
    };
    [digit(12), digit(8), digit(4), digit(0), DATA]
}

/// How many bytes so much of a pack takes in packets that are as long as they may be, but for the last.
pub fn framed(bytes: u64) -> u64 {
    bytes + HEAD as u64 * bytes.div_ceil(PIECE as u64)
}

/// Pieces of nothing: signs of life, of about `bytes` in all.
pub fn keepalive(bytes: usize) -> Bytes {
    Bytes::from([b"0005".as_slice(), &[DATA]].concat().repeat(bytes.div_ceil(HEAD)))
}

/// The end of an answer in which something went wrong; git shows the text.
pub fn error(text: &str) -> Bytes {
    let mut out = Vec::new();
    write(&mut out, &[&[ERROR], text.as_bytes(), b"\n"]);
    out.extend_from_slice(FLUSH);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::pktline::{Packet, Packets};

    #[test]
    fn packets_hold_the_piece_and_no_more_than_they_may() {
        let piece: Vec<u8> = (0..200_001_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        for length in [0, 1, MAX_DATA - 1, MAX_DATA, piece.len()] {
            let out = data(&piece[..length]);
            let packets = Packets::new(&out).map(|packet| match packet.unwrap() {
                Packet::Data(data) => data.to_vec(),
                other => panic!("{other:?}"),
            });
            let parts: Vec<Vec<u8>> = packets.collect();
            assert!(parts.iter().all(|part| part.len() <= MAX_DATA && part[0] == DATA));
            let joined: Vec<u8> = parts.iter().flat_map(|part| part[1..].to_vec()).collect();
            assert_eq!(joined, piece[..length], "{length}");
            assert_eq!(framed(length as u64), out.len() as u64);
        }
    }
}
