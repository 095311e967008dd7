//! The chunks in which a base is read, compared and sent.

use crate::{
    git::base::{Base, HEADER},
    protocol::sideband::PIECE,
};

/// Packets read at once: 128 KiB, as other answers are.
const PACKETS: usize = 2;

/// Bytes of a pack that are read, compared and sent at once.
pub(super) const CHUNK: usize = PACKETS * PIECE;

/// A base's entries, cut into chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    end: u64,
}

impl Grid {
    pub(super) fn of(base: &Base) -> Self {
        Self { end: base.end() }
    }

    /// Where the chunk of this number begins, and how long it is; `None` behind the last one.
    pub(super) fn chunk(self, number: usize) -> Option<(u64, usize)> {
        let from = HEADER + number as u64 * CHUNK as u64;
        let left = self.end.checked_sub(from).filter(|left| *left > 0)?;
        Some((from, usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK))))
    }
}
