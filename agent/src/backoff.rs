//! How long to wait between attempts. Pure: chance is an argument.

use std::time::Duration;

/// The first retry comes about this long after the first failure, …
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// … each further one twice as late, up to this.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// The wait after the `failures`-th failure in a row: `first` after the first, each further one twice as long, up
/// to `last`. `jitter` between 0 and 1 spreads it over its upper half, so that those who failed together do not
/// come back together.
pub fn backoff(first: Duration, last: Duration, failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = first.saturating_mul(1 << doublings).min(last);
    full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// The wait of a mirror, a store, or anything else that is retried for as long as it fails: see [`backoff`].
pub fn retry_delay(failures: u32, jitter: f64) -> Duration {
    backoff(FIRST_RETRY, LAST_RETRY, failures, jitter)
}

/// How long to wait before the next background look: the interval, spread by 10 % either way.
pub fn interval_delay(interval: Duration, jitter: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0))
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

    #[test]
    fn retries_come_later_and_later_up_to_a_bound() {
        let at = |failures| retry_delay(failures, 1.0).as_secs();
        assert_eq!([at(1), at(2), at(3), at(9), at(10), at(u32::MAX)], [1, 2, 4, 256, 300, 300]);
        assert_eq!(retry_delay(1, 0.0), Duration::from_millis(500));
    }
}
