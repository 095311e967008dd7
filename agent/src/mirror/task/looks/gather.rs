//! Who has just been answered often asks again at once: a moment's wait before the next look lets them share it.
//!
//! Without it, two groups of clients take turns, and each waits for the other's look and then for its own. Pure: the
//! time is an argument.

use std::time::{Duration, Instant};

/// Fewer clients than this are no crowd, and wait for nobody.
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
    /// The wait after a look that took `look` and answered `answered` requests, while `waiting` came too late for it.
    /// These are others than the answered, so that all of the answered are waited for.
    pub(super) fn after(answered: usize, waiting: usize, look: Duration, now: Instant) -> Self {
        if answered + waiting < CROWD {
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
    use std::{cmp::Reverse, collections::BinaryHeap};

    use super::*;

    const LOOK: Duration = Duration::from_millis(20);

    #[test]
    fn a_crowd_is_waited_for_until_it_is_back_or_stays_away() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let mut gather = Gather::after(9, 0, LOOK, start);
        assert_eq!(gather.until(start), Some(at(2000)));
        gather.joined(at(1900));
        assert_eq!(gather.until(at(2000)), Some(at(3900)));
        gather.joined(at(3800));
        assert_eq!(gather.until(at(3800)), Some(at(5000)), "no longer than a quarter of the look");
        assert_eq!(gather.until(at(5000)), None);
        let mut all = Gather::after(9, 0, LOOK, start);
        (0..9).for_each(|_| all.joined(start));
        assert_eq!(all.until(start), None);
    }

    #[test]
    fn a_few_wait_for_nobody() {
        let start = Instant::now();
        assert_eq!(Gather::after(4, 3, LOOK, start).until(start), None);
        assert_eq!(Gather::default().until(start), None);
        let slow = Gather::after(64, 0, Duration::from_secs(4), start);
        assert!(slow.until(start).is_some_and(|until| until <= start + MOST));
    }

    /// What clients wait who ask again as soon as they are answered, the slowest last, in microseconds; `first` of
    /// them come in time for the first look, the others just after it began. The first second does not count.
    fn closed_loop(clients: usize, first: usize) -> Vec<u64> {
        #[derive(PartialEq, Eq, PartialOrd, Ord)]
        enum Event {
            Ended,
            Asks,
            Held,
        }
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let (mut events, mut gather, mut noise) = (BinaryHeap::new(), Gather::default(), 1u32);
        let (mut waiting, mut running, mut waited) = (Vec::new(), None::<(u64, Vec<u64>)>, Vec::new());
        events.extend((0..clients).map(|n| Reverse((u64::from(n >= first), Event::Asks))));
        while let Some(Reverse((now, event))) = events.pop() {
            match event {
                Event::Asks => {
                    waiting.push(now);
                    gather.joined(at(now));
                }
                Event::Ended => {
                    let (began, asked) = running.take().unwrap();
                    gather = Gather::after(asked.len(), waiting.len(), at(now) - at(began), at(now));
                    for asked in asked {
                        assert!(asked <= began, "a look that began before the question answers it");
                        waited.extend((now > 1_000_000).then_some(now - asked));
                        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        events.push(Reverse((now + 100 + u64::from(noise >> 16) % 1500, Event::Asks)));
                    }
                }
                Event::Held => {}
            }
            let more =
                events.peek().is_some_and(|Reverse((next, event))| *next == now && *event == Event::Asks);
            if more || running.is_some() || waiting.is_empty() || now > 3_000_000 {
                continue;
            }
            match gather.until(at(now)) {
                Some(until) => {
                    let until = u64::try_from((until - start).as_micros()).unwrap();
                    events.push(Reverse((until, Event::Held)));
                }
                None => {
                    running = Some((now, std::mem::take(&mut waiting)));
                    events.push(Reverse((now + 20_000, Event::Ended)));
                }
            }
        }
        waited.sort_unstable();
        waited
    }

    #[test]
    fn groups_that_would_take_turns_become_one() {
        for (clients, first) in [(64, 32), (64, 1), (64, 63), (64, 8), (8, 4), (9, 2), (1000, 500)] {
            let waited = closed_loop(clients, first);
            assert!(waited.len() > clients * 50, "{clients}: {}", waited.len());
            let slowest = waited.last().copied().unwrap();
            assert!(slowest < 25_000, "{clients}, {first} at first: {slowest} us for a look of 20 ms");
        }
    }
}
