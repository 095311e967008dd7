//! What is measured. A scenario is a line of [`SCENARIOS`]; a new kind of work is a variant of [`Work`], a
//! function, and a [`Table`] that names the function's figures.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tarn_testkit::load::{CLONE_PREFIXES, Client, Clones, Depth, clones, listings, percentile};
use tarn_testkit::measure::Usage;
use tarn_testkit::nginx::Sendfile;

use crate::side::{Side, SideName, Staleness};
use crate::table::{
    AFTER_PUSH, CLONES, FAR, FULL_AFTER_PUSH, HITS, LISTINGS, SENDFILE, STORMS, STREAMS, Table,
};
use crate::truth::{Asked, ONE_BRANCH, Truth};

/// Connections that ask for refs at once.
const CONNECTIONS: usize = 16;

/// What is done to a server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// So many identical clones at once.
    Clones { count: usize, depth: Depth, asked: Asked },
    /// [`CONNECTIONS`] connections that list refs for a while.
    Listings { prefixes: &'static [&'static str], staleness: Staleness },
    /// One client that makes the same clone so often; git http-backend, which keeps nothing, once.
    Hits { depth: Depth, count: usize },
    /// The first depth-1 clone of HEAD after a push.
    AfterPush,
    /// 64 connections that list refs of an upstream far away; directly, one.
    FarLook { prefixes: &'static [&'static str] },
    /// One stream of an answer, beside a web server's.
    Stream { of: Streamed, sendfile: Sendfile },
    /// Fetches of distinct commits by clients that have nothing, all at once.
    Storm { depth: Depth },
    /// The first full clone after a push, with packs made ahead of demand or without.
    FullAfterPush { ahead: Ahead },
}

impl Work {
    /// Whether only `--only` runs it: a storm takes minutes a round.
    pub(crate) fn only_when_named(&self) -> bool {
        matches!(self, Self::Storm { .. } | Self::FullAfterPush { .. })
    }

    /// Whether Tarn's mirror of the shared repository takes part.
    pub(crate) fn needs_mirror(&self) -> bool {
        match self {
            Self::Clones { .. } | Self::Listings { .. } | Self::Hits { .. } | Self::Stream { .. } => true,
            Self::AfterPush | Self::FarLook { .. } | Self::Storm { .. } | Self::FullAfterPush { .. } => false,
        }
    }
}

/// What one stream is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streamed {
    /// A clone of all branches and tags.
    Clone,
    /// A full fetch of one commit that no ref names.
    Commit,
}

/// Whether the agent makes packs ahead of demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// As it does by default.
    Made,
    /// It makes none.
    None,
}

/// One line of the report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) table: &'static Table,
    pub(crate) work: Work,
    /// Whether `--quick` runs it.
    pub(crate) quick: bool,
}

const fn cloning(
    name: &'static str,
    title: &'static str,
    count: usize,
    depth: Depth,
    asked: Asked,
) -> Scenario {
    Scenario { name, title, table: &CLONES, work: Work::Clones { count, depth, asked }, quick: count <= 8 }
}

const fn listing(
    name: &'static str,
    title: &'static str,
    prefixes: &'static [&'static str],
    staleness: Staleness,
) -> Scenario {
    Scenario { name, title, table: &LISTINGS, work: Work::Listings { prefixes, staleness }, quick: true }
}

const fn storm(name: &'static str, title: &'static str, depth: Depth) -> Scenario {
    Scenario { name, title, table: &STORMS, work: Work::Storm { depth }, quick: false }
}

const fn after_push(name: &'static str, title: &'static str, ahead: Ahead) -> Scenario {
    Scenario { name, title, table: &FULL_AFTER_PUSH, work: Work::FullAfterPush { ahead }, quick: false }
}

/// All scenarios, in the report's order.
pub(crate) static SCENARIOS: &[Scenario] = &[
    cloning("full-1", "1 full clone", 1, Depth::Full, Asked::Never),
    cloning("full-8", "8 full clones at once", 8, Depth::Full, Asked::Never),
    cloning("full-32", "32 full clones at once", 32, Depth::Full, Asked::Never),
    cloning("full-8-again", "8 full clones, made before", 8, Depth::Full, Asked::Before),
    cloning("depth1-1", "1 depth-1 clone", 1, Depth::One, Asked::Never),
    cloning("depth1-8", "8 depth-1 clones at once", 8, Depth::One, Asked::Never),
    cloning("depth1-32", "32 depth-1 clones at once", 32, Depth::One, Asked::Never),
    cloning("depth1-8-again", "8 depth-1 clones, made before", 8, Depth::One, Asked::Before),
    listing("refs-all-fresh", "all refs, maxStaleness 0s", &CLONE_PREFIXES, Staleness::None),
    listing("refs-all-reusing", "all refs, maxStaleness 10s", &CLONE_PREFIXES, Staleness::TenSeconds),
    listing("refs-one-fresh", "one ref-prefix, maxStaleness 0s", &ONE_BRANCH, Staleness::None),
    listing("refs-one-reusing", "one ref-prefix, maxStaleness 10s", &ONE_BRANCH, Staleness::TenSeconds),
    Scenario {
        name: "depth1-after-push",
        title: "first depth-1 clone after a push of 30 commits",
        table: &AFTER_PUSH,
        work: Work::AfterPush,
        quick: true,
    },
    Scenario {
        name: "look-20ms-all",
        title: "all refs, maxStaleness 0s",
        table: &FAR,
        work: Work::FarLook { prefixes: &CLONE_PREFIXES },
        quick: true,
    },
    Scenario {
        name: "look-20ms-one",
        title: "one ref-prefix, maxStaleness 0s",
        table: &FAR,
        work: Work::FarLook { prefixes: &ONE_BRANCH },
        quick: true,
    },
    Scenario {
        name: "hit-first-byte",
        title: "full clone",
        table: &HITS,
        work: Work::Hits { depth: Depth::Full, count: 15 },
        quick: true,
    },
    Scenario {
        name: "hit-first-byte-depth1",
        title: "depth-1 clone",
        table: &HITS,
        work: Work::Hits { depth: Depth::One, count: 60 },
        quick: true,
    },
    Scenario {
        name: "hit-throughput",
        title: "full clone's answer",
        table: &STREAMS,
        work: Work::Stream { of: Streamed::Clone, sendfile: Sendfile::Off },
        quick: true,
    },
    Scenario {
        name: "stream-commit",
        title: "answer to a full fetch of a commit",
        table: &STREAMS,
        work: Work::Stream { of: Streamed::Commit, sendfile: Sendfile::Off },
        quick: true,
    },
    Scenario {
        name: "stream-sendfile",
        title: "answer to a full fetch of a commit",
        table: &SENDFILE,
        work: Work::Stream { of: Streamed::Commit, sendfile: Sendfile::On },
        quick: true,
    },
    storm("storm-full", "full fetches at distinct commits, all at once", Depth::Full),
    storm("storm-depth1", "depth-1 fetches at distinct commits, all at once", Depth::One),
    after_push("storm-push", "first full clone after a push, no packs ahead", Ahead::None),
    after_push("storm-push-ahead", "first full clone after a push, packs ahead", Ahead::Made),
];

/// One measurement.
#[derive(Debug)]
pub(crate) struct Sample {
    /// The table's figures.
    pub(crate) figures: Vec<f64>,
    /// What every side must have answered alike.
    pub(crate) objects: Option<u32>,
}

/// Which measurement this is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Different for each round of each scenario, the same for both sides.
    pub(crate) number: usize,
    /// The round, counted from zero.
    pub(crate) round: usize,
    /// How long refs are listed.
    pub(crate) listing: Duration,
    /// Clients at once in a storm.
    pub(crate) clients: usize,
}

impl Scenario {
    /// Does the work once, where it needs no more than a shared side.
    pub(crate) async fn measure(&self, side: &Side, truth: &Truth, turn: Turn) -> Result<Sample> {
        match self.work {
            Work::AfterPush
            | Work::FarLook { .. }
            | Work::Stream { .. }
            | Work::Storm { .. }
            | Work::FullAfterPush { .. } => bail!("{} needs a stage", self.name),
            Work::Hits { depth, count } => {
                let ask = truth.ask_for(depth, Asked::Before, turn.number)?;
                let mut client = Client::new(side.url(Staleness::None))?;
                if side.name == SideName::Tarn {
                    // Other scenarios may have pushed the answer out.
                    client.clone(&ask).await?;
                }
                let count = if side.name == SideName::Tarn { count } else { 1 };
                let start = Instant::now();
                let work = async {
                    let mut each = Vec::with_capacity(count);
                    for _ in 0..count {
                        each.push(client.clone(&ask).await?);
                    }
                    Ok(Clones { wall: start.elapsed(), each })
                };
                let (clones, usage) = side.server.measure(work).await?;
                let objects = truth.check(&clones, &ask)?;
                Ok(Sample { figures: hit_figures(&clones, &usage), objects: Some(objects) })
            }
            Work::Clones { count, depth, asked } => {
                let ask = truth.ask_for(depth, asked, turn.number)?;
                let work = clones(side.url(Staleness::None), count, &ask);
                let (clones, usage) = side.server.measure(work).await?;
                let objects = truth.check(&clones, &ask)?;
                Ok(Sample { figures: clone_figures(&clones, &usage), objects: Some(objects) })
            }
            Work::Listings { prefixes, staleness } => {
                let url = side.url(staleness);
                let digest = truth.digest(prefixes);
                let work = listings(url, CONNECTIONS, turn.listing, prefixes, digest);
                let (answers, usage) = side.server.measure(work).await?;
                Ok(Sample { figures: listing_figures(&answers.latencies, &usage), objects: None })
            }
        }
    }
}

/// The figures of [`CLONES`].
fn clone_figures(clones: &Clones, usage: &Usage) -> Vec<f64> {
    let count = clones.each.len().max(1) as f64;
    vec![
        usage.cpu.as_secs_f64() / count,
        usage.own_cpu.as_secs_f64() / count,
        clones.wall.as_secs_f64(),
        clones.first_byte(50).as_secs_f64() * 1e3,
        mebibytes(usage.peak_rss),
        mebibytes(usage.children_pss),
        mebibytes(usage.children_anonymous),
        usage.children as f64,
        usage.client_cpu.as_secs_f64() / count,
    ]
}

/// The figures of [`HITS`].
fn hit_figures(clones: &Clones, usage: &Usage) -> Vec<f64> {
    let count = clones.each.len().max(1) as f64;
    vec![
        clones.first_byte(50).as_secs_f64() * 1e3,
        clones.first_byte(99).as_secs_f64() * 1e3,
        usage.cpu.as_secs_f64() / count,
        usage.client_cpu.as_secs_f64() / count,
    ]
}

/// The figures of [`LISTINGS`].
fn listing_figures(latencies: &[Duration], usage: &Usage) -> Vec<f64> {
    let count = latencies.len().max(1) as f64;
    vec![
        count / usage.wall.as_secs_f64(),
        percentile(latencies, 50).as_secs_f64() * 1e3,
        percentile(latencies, 99).as_secs_f64() * 1e3,
        usage.cpu.as_secs_f64() * 1e3 / count,
        mebibytes(usage.peak_rss),
        usage.client_cpu.as_secs_f64() * 1e3 / count,
    ]
}

pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own() {
        let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
    }

    #[test]
    fn each_table_names_the_figures_of_its_function() {
        let clones = Clones { wall: Duration::ZERO, each: Vec::new() };
        let second = Duration::from_secs(1);
        let usage = Usage {
            cpu: second,
            own_cpu: second,
            peak_rss: 0,
            children_pss: 0,
            children_anonymous: 0,
            children: 0,
            client_cpu: second,
            wall: second,
        };
        assert_eq!(clone_figures(&clones, &usage).len(), CLONES.columns.len());
        assert_eq!(hit_figures(&clones, &usage).len(), HITS.columns.len());
        assert_eq!(listing_figures(&[second], &usage).len(), LISTINGS.columns.len());
        assert_eq!(LISTINGS.describe(&[16.0, 2.0]), "requests/s 16, p50 ms 2.0");
    }
}
