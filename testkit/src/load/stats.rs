//! What many measurements say together.

use std::time::Duration;

/// The value that `percent` of a hundred measurements do not exceed (nearest rank); zero of none.
pub fn percentile(measured: &[Duration], percent: u32) -> Duration {
    let mut sorted = measured.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent as usize).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rank_counts() {
        let measured: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&measured, 50), Duration::from_millis(100));
        assert_eq!(percentile(&measured, 99), Duration::from_millis(198));
        assert_eq!(percentile(&measured, 100), Duration::from_millis(200));
        assert_eq!(percentile(&measured[..1], 1), Duration::from_millis(200));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
