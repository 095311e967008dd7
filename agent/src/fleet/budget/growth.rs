//! How much each mirror grew lately. No clock.

use std::collections::BTreeMap;

use tarn_crds::repo::RepoId;

/// Growth is told since one to two times so many seconds.
const WINDOW: u64 = 3600;

/// What is seen in the first so many seconds was there before: a start takes its time to find it.
const START: u64 = 600;

/// The sizes of mirrors, as they were.
#[derive(Debug, Default)]
pub(super) struct Growth {
    began: Option<u64>,
    marked: u64,
    older: BTreeMap<RepoId, u64>,
    newer: BTreeMap<RepoId, u64>,
}

impl Growth {
    /// Takes in what mirrors take now.
    pub(super) fn seen(&mut self, sizes: impl Iterator<Item = (RepoId, u64)>, now: u64) {
        let began = *self.began.get_or_insert(now);
        if now < began.saturating_add(START) {
            for (id, bytes) in sizes.filter(|(_, bytes)| *bytes > 0) {
                self.older.entry(id).or_insert(bytes);
            }
            self.marked = now;
        } else if now >= self.marked.saturating_add(WINDOW) {
            self.marked = now;
            let newer = sizes.filter(|(_, bytes)| *bytes > 0).collect();
            let former = std::mem::replace(&mut self.newer, newer);
            self.older = if former.is_empty() { self.newer.clone() } else { former };
        }
    }

    /// How much a mirror grew that takes so many bytes now.
    pub(super) fn of(&self, id: &RepoId, bytes: u64) -> u64 {
        bytes.saturating_sub(self.older.get(id).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_was_not_there_an_hour_ago() {
        let (mut growth, id) = (Growth::default(), RepoId::from_route("h/o/r").unwrap());
        let mut seen = |bytes, now| {
            growth.seen([(id.clone(), bytes)].into_iter(), now);
            growth.of(&id, bytes)
        };
        assert_eq!(seen(0, 1000), 0);
        assert_eq!(seen(70, 1005), 0, "found on the disk");
        assert_eq!(seen(90, 1010), 20);
        assert_eq!(seen(90, 3000), 20);
        assert_eq!(seen(90, 1000 + START + WINDOW), 0);
        assert_eq!(seen(95, 1000 + START + WINDOW + 5), 5);
        assert_eq!(seen(95, 1000 + START + 2 * WINDOW), 5, "for an hour at least");
        assert_eq!(seen(95, 1000 + START + 3 * WINDOW), 0);
        let other = RepoId::from_route("h/o/other").unwrap();
        assert_eq!(growth.of(&other, 7), 7, "new");
    }
}
