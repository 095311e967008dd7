//! The results as Markdown for docs/benchmarks.md and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::repository::Facts;
use crate::scenario::{Column, Scenario, Table};
use crate::side::{Mirrored, SideName};
use crate::targets;
use crate::truth::Floor;

/// The line before the results.
pub(crate) const BEGIN: &str = "<!-- bench:begin -->";
/// The line after them.
pub(crate) const END: &str = "<!-- bench:end -->";

/// Everything that a run found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) repository: Facts,
    pub(crate) floor: Floor,
    pub(crate) mirrored: Option<Mirrored>,
    pub(crate) rounds: usize,
    pub(crate) seconds: u64,
    pub(crate) rows: Vec<Row>,
    /// Scenarios that could not be run, each with the reason.
    pub(crate) left_out: Vec<(Scenario, String)>,
}

/// One scenario's figures: each side's rounds, in the order of the rounds.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    pub(crate) samples: BTreeMap<SideName, Vec<Vec<f64>>>,
}

/// The middle and the ends of some measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get(sorted.len().saturating_sub(1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), least: *sorted.first()?, most: *sorted.last()? })
    }

    /// As `2.06 (1.98-2.17)`; the range is left out where it would only repeat the median.
    pub(crate) fn text(&self, digits: usize) -> String {
        let [median, least, most] =
            [self.median, self.least, self.most].map(|value| format!("{value:.digits$}"));
        if least == most { median } else { format!("{median} ({least}-{most})") }
    }
}

impl Row {
    /// A figure of one side over its rounds.
    pub(crate) fn summary(&self, side: SideName, at: usize) -> Option<Summary> {
        Summary::of(self.samples.get(&side)?.iter().filter_map(|sample| sample.get(at).copied()))
    }

    /// Tarn's first figure divided by the baseline's of the same round.
    fn ratios(&self) -> Option<Summary> {
        self.ratio(0)
    }

    /// A figure of Tarn's divided by the baseline's of the same round.
    pub(crate) fn ratio(&self, at: usize) -> Option<Summary> {
        let (tarn, baseline) = (self.samples.get(&SideName::Tarn)?, self.samples.get(&SideName::Baseline)?);
        let pairs = tarn.iter().zip(baseline);
        Summary::of(pairs.filter_map(|(tarn, baseline)| Some(tarn.get(at)? / baseline.get(at)?)))
    }
}

impl Report {
    /// The section of docs/benchmarks.md.
    pub(crate) fn markdown(&self) -> String {
        let mut text = self.facts();
        let mut rows = self.rows.as_slice();
        while let Some(first) = rows.first() {
            let table = first.scenario.table;
            let same = rows.iter().take_while(|row| row.scenario.table.title == table.title).count();
            let (these, rest) = rows.split_at(same);
            rows = rest;
            table_markdown(&mut text, table, these);
        }
        for (scenario, reason) in &self.left_out {
            let _ = write!(text, "\nLeft out: `{}`: {reason}.\n", scenario.name);
        }
        if self.rows.iter().any(|row| row.ratios().is_some()) {
            targets::markdown(&mut text, &self.rows);
        }
        text
    }

    fn facts(&self) -> String {
        let Self { machine, repository, floor, mirrored, rounds, seconds, rows: _, left_out: _ } = self;
        let mut text = format!(
            "Machine: {} cores ({}), {} MiB of memory, Linux {}, git {}; load average {} at the start. CPU counted \
             by {}.\n\n",
            machine.cores,
            machine.processor,
            machine.memory_mib,
            machine.kernel,
            machine.git,
            machine.load,
            machine.accounting,
        );
        let _ = write!(
            text,
            "Repository: `{}`: {} objects, {} commits, {} refs, pack {:.0} MB, worktree of {} files and {:.0} MB. \
             git http-backend pays {floor}.\n\n",
            repository.profile,
            repository.objects,
            repository.commits,
            repository.refs,
            repository.pack_bytes as f64 / 1e6,
            repository.files,
            repository.worktree_bytes as f64 / 1e6,
        );
        if let Some(Mirrored { mirrors, seconds, cpu_seconds }) = mirrored {
            let _ = write!(
                text,
                "Before it served, Tarn made {mirrors} mirrors of it at once in {seconds:.1} s and {cpu_seconds:.1} s \
                 of CPU.\n\n"
            );
        }
        let _ = writeln!(text, "Median and range of {rounds} rounds; the whole run took {seconds} s.");
        text
    }

    /// The same, with every round's figures.
    pub(crate) fn json(&self) -> Value {
        let Self { machine, repository, floor, mirrored, rounds, seconds, rows, left_out } = self;
        let row = |row: &Row| {
            let ratio = row
                .ratios()
                .map(|ratio| json!({"median": ratio.median, "least": ratio.least, "most": ratio.most}));
            let columns: Vec<_> = row.scenario.table.columns.iter().map(|column| column.heading).collect();
            json!({"name": row.scenario.name, "columns": columns, "samples": row.samples, "ratio": ratio})
        };
        json!({
            "machine": machine,
            "repository": repository,
            "floor": {"full_cpu_seconds": floor.full.as_secs_f64(), "depth1_cpu_seconds": floor.shallow.as_secs_f64()},
            "mirrored": mirrored,
            "rounds": rounds,
            "seconds": seconds,
            "scenarios": rows.iter().map(row).collect::<Vec<_>>(),
            "left_out": left_out.iter().map(|(scenario, reason)| (scenario.name, reason)).collect::<Vec<_>>(),
            "targets": targets::json(rows),
        })
    }
}

/// One table: a line per scenario and side.
fn table_markdown(text: &mut String, table: &Table, rows: &[Row]) {
    let compared = rows.iter().any(|row| row.ratios().is_some());
    let mut headings: Vec<&str> = vec!["work", "server"];
    headings.extend(table.columns.iter().map(|column| column.heading));
    if compared {
        headings.push(table.ratio);
    }
    let _ = write!(text, "\n### {}\n\n", table.title);
    line(text, headings.iter().map(|heading| (*heading).to_owned()));
    line(text, headings.iter().map(|_| "---".to_owned()));
    for row in rows {
        for (at, side) in row.samples.keys().enumerate() {
            let title = if at == 0 { row.scenario.title } else { "" };
            let figure = |(at, column): (usize, &Column)| {
                row.summary(*side, at).map(|summary| summary.text(column.digits)).unwrap_or_default()
            };
            let mut cells = vec![title.to_owned(), side.label(table).to_owned()];
            cells.extend(table.columns.iter().enumerate().map(figure));
            if compared {
                let ratio = row.ratios().filter(|_| *side == SideName::Tarn);
                cells.push(
                    ratio
                        .map(|ratio| format!("**{}**", ratio.text(digits(ratio.median))))
                        .unwrap_or_default(),
                );
            }
            line(text, cells);
        }
    }
}

/// Digits that show a ratio to about three figures.
pub(crate) fn digits(ratio: f64) -> usize {
    match ratio {
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    }
}

pub(crate) fn line(text: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<_> = cells.into_iter().collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// Replaces what lies between the markers; none when they are missing.
pub(crate) fn between_markers(text: &str, results: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", results.trim_end()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::scenario::SCENARIOS;

    #[test]
    fn the_median_and_the_range_are_shown() {
        let summary = |values: &[f64]| Summary::of(values.iter().copied()).unwrap();
        assert_eq!(summary(&[3.0, 1.0, 2.0]).text(1), "2.0 (1.0-3.0)");
        assert_eq!(summary(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(summary(&[1.04, 0.96]).text(1), "1.0");
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn ratios_pair_the_figures_of_one_round() {
        let baseline = vec![vec![2.0], vec![4.0], vec![8.0]];
        let tarn = vec![vec![1.0], vec![1.0], vec![1.0]];
        let samples = BTreeMap::from([(SideName::Baseline, baseline), (SideName::Tarn, tarn)]);
        let row = Row { scenario: SCENARIOS[0], samples };
        assert_eq!(row.ratios(), Some(Summary { median: 0.25, least: 0.125, most: 0.5 }));
        let mut text = String::new();
        table_markdown(&mut text, row.scenario.table, &[row]);
        assert!(text.contains("| 1 full clone | git http-backend | 4.000 (2.000-8.000) |"), "{text}");
        assert!(text.contains("**0.250 (0.125-0.500)** |"), "{text}");
    }

    #[test]
    fn a_run_without_a_comparison_shows_no_ratio() {
        let figures = SCENARIOS[0].table.columns.iter().map(|_| 1.0).collect();
        let samples = BTreeMap::from([(SideName::Baseline, vec![figures])]);
        let report = Report {
            machine: Machine::look(),
            repository: Facts {
                profile: "p".into(),
                refs: 1,
                commits: 2,
                objects: 3,
                files: 4,
                worktree_bytes: 5,
                pack_bytes: 6,
                head: "7".into(),
            },
            floor: Floor { full: Duration::from_secs(2), shallow: Duration::from_secs(3) },
            mirrored: None,
            rounds: 1,
            seconds: 9,
            rows: vec![Row { scenario: SCENARIOS[0], samples }],
            left_out: vec![(SCENARIOS[1], "no time".into())],
        };
        let text = report.markdown();
        assert!(text.contains("2.00 s of CPU for a full and 3.00 s for a depth-1"), "{text}");
        assert!(!text.contains("Tarn / git") && !text.contains("Targets"), "{text}");
        assert!(text.contains("Left out: `full-8`: no time."), "{text}");
        assert_eq!(report.json()["scenarios"][0]["ratio"], Value::Null);
    }

    #[test]
    fn only_the_part_between_the_markers_changes() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between_markers(&text, "new\n\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nb\n"));
        assert_eq!(between_markers(&new, "new").unwrap(), new);
        assert_eq!(between_markers("a", "b"), None);
    }
}
