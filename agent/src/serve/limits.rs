//! What requests may cost: how many are under way, of all callers and of one, and how fast answers are sent.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::places::{Full, Place, Places};

/// How far ahead of its rate a client may get, so that small answers are not slowed down at all.
const BURST: Duration = Duration::from_millis(200);

/// What is allowed. A caller is an address: it must be limited before anybody knows its name.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests under way, of all.
    pub requests: usize,
    /// Requests under way, of one caller.
    pub per_caller: usize,
    /// Bytes of answers a second to all.
    pub rate: Option<u64>,
    /// Bytes of answers a second to one caller.
    pub rate_per_caller: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 2048, per_caller: 512, rate: None, rate_per_caller: None }
    }
}

/// Who has requests under way.
#[derive(Debug)]
pub struct Requests {
    limits: Limits,
    /// Of all.
    line: Option<Arc<Line>>,
    /// Those of one caller share its line.
    places: Places<Option<Line>>,
}

impl Requests {
    /// None is under way.
    pub fn new(limits: Limits) -> Self {
        let line = limits.rate.map(|rate| Arc::new(Line::new(rate)));
        Self { limits, line, places: Places::new(limits.requests, limits.per_caller) }
    }

    /// One more of `caller`, for as long as the turn lives.
    pub(super) fn begin(&self, caller: IpAddr) -> Result<Turn, Full> {
        let place = self.places.take(caller, || self.limits.rate_per_caller.map(Line::new))?;
        Ok(Turn { place, all: self.line.clone() })
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Turn {
    place: Place<Option<Line>>,
    /// The line of all.
    all: Option<Arc<Line>>,
}

impl Turn {
    /// Until when the next bytes have to wait, now that `bytes` are sent; `None` where they need not.
    pub(super) fn send(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let own = self.place.shared().as_ref().map(|line| line.send(bytes, now));
        let all = self.all.as_ref().map(|line| line.send(bytes, now));
        own.max(all).filter(|until| *until > now)
    }
}

/// A line of some bytes a second.
#[derive(Debug)]
struct Line {
    rate: u64,
    /// When what has been sent so far has passed.
    free: Mutex<Instant>,
}

impl Line {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free: Mutex::new(Instant::now()) }
    }

    /// When more may be sent.
    fn send(&self, bytes: usize, now: Instant) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        *free = (*free).max(now) + takes;
        free.checked_sub(BURST).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { requests: 3, per_caller: 2, rate: None, rate_per_caller: None };

    fn callers() -> [IpAddr; 2] {
        ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap())
    }

    #[test]
    fn one_caller_leaves_room_for_others_and_all_have_a_limit() {
        let (requests, [one, two]) = (Requests::new(LIMITS), callers());
        let mut turns = vec![requests.begin(one).unwrap(), requests.begin(one).unwrap()];
        assert_eq!(requests.begin(one).unwrap_err(), Full::Client);
        turns.push(requests.begin(two).unwrap());
        assert_eq!(requests.begin(two).unwrap_err(), Full::All);
        turns.clear();
        assert!([two, two, one].map(|caller| requests.begin(caller)).iter().all(Result::is_ok));
    }

    #[test]
    fn answers_are_sent_at_the_rate_and_small_ones_at_once() {
        let [one, two] = callers();
        let limits = Limits { rate: Some(3_000), rate_per_caller: Some(1_000), ..LIMITS };
        let requests = Requests::new(limits);
        let (first, second) = (requests.begin(one).unwrap(), requests.begin(one).unwrap());
        let other = requests.begin(two).unwrap();
        // All lines are free by then.
        let now = Instant::now() + Duration::from_secs(1);
        let wait = |turn: &Turn, bytes| {
            turn.send(bytes, now).map(|until| ((until - now).as_secs_f64() * 1e3).round())
        };
        assert_eq!(wait(&first, 100), None);
        // Both of a caller share its line: 1,100 bytes, less the burst.
        assert_eq!(wait(&second, 1_000), Some(900.0));
        // Of the line of all: 1,500 bytes at 3,000 a second, more than its own 400 at 1,000.
        assert_eq!(wait(&other, 400), Some(300.0));
    }
}
