//! What was asked for: of one mirror, by one agent on one day, by all over a window. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use serde::{Deserialize, Serialize};
use tarn_crds::repo::RepoId;

/// The longest object of a day. At some 100 bytes a mirror it holds 10,000 of them.
pub const MAX_DAY: u64 = 1 << 20;

/// Of how many mirrors a sum tells; the least used are left out.
const MAX_TOTALS: usize = 20_000;

/// What somebody took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Objects, by a client that had none of them.
    Clone,
    /// Objects, by a client that had some.
    Fetch,
    /// A snapshot, or a part of one.
    Snapshot,
}

/// How often a mirror was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses {
    /// Clones.
    #[serde(default)]
    pub clones: u64,
    /// Fetches of clients that had a clone.
    #[serde(default)]
    pub fetches: u64,
    /// Downloads of snapshots.
    #[serde(default)]
    pub snapshots: u64,
}

impl Uses {
    /// How much it matters to have the mirror at hand: a new clone is what is dear without.
    pub fn weight(self) -> u64 {
        self.clones.saturating_add(self.snapshots)
    }

    /// One more.
    pub fn count(&mut self, taken: Taken) {
        let count = match taken {
            Taken::Clone => &mut self.clones,
            Taken::Fetch => &mut self.fetches,
            Taken::Snapshot => &mut self.snapshots,
        };
        *count = count.saturating_add(1);
    }

    fn add(&mut self, other: Self) {
        // By name, so that a new field is not forgotten.
        let Self { clones, fetches, snapshots } = other;
        self.clones = self.clones.saturating_add(clones);
        self.fetches = self.fetches.saturating_add(fetches);
        self.snapshots = self.snapshots.saturating_add(snapshots);
    }

    /// The more of it, the more used; fetches decide between equals.
    pub fn order(self) -> (u64, u64) {
        (self.weight(), self.fetches)
    }
}

/// An object of the store: what one agent counted on one day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    mirrors: BTreeMap<String, Uses>,
}

impl Day {
    /// Reads an object.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// The object, of the most used mirrors if all would take more than [`MAX_DAY`].
    pub fn to_json(&self) -> Vec<u8> {
        let mut kept = Self { mirrors: self.mirrors.clone() };
        loop {
            let text = serde_json::to_vec(&kept).expect("names and numbers");
            if text.len() as u64 <= MAX_DAY {
                return text;
            }
            let keep = kept.mirrors.len() / 2;
            kept.mirrors = most_used(kept.mirrors, keep).collect();
        }
    }

    /// Counts one more of `id`.
    pub fn count(&mut self, id: &RepoId, taken: Taken) {
        self.mirrors.entry(id.to_string()).or_default().count(taken);
    }

    /// Adds what another object of the same agent and day says.
    pub fn add(&mut self, other: Self) {
        for (id, uses) in other.mirrors {
            self.mirrors.entry(id).or_default().add(uses);
        }
    }
}

/// The uses of all mirrors over a window, by all agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals(HashMap<String, Uses>);

impl Totals {
    /// Adds a day. Names that no mirror has are never asked for, and do no harm.
    pub fn add(&mut self, day: Day) {
        for (id, uses) in day.mirrors {
            self.0.entry(id).or_default().add(uses);
        }
        // Twice as many may be there for a moment, so that this is rarely done.
        if self.0.len() > 2 * MAX_TOTALS {
            self.shrink();
        }
    }

    /// Keeps those that matter.
    pub fn shrink(&mut self) {
        if self.0.len() > MAX_TOTALS {
            self.0 = most_used(std::mem::take(&mut self.0), MAX_TOTALS).collect();
        }
    }

    /// What is known of `id`.
    pub fn of(&self, id: &RepoId) -> Uses {
        self.0.get(&id.to_string()).copied().unwrap_or_default()
    }

    /// How many mirrors were used at all.
    pub fn mirrors(&self) -> usize {
        self.0.len()
    }
}

/// The `count` most used ones; among equals those whose names come first, so that all agents choose the same.
fn most_used(
    mirrors: impl IntoIterator<Item = (String, Uses)>,
    count: usize,
) -> impl Iterator<Item = (String, Uses)> {
    let mut all: Vec<_> = mirrors.into_iter().collect();
    all.sort_unstable_by(|(a, one), (b, other)| (Reverse(one.order()), a).cmp(&(Reverse(other.order()), b)));
    all.into_iter().take(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> RepoId {
        RepoId::from_route(&format!("example.org/{name}")).unwrap()
    }

    #[test]
    fn days_of_all_agents_add_up() {
        let mut totals = Totals::default();
        for taken in [Taken::Clone, Taken::Clone, Taken::Fetch, Taken::Snapshot] {
            let mut day = Day::default();
            day.count(&id("a"), taken);
            totals.add(Day::parse(&day.to_json()).unwrap());
        }
        assert_eq!(totals.of(&id("a")), Uses { clones: 2, fetches: 1, snapshots: 1 });
        assert_eq!(totals.of(&id("a")).weight(), 3);
        assert_eq!(totals.of(&id("b")), Uses::default());
    }

    #[test]
    fn a_day_too_long_loses_the_least_used() {
        let mut day = Day::default();
        for number in 0..30_000 {
            let id = id(&format!("org-{number:05}/repository"));
            day.count(&id, Taken::Fetch);
            if number % 10 == 0 {
                day.count(&id, Taken::Clone);
            }
        }
        let text = day.to_json();
        assert!(text.len() as u64 <= MAX_DAY, "{} bytes", text.len());
        let kept = Day::parse(&text).unwrap();
        assert!(kept.mirrors.len() > 5_000, "{} mirrors", kept.mirrors.len());
        let cloned = kept.mirrors.values().filter(|uses| uses.clones == 1).count();
        assert_eq!(cloned, 3_000);
    }

    #[test]
    fn a_sum_is_bounded_and_keeps_the_most_used() {
        let mut totals = Totals::default();
        let mut popular = Day::default();
        popular.count(&id("popular"), Taken::Snapshot);
        totals.add(popular);
        for part in 0..60 {
            let mut day = Day::default();
            for number in 0..1_000 {
                day.count(&id(&format!("{part}/{number}")), Taken::Fetch);
            }
            totals.add(day);
        }
        assert!(totals.mirrors() <= 2 * MAX_TOTALS);
        totals.shrink();
        assert_eq!(totals.mirrors(), MAX_TOTALS);
        assert_eq!(totals.of(&id("popular")).snapshots, 1);
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_reader(text in ".{0,200}") {
            let _ = Day::parse(text.as_bytes());
        }
    }

    #[test]
    fn numbers_do_not_run_over() {
        let text =
            format!("{{\"mirrors\":{{\"example.org/a\":{{\"clones\":{0},\"snapshots\":{0}}}}}}}", u64::MAX);
        let mut totals = Totals::default();
        totals.add(Day::parse(text.as_bytes()).unwrap());
        totals.add(Day::parse(text.as_bytes()).unwrap());
        assert_eq!(totals.of(&id("a")).weight(), u64::MAX);
    }
}
