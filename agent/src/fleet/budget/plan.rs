//! What is to leave the disk: a pure function.

use std::path::PathBuf;

use tarn_crds::repo::RepoId;

use crate::mirror::disk::Volume;

/// What was used within so many seconds stays: whoever has just asked will go on.
const RECENT: u64 = 10;

/// The least that is to stay free on the volume, whoever fills it: this part of it, …
const FLOOR_PART: u64 = 50;
/// … but not more.
const FLOOR_MOST: u64 = 4 << 30;

/// Something that may leave the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What.
    pub what: What,
    /// Its bytes.
    pub bytes: u64,
    /// When it was last used, in Unix time.
    pub used: u64,
}

/// Kinds of things that may leave the disk, in the order in which they do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Data of a mirror that nobody declares.
    Undeclared(PathBuf),
    /// A mirror's data, with its snapshot where the store has that.
    Mirror(RepoId),
    /// A snapshot that the store has too.
    Snapshot(RepoId),
    /// Cached answers, the least recently used first.
    Packs,
}

impl What {
    fn class(&self) -> u8 {
        match self {
            Self::Undeclared(_) => 0,
            Self::Mirror(_) => 1,
            Self::Snapshot(_) => 2,
            Self::Packs => 3,
        }
    }

    /// Its name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Undeclared(_) => "undeclared",
            Self::Mirror(_) => "mirror",
            Self::Snapshot(_) => "snapshot",
            Self::Packs => "packs",
        }
    }
}

/// How many bytes are to go, where the agent's own data take `own` of `budget`. Once there are too many, somewhat more go
/// than must, so that the next fetch does not begin it all again. Whoever else fills the volume: some of it stays free.
pub fn excess(own: u64, budget: u64, volume: Volume) -> u64 {
    let over = if own > budget { own - low(budget) } else { 0 };
    let floor = (volume.total / FLOOR_PART).min(FLOOR_MOST);
    let short = if volume.free < floor { 2 * floor - volume.free } else { 0 };
    over.max(short)
}

/// Where eviction ends, and above which nothing is brought that nobody waits for.
pub fn low(budget: u64) -> u64 {
    budget - budget / 20
}

/// What to let go for `need` bytes, in the order in which to try.
pub fn plan(need: u64, mut items: Vec<Item>, now: u64) -> Vec<Item> {
    items.retain(|item| item.what.class() != 1 || item.used + RECENT <= now);
    items.sort_by(|a, b| (a.what.class(), a.used, &a.what).cmp(&(b.what.class(), b.used, &b.what)));
    let mut freed = 0_u64;
    items
        .into_iter()
        .take_while(|item| {
            let more = freed < need;
            freed = freed.saturating_add(item.bytes);
            more
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> RepoId {
        RepoId::from_route(&format!("example.org/{name}")).unwrap()
    }

    fn item(what: What, bytes: u64, used: u64) -> Item {
        Item { what, bytes, used }
    }

    #[test]
    fn undeclared_data_go_first_then_mirrors_by_their_last_use_then_snapshots_then_packs() {
        let all = vec![
            item(What::Packs, 10, 0),
            item(What::Snapshot(id("old")), 10, 1),
            item(What::Mirror(id("new")), 10, 500),
            item(What::Mirror(id("old")), 10, 100),
            item(What::Mirror(id("now")), 10, 995),
            item(What::Undeclared("x".into()), 10, 900),
        ];
        let order = |need| {
            let found = plan(need, all.clone(), 1000);
            found.iter().map(|item| format!("{} {}", item.what.label(), item.used)).collect::<Vec<_>>()
        };
        assert_eq!(order(0), [""; 0]);
        assert_eq!(order(10), ["undeclared 900"]);
        assert_eq!(order(11), ["undeclared 900", "mirror 100"]);
        assert_eq!(
            order(99),
            ["undeclared 900", "mirror 100", "mirror 500", "snapshot 1", "packs 0"],
            "what was used just now stays"
        );
    }

    #[test]
    fn eviction_begins_above_the_budget_and_ends_below_it() {
        let volume = Volume { total: 10_000, free: 5_000 };
        assert_eq!(excess(1000, 1000, volume), 0);
        assert_eq!(excess(1001, 1000, volume), 51);
        assert_eq!(excess(951, 1000, volume), 0);
    }

    #[test]
    fn a_volume_that_others_fill_is_kept_from_being_full() {
        assert_eq!(excess(10, 1000, Volume { total: 10_000, free: 200 }), 0);
        assert_eq!(excess(10, 1000, Volume { total: 10_000, free: 0 }), 400);
        let large = Volume { total: 100 << 40, free: 1 << 30 };
        assert_eq!(excess(0, 1 << 40, large), 7 << 30);
    }

    proptest! {
        #[test]
        fn no_more_goes_than_is_needed(need in 0_u64..2000, sizes in prop::collection::vec((0_u64..100, 0_u64..900), 0..40)) {
            let all: Vec<Item> = sizes
                .iter()
                .enumerate()
                .map(|(at, (bytes, used))| item(What::Mirror(id(&format!("r{at}"))), *bytes, *used))
                .collect();
            let chosen = plan(need, all.clone(), 1000);
            let sum = |items: &[Item]| items.iter().map(|item| item.bytes).sum::<u64>();
            prop_assert!(sum(&chosen) >= need || chosen.len() == all.len());
            prop_assert!(chosen.split_last().is_none_or(|(_, before)| sum(before) < need));
            prop_assert!(chosen.is_sorted_by_key(|item| item.used));
        }
    }
}
