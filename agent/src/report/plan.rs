//! Which entry is written next, and when. Pure: times and chance are arguments.
//!
//! A write costs the API server several milliseconds, whatever it changes. So transitions are told at once, but at
//! most one per mirror in [`SPACING`]; times alone every [`TIMES`] or `spec.interval`, whichever is longer; and no more
//! than five writes a second in all, transitions before times, the one that waits longest first. A state that was
//! overtaken by a newer one is never told.

use std::{collections::BTreeMap, time::Duration};

use tarn_crds::v1alpha1::Replica;
use tokio::time::Instant;

use crate::backoff::backoff;

/// Between two writes of one mirror.
pub(super) const SPACING: Duration = Duration::from_secs(10);

/// Between two writes of nothing but times, at least.
pub(super) const TIMES: Duration = Duration::from_secs(600);

/// Between any two writes: five a second.
pub(super) const PACE: Duration = Duration::from_millis(200);

/// Waits after failures of one object's writes, the first and the longest.
const OBJECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Waits after failures of the API server.
const SERVER: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This object's: the others' writes may succeed.
    Object,
    /// The API server's, or of the way there.
    Server,
}

/// What the API server shows of a GitMirror.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// The pod's entry.
    pub(super) entry: Option<&'a Replica>,
    /// The object's resource version.
    pub(super) version: u64,
}

/// What to do now.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Write this entry of this mirror, and say how it went.
    Write(String, Box<Replica>),
    /// Nothing before this time, unless something changes.
    Wait(Option<Instant>),
}

/// What is to be told of each mirror.
#[derive(Debug, Default)]
pub(super) struct Plan {
    rows: BTreeMap<String, Row>,
    /// No write before.
    gate: Option<Instant>,
    /// Failures of the API server in a row.
    failures: u32,
}

#[derive(Debug)]
struct Row {
    wanted: Replica,
    interval: Duration,
    /// What the API server was told last, by this agent or an earlier one of the pod.
    told: Option<Replica>,
    /// What it made of that: it may drop fields it does not know.
    echo: Option<Replica>,
    /// The object's version after that.
    version: u64,
    /// When this agent last told it anything.
    written: Option<Instant>,
    /// Since when it knows of the mirror.
    since: Instant,
    /// Since when a transition waits.
    moved: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Plan {
    /// Says what is true of a mirror now, and what the API server shows of it.
    pub(super) fn update(
        &mut self,
        name: &str,
        wanted: Replica,
        interval: Duration,
        known: Known<'_>,
        now: Instant,
    ) {
        let row = self.rows.entry(name.to_owned()).or_insert_with(|| Row {
            wanted: wanted.clone(),
            interval,
            told: known.entry.cloned(),
            echo: known.entry.cloned(),
            version: known.version,
            written: None,
            since: now,
            moved: None,
            failures: 0,
            not_before: None,
        });
        (row.wanted, row.interval) = (wanted, interval);
        // Someone took the entry away, or changed it, after this agent's last write.
        if known.version > row.version && known.entry != row.echo.as_ref() {
            (row.told, row.echo) = (known.entry.cloned(), known.entry.cloned());
            row.version = known.version;
        }
        row.notice(now);
    }

    /// Forgets a mirror.
    pub(super) fn forget(&mut self, name: &str) {
        self.rows.remove(name);
    }

    /// How many transitions wait.
    pub(super) fn waiting(&self) -> usize {
        self.rows.values().filter(|row| row.moved.is_some()).count()
    }

    /// What to do now. A write that is given out counts, whatever becomes of it.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let due = self.rows.iter().filter_map(|(name, row)| Some((row.due()?, name)));
        let gate = self.gate;
        let mut first: Option<Instant> = None;
        let mut best: Option<((bool, Instant), &String)> = None;
        for (at, name) in due {
            let opens = gate.map_or(at.opens, |gate| gate.max(at.opens));
            if opens > now {
                first = Some(first.map_or(opens, |first| first.min(opens)));
            } else if best.is_none_or(|(rank, _)| at.rank() < rank) {
                best = Some((at.rank(), name));
            }
        }
        let Some((name, row)) = best.and_then(|(_, name)| self.rows.get_key_value(name)) else {
            return Next::Wait(first);
        };
        self.gate = Some(now + PACE);
        Next::Write(name.clone(), Box::new(row.wanted.clone()))
    }

    /// The API server took `entry`, made `echo` of it, and gave the object this version.
    pub(super) fn wrote(
        &mut self,
        name: &str,
        entry: Replica,
        echo: Option<Replica>,
        version: u64,
        now: Instant,
    ) {
        self.failures = 0;
        if let Some(row) = self.rows.get_mut(name) {
            (row.told, row.echo, row.version) = (Some(entry), echo, version);
            (row.written, row.moved, row.failures, row.not_before) = (Some(now), None, 0, None);
            row.notice(now);
        }
    }

    /// A write failed; says how many have in a row. The others have their turn before this one is tried again, so
    /// that none is kept waiting by an object on which the API server fails every time.
    pub(super) fn failed(&mut self, name: &str, fault: Fault, now: Instant, jitter: f64) -> u32 {
        let mut row = self.rows.get_mut(name);
        let own = row.as_mut().map_or(1, |row| {
            row.failures = row.failures.saturating_add(1);
            row.failures
        });
        let (first, last) = match fault {
            Fault::Object => OBJECT,
            Fault::Server => SERVER,
        };
        let mut again = now + backoff(first, last, own, jitter);
        let mut told = own;
        if fault == Fault::Server {
            self.failures = self.failures.saturating_add(1);
            let gate = now + backoff(first, last, self.failures, jitter).max(PACE);
            self.gate = Some(gate);
            again = again.max(gate + PACE);
            told = self.failures;
        }
        if let Some(row) = row {
            row.not_before = Some(again);
        }
        told
    }
}

/// When a row may be written, and how urgent it is.
#[derive(Clone, Copy, Debug)]
struct Due {
    opens: Instant,
    /// Since when a transition waits, after a failure for its turn; none where only times differ.
    moved: Option<Instant>,
}

impl Due {
    /// The lower, the sooner.
    fn rank(self) -> (bool, Instant) {
        (self.moved.is_none(), self.moved.unwrap_or(self.opens))
    }
}

impl Row {
    fn notice(&mut self, now: Instant) {
        if self.told.as_ref().is_some_and(|told| same_but_times(told, &self.wanted)) {
            self.moved = None;
        } else {
            self.moved.get_or_insert(now);
        }
    }

    fn due(&self) -> Option<Due> {
        if self.told.as_ref() == Some(&self.wanted) {
            return None;
        }
        let opens = match self.moved {
            Some(moved) => self.written.map_or(moved, |written| (written + SPACING).max(moved)),
            None => self.written.unwrap_or(self.since) + self.interval.max(TIMES),
        };
        let opens = self.not_before.map_or(opens, |not_before| opens.max(not_before));
        let moved = self.moved.map(|moved| self.not_before.map_or(moved, |not_before| moved.max(not_before)));
        Some(Due { opens, moved })
    }
}

/// Whether two entries differ at most in what changes all the time.
fn same_but_times(a: &Replica, b: &Replica) -> bool {
    let Replica {
        pod,
        pod_uid,
        phase,
        head,
        head_ref,
        ref_count,
        refs_digest,
        last_check_time: _,
        last_fetch_time: _,
        checkpoint_time,
        snapshot_time,
        checkpoint,
        snapshot,
        bytes: _,
        findings,
        last_handled_requested_at,
        store_removed,
        message,
    } = a;
    *pod == b.pod
        && *pod_uid == b.pod_uid
        && *phase == b.phase
        && *head == b.head
        && *head_ref == b.head_ref
        && *ref_count == b.ref_count
        && *refs_digest == b.refs_digest
        && *checkpoint_time == b.checkpoint_time
        && *snapshot_time == b.snapshot_time
        && *checkpoint == b.checkpoint
        && *snapshot == b.snapshot
        && *findings == b.findings
        && *last_handled_requested_at == b.last_handled_requested_at
        && *store_removed == b.store_removed
        && *message == b.message
}

#[cfg(test)]
mod tests;
