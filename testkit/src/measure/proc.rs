//! What `/proc` says about a process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Times and parent of a process, from `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: u32,
    /// Ticks of CPU of the process itself.
    pub(super) own: u64,
    /// Ticks of CPU of its children that have ended and were waited for, and of theirs.
    pub(super) waited_for: u64,
}

/// Reads a process's times.
pub(super) fn stat(pid: u32) -> Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_stat(&text).with_context(|| format!("{path} reads {text:?}"))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name is in parentheses and may hold anything, parentheses too.
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<_> = fields.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        own: number(11)? + number(12)?,
        waited_for: number(13)? + number(14)?,
    })
}

/// Turns ticks into time.
pub(super) fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Every process there is.
pub(super) fn all() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("read /proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Lets the kernel forget the process's memory peak, so that the next peak is the next work's own.
pub(super) fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("write {path}"))
}

/// The peak of a process's resident memory in bytes.
pub(super) fn peak(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    kibibytes(&text, "VmHWM:").with_context(|| format!("{path} names no VmHWM"))
}

/// A process's share of memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Each page divided by the number of processes that map it.
    pub(super) all: u64,
    /// The part that is nobody's file.
    pub(super) anonymous: u64,
}

/// Reads a process's share; none when it has just ended.
pub(super) fn share(pid: u32) -> Option<Share> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(Share { all: kibibytes(&text, "Pss:")?, anonymous: kibibytes(&text, "Pss_Anon:")? })
}

/// Reads a line like `VmHWM:   1234 kB`, in bytes.
pub(super) fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194304 100 200 0 0 11 12 13 14 20 0 1 0 5 6 7";
        assert_eq!(parse_stat(line), Some(Stat { parent: 7, own: 23, waited_for: 27 }));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn kibibytes_are_found_by_name() {
        let text = "Pss_Dirty:  9 kB\nPss:      12 kB\nVmHWM:\t  3 kB\n";
        assert_eq!(kibibytes(text, "Pss:"), Some(12 << 10));
        assert_eq!(kibibytes(text, "VmHWM:"), Some(3 << 10));
        assert_eq!(kibibytes(text, "Rss:"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        assert!(stat(pid).unwrap().parent > 0);
        assert!(peak(pid).unwrap() > 1 << 20);
        assert!(share(pid).unwrap().all >= share(pid).unwrap().anonymous);
        assert!(all().unwrap().contains(&pid));
    }
}
