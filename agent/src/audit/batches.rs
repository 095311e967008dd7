//! Entries of the audit log in the store: lines of JSON, compressed, an object for a minute or for a few megabytes of them.
//!
//! ```text
//! audit/<yyyy>/<mm>/<dd>/<agent>-<time>.jsonl.zst
//! ```
//!
//! What the store does not take waits, within a bound; beyond it the oldest batch is dropped, and the next one says so.

use std::{
    collections::VecDeque,
    future::pending,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::Entry;
use crate::{
    backoff::retry_delay,
    files::blocking,
    metrics::{Metrics, Outcome},
    store::{PutMode, SharedStore, StoreError},
};

/// What a batch holds before compression.
const FULL: usize = 4 << 20;

/// The longest that the first entry of a batch waits.
const OLD: Duration = Duration::from_secs(60);

/// Batches that wait for the store, at most: 32 MiB of memory.
const MAX_SEALED: usize = 8;

/// How long the last batches may take at the end.
const LAST: Duration = Duration::from_secs(4);

/// Lines that are alike shrink to a tenth at any level.
const LEVEL: i32 = 3;

/// Entries as they come.
#[derive(Debug)]
pub struct Inbox {
    pub(super) entries: mpsc::Receiver<Entry>,
    /// How many found no room since that was last told.
    pub(super) lost: Arc<AtomicU64>,
    pub(super) dropped: Counter,
}

/// A batch that is to be stored under its key.
#[derive(Clone, Debug)]
struct Sealed {
    key: String,
    lines: u64,
    text: Bytes,
}

/// Fills batches and stores them.
struct Batches {
    inbox: Inbox,
    store: SharedStore,
    agent: String,
    metrics: Metrics,
    filling: Vec<u8>,
    lines: u64,
    since: Option<Instant>,
    sealed: VecDeque<Sealed>,
    upload: Option<AbortOnDropHandle<Result<(), StoreError>>>,
    failures: u32,
}

/// Stores what comes into `inbox` as `agent`'s, until `ended` and all that came before is stored.
pub async fn run(
    inbox: Inbox,
    store: SharedStore,
    agent: String,
    metrics: Metrics,
    ended: CancellationToken,
) {
    let mut batches = Batches {
        inbox,
        store,
        agent,
        metrics,
        filling: Vec::new(),
        lines: 0,
        since: None,
        sealed: VecDeque::new(),
        upload: None,
        failures: 0,
    };
    tokio::select! {
        () = batches.keep() => {}
        () = ended.cancelled() => {}
    }
    if timeout(LAST, batches.finish()).await.is_err() {
        tracing::warn!("the last entries of the audit log are not in the store: it does not answer");
    }
}

impl Batches {
    /// Does so for ever. A dropped future loses nothing.
    async fn keep(&mut self) {
        loop {
            self.begin_upload();
            let full = async {
                match self.since {
                    Some(since) => sleep_until(since + OLD).await,
                    None => pending().await,
                }
            };
            let stored = async {
                match &mut self.upload {
                    Some(upload) => {
                        upload.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                entry = self.inbox.entries.recv() => match entry {
                    Some(entry) => self.take(&entry),
                    None => pending().await,
                },
                () = full => self.seal(),
                result = stored => self.uploaded(result),
            }
        }
    }

    /// Stores what there is.
    async fn finish(&mut self) {
        while let Ok(entry) = self.inbox.entries.try_recv() {
            self.take(&entry);
        }
        self.seal();
        // Without the wait of an attempt that has failed: there is no other time.
        if self.failures > 0 {
            self.upload = None;
            self.failures = 0;
        }
        while !self.sealed.is_empty() {
            self.begin_upload();
            let Some(upload) = &mut self.upload else { return };
            let result = upload.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())));
            self.uploaded(result);
        }
    }

    fn take(&mut self, entry: &Entry) {
        self.filling.extend(entry.to_json());
        self.lines += 1;
        self.since.get_or_insert_with(Instant::now);
        if self.filling.len() >= FULL {
            self.seal();
        }
    }

    /// Ends the batch that is being filled.
    fn seal(&mut self) {
        let lost = self.inbox.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "entries of the audit log found no room and are missing in the store");
            let line = json!({ "time": Timestamp::now(), "what": "dropped", "entries": lost });
            self.filling.extend(line.to_string().into_bytes());
            self.filling.push(b'\n');
        }
        self.since = None;
        if self.filling.is_empty() {
            return;
        }
        let key = key(&self.agent, Timestamp::now());
        let text = Bytes::from(mem::take(&mut self.filling));
        self.sealed.push_back(Sealed { key, lines: mem::take(&mut self.lines), text });
        if self.sealed.len() > MAX_SEALED {
            // The first is perhaps on its way.
            let dropped = self.sealed.remove(1).map_or(0, |dropped| dropped.lines);
            self.inbox.dropped.inc_by(dropped);
            self.inbox.lost.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Begins to store the oldest batch, after a wait where the last attempt failed.
    fn begin_upload(&mut self) {
        let (None, Some(first)) = (&self.upload, self.sealed.front()) else { return };
        let (store, first, failures) = (self.store.clone(), first.clone(), self.failures);
        self.upload = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if failures > 0 {
                sleep(retry_delay(failures, rand::random())).await;
            }
            let text = first.text;
            let packed = blocking(move || zstd::bulk::compress(&text, LEVEL)).await;
            let packed = packed.map_err(|error| StoreError::Failed(error.to_string()))?;
            // The same again where an answer was lost.
            store.put(&first.key, packed.into(), PutMode::Overwrite).await
        })));
    }

    fn uploaded(&mut self, result: Result<(), StoreError>) {
        self.upload = None;
        let label = if result.is_ok() { "ok" } else { "failed" };
        self.metrics.audit.batches.get_or_create(&Outcome { outcome: label }).inc();
        match result {
            Ok(()) => {
                self.failures = 0;
                self.sealed.pop_front();
            }
            Err(error) => {
                self.failures += 1;
                tracing::warn!(%error, waiting = self.sealed.len(), "a batch of the audit log is not in the store yet");
            }
        }
    }
}

/// Where a batch of this time is.
fn key(agent: &str, time: Timestamp) -> String {
    let (day, second) = (time.strftime("%Y/%m/%d"), time.strftime("%Y%m%dT%H%M%S"));
    format!("audit/{day}/{agent}-{second}.{:09}Z.jsonl.zst", time.subsec_nanosecond())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tarn_crds::repo::RepoId;

    use super::*;
    use crate::{
        access::caller::Caller,
        audit::{Audit, MAX_WAITING},
        store::dir::DirStore,
    };

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted_and_the_next_batch_says_how_many() {
        let (dir, metrics) = (tempfile::tempdir().unwrap(), Metrics::new());
        let (audit, inbox) = Audit::in_batches(metrics.audit.dropped.clone());
        let entry = Entry {
            time: Timestamp::UNIX_EPOCH,
            caller: Caller::anonymous(),
            client: [127, 0, 0, 1].into(),
            repo: RepoId::from_route("h/o/r").unwrap(),
            what: "clone",
            wants: String::new(),
            status: 200,
            bytes: 1,
            whole: true,
            cache: "hit",
            seconds: 0.1,
        };
        // Nobody reads yet: were a writer to wait, this would not end.
        (0..MAX_WAITING + 7).for_each(|_| audit.write(entry.clone()));
        assert_eq!(metrics.audit.dropped.get(), 7);
        let store = Arc::new(DirStore::open(dir.path()).unwrap());
        let ended = CancellationToken::new();
        ended.cancel();
        run(inbox, store, "agent".into(), metrics.clone(), ended).await;
        let mut text = String::new();
        for file in walk(dir.path()).iter().filter(|file| file.extension().is_some_and(|end| end == "zst")) {
            let packed = fs::read(file).unwrap();
            text.push_str(&String::from_utf8(zstd::stream::decode_all(&packed[..]).unwrap()).unwrap());
        }
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<_> = lines.iter().filter(|line| line["what"] == "dropped").collect();
        assert_eq!((lines.len() - told.len(), told.len()), (MAX_WAITING, 1));
        assert_eq!(told[0]["entries"], 7);
    }

    /// All files below a directory.
    fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn a_batch_is_named_by_its_day_its_agent_and_its_time() {
        let time = Timestamp::new(1_796_000_000, 5_000_000).unwrap();
        assert_eq!(key("host-1", time), "audit/2026/11/30/host-1-20261130T005320.005000000Z.jsonl.zst");
    }
}
