//! Chance that repeats: SplitMix64 with whole numbers only, so that no library or processor changes a draw.

/// A sequence of draws.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// Starts the sequence that belongs to a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Draws 64 bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Draws a number below `end`; 0 when `end` is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        // The bias of the remainder is far below anything this repository's shape could show.
        (self.bits() % (end as u64).max(1)) as usize
    }

    /// Draws a number from `from` to `to`, both included.
    pub(super) fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// Is true `percent` times in a hundred.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Draws a number below `end`, small ones far more often (each doubling equally likely, as words are used).
    pub(super) fn skewed(&mut self, end: usize) -> usize {
        let doublings = end.max(1).ilog2() as usize;
        let span = 1_usize << self.between(0, doublings);
        (span - 1 + self.below(span)) % end.max(1)
    }

    /// Draws one of a list; the list must not be empty.
    pub(super) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        list.get(self.below(list.len())).expect("the generator's lists are not empty")
    }
}

/// A number that belongs to two others, for choices that stay as they are.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    Random::new(a ^ b.rotate_left(32).wrapping_mul(0xd6e8_feb8_6659_fd93)).bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_repeat_and_stay_in_range() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..1000).map(|_| (random.between(3, 9), random.skewed(700))).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert!(draw(5).iter().all(|&(a, b)| (3..=9).contains(&a) && b < 700));
        assert!(draw(5).iter().filter(|&&(_, b)| b < 70).count() > 500, "small numbers are common");
    }
}
