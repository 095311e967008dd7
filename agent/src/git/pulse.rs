//! Whether a child that is silent still lives.
//!
//! Bytes that any process of its group reads are life: progress, and the keepalive packets that servers send while they
//! compute, which git reads and tells nobody of. So is work: git checks what has arrived for minutes, and reads nothing.
//! Waiting for a connection that is dead is neither.

use std::{convert::Infallible, fs, time::Duration};

use rustix::process::Pid;
use tokio::time::{Instant, sleep};

/// How long a look at the children may be off: a twentieth of the patience, within these.
const TICK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A tick of the clock by which the kernel counts a process's time: USER_HZ, 100 on every architecture.
const USER_TICK: Duration = Duration::from_millis(10);

/// What the processes of a group have done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deeds {
    processes: u32,
    /// Bytes read: from sockets, pipes and files.
    read: u64,
    /// Time on a processor.
    busy: Duration,
}

impl Deeds {
    /// `None` where the kernel does not say.
    fn of(group: Pid) -> Option<Self> {
        let mut sum = Self { processes: 0, read: 0, busy: Duration::ZERO };
        for entry in fs::read_dir("/proc").ok()? {
            let path = entry.ok()?.path();
            // Processes come and go.
            let Ok(stat) = fs::read_to_string(path.join("stat")) else { continue };
            let Some(ticks) = ticks(&stat, group) else { continue };
            let Ok(io) = fs::read_to_string(path.join("io")) else { continue };
            let read = io.lines().find_map(|line| line.strip_prefix("rchar: "))?;
            sum.processes += 1;
            sum.read += read.parse::<u64>().ok()?;
            sum.busy += USER_TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
        }
        (sum.processes > 0).then_some(sum)
    }

    /// Whether the group has done something in the `time` since `before`. Curl wakes up now and then to look at a
    /// connection: that is less than a quarter of a processor.
    fn lives(&self, before: &Self, time: Duration) -> bool {
        let worked = self.busy.saturating_sub(before.busy);
        self.processes != before.processes || self.read != before.read || worked > time / 4
    }
}

/// User and system time of a process in ticks, if it is of that group (proc_pid_stat(5)).
fn ticks(stat: &str, group: Pid) -> Option<u64> {
    // The name before it may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    if number(2)? != u64::from(group.as_raw_nonzero().get().unsigned_abs()) {
        return None;
    }
    Some(number(11)? + number(12)?)
}

/// Returns `limit` once the group has shown no sign of life for so long; never, where it has none to keep.
pub(super) async fn silent(group: Option<Pid>, limit: Option<Duration>) -> Duration {
    let (Some(group), Some(limit)) = (group, limit) else {
        let never: Infallible = std::future::pending().await;
        match never {}
    };
    let tick = (limit / 20).clamp(TICK.0, TICK.1);
    let (mut alive, mut before, mut at) = (Instant::now(), None::<Deeds>, Instant::now());
    loop {
        sleep(tick).await;
        let deeds = tokio::task::spawn_blocking(move || Deeds::of(group)).await.ok().flatten();
        let now = Instant::now();
        let lives = match (&deeds, &before) {
            (Some(deeds), Some(before)) => deeds.lives(before, now.duration_since(at)),
            _ => true,
        };
        if lives {
            alive = now;
        } else if now.duration_since(alive) >= limit {
            return limit;
        }
        (before, at) = (deeds, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_does_is_read_from_the_kernel() {
        let own = rustix::process::getpgrp();
        let before = Deeds::of(own).unwrap();
        let _ = fs::read("/proc/self/status").unwrap();
        let after = Deeds::of(own).unwrap();
        assert!(
            after.read > before.read && after.lives(&before, Duration::from_secs(1)),
            "{before:?} {after:?}"
        );
        let stat = "12 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 50 6 0 0 20 0 1 0 9 9 9";
        assert_eq!(ticks(stat, Pid::from_raw(7).unwrap()), Some(56));
        assert_eq!(ticks(stat, Pid::from_raw(8).unwrap()), None);
    }

    #[test]
    fn waiting_is_no_life() {
        let still = Deeds { processes: 2, read: 5, busy: Duration::from_millis(20) };
        let woken = Deeds { busy: Duration::from_millis(40), ..still };
        assert!(!woken.lives(&still, Duration::from_secs(1)));
        assert!(Deeds { busy: Duration::from_millis(400), ..still }.lives(&still, Duration::from_secs(1)));
        assert!(Deeds { read: 10, ..still }.lives(&still, Duration::from_secs(1)));
    }
}
