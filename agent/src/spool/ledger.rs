//! What a spool's files take, by what can be done about it; who reads them, and how fast; and room for new ones.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::DropGuard;

use crate::metrics::{Damaged, Metrics, SpoolPart};

/// How long new work waits while more than the budget is open, but not twice as much.
const SOFT_WAIT: Duration = Duration::from_secs(5);

/// How long new work waits for room at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often those who wait look for a reader to cut.
const CUT_EVERY: Duration = Duration::from_millis(500);

/// Readers that take at least so many bytes a second are never cut.
const FAST: u64 = 4 << 20;

/// A reader that has taken nothing for this long stands still.
const STALLED: Duration = Duration::from_secs(30);

/// The time over which a reader's pace is measured.
const MEASURED: Duration = Duration::from_secs(10);

/// Files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Their bytes.
    pub bytes: u64,
    /// How many.
    pub files: u64,
}

/// What a spool's files take on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Whole files that the next request may read; they can be evicted.
    pub kept: Tally,
    /// Files that are being made.
    pub growing: Tally,
    /// Evicted files that are still read.
    pub pinned: Tally,
}

impl Usage {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.kept.bytes + self.open()
    }

    /// Bytes that no eviction brings back.
    pub fn open(&self) -> u64 {
        self.growing.bytes + self.pinned.bytes
    }

    fn part(&mut self, part: Part) -> &mut Tally {
        match part {
            Part::Kept => &mut self.kept,
            Part::Growing => &mut self.growing,
            Part::Pinned => &mut self.pinned,
        }
    }
}

/// Under which a file is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Kept,
    Growing,
    Pinned,
}

impl Part {
    const ALL: [Self; 3] = [Self::Kept, Self::Growing, Self::Pinned];

    fn label(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Growing => "growing",
            Self::Pinned => "pinned",
        }
    }
}

/// There is no room for another file: too much is open, and read too slowly to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many answers are being read; try again")]
pub struct NoRoom;

/// The books of one spool.
#[derive(Debug)]
pub(super) struct Ledger {
    budget: AtomicU64,
    usage: Mutex<Usage>,
    freed: Notify,
    readers: Mutex<HashMap<u64, Weak<Slot>>>,
    next_reader: AtomicU64,
    bytes: [Gauge; 3],
    files: [Gauge; 3],
    cut: Counter,
    pub(super) damages: Counter,
}

impl Ledger {
    pub(super) fn new(name: &'static str, budget: u64, metrics: &Metrics) -> Arc<Self> {
        let damaged = if name == "lfs" { Damaged::LFS } else { Damaged::ANSWER };
        let label = |part: Part| SpoolPart { spool: name, part: part.label() };
        Arc::new(Self {
            budget: AtomicU64::new(budget),
            usage: Mutex::default(),
            freed: Notify::new(),
            readers: Mutex::default(),
            next_reader: AtomicU64::new(0),
            bytes: Part::ALL.map(|part| metrics.spool.bytes.get_or_create(&label(part)).clone()),
            files: Part::ALL.map(|part| metrics.spool.files.get_or_create(&label(part)).clone()),
            cut: metrics.spool.cut.clone(),
            damages: metrics.integrity.damages.get_or_create(&damaged).clone(),
        })
    }

    pub(super) fn usage(&self) -> Usage {
        *self.usage.lock()
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    pub(super) fn set_budget(&self, bytes: u64) {
        self.budget.store(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// Whether new work may begin without waiting.
    pub(super) fn has_room(&self) -> bool {
        self.usage().open() <= self.budget()
    }

    /// Waits for room. While twice the budget is open, the slowest readers are cut.
    pub(super) async fn room(&self) -> Result<(), NoRoom> {
        let began = Instant::now();
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            let (open, budget, waited) = (self.usage().open(), self.budget(), began.elapsed());
            let much = budget.saturating_mul(2);
            if open <= budget || (open <= much && waited >= SOFT_WAIT) {
                return Ok(());
            }
            if waited >= PATIENCE {
                return Err(NoRoom);
            }
            if open <= much || !self.cut_slowest() {
                let _ = timeout(CUT_EVERY, freed).await;
            }
        }
    }

    /// Takes the file that is read most slowly from its readers, where all of them are slow.
    fn cut_slowest(&self) -> bool {
        let slots: Vec<Arc<Slot>> = self.readers.lock().values().filter_map(Weak::upgrade).collect();
        let now = Instant::now();
        // For each file the pace of its fastest reader.
        let mut files: HashMap<usize, u64> = HashMap::new();
        for slot in &slots {
            let Some((file, part)) = slot.reads() else { continue };
            if part != Part::Kept {
                let pace = slot.pace(now).unwrap_or(u64::MAX);
                files.entry(file).and_modify(|most| *most = pace.max(*most)).or_insert(pace);
            }
        }
        let slowest = files.into_iter().filter(|(_, pace)| *pace < FAST).min_by_key(|(_, pace)| *pace);
        let Some((slowest, bytes_per_second)) = slowest else { return false };
        tracing::warn!(
            bytes_per_second,
            "answers that are read slowly fill the disk; the slowest reader is cut"
        );
        for slot in slots.iter().filter(|slot| slot.reads().is_some_and(|(file, _)| file == slowest)) {
            slot.cut();
            self.cut.inc();
        }
        true
    }

    pub(super) fn register(&self, slot: &Arc<Slot>) -> u64 {
        let number = self.next_reader.fetch_add(1, Ordering::Relaxed);
        self.readers.lock().insert(number, Arc::downgrade(slot));
        number
    }

    pub(super) fn unregister(&self, reader: u64) {
        self.readers.lock().remove(&reader);
    }

    fn change(&self, from: Option<(Part, u64)>, to: Option<(Part, u64)>) {
        let mut usage = self.usage.lock();
        let before = usage.open();
        if let Some((part, bytes)) = from {
            let tally = usage.part(part);
            *tally = Tally { bytes: tally.bytes - bytes, files: tally.files - 1 };
        }
        if let Some((part, bytes)) = to {
            let tally = usage.part(part);
            *tally = Tally { bytes: tally.bytes + bytes, files: tally.files + 1 };
        }
        for (at, part) in Part::ALL.into_iter().enumerate() {
            let Tally { bytes, files } = *usage.part(part);
            let tell = |gauge: Option<&Gauge>, value| {
                gauge.map(|gauge| gauge.set(i64::try_from(value).unwrap_or(i64::MAX)));
            };
            tell(self.bytes.get(at), bytes);
            tell(self.files.get(at), files);
        }
        if usage.open() < before {
            self.freed.notify_waiters();
        }
    }
}

/// What one file takes, for as long as anything holds it.
#[derive(Debug)]
pub(super) struct Charge {
    ledger: Arc<Ledger>,
    entry: Mutex<(Part, u64)>,
    damaged: AtomicBool,
}

impl Charge {
    pub(super) fn new(ledger: &Arc<Ledger>, part: Part, bytes: u64) -> Arc<Self> {
        ledger.change(None, Some((part, bytes)));
        Arc::new(Self {
            ledger: ledger.clone(),
            entry: Mutex::new((part, bytes)),
            damaged: AtomicBool::new(false),
        })
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(super) fn part(&self) -> Part {
        self.entry.lock().0
    }

    /// Moves the file into another part.
    pub(super) fn to(&self, part: Part) {
        let mut entry = self.entry.lock();
        self.ledger.change(Some(*entry), Some((part, entry.1)));
        entry.0 = part;
    }

    pub(super) fn grown(&self, bytes: u64) {
        let mut entry = self.entry.lock();
        if bytes > entry.1 {
            self.ledger.change(Some(*entry), Some((entry.0, bytes)));
            entry.1 = bytes;
        }
    }

    /// Notes that the file cannot be read as it was written: it is made again.
    pub(super) fn spoil(&self) {
        if !self.damaged.swap(true, Ordering::Relaxed) {
            self.ledger.damages.inc();
        }
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let entry = *self.entry.lock();
        self.ledger.change(Some(entry), None);
    }
}

/// An open file. It is empty until its maker has room.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: OnceLock<Arc<fs::File>>,
    pub(super) charge: Arc<Charge>,
}

/// A file, and the interest in its being made.
type Held = (Arc<OpenFile>, Option<Arc<DropGuard>>);

/// What one stream holds of its file, until it is cut.
#[derive(Debug)]
pub(super) struct Slot {
    held: Mutex<Option<Held>>,
    pace: Mutex<Pace>,
}

impl Slot {
    pub(super) fn new(open: Arc<OpenFile>, interest: Option<Arc<DropGuard>>) -> Arc<Self> {
        Arc::new(Self { held: Mutex::new(Some((open, interest))), pace: Mutex::default() })
    }

    /// The client asks for more.
    pub(super) fn asks(&self) {
        self.pace.lock().asks(Instant::now());
    }

    /// The client is given so many bytes.
    pub(super) fn took(&self, bytes: usize) {
        self.pace.lock().took(bytes, Instant::now());
    }

    /// Which file it reads, and under what that is counted.
    fn reads(&self) -> Option<(usize, Part)> {
        let held = self.held.lock();
        let (open, _) = held.as_ref()?;
        Some((Arc::as_ptr(open).addr(), open.charge.part()))
    }

    /// Bytes a second that it takes; `None` while that is not known.
    fn pace(&self, now: Instant) -> Option<u64> {
        self.pace.lock().rate(now)
    }

    /// Takes the file away.
    fn cut(&self) {
        *self.held.lock() = None;
    }

    /// The file, unless it has been taken away.
    pub(super) fn open(&self) -> Option<Arc<OpenFile>> {
        self.held.lock().as_ref().map(|(open, _)| open.clone())
    }
}

/// How fast a client takes what is there. Time in which it waits for the maker does not count.
#[derive(Debug, Default)]
struct Pace {
    bytes: u64,
    waited: Duration,
    /// Since when the client has not asked for more.
    idle: Option<Instant>,
}

impl Pace {
    fn took(&mut self, bytes: usize, now: Instant) {
        self.bytes += u64::try_from(bytes).unwrap_or(0);
        self.idle = Some(now);
    }

    fn asks(&mut self, now: Instant) {
        if let Some(since) = self.idle.take() {
            self.waited += now - since;
        }
        if self.waited > MEASURED {
            (self.bytes, self.waited) = (self.bytes / 2, self.waited / 2);
        }
    }

    fn rate(&self, now: Instant) -> Option<u64> {
        let idle = self.idle.map(|since| now - since).unwrap_or_default();
        let time = (self.waited + idle).as_millis();
        if idle >= STALLED {
            Some(0)
        } else if time < MEASURED.as_millis() / 2 {
            None
        } else {
            u64::try_from(u128::from(self.bytes) * 1000 / time).ok()
        }
    }
}
