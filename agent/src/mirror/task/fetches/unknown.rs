//! Objects that the upstream was asked for by id, and does not have: for some seconds it is not asked again. Pure: the
//! time is an argument.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::git::Oid;

/// How long an answer holds. A retrying job asks every few seconds; what is pushed meanwhile is asked for by people,
/// who see it no later than this. A look that shows moved refs ends it at once.
const KEPT: Duration = Duration::from_secs(5);

/// The most that are remembered of one mirror.
const MOST: usize = 10_000;

/// See the module.
#[derive(Default)]
pub(super) struct Unknown(HashMap<Oid, Instant>);

impl Unknown {
    /// The upstream said at `now` that it does not have `oids`.
    pub(super) fn remember(&mut self, oids: impl IntoIterator<Item = Oid>, now: Instant) {
        self.0.retain(|_, until| *until > now);
        let room = MOST.saturating_sub(self.0.len());
        self.0.extend(oids.into_iter().take(room).map(|oid| (oid, now + KEPT)));
    }

    /// Those of `oids` that the upstream does not have, as far as is known at `now`.
    pub(super) fn among(&self, oids: &[Oid], now: Instant) -> HashSet<Oid> {
        let unknown = |oid: &&Oid| self.0.get(oid).is_some_and(|until| *until > now);
        oids.iter().filter(unknown).copied().collect()
    }

    /// The upstream may have them now.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_some_seconds_and_until_something_has_moved() {
        let oid = |digit| Oid::from_hex(&[digit; 40]).unwrap();
        let (one, two, start) = (oid(b'1'), oid(b'2'), Instant::now());
        let mut unknown = Unknown::default();
        unknown.remember([one], start);
        assert_eq!(unknown.among(&[one, two], start + KEPT / 2), HashSet::from([one]));
        assert_eq!(unknown.among(&[one], start + KEPT), HashSet::new());
        unknown.remember([two], start);
        unknown.forget();
        assert_eq!(unknown.among(&[two], start), HashSet::new());
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let start = Instant::now();
        let oids = |from: usize| {
            (from..from + MOST).map(|number| Oid::from_hex(format!("{number:040x}").as_bytes()).unwrap())
        };
        let mut unknown = Unknown::default();
        unknown.remember(oids(0), start);
        unknown.remember(oids(MOST), start);
        assert_eq!(unknown.0.len(), MOST);
        unknown.remember(oids(MOST), start + KEPT);
        assert_eq!(unknown.among(&oids(MOST).collect::<Vec<_>>(), start + KEPT).len(), MOST);
    }
}
