//! How much time there is to make packs ahead of demand. Pure.

use std::time::{Duration, Instant};

/// As much time is saved while there is nothing to do: enough for a pack of some GB.
const MAX_SAVED: Duration = Duration::from_secs(60);

/// A share of one processor's time, saved up to [`MAX_SAVED`].
#[derive(Debug)]
pub(super) struct Credit {
    share: f64,
    /// Seconds; below zero after something that took longer than had been saved.
    saved: f64,
    at: Instant,
}

impl Credit {
    /// `share` between 0 and 1; all that can be saved is there.
    pub(super) fn new(share: f64, now: Instant) -> Self {
        Self { share, saved: MAX_SAVED.as_secs_f64(), at: now }
    }

    /// How long to wait until work may begin; nothing if it may.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.share;
        (self.saved, self.at) = ((self.saved + earned).min(MAX_SAVED.as_secs_f64()), now);
        if self.saved >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.saved / self.share) }
    }

    /// Work took so long.
    pub(super) fn charge(&mut self, spent: Duration) {
        self.saved -= spent.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_earned_saved_up_to_a_limit_and_owed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut credit = Credit::new(0.1, start);
        assert_eq!(credit.wait(at(10_000)), Duration::ZERO);
        credit.charge(MAX_SAVED + Duration::from_secs(30));
        let close = |a: Duration, b: u64| a.abs_diff(Duration::from_secs(b)) < Duration::from_millis(1);
        assert!(close(credit.wait(at(10_000)), 300));
        assert!(close(credit.wait(at(10_100)), 200));
        assert_eq!(credit.wait(at(10_301)), Duration::ZERO);
    }
}
