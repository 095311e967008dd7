//! How an object is cut into blocks: a function of its length alone, so that publishers and readers agree.

use std::ops::Range;

/// A block of the beginning: small, so that a reader gets its first byte soon.
pub(super) const SMALL: u64 = 64 << 10;

/// How far small blocks go.
pub(super) const SMALL_UNTIL: u64 = 1 << 20;

/// A block after the beginning: large enough that a request's latency is small beside its transfer.
pub(super) const LARGE: u64 = 8 << 20;

const SMALL_BLOCKS: u64 = SMALL_UNTIL / SMALL;

/// The blocks of an object of some length. They touch and do not overlap; the last one may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    bytes: u64,
}

impl Layout {
    /// The layout of an object of `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The object's length.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// How many blocks there are; none in an empty object.
    pub fn count(self) -> usize {
        let small = self.bytes.min(SMALL_UNTIL).div_ceil(SMALL);
        let large = self.bytes.saturating_sub(SMALL_UNTIL).div_ceil(LARGE);
        usize::try_from(small + large).unwrap_or(usize::MAX)
    }

    /// Where `block` lies; empty and at the end where there is no such block.
    pub fn range(self, block: usize) -> Range<u64> {
        let block = u64::try_from(block).unwrap_or(u64::MAX);
        start(block).min(self.bytes)..start(block.saturating_add(1)).min(self.bytes)
    }

    /// The block that contains `offset`; `None` at the end and after it.
    pub fn containing(self, offset: u64) -> Option<usize> {
        if offset >= self.bytes {
            return None;
        }
        let block = match offset.checked_sub(SMALL_UNTIL) {
            None => offset / SMALL,
            Some(beyond) => SMALL_BLOCKS + beyond / LARGE,
        };
        usize::try_from(block).ok()
    }

    /// Whether `block` is one of the small ones of the beginning.
    pub fn is_small(self, block: usize) -> bool {
        self.range(block).end <= SMALL_UNTIL
    }
}

/// Where `block` begins, were the object long enough.
fn start(block: u64) -> u64 {
    match block.checked_sub(SMALL_BLOCKS) {
        None => block * SMALL,
        Some(large) => large.saturating_mul(LARGE).saturating_add(SMALL_UNTIL),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_are_small_at_first_and_large_then() {
        let layout = Layout::new(SMALL_UNTIL + LARGE + 1);
        assert_eq!(layout.count(), 18);
        assert_eq!(layout.range(0), 0..SMALL);
        assert_eq!(layout.range(15), SMALL_UNTIL - SMALL..SMALL_UNTIL);
        assert_eq!(layout.range(16), SMALL_UNTIL..SMALL_UNTIL + LARGE);
        assert_eq!(layout.range(17), SMALL_UNTIL + LARGE..SMALL_UNTIL + LARGE + 1);
        assert!(layout.range(18).is_empty());
        assert!(layout.is_small(15) && !layout.is_small(16));
        assert_eq!(Layout::new(0).count(), 0);
        assert_eq!(Layout::new(0).containing(0), None);
    }

    /// Lengths and offsets about every edge, and anywhere.
    fn offsets() -> impl Strategy<Value = u64> {
        let near = |middle: u64| (middle.saturating_sub(2)..middle.saturating_add(3)).boxed();
        prop_oneof![
            0..64 * LARGE,
            (0..20_u64).prop_flat_map(move |n| near(n * SMALL)),
            (0..20_u64).prop_flat_map(move |n| near(SMALL_UNTIL + n * LARGE)),
        ]
    }

    proptest! {
        #[test]
        fn blocks_cover_the_object_without_gap_or_overlap(bytes in offsets()) {
            let layout = Layout::new(bytes);
            let mut at = 0;
            for block in 0..layout.count() {
                let range = layout.range(block);
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > range.start && range.end - range.start <= LARGE);
                prop_assert_eq!(layout.is_small(block), range.end <= SMALL_UNTIL);
                at = range.end;
            }
            prop_assert_eq!(at, bytes);
        }

        #[test]
        fn every_offset_lies_in_the_block_said_to_contain_it(bytes in offsets(), offset in offsets()) {
            let layout = Layout::new(bytes);
            match layout.containing(offset) {
                Some(block) => {
                    prop_assert!(block < layout.count());
                    prop_assert!(layout.range(block).contains(&offset));
                }
                None => prop_assert!(offset >= bytes),
            }
        }

        #[test]
        fn no_length_overflows(bytes in any::<u64>(), block in any::<usize>()) {
            let layout = Layout::new(bytes);
            let range = layout.range(block);
            prop_assert!(range.start <= range.end && range.end <= bytes);
            prop_assert_eq!(layout.range(layout.count() - usize::from(bytes > 0)).end, bytes);
        }
    }
}
