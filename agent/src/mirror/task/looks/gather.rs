//! Who has just been answered often asks again at once: a moment's wait before the next look lets them share it.
//!
//! Without it, two groups of clients take turns, and each waits for the other's look and then for its own. Pure: the
//! time is an argument.

use std::time::{Duration, Instant};

/// Fewer than this are no crowd, and wait for nobody.
const CROWD: usize = 8;

/// The wait ends when nobody has come for this long.
const GAP: Duration = Duration::from_millis(2);

/// The wait is at most this part of what the last look took: what sharing saves is a whole one.
const SHARE: u32 = 4;

/// The longest wait, whatever a look takes.
const MOST: Duration = Duration::from_millis(10);

/// A wait for the crowd that has just been answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gather {
    /// How many were answered and have not come back.
    missing: usize,
    /// Nobody waits longer.
    end: Option<Instant>,
    /// When the last one came, or the answers went out.
    last: Option<Instant>,
}

impl Gather {
    /// The wait after a look that took `look` has answered `answered` requests.
    pub(super) fn after(answered: usize, look: Duration, now: Instant) -> Self {
        if answered < CROWD {
            return Self::default();
        }
        Self { missing: answered, end: Some(now + (look / SHARE).min(MOST)), last: Some(now) }
    }

    /// One more request waits for the next look.
    pub(super) fn joined(&mut self, now: Instant) {
        self.missing = self.missing.saturating_sub(1);
        self.last = Some(now);
    }

    /// Until when the next look is to wait, unless someone comes; `None` where it need not.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        let until = self.end?.min(self.last? + GAP);
        (self.missing > 0 && until > now).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_waited_for_until_it_is_back_or_stays_away() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let look = Duration::from_millis(20);
        let mut gather = Gather::after(9, look, start);
        assert_eq!(gather.until(start), Some(at(2000)));
        gather.joined(at(1900));
        assert_eq!(gather.until(at(2000)), Some(at(3900)));
        gather.joined(at(3800));
        assert_eq!(gather.until(at(3800)), Some(at(5000)), "no longer than a quarter of the look");
        assert_eq!(gather.until(at(5000)), None);
        let mut all = Gather::after(9, look, start);
        (0..9).for_each(|_| all.joined(start));
        assert_eq!(all.until(start), None);
    }

    #[test]
    fn a_few_wait_for_nobody() {
        let start = Instant::now();
        assert_eq!(Gather::after(7, Duration::from_millis(20), start).until(start), None);
        assert_eq!(Gather::default().until(start), None);
        let slow = Gather::after(64, Duration::from_secs(4), start);
        assert!(slow.until(start).is_some_and(|until| until <= start + MOST));
    }
}
