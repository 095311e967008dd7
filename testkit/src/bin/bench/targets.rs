//! What is promised, beside what was measured. Bounds are data; whether they are met is computed.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::figures::{Row, Summary, digits, line};
use crate::side::SideName;

/// One promise.
#[derive(Debug)]
struct Target {
    /// The scenario whose figure it is about.
    scenario: &'static str,
    says: &'static str,
    figure: Figure,
    bound: Bound,
}

/// Which figure of a scenario, by its column.
#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Tarn's divided by the baseline's of the same round; the median counts.
    Ratio(usize),
    /// Tarn's own; the median counts.
    Median(usize),
    /// Tarn's own; the most of all rounds counts.
    Most(usize),
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

const fn target(scenario: &'static str, says: &'static str, figure: Figure, bound: Bound) -> Target {
    Target { scenario, says, figure, bound }
}

/// 100 MB in the unit of the tables.
const HUNDRED_MB: f64 = 100e6 / (1 << 20) as f64;

static TARGETS: &[Target] = &[
    target("full-32", "32 full clones: server CPU, Tarn / git", Figure::Ratio(0), Bound::AtMost(1.0 / 8.0)),
    target(
        "depth1-32",
        "32 depth-1 clones: server CPU, Tarn / git",
        Figure::Ratio(0),
        Bound::AtMost(1.0 / 50.0),
    ),
    target(
        "depth1-after-push",
        "first depth-1 clone after a push of 30 commits: server CPU, Tarn / git",
        Figure::Ratio(0),
        Bound::AtMost(1.0 / 8.0),
    ),
    target(
        "refs-all-reusing",
        "all refs, maxStaleness 10s, 16 connections: requests/s, Tarn / git",
        Figure::Ratio(0),
        Bound::AtLeast(20.0),
    ),
    target(
        "refs-one-reusing",
        "one ref-prefix, maxStaleness 10s, 16 connections: requests/s, Tarn / git",
        Figure::Ratio(0),
        Bound::AtLeast(60.0),
    ),
    target(
        "look-20ms-all",
        "all refs, maxStaleness 0s, upstream 20 ms away, 64 connections: p99 / p50 of one direct",
        Figure::Ratio(0),
        Bound::AtMost(2.2),
    ),
    target("look-20ms-all", "… looks under way at once", Figure::Most(4), Bound::AtMost(1.0)),
    target("look-20ms-one", "the same with one ref-prefix", Figure::Ratio(0), Bound::AtMost(2.2)),
    target("look-20ms-one", "… looks under way at once", Figure::Most(4), Bound::AtMost(1.0)),
    target(
        "hit-first-byte",
        "first pack byte of a full clone made before, p50, ms",
        Figure::Median(0),
        Bound::AtMost(5.0),
    ),
    target(
        "hit-first-byte-depth1",
        "first pack byte of a depth-1 clone made before, p50, ms",
        Figure::Median(0),
        Bound::AtMost(5.0),
    ),
    target(
        "hit-throughput",
        "one stream made before: MB/s, Tarn / nginx",
        Figure::Ratio(0),
        Bound::AtLeast(0.9),
    ),
    target("hit-throughput", "… server CPU per byte, Tarn / nginx", Figure::Ratio(1), Bound::AtMost(1.3)),
    target(
        "full-32",
        "32 full clones: peak RSS of the agent process, MiB (100 MB)",
        Figure::Most(4),
        Bound::AtMost(HUNDRED_MB),
    ),
    target(
        "storm-full",
        "full fetches at distinct commits at once: server CPU, Tarn / git",
        Figure::Ratio(0),
        Bound::AtMost(1.0 / 8.0),
    ),
    target("storm-full", "… wall, Tarn / git", Figure::Ratio(1), Bound::AtMost(1.0 / 3.0)),
    target("storm-full", "… refused", Figure::Most(2), Bound::AtMost(0.0)),
    target("storm-full", "… first byte after the earliest, p50, ms", Figure::Median(4), Bound::AtMost(150.0)),
    target("storm-full", "… disk used beyond, % of the mirror's packs", Figure::Most(8), Bound::AtMost(5.0)),
    target(
        "storm-full",
        "… peak RSS of the agent process, MiB (100 MB)",
        Figure::Most(9),
        Bound::AtMost(HUNDRED_MB),
    ),
    target(
        "storm-depth1",
        "depth-1 fetches at distinct commits at once: server CPU, Tarn / git",
        Figure::Ratio(0),
        Bound::AtMost(1.0 / 4.0),
    ),
    target("storm-depth1", "… refused", Figure::Most(2), Bound::AtMost(0.0)),
    target(
        "storm-push",
        "first full clone after a push, no packs ahead: server CPU, Tarn / git",
        Figure::Ratio(0),
        Bound::AtMost(1.0 / 5.0),
    ),
    target(
        "storm-push",
        "… disk used beyond, % of twice the push's thin pack and 1 MiB",
        Figure::Most(6),
        Bound::AtMost(100.0),
    ),
    target(
        "stream-commit",
        "one stream of a commit's full fetch: MB/s, Tarn / nginx",
        Figure::Ratio(0),
        Bound::AtLeast(0.9),
    ),
    target("stream-commit", "… server CPU per byte, Tarn / nginx", Figure::Ratio(1), Bound::AtMost(1.2)),
];

impl Target {
    /// What was measured, and what of it the bound is about.
    fn measured(&self, rows: &[Row]) -> Option<(Summary, f64)> {
        let row = rows.iter().find(|row| row.scenario.name == self.scenario)?;
        let summary = match self.figure {
            Figure::Ratio(at) => row.ratio(at)?,
            Figure::Median(at) | Figure::Most(at) => row.summary(SideName::Tarn, at)?,
        };
        let counts = match self.figure {
            Figure::Ratio(_) | Figure::Median(_) => summary.median,
            Figure::Most(_) => summary.most,
        };
        Some((summary, counts))
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {}", (bound * 1e3).round() / 1e3),
            Self::AtLeast(bound) => format!("≥ {}", (bound * 1e3).round() / 1e3),
        }
    }
}

/// The table of all promises.
pub(crate) fn markdown(text: &mut String, rows: &[Row]) {
    let _ = write!(text, "\n### Targets\n\n");
    line(text, ["target", "bound", "measured", "met"].map(ToOwned::to_owned));
    line(text, ["---"; 4].map(ToOwned::to_owned));
    for target in TARGETS {
        let (measured, met) = match target.measured(rows) {
            None => ("not in this run".to_owned(), String::new()),
            Some((summary, counts)) => {
                let met = if target.bound.holds(counts) { "yes" } else { "**no**" };
                (summary.text(digits(summary.median)), met.to_owned())
            }
        };
        line(text, [target.says.to_owned(), target.bound.text(), measured, met]);
    }
}

/// The same as JSON.
pub(crate) fn json(rows: &[Row]) -> Vec<Value> {
    let one = |target: &Target| {
        let measured = target.measured(rows);
        json!({
            "scenario": target.scenario,
            "target": target.says,
            "bound": target.bound.text(),
            "measured": measured.map(|(_, counts)| counts),
            "met": measured.map(|(_, counts)| target.bound.holds(counts)),
        })
    };
    TARGETS.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::scenario::SCENARIOS;

    #[test]
    fn every_target_names_a_figure_of_a_scenario() {
        for target in TARGETS {
            let scenario = SCENARIOS.iter().find(|scenario| scenario.name == target.scenario).unwrap();
            let (Figure::Ratio(at) | Figure::Median(at) | Figure::Most(at)) = target.figure;
            let heading = scenario.table.columns[at].heading;
            let expected = match target.bound {
                Bound::AtMost(bound) if bound == HUNDRED_MB => "server peak RSS MiB",
                Bound::AtMost(1.0) => "looks at once, most",
                _ => heading,
            };
            assert_eq!(heading, expected, "{}", target.says);
        }
    }

    #[test]
    fn the_median_of_ratios_and_the_most_of_counts_are_held_against_the_bound() {
        let scenario = *SCENARIOS.iter().find(|scenario| scenario.name == "look-20ms-one").unwrap();
        let sample = |ms: f64, looks: f64| vec![ms, ms, ms, 1.0, looks, 1.0, 1.0, 1.0];
        let baseline = vec![sample(20.0, 1.0), sample(20.0, 1.0), sample(20.0, 1.0)];
        let tarn = vec![sample(40.0, 1.0), sample(44.0, 1.0), sample(90.0, 2.0)];
        let samples = BTreeMap::from([(SideName::Baseline, baseline), (SideName::Tarn, tarn)]);
        let mut text = String::new();
        markdown(&mut text, &[Row { scenario, samples }]);
        assert!(text.contains("| the same with one ref-prefix | ≤ 2.2 | 2.20 (2.00-4.50) | yes |"), "{text}");
        assert!(text.contains("| … looks under way at once | ≤ 1 | 1.00 (1.00-2.00) | **no** |"), "{text}");
        assert!(text.contains("| ≤ 0.02 | not in this run |  |"), "{text}");
    }
}
