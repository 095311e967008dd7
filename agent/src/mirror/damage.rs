//! What follows from damage of a mirror. Pure: times are arguments.
//!
//! A mirror that is damaged is replaced at once. One that is damaged again within an hour lies on a failing disk: it is
//! replaced later and later, so that nothing is written and spoilt in a loop, and the condition says so.

use std::{io, time::Duration};

use rustix::io::Errno;

use crate::backoff::backoff;

/// Two damages of a mirror within this time are the disk's.
pub const HOUR: u64 = 3600;

/// How long a damaged mirror is kept for people to look at, where there is room.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// On a failing disk the mirror is replaced after this time, …
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// … and after each further damage twice as late, up to this.
const LAST_WAIT: Duration = Duration::from_secs(HOUR);

/// When a mirror was found damaged, in Unix time, the latest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damages(Vec<u64>);

impl Damages {
    /// Those at these times: what an earlier process set aside.
    pub fn at(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// Notes one more, and says how long to wait before the mirror is replaced.
    pub fn found(&mut self, now: u64) -> Duration {
        self.0.retain(|at| now.abs_diff(*at) < HOUR);
        self.0.push(now);
        match self.0.len() {
            ..=1 => Duration::ZERO,
            count => {
                let before = u32::try_from(count - 1).unwrap_or(u32::MAX);
                backoff(FIRST_WAIT, LAST_WAIT, before, 1.0)
            }
        }
    }

    /// For how long the disk counts as failing; `None` where it does not.
    pub fn failing(&self, now: u64) -> Option<Duration> {
        let (last, before) = (self.0.last()?, self.0.iter().rev().nth(1)?);
        let together = last.abs_diff(*before) < HOUR && now.abs_diff(*last) < HOUR;
        together.then(|| Duration::from_secs(HOUR.saturating_sub(now.saturating_sub(*last))))
    }
}

/// Whether the error is the disk's own: it cannot read what it was given to keep. A lack of memory, descriptors or
/// rights is not.
pub fn is_disks(error: &io::Error) -> bool {
    // ENODATA: what the kernel makes of a medium error of some drives. EUCLEAN: the file system's structure is damaged.
    [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::REMOTEIO]
        .iter()
        .any(|own| error.raw_os_error() == Some(own.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_damage_within_an_hour_is_the_disks_and_each_further_one_waits_longer() {
        let mut damages = Damages::default();
        let start = 1_700_000_000;
        assert_eq!(damages.found(start), Duration::ZERO);
        assert_eq!(damages.failing(start), None);
        let waits: Vec<u64> = (1..=9).map(|number| damages.found(start + number * 60).as_secs()).collect();
        assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        let last = start + 9 * 60;
        assert_eq!(damages.failing(last), Some(Duration::from_secs(HOUR)));
        assert_eq!(damages.failing(last + 3000), Some(Duration::from_secs(600)));
        assert_eq!(damages.failing(last + HOUR), None);
        assert_eq!(damages.found(last + HOUR), Duration::ZERO);
    }

    #[test]
    fn damages_far_apart_are_not_the_disks() {
        let mut damages = Damages::at(vec![1_700_003_000, 1_700_000_000]);
        assert!(damages.failing(1_700_003_001).is_some());
        assert_eq!(damages.found(1_700_010_000), Duration::ZERO);
        assert_eq!(damages.failing(1_700_010_000), None);
        // A clock that was set back makes neither of them old.
        assert_eq!(damages.found(1_700_009_000), Duration::from_secs(60));
    }

    #[test]
    fn only_what_the_disk_cannot_read_is_its_own() {
        let error = |errno: Errno| io::Error::from(errno);
        assert!([Errno::IO, Errno::UCLEAN].map(error).iter().all(is_disks));
        let others = [Errno::NOMEM, Errno::MFILE, Errno::NOENT, Errno::ACCESS, Errno::NOSPC, Errno::AGAIN];
        assert!(!others.map(error).iter().any(is_disks));
    }
}
