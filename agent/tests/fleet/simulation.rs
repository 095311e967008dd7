//! A fleet of a thousand mirrors over two weeks, by the planners alone: no agents, no clock, no chance.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use tarn_agent::fleet::budget::plan::{Item, Own, What, need, plan};
use tarn_agent::fleet::prewarm::{Candidate, chosen};
use tarn_agent::mirror::disk::Volume;
use tarn_agent::peers::placement::owners;
use tarn_agent::popularity::day::Uses;
use tarn_crds::repo::RepoId;
use tarn_crds::v1alpha1::Prewarm;

const MIRRORS: usize = 1000;
const PODS: usize = 8;
/// Requests that one pod gets in two weeks.
const REQUESTS: usize = 40_000;
/// Seconds between two of them.
const APART: u64 = 14 * 24 * 3600 / REQUESTS as u64;
const BYTES: u64 = 1 << 30;
/// Disk for 30 % of the mirrors.
const BUDGET: u64 = 300 * BYTES;

/// Numbers that look random, and are the same each time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn id(number: usize) -> RepoId {
    // The name says nothing of the rank.
    let name = format!("example.org/r{}", (number * 617 + 11) % MIRRORS);
    RepoId::from_route(&name).expect("a good name")
}

/// Draws mirrors by Zipf's law: the n-th is asked for a n-th as often as the first.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new() -> Self {
        let mut sum = 0.0;
        let sums = (1..=MIRRORS).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        Self(sums.collect())
    }

    fn draw(&self, dice: &mut Dice) -> usize {
        let all = self.0.last().copied().unwrap_or(1.0);
        let at = dice.throw() * all;
        self.0.partition_point(|sum| *sum < at).min(MIRRORS - 1)
    }
}

/// A pod that keeps what it is asked for until the budget has it go.
#[derive(Default)]
struct Pod {
    held: BTreeMap<usize, u64>,
    hits: usize,
    asked: BTreeMap<usize, u64>,
}

impl Pod {
    fn ask(&mut self, mirror: usize, now: u64) {
        *self.asked.entry(mirror).or_default() += 1;
        self.hits += usize::from(self.held.insert(mirror, now).is_some());
        let own = BYTES * self.held.len() as u64;
        let own = Own { mirrors: own, ..Own::default() };
        let need = need(own, BUDGET, Volume { total: 10 * BUDGET, free: BUDGET }, false);
        if need.is_none() {
            return;
        }
        let names: BTreeMap<RepoId, usize> = self.held.keys().map(|mirror| (id(*mirror), *mirror)).collect();
        let item = |(mirror, used): (&usize, &u64)| Item {
            what: What::Mirror(id(*mirror)),
            bytes: BYTES,
            used: *used,
        };
        for gone in plan(need, self.held.iter().map(item).collect(), now) {
            if let What::Mirror(id) = gone.what {
                names.get(&id).and_then(|mirror| self.held.remove(mirror));
            }
        }
    }

    /// What the best choice made once, in hindsight, would have hit.
    fn best(&self) -> u64 {
        let mut counts: Vec<u64> = self.asked.values().copied().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.iter().take(300).sum()
    }
}

/// Two weeks on all pods, each with clients of its own.
fn fortnight() -> Vec<Pod> {
    let (zipf, mut dice) = (Zipf::new(), Dice(0x9E37_79B9_7F4A_7C15));
    let mut pods: Vec<Pod> = (0..PODS).map(|_| Pod::default()).collect();
    for number in 0..REQUESTS {
        let now = 1_000_000 + number as u64 * APART;
        for pod in &mut pods {
            pod.ask(zipf.draw(&mut dice), now);
        }
    }
    pods
}

#[test]
fn a_disk_for_a_third_of_the_mirrors_hits_nearly_as_often_as_the_best_choice() -> Result<()> {
    let pods = fortnight();
    let hits: usize = pods.iter().map(|pod| pod.hits).sum();
    let best: u64 = pods.iter().map(Pod::best).sum();
    let ratio = hits as f64 / best as f64;
    ensure!(
        ratio >= 0.9,
        "{ratio:.3} of the best choice; {:.3} of all",
        hits as f64 / (PODS * REQUESTS) as f64
    );
    // After a restart with an empty disk, those that all pods were asked for most come first.
    let mut uses: BTreeMap<usize, u64> = BTreeMap::new();
    for (mirror, count) in pods.iter().flat_map(|pod| &pod.asked) {
        *uses.entry(*mirror).or_default() += count;
    }
    let candidate = |mirror: usize| Candidate {
        id: id(mirror),
        prewarm: Prewarm::Auto,
        uses: Uses { clones: uses.get(&mirror).copied().unwrap_or(0), ..Uses::default() },
    };
    let order = chosen((0..MIRRORS).map(candidate).collect(), MIRRORS);
    let top: BTreeSet<RepoId> = (0..20).map(id).collect();
    let first: BTreeSet<RepoId> = order.iter().take(21).cloned().collect();
    ensure!(top.difference(&first).count() <= 1, "the twenty most asked for come before the tail: {first:?}");
    ensure!(chosen((0..MIRRORS).map(candidate).collect(), 20) == order[..20], "and nothing of the tail does");
    Ok(())
}

#[test]
fn a_ninth_pod_takes_its_share_and_moves_nothing_else() -> Result<()> {
    let names = |count: usize| (0..count).map(|number| format!("tarn-{number}")).collect::<Vec<_>>();
    let (eight, nine) = (names(PODS), names(PODS + 1));
    let moved = (0..MIRRORS).filter(|n| owners(&eight, &id(*n), 1) != owners(&nine, &id(*n), 1)).count();
    ensure!(moved as f64 <= MIRRORS as f64 * (1.0 / 8.0 + 0.03), "{moved} of {MIRRORS} moved");
    ensure!(moved > 0, "the new pod has its share");
    Ok(())
}
