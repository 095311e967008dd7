//! The results as Markdown for docs/benchmarks.md and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::figures::{Row, digits, line};
use crate::machine::Machine;
use crate::repository::Facts;
use crate::scenario::Scenario;
use crate::side::{Mirrored, SideName};
use crate::table::{Column, Table};
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
            "floor": {"full_cpu_seconds": floor.full.as_secs_f64(), "depth1_cpu_seconds": floor.shallow.as_secs_f64(), "list_cpu_seconds": floor.list.as_secs_f64()},
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

/// Replaces what lies between the markers; none when they are missing.
pub(crate) fn between_markers(text: &str, results: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n{END}{after}", results.trim_end()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::figures::Summary;
    use crate::scenario::SCENARIOS;

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
            floor: Floor {
                full: Duration::from_secs(2),
                shallow: Duration::from_secs(3),
                list: Duration::from_millis(4),
            },
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
