//! How often mirrors are asked for, by all agents that share the store: what matters most is restored first.
//!
//! Every agent counts for itself and keeps one object per day in the store. All of them add up what lies there for the
//! last two weeks (or as long as `--prewarm-window` says), at start and hourly. No object has two writers, so nobody coordinates; one that is missing or
//! damaged is passed over.
//!
//! ```text
//! v1/_clones/<yyyy-mm-dd>/<agent>.json
//! ```

pub mod day;

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use parking_lot::{Mutex, RwLock};
use tarn_crds::repo::RepoId;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::store::{PutMode, SharedStore, StoreError, list_all};
use day::{Day, MAX_DAY, Taken, Totals, Uses};

/// Where the days lie. No repository's key begins so.
const DAYS: &str = "v1/_clones/";

/// How many days are added up by default, today included.
pub const WINDOW: u32 = 14;

/// Days older than this many are removed, so that no more can be added up, …
pub const KEPT: u32 = 31;
/// … those of so many days at a time: agents that never come back leave theirs to the others.
const REMOVED: u32 = 7;

/// How often an agent writes what it has counted: as much is lost if it is killed.
const SAVE: Duration = Duration::from_secs(600);

/// How often the days of all agents are added up.
const SUM: Duration = Duration::from_secs(3600);

/// Objects read for one sum, the newest days first: 70 agents' for two weeks.
const MAX_READS: usize = 1000;

/// Objects read at once.
const AT_ONCE: usize = 8;

/// How long an agent that stops tries to write what it has counted.
const LEAVING: Duration = Duration::from_secs(5);

/// What is counted here and known of all. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Popularity(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// What has not been written yet, by day.
    counted: Mutex<BTreeMap<Date, Day>>,
    totals: RwLock<Arc<Totals>>,
    /// How many sums there have been.
    sums: watch::Sender<u64>,
}

impl Popularity {
    /// Somebody takes something of `id`.
    pub fn count(&self, id: &RepoId, taken: Taken) {
        self.0.counted.lock().entry(today()).or_default().count(id, taken);
    }

    /// Counts the sums: the first makes known what all agents have counted.
    pub fn sums(&self) -> watch::Receiver<u64> {
        self.0.sums.subscribe()
    }

    /// How often `id` was asked for within two weeks; nothing before the first sum, and without a store.
    pub fn of(&self, id: &RepoId) -> Uses {
        self.0.totals.read().of(id)
    }

    fn know(&self, totals: Totals) {
        *self.0.totals.write() = Arc::new(totals);
        self.0.sums.send_modify(|sums| *sums += 1);
    }
}

/// Writes what `popularity` counts as `agent`'s, and tells it what all agents have counted within `window` days, until
/// `stopping`.
pub async fn run(
    popularity: Popularity,
    store: SharedStore,
    agent: String,
    window: u32,
    stopping: CancellationToken,
) {
    let (days, pending) = (BTreeMap::new(), BTreeMap::new());
    let mut book = Book { popularity, store, agent, window: window.min(KEPT), days, pending };
    tokio::select! {
        () = book.keep() => {}
        () = stopping.cancelled() => {}
    }
    if timeout(LEAVING, book.save()).await.is_err() {
        tracing::warn!("the last counts of clones are lost: the store does not answer");
    }
}

/// This agent's days.
struct Book {
    popularity: Popularity,
    store: SharedStore,
    agent: String,
    /// How many days are added up.
    window: u32,
    /// What the store has, or is to have next, of the days that are still written.
    days: BTreeMap<Date, Day>,
    /// What has been counted and is not known to be written: it outlives a write that is given up.
    pending: BTreeMap<Date, Day>,
}

impl Book {
    async fn keep(&mut self) {
        let mut ticks = interval(SAVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut summed: Option<Instant> = None;
        loop {
            ticks.tick().await;
            self.save().await;
            if summed.is_none_or(|at| at.elapsed() >= SUM) {
                match self.sum().await {
                    Ok(totals) => {
                        tracing::debug!(mirrors = totals.mirrors(), "clones of all agents added up");
                        self.popularity.know(totals);
                        summed = Some(Instant::now());
                    }
                    Err(error) => tracing::warn!(%error, "cannot read how often mirrors were cloned"),
                }
                if let Err(error) = self.forget().await {
                    tracing::debug!(%error, "old counts of clones stay for now");
                }
            }
        }
    }

    /// Writes the days that something was counted on. What fails is written the next time.
    async fn save(&mut self) {
        for (date, day) in mem::take(&mut *self.popularity.0.counted.lock()) {
            self.pending.entry(date).or_default().add(day);
        }
        for (date, day) in self.pending.clone() {
            match self.write(date, day).await {
                Ok(()) => drop(self.pending.remove(&date)),
                Err(error) => {
                    tracing::warn!(%error, "cannot write how often mirrors were cloned; trying again later");
                }
            }
        }
        let oldest = today().saturating_sub(i64::from(self.window).days());
        self.pending.retain(|date, _| *date > oldest);
        let yesterday = today().saturating_sub(1.day());
        self.days.retain(|date, _| *date >= yesterday);
    }

    async fn write(&mut self, date: Date, counted: Day) -> Result<(), StoreError> {
        let key = format!("{}{}", below(date), name(&self.agent));
        let mut day = match self.days.get(&date) {
            Some(day) => day.clone(),
            // What an earlier process of this agent has counted.
            None => match self.store.get(&key, MAX_DAY).await {
                Ok(text) => Day::parse(&text).unwrap_or_else(|error| {
                    tracing::warn!(key, %error, "a count of clones is damaged and begun anew");
                    Day::default()
                }),
                Err(error) if error.is_damage() => Day::default(),
                Err(error) => return Err(error),
            },
        };
        // Known from now on: if the write is given up after it has arrived, the next one says the same.
        self.days.insert(date, day.clone());
        day.add(counted);
        self.store.put(&key, day.to_json().into(), PutMode::Overwrite).await?;
        self.days.insert(date, day);
        Ok(())
    }

    /// What all agents have counted.
    async fn sum(&self) -> Result<Totals, StoreError> {
        let mut keys = Vec::new();
        for back in 0..self.window {
            let day = below(today().saturating_sub(i64::from(back).days()));
            keys.extend(list_all(&*self.store, &day).await?.into_iter().map(|meta| meta.key));
            if keys.len() > MAX_READS {
                tracing::warn!(
                    limit = MAX_READS,
                    "more counts of clones than are read; older days are left out"
                );
                keys.truncate(MAX_READS);
                break;
            }
        }
        let mut days = stream::iter(keys).map(|key| self.read(key)).buffer_unordered(AT_ONCE);
        let mut totals = Totals::default();
        while let Some(day) = days.next().await {
            if let Some(day) = day? {
                totals.add(day);
            }
        }
        totals.shrink();
        Ok(totals)
    }

    async fn read(&self, key: String) -> Result<Option<Day>, StoreError> {
        let problem = match self.store.get(&key, MAX_DAY).await {
            Ok(text) => match Day::parse(&text) {
                Ok(day) => return Ok(Some(day)),
                Err(error) => error.to_string(),
            },
            // Removed since it was listed.
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::warn!(key, problem, "a count of clones is passed over");
        Ok(None)
    }

    /// Removes what is too old to matter, whoever wrote it.
    async fn forget(&self) -> Result<(), StoreError> {
        for back in KEPT..KEPT + REMOVED {
            let day = below(today().saturating_sub(i64::from(back).days()));
            for old in list_all(&*self.store, &day).await? {
                self.store.delete(&old.key).await?;
            }
        }
        Ok(())
    }
}

fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

fn below(date: Date) -> String {
    format!("{DAYS}{date}/")
}

fn name(agent: &str) -> String {
    format!("{agent}.json")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;
    use crate::store::{S3Options, StoreLocation, open};

    fn id(name: &str) -> RepoId {
        RepoId::from_route(&format!("example.org/{name}")).unwrap()
    }

    struct Scene {
        store: SharedStore,
        _dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let location = StoreLocation::Directory(dir.path().join("store"));
            Self { store: open(&location, S3Options::default()).unwrap(), _dir: dir }
        }

        fn book(&self, agent: &str) -> Book {
            let popularity = Popularity::default();
            Book {
                popularity,
                store: self.store.clone(),
                agent: agent.to_owned(),
                window: WINDOW,
                days: BTreeMap::new(),
                pending: BTreeMap::new(),
            }
        }
    }

    #[tokio::test]
    async fn an_agent_goes_on_counting_after_a_restart_and_others_know() {
        let scene = Scene::new();
        for _ in 0..2 {
            let mut book = scene.book("a");
            for _ in 0..2 {
                book.popularity.count(&id("x"), Taken::Clone);
                book.save().await;
            }
        }
        let mut other = scene.book("b");
        other.popularity.count(&id("x"), Taken::Snapshot);
        other.popularity.count(&id("y"), Taken::Fetch);
        other.save().await;
        let totals = other.sum().await.unwrap();
        assert_eq!(totals.of(&id("x")), Uses { clones: 4, fetches: 0, snapshots: 1 });
        other.popularity.know(totals);
        assert_eq!(other.popularity.of(&id("y")).fetches, 1);
    }

    #[tokio::test]
    async fn what_a_save_that_is_given_up_had_taken_is_counted_once() {
        let scene = Scene::new();
        let mut book = scene.book("a");
        book.popularity.count(&id("x"), Taken::Clone);
        assert!(book.save().now_or_never().is_none(), "it waits for the store");
        book.popularity.count(&id("x"), Taken::Clone);
        book.save().await;
        assert_eq!(book.sum().await.unwrap().of(&id("x")).clones, 2);
    }

    #[tokio::test]
    async fn only_the_window_counts_and_damage_is_passed_over() {
        let scene = Scene::new();
        let book = scene.book("a");
        let mut day = Day::default();
        day.count(&id("x"), Taken::Clone);
        for back in [0, i64::from(WINDOW) - 1, i64::from(WINDOW), i64::from(KEPT)] {
            let key = format!("{}old.json", below(today().saturating_sub(back.days())));
            scene.store.put(&key, day.to_json().into(), PutMode::Overwrite).await.unwrap();
        }
        let wrong = format!("{}wrong.json", below(today()));
        scene.store.put(&wrong, Bytes::from_static(b"{\"mirrors\":7"), PutMode::Overwrite).await.unwrap();
        let large = format!("{}large.json", below(today()));
        let space = vec![b' '; usize::try_from(MAX_DAY).unwrap() + 1];
        scene.store.put(&large, space.into(), PutMode::Overwrite).await.unwrap();
        assert_eq!(book.sum().await.unwrap().of(&id("x")).clones, 2);
        book.forget().await.unwrap();
        let left = list_all(&*scene.store, DAYS).await.unwrap();
        let gone = below(today().saturating_sub(i64::from(KEPT).days()));
        assert_eq!(left.len(), 5);
        assert!(left.iter().all(|meta| !meta.key.starts_with(&gone)));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_counted_once_later() {
        let scene = Scene::new();
        let mut book = scene.book("a");
        book.popularity.count(&id("x"), Taken::Clone);
        // A directory in the object's place.
        let key = format!("{}a.json/in-the-way", below(today()));
        scene.store.put(&key, Bytes::new(), PutMode::Create).await.unwrap();
        book.save().await;
        book.popularity.count(&id("x"), Taken::Clone);
        scene.store.delete(&key).await.unwrap();
        book.save().await;
        book.save().await;
        assert_eq!(book.sum().await.unwrap().of(&id("x")).clones, 2);
    }
}
