//! Tables for people, JSON for scripts.

use std::io::{self, Write};

use serde::Serialize;

use super::InspectError;

pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

pub(super) fn print_json(rows: &impl Serialize) -> Result<(), InspectError> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, rows).map_err(io::Error::other)?;
    writeln!(out)?;
    Ok(())
}

/// Columns as wide as their widest cell.
pub(super) fn print_table(head: &[&str], rows: &[Vec<String>]) -> Result<(), InspectError> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let width = |column: usize| {
        std::iter::once(&head)
            .chain(rows)
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = io::stdout().lock();
    for row in std::iter::once(&head).chain(rows) {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
    }
}
