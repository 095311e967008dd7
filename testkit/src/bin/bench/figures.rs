//! What rounds came to: medians, ranges, ratios, and how they are written.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::scenario::Scenario;
use crate::side::SideName;

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
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
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
    pub(crate) fn ratios(&self) -> Option<Summary> {
        self.ratio(0)
    }

    /// A figure of Tarn's divided by the baseline's of the same round.
    pub(crate) fn ratio(&self, at: usize) -> Option<Summary> {
        let (tarn, baseline) = (self.samples.get(&SideName::Tarn)?, self.samples.get(&SideName::Baseline)?);
        let pairs = tarn.iter().zip(baseline);
        Summary::of(pairs.filter_map(|(tarn, baseline)| Some(tarn.get(at)? / baseline.get(at)?)))
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

/// One line of a Markdown table.
pub(crate) fn line(text: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<_> = cells.into_iter().collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_range_are_shown() {
        let summary = |values: &[f64]| Summary::of(values.iter().copied()).unwrap();
        assert_eq!(summary(&[3.0, 1.0, 2.0]).text(1), "2.0 (1.0-3.0)");
        assert_eq!(summary(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(summary(&[1.04, 0.96]).text(1), "1.0");
        assert_eq!(Summary::of([]), None);
    }
}
