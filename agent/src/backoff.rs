//! How long to wait between attempts. Pure: chance is an argument.

use std::time::Duration;

/// The wait after the `failures`-th failure in a row: `first` after the first, each further one twice as long, up
/// to `last`. `jitter` between 0 and 1 spreads it over its upper half, so that those who failed together do not
/// come back together.
pub fn backoff(first: Duration, last: Duration, failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = first.saturating_mul(1 << doublings).min(last);
    full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_are_spread() {
        let (first, last) = (Duration::from_millis(500), Duration::from_secs(10));
        assert_eq!(backoff(first, last, 1, 1.0), first);
        assert_eq!(backoff(first, last, 1, 0.0), first / 2);
        assert_eq!(backoff(first, last, 3, 1.0), first * 4);
        assert_eq!(backoff(first, last, u32::MAX, 1.0), last);
    }
}
