//! What is to leave the disk: pure functions.

use std::path::PathBuf;

use tarn_crds::repo::RepoId;

use crate::mirror::{disk::Volume, room::Cut};

/// A mirror that was used within so many seconds stays: between the two requests of one clone nothing may go. That it was
/// used lately counts by the order, and needs no protection of its own.
const RECENT: u64 = 10;

/// The least that is to stay free on the volume, whoever fills it: this part of it, …
const FLOOR_PART: u64 = 50;
/// … but not more.
const FLOOR_MOST: u64 = 4 << 30;

/// A mirror that takes no more than this part of the budget, with what it grows by, may try again where others make way.
const MODEST_PART: u64 = 4;

/// A mirror that finds the disk full is given this part of the budget, and again if that was not enough.
const PLEA_PART: u64 = 10;

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

/// Kinds of things that may leave the disk, the softest first: in the order in which they do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A mirror that the disk has damaged, and that was set aside.
    Damaged(PathBuf),
    /// Data of a mirror that nobody declares.
    Undeclared(PathBuf),
    /// Cached answers, the least recently used first: seconds of a processor.
    Packs,
    /// A snapshot that the store has too.
    Snapshot(RepoId),
    /// LFS objects, the least recently used first: the upstream has them.
    Lfs,
    /// A mirror's data, with its snapshot where the store has that: a clone, or a restore.
    Mirror(RepoId),
}

impl What {
    fn class(&self) -> u8 {
        match self {
            Self::Damaged(_) => 0,
            Self::Undeclared(_) => 1,
            Self::Packs => 2,
            Self::Snapshot(_) => 3,
            Self::Lfs => 4,
            Self::Mirror(_) => 5,
        }
    }

    /// Its name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Damaged(_) => "damaged",
            Self::Undeclared(_) => "undeclared",
            Self::Packs => "packs",
            Self::Snapshot(_) => "snapshot",
            Self::Lfs => "lfs",
            Self::Mirror(_) => "mirror",
        }
    }
}

/// What the agent's own data take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Mirrors.
    pub mirrors: u64,
    /// Whatever else is kept: answers, snapshots, LFS objects, leftovers.
    pub soft: u64,
    /// What is being made, and goes by itself, or into place, when that ends.
    pub growing: u64,
}

impl Own {
    /// All of it.
    pub fn all(&self) -> u64 {
        self.mirrors.saturating_add(self.soft).saturating_add(self.growing)
    }
}

/// How many bytes are to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// In all.
    pub all: u64,
    /// So many that mirrors go for them, where nothing softer is left.
    pub firm: u64,
}

impl Need {
    /// How many bytes may be freed before and with this.
    pub fn of(&self, what: &What) -> u64 {
        if matches!(what, What::Mirror(_)) { self.firm } else { self.all }
    }

    /// Whether nothing is to go.
    pub fn is_none(&self) -> bool {
        self.all == 0 && self.firm == 0
    }
}

/// How many bytes are to go. Once there are too many, somewhat more go than must, so that the next fetch does not begin it
/// all again. Whoever else fills the volume: some of it stays free. With `plea` a mirror has found the disk full.
///
/// What is being made ends by itself: softer things make way for it, mirrors only where the volume itself is short. And
/// while more than half of the budget is being made, or lacks for one mirror, that is a hostile or a hopeless one: then
/// half of the budget is left to the mirrors that are here.
pub fn need(own: Own, budget: u64, volume: Volume, plea: bool) -> Need {
    let over = |bytes: u64| if bytes > budget { bytes - low(budget) } else { 0 };
    let floor = floor(volume);
    let short = if volume.free < floor { 2 * floor - volume.free } else { 0 };
    let beyond_half = own.mirrors.saturating_sub(budget / 2);
    let plea = if plea { budget / PLEA_PART } else { 0 };
    let lasting = over(own.mirrors.saturating_add(own.soft));
    let for_volume = if own.growing > budget / 2 { short.min(beyond_half) } else { short };
    let all = over(own.all()).max(short).max(plea);
    Need { all, firm: lasting.max(for_volume).max(plea.min(beyond_half)) }
}

/// What is to stay free on the volume.
fn floor(volume: Volume) -> u64 {
    (volume.total / FLOOR_PART).min(FLOOR_MOST)
}

/// A mirror that work makes grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grower {
    /// Which.
    pub id: RepoId,
    /// Its bytes before.
    pub bytes: u64,
    /// Bytes that are being added.
    pub grown: u64,
    /// Of those, the ones that stay: a repack's do not.
    pub stays: u64,
}

impl Grower {
    fn all(&self) -> u64 {
        self.bytes.saturating_add(self.grown)
    }

    /// Whether the budget has no room for it even once other mirrors, `mirrors` in all, have made way. Half of the budget
    /// stays with them.
    fn outgrows(&self, mirrors: u64, budget: u64) -> bool {
        let others = mirrors.saturating_sub(self.bytes).min(budget / 2);
        self.bytes.saturating_add(self.stays) > budget - others
    }
}

/// Whose work is to be ended now, and how. While the volume is short, whoever grows loses before any mirror that is quiet:
/// the mirror which is growing by most. Where the volume has room, a mirror that outgrows the budget is ended all the same.
/// In either case a mirror that grows by less than what is to stay free goes on: small fetches are not what fills a disk.
pub fn cut(growers: &[Grower], mirrors: u64, budget: u64, volume: Volume) -> Option<(RepoId, Cut)> {
    let floor = floor(volume);
    let most = growers.iter().filter(|grower| grower.grown > floor).max_by_key(|grower| grower.grown)?;
    if volume.free < floor {
        let modest = most.all() <= budget / MODEST_PART;
        return Some((most.id.clone(), if modest { Cut::MayPlead } else { Cut::Final }));
    }
    let outgrown = growers.iter().find(|grower| grower.stays > floor && grower.outgrows(mirrors, budget))?;
    Some((outgrown.id.clone(), Cut::Final))
}

/// Whether one mirror, whose data take `share` and grew by `grown` lately, is by itself why bytes are to go.
pub fn explains(share: u64, grown: u64, need: Need, budget: u64) -> bool {
    share > budget / 2 && grown >= need.firm
}

/// Where eviction ends, and above which nothing is brought that nobody waits for.
pub fn low(budget: u64) -> u64 {
    budget - budget / 20
}

/// What may go at all, in the order in which to try.
pub fn order(mut items: Vec<Item>, now: u64) -> Vec<Item> {
    items.retain(|item| !matches!(item.what, What::Mirror(_)) || item.used + RECENT <= now);
    items.sort_by(|a, b| (a.what.class(), a.used, &a.what).cmp(&(b.what.class(), b.used, &b.what)));
    items
}

/// What to let go for `need`, in the order in which to try.
pub fn plan(need: Need, items: Vec<Item>, now: u64) -> Vec<Item> {
    let mut freed = 0_u64;
    let chosen = order(items, now).into_iter().filter(|item| {
        let more = freed < need.of(&item.what);
        if more {
            freed = freed.saturating_add(item.bytes);
        }
        more
    });
    chosen.collect()
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

    fn grower(name: &str, bytes: u64, grown: u64) -> Grower {
        Grower { id: id(name), bytes, grown, stays: grown }
    }

    fn firm(all: u64) -> Need {
        Need { all, firm: all }
    }

    const ROOMY: Volume = Volume { total: 10_000, free: 5_000 };

    #[test]
    fn the_softest_goes_first_and_mirrors_by_their_last_use() {
        let all = vec![
            item(What::Mirror(id("new")), 10, 500),
            item(What::Mirror(id("old")), 10, 100),
            item(What::Mirror(id("now")), 10, 995),
            item(What::Lfs, 10, 0),
            item(What::Snapshot(id("old")), 10, 1),
            item(What::Packs, 10, 0),
            item(What::Undeclared("x".into()), 10, 900),
            item(What::Damaged("x".into()), 10, 900),
        ];
        let order = |need| {
            let found = plan(need, all.clone(), 1000);
            found.iter().map(|item| format!("{} {}", item.what.label(), item.used)).collect::<Vec<_>>()
        };
        let soft = ["damaged 900", "undeclared 900", "packs 0", "snapshot 1", "lfs 0"];
        assert_eq!(order(firm(0)), [""; 0]);
        assert_eq!(order(firm(10)), soft[..1]);
        assert_eq!(order(firm(11)), soft[..2]);
        assert_eq!(order(firm(51)), [&soft[..], &["mirror 100"]].concat());
        assert_eq!(
            order(firm(99)),
            [&soft[..], &["mirror 100", "mirror 500"]].concat(),
            "one was used just now"
        );
        assert_eq!(order(Need { all: 99, firm: 50 }), soft, "no mirror goes for what ends by itself");
    }

    #[test]
    fn eviction_begins_above_the_budget_and_ends_below_it() {
        let lasting = |mirrors| need(Own { mirrors, ..Own::default() }, 1000, ROOMY, false);
        assert!(lasting(1000).is_none());
        assert_eq!(lasting(1001), firm(51));
        assert!(lasting(951).is_none());
    }

    #[test]
    fn what_is_being_made_displaces_softer_things_and_no_mirror() {
        let growing = |growing| need(Own { mirrors: 900, soft: 50, growing }, 1000, ROOMY, false);
        assert_eq!(growing(40), Need::default());
        assert_eq!(growing(200), Need { all: 200, firm: 0 });
    }

    #[test]
    fn a_volume_that_others_fill_is_kept_from_being_full() {
        let of = |mirrors, growing, volume| need(Own { mirrors, soft: 0, growing }, 1000, volume, false);
        let full = Volume { total: 10_000, free: 0 };
        assert!(of(10, 0, Volume { total: 10_000, free: 200 }).is_none());
        assert_eq!(of(10, 0, full), firm(400));
        assert_eq!(of(600, 300, full), firm(400), "there is no other room for it");
        assert_eq!(
            of(600, 5_000, full),
            Need { all: 4650, firm: 100 },
            "half of the budget stays with the others"
        );
        assert_eq!(of(400, 5_000, full), Need { all: 4450, firm: 0 });
        let large = Volume { total: 100 << 40, free: 1 << 30 };
        assert_eq!(need(Own::default(), 1 << 40, large, false), firm(7 << 30));
    }

    #[test]
    fn a_mirror_that_finds_the_disk_full_gets_a_tenth_but_never_the_others_half() {
        let plea = |mirrors| need(Own { mirrors, ..Own::default() }, 1000, ROOMY, true);
        assert_eq!(plea(900), firm(100));
        assert_eq!(plea(550), Need { all: 100, firm: 50 });
        assert_eq!(plea(400), Need { all: 100, firm: 0 });
    }

    #[test]
    fn whoever_grows_is_ended_before_a_quiet_mirror_goes() {
        let full = Volume { total: 10_000, free: 199 };
        let growers = [grower("small", 100, 201), grower("huge", 0, 600), grower("large", 700, 10)];
        assert_eq!(cut(&growers, 800, 5000, ROOMY), None, "there is room");
        assert_eq!(cut(&growers, 800, 5000, full), Some((id("huge"), Cut::MayPlead)));
        assert_eq!(cut(&growers, 800, 1000, full), Some((id("huge"), Cut::Final)));
        assert_eq!(cut(&growers[..1], 100, 1000, full), Some((id("small"), Cut::Final)));
        assert_eq!(cut(&growers[2..], 700, 1000, full), None, "a small fetch does not fill a disk");
        assert_eq!(cut(&[], 0, 1000, full), None, "others fill it");
    }

    #[test]
    fn a_mirror_that_outgrows_the_budget_is_ended_though_the_volume_has_room() {
        let table = [
            // The others' bytes, the mirror's own, and by how much it grows: within 1000 bytes, 200 of them to stay free.
            (0, 0, 1000, None, "alone it may take all"),
            (0, 0, 1001, Some(Cut::Final), "but no more"),
            (300, 0, 700, None, "beside the others"),
            (300, 0, 701, Some(Cut::Final), "more than beside the others"),
            (900, 0, 500, None, "half of the budget is for those that are asked for now"),
            (900, 0, 501, Some(Cut::Final), "and half stays with those that are here"),
            (400, 300, 300, None, "its own bytes are no other's"),
            (400, 300, 301, Some(Cut::Final), "and count"),
            (0, 950, 190, None, "a small fetch goes on"),
        ];
        for (others, bytes, grown, expected, why) in table {
            let growers = [grower("quiet", others, 0), grower("one", bytes, grown)];
            let ended = cut(&growers, others + bytes, 1000, ROOMY);
            assert_eq!(ended, expected.map(|cut| (id("one"), cut)), "{why}");
        }
        let repack = Grower { stays: 0, ..grower("one", 600, 600) };
        assert_eq!(cut(&[repack], 600, 1000, ROOMY), None, "what a repack writes replaces what was there");
    }

    #[test]
    fn one_mirror_explains_what_lacks_if_it_is_large_and_grew_by_so_much() {
        assert!(explains(600, 200, firm(200), 1000));
        assert!(!explains(600, 100, firm(200), 1000), "it was as large before");
        assert!(!explains(400, 200, firm(200), 1000), "it is one of many");
    }

    proptest! {
        #[test]
        fn no_more_goes_than_is_needed_and_no_mirror_while_softer_bytes_suffice(
            all in 0_u64..2000,
            part in 0_u64..=100,
            sizes in prop::collection::vec((0_u8..6, 0_u64..100, 0_u64..900), 0..40),
        ) {
            let need = Need { all, firm: all * part / 100 };
            let items: Vec<Item> = sizes.iter().enumerate().map(|(at, (kind, bytes, used))| {
                let (name, path) = (id(&format!("r{at}")), PathBuf::from(at.to_string()));
                let what = match kind {
                    0 => What::Damaged(path),
                    1 => What::Undeclared(path),
                    2 => What::Packs,
                    3 => What::Snapshot(name),
                    4 => What::Lfs,
                    _ => What::Mirror(name),
                };
                item(what, *bytes, *used)
            }).collect();
            let chosen = plan(need, items.clone(), 1000);
            let is_mirror = |item: &&Item| matches!(item.what, What::Mirror(_));
            let sum = |items: &[Item]| items.iter().map(|item| item.bytes).sum::<u64>();
            let soft: u64 = items.iter().filter(|item| !is_mirror(item)).map(|item| item.bytes).sum();
            prop_assert!(soft < need.firm || !chosen.iter().any(|item| is_mirror(&item)));
            prop_assert!(sum(&chosen) >= need.firm || chosen.len() == items.len());
            // Without the last one there was not enough yet.
            if let Some((last, before)) = chosen.split_last() {
                prop_assert!(sum(before) < need.of(&last.what));
            }
            prop_assert!(chosen.is_sorted_by_key(|item| (item.what.class(), item.used)));
        }
    }
}
