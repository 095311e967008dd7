//! The audit log: who was given what, a line each, once it is over. In the log, and where it is asked for in batches in the
//! store.
//!
//! Nothing here makes an answer wait: what cannot be taken at once is dropped, counted and told.

pub mod batches;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tarn_crds::repo::RepoId;
use tokio::sync::mpsc;

use crate::{access::caller::Caller, git::Oid};

/// Entries that wait to be put into a batch. One takes about 300 bytes.
const MAX_WAITING: usize = 16_384;

/// Objects, or refs, that an entry names; of the rest it tells the number.
const MAX_NAMED: usize = 4;

/// The longest name of one of them.
const MAX_NAME: usize = 120;

/// Who was given what.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When the answer began.
    pub time: Timestamp,
    /// Who asked.
    pub caller: Caller,
    /// From where.
    pub client: IpAddr,
    /// Of which repository.
    pub repo: RepoId,
    /// `clone`, `fetch`, `snapshot`, `bundle`, `lfs-object`, `lfs-snapshot`, `lfs-upload`, `lfs-locks` or `push`.
    pub what: &'static str,
    /// The objects, refs or locks that were asked for, as far as there is room.
    pub wants: String,
    /// The HTTP status.
    pub status: u16,
    /// How many bytes were sent.
    pub bytes: u64,
    /// Whether that was all.
    pub whole: bool,
    /// Whether the answer was there: `hit`, `joined`, `miss` or `pack`; empty where no cache is asked.
    pub cache: &'static str,
    /// How long it took.
    pub seconds: f64,
}

/// An entry as a line of a batch.
#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    caller: &'a str,
    by: &'static str,
    client: IpAddr,
    repo: String,
    what: &'static str,
    wants: &'a str,
    status: u16,
    bytes: u64,
    whole: bool,
    cache: &'static str,
    seconds: f64,
}

impl Entry {
    /// As a line of JSON, with its line feed.
    fn to_json(&self) -> Vec<u8> {
        let Self { time, caller, client, repo, what, wants, status, bytes, whole, cache, seconds } = self;
        let line = Line {
            time: *time,
            caller: &caller.name,
            by: caller.kind.as_str(),
            client: *client,
            repo: repo.to_string(),
            what,
            wants,
            status: *status,
            bytes: *bytes,
            whole: *whole,
            cache,
            seconds: *seconds,
        };
        let mut text = serde_json::to_vec(&line).expect("an entry holds only texts and numbers");
        text.push(b'\n');
        text
    }
}

/// Where entries go. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    batches: Option<Queue>,
}

/// The entries on their way into batches.
#[derive(Clone, Debug)]
struct Queue {
    entries: mpsc::Sender<Entry>,
    lost: Arc<AtomicU64>,
    dropped: Counter,
}

impl Audit {
    /// One that puts entries into batches, too, and what those are read from. `dropped` counts what found no room.
    pub fn in_batches(dropped: Counter) -> (Self, batches::Inbox) {
        let (entries, inbox) = mpsc::channel(MAX_WAITING);
        let lost = Arc::<AtomicU64>::default();
        let inbox = batches::Inbox { entries: inbox, lost: lost.clone(), dropped: dropped.clone() };
        (Self { batches: Some(Queue { entries, lost, dropped }) }, inbox)
    }

    /// Writes an entry down. Waits for nothing.
    pub fn write(&self, entry: Entry) {
        tracing::info!(
            caller = entry.caller.name,
            by = entry.caller.kind.as_str(),
            client = %entry.client,
            repo = %entry.repo,
            what = entry.what,
            wants = entry.wants,
            status = entry.status,
            bytes = entry.bytes,
            whole = entry.whole,
            cache = entry.cache,
            seconds = entry.seconds,
            "served"
        );
        if let Some(queue) = &self.batches
            && queue.entries.try_send(entry).is_err()
        {
            queue.lost.fetch_add(1, Ordering::Relaxed);
            queue.dropped.inc();
        }
    }
}

/// The first of these objects, and how many more there are.
pub fn objects(wanted: &[Oid]) -> String {
    named(wanted.iter().map(|oid| oid.to_hex()))
}

/// The first of these names, and how many more there are.
pub fn named(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(MAX_NAMED);
    let short = |mut name: String| {
        name.truncate(name.floor_char_boundary(MAX_NAME));
        name
    };
    let mut text = names.take(MAX_NAMED).map(short).collect::<Vec<_>>().join(" ");
    if more > 0 {
        text.push_str(&format!(" +{more}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wanted_is_named_as_far_as_there_is_room() {
        let names = |count: usize| (0..count).map(|at| at.to_string()).collect::<Vec<_>>().into_iter();
        assert_eq!(named(names(0)), "");
        assert_eq!(named(names(2)), "0 1");
        assert_eq!(named(names(6)), "0 1 2 3 +2");
        assert_eq!(named(vec!["é".repeat(100)].into_iter()).len(), MAX_NAME);
    }
}
