//! Which agents share the store, and which of them publishes a mirror.
//!
//! Every agent writes a small object under its own name, again and again, and lists those of the others. One whose
//! object is young by the store's own clock is alive. The living are ranked for each mirror by rendezvous hashing:
//! the first owns it and publishes it, the others publish only when no checkpoint comes. All of this spares work
//! and decides nothing: whoever creates a manifest first has won, so an agent that is wrong about the others
//! wastes an upload at most.
//!
//! ```text
//! v1/_agents/<name>     the heartbeat of an agent; its content does not matter
//! ```

pub mod addresses;
pub mod placement;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tarn_crds::repo::RepoId;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use self::placement::Placement;
use crate::{
    metrics::Metrics,
    store::{PutMode, SharedStore, Store, StoreError, list_all},
};

/// Where heartbeats lie. No repository's key begins so.
const AGENTS: &str = "v1/_agents/";

/// An agent is alive until so many of its heartbeats have failed to come.
const LIVES: u32 = 3;

/// How long a new agent waits for its first list of the others before it goes about as if alone.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// How long an agent that stops tries to say so.
const LEAVING: Duration = Duration::from_secs(5);

/// Heartbeats of agents that never came back are removed once they are so old.
const FORGOTTEN: SignedDuration = SignedDuration::from_hours(24);

/// Of those, the most that one round removes: a round must end before the next one.
const FORGOTTEN_AT_ONCE: usize = 16;

/// What is known of the agents that share the store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peers {
    agent: Arc<str>,
    /// The living, by name; `None` before the first list.
    living: watch::Receiver<Option<Arc<[String]>>>,
    /// Who keeps which mirror, where not all agents keep all: those publish it.
    placement: Option<Placement>,
}

impl Peers {
    /// What the agent called `agent` knows of the others, and what keeps it up.
    pub fn new(store: SharedStore, agent: &str, every: Duration, metrics: Metrics) -> (Self, Heart) {
        let (known, living) = watch::channel(None);
        let heart = Heart { store, agent: agent.to_owned(), every, metrics, known };
        (Self { agent: agent.into(), living, placement: None }, heart)
    }

    /// The same, where each mirror is published by those that keep it.
    pub fn placed(self, placement: Option<Placement>) -> Self {
        Self { placement, ..self }
    }

    /// This agent's name.
    pub fn name(&self) -> &str {
        &self.agent
    }

    /// The living agents, in the order of their names; none before the first list.
    pub fn living(&self) -> Arc<[String]> {
        self.living.borrow().clone().unwrap_or_default()
    }

    /// The agent that owns `id`.
    pub fn owner(&self, id: &RepoId) -> Option<String> {
        if let Some(placement) = &self.placement {
            return placement.owners(id).into_iter().next();
        }
        let living = self.living();
        living.iter().max_by_key(|agent| weight(agent, id)).cloned()
    }

    /// How many of the living come before this agent for `id`: 0 says that it owns it. `None` for the seconds
    /// before the others are known.
    pub fn rank(&self, id: &RepoId) -> Option<usize> {
        if let Some(placement) = &self.placement {
            return placement.rank(id);
        }
        Some(rank(&self.agent, self.living.borrow().as_deref()?, id))
    }

    /// Waits until the living are others than when this was called. For ever where they will never be.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut living = self.living.clone();
        living.mark_unchanged();
        let placed = self.placement.as_ref().map(Placement::changed);
        async move {
            let living = async {
                if living.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match placed {
                Some(placed) => tokio::select! {
                    () = living => {}
                    () = placed => {}
                },
                None => living.await,
            }
        }
    }
}

/// Tells the others that this agent is alive, and learns the same of them.
pub struct Heart {
    store: SharedStore,
    agent: String,
    every: Duration,
    metrics: Metrics,
    known: watch::Sender<Option<Arc<[String]>>>,
}

impl Heart {
    /// Beats until `stopping`, then tells the others that this agent goes, for a few seconds at most.
    pub async fn run(self, stopping: CancellationToken) {
        tokio::select! {
            () = self.beat() => {}
            () = stopping.cancelled() => {}
        }
        self.leave().await;
    }

    /// Beats for as long as it is polled. While the store does not answer, the others are first taken to live on,
    /// then this agent goes about as if alone: the store decides, once it is back, who was first.
    async fn beat(&self) {
        let (mut ticks, began) = (interval(self.every), Instant::now());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut failing) = (None, false);
        loop {
            ticks.tick().await;
            let limit = if heard.is_none() { FIRST_LIST } else { self.every.max(FIRST_LIST) };
            match timeout(limit, self.round()).await {
                Ok(Ok(living)) => {
                    (heard, failing) = (Some(Instant::now()), false);
                    self.tell(living);
                }
                failed => {
                    if !failing {
                        let error = failed.map_or("no answer in time".to_owned(), |result| {
                            result.err().map_or_else(String::new, |error| error.to_string())
                        });
                        tracing::warn!(error, "cannot tell the agents that share the store from each other");
                    }
                    failing = true;
                    let silent = heard.map_or_else(|| began.elapsed(), |at: Instant| at.elapsed());
                    if heard.is_none() || silent > self.every * LIVES {
                        self.tell(vec![self.agent.clone()]);
                    }
                }
            }
        }
    }

    /// Says that this agent is going, so that the others need not wait for its silence.
    async fn leave(&self) {
        let without = |living: &mut Option<Arc<[String]>>| {
            *living =
                living.take().map(|all| all.iter().filter(|name| **name != self.agent).cloned().collect());
        };
        self.known.send_modify(without);
        match timeout(LEAVING, self.store.delete(&key(&self.agent))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the others will notice that this agent has gone"),
            Err(_) => tracing::debug!("the others will notice that this agent has gone"),
        }
    }

    async fn round(&self) -> Result<Vec<String>, StoreError> {
        self.store.put(&key(&self.agent), Bytes::new(), PutMode::Overwrite).await?;
        let beats: BTreeMap<String, Timestamp> = list_all(&*self.store, AGENTS)
            .await?
            .into_iter()
            .filter_map(|meta| Some((meta.key.strip_prefix(AGENTS)?.to_owned(), meta.modified)))
            .collect();
        forget(&*self.store, &self.agent, &beats).await;
        Ok(living(&self.agent, &beats, self.every * LIVES))
    }

    fn tell(&self, living: Vec<String>) {
        self.metrics.store.agents.set(i64::try_from(living.len()).unwrap_or(i64::MAX));
        self.known.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&*living);
            if changed {
                tracing::info!(agents = living.len(), "agents that share the store");
                *known = Some(living.into());
            }
            changed
        });
    }
}

fn key(agent: &str) -> String {
    format!("{AGENTS}{agent}")
}

/// Removes heartbeats that nobody will renew: names of pods, say, that never come back.
async fn forget(store: &dyn Store, own: &str, beats: &BTreeMap<String, Timestamp>) {
    let Some(now) = beats.get(own) else { return };
    let old = beats.iter().filter(|(_, beat)| now.duration_since(**beat) > FORGOTTEN);
    for (agent, _) in old.take(FORGOTTEN_AT_ONCE) {
        if let Err(error) = store.delete(&key(agent)).await {
            tracing::debug!(%error, "an old heartbeat stays for now");
        }
    }
}

/// Those of `beats` that are younger than `limit`. The time is when the heartbeat of `own` was written, by the same
/// clock that dated the others.
fn living(own: &str, beats: &BTreeMap<String, Timestamp>, limit: Duration) -> Vec<String> {
    let limit = SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX);
    // A list that lacks what was just written is no list to judge others by.
    let Some(now) = beats.get(own) else { return vec![own.to_owned()] };
    let alive = beats.iter().filter(|(_, beat)| now.duration_since(**beat) < limit);
    alive.map(|(agent, _)| agent.clone()).collect()
}

/// What `agent` weighs for `id`, as all agents compute it. The name decides between equals, of which there are none.
fn weight(agent: &str, id: &RepoId) -> ([u8; 32], String) {
    let mut hash = blake3::Hasher::new();
    // A byte that is in no name keeps the two apart.
    hash.update(agent.as_bytes()).update(&[0]).update(id.to_string().as_bytes());
    (*hash.finalize().as_bytes(), agent.to_owned())
}

/// How many of `living` come before `agent` for `id`: all of them where it is no longer one itself.
fn rank(agent: &str, living: &[String], id: &RepoId) -> usize {
    if !living.iter().any(|name| name == agent) {
        return living.len();
    }
    let own = weight(agent, id);
    living.iter().filter(|other| weight(other, id) > own).count()
}

/// What an agent does about a mirror whose refs have moved since the newest checkpoint that it knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It publishes.
    Publish,
    /// It looks whether another agent has, and publishes where none has.
    TakeOver,
    /// It looks whether another agent has.
    Ask,
    /// It does nothing for so long.
    Wait(Duration),
}

/// So many intervals without a checkpoint are a silence: the owner may have begun one just before the refs moved,
/// and one takes its time.
const SILENCE: u32 = 2;

/// What the agent of this rank does once the refs have been waiting for `waited`; checkpoints are `every` apart.
/// Each further rank waits longer, so that not all take over at once.
pub fn turn(rank: usize, waited: Duration, every: Duration) -> Turn {
    let silence = every.saturating_mul(SILENCE);
    if rank == 0 {
        return Turn::Publish;
    }
    if waited < silence {
        return Turn::Wait(silence - waited);
    }
    let own = silence.saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX));
    if waited < own { Turn::Ask } else { Turn::TakeOver }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(60);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn repo(number: usize) -> RepoId {
        RepoId::from_route(&format!("example.org/r{number}")).unwrap()
    }

    #[test]
    fn who_was_heard_lately_by_the_stores_clock_is_alive() {
        let beats = |own: i64, other: i64| {
            let beats = BTreeMap::from([("a".to_owned(), at(own)), ("b".to_owned(), at(other))]);
            living("a", &beats, Duration::from_secs(90))
        };
        assert_eq!(beats(1000, 1000), ["a", "b"]);
        assert_eq!(beats(1000, 911), ["a", "b"]);
        assert_eq!(beats(1000, 910), ["a"]);
        // Written after our own: no clock of this machine plays a part.
        assert_eq!(beats(1000, 1200), ["a", "b"]);
        assert_eq!(living("c", &BTreeMap::from([("a".to_owned(), at(1))]), EVERY), ["c"]);
    }

    #[test]
    fn every_mirror_has_one_owner_and_owners_share_the_mirrors() {
        let all = names(&["a", "b", "c", "d"]);
        let mut owned = BTreeMap::<&str, usize>::new();
        for number in 0..400 {
            let mut ranks: Vec<usize> = all.iter().map(|agent| rank(agent, &all, &repo(number))).collect();
            let owner = ranks.iter().position(|rank| *rank == 0).unwrap();
            *owned.entry(&all[owner]).or_default() += 1;
            ranks.sort_unstable();
            assert_eq!(ranks, [0, 1, 2, 3]);
        }
        assert!(owned.values().all(|count| (60..140).contains(count)), "{owned:?}");
    }

    #[test]
    fn an_agent_that_goes_changes_only_its_own_mirrors() {
        let (all, left) = (names(&["a", "b", "c", "d"]), names(&["a", "b", "d"]));
        for number in 0..100 {
            let id = repo(number);
            let owner =
                |living: &[String]| living.iter().find(|a| rank(a, living, &id) == 0).cloned().unwrap();
            if owner(&all) == "c" {
                let second = all.iter().find(|agent| rank(agent, &all, &id) == 1).unwrap();
                assert_eq!(owner(&left), *second);
            } else {
                assert_eq!(owner(&left), owner(&all));
            }
            assert_eq!(rank("c", &left, &id), 3, "who is going comes last");
            assert_eq!(rank("c", &[], &id), 0, "unless it was alone");
        }
    }

    #[test]
    fn the_owner_publishes_and_the_others_wait_for_its_silence() {
        let after = |rank, seconds| turn(rank, Duration::from_secs(seconds), EVERY);
        assert_eq!(after(0, 0), Turn::Publish);
        assert_eq!(after(1, 0), Turn::Wait(2 * EVERY));
        assert_eq!(after(1, 119), Turn::Wait(Duration::from_secs(1)));
        assert_eq!(after(1, 120), Turn::TakeOver);
        assert_eq!(after(2, 119), Turn::Wait(Duration::from_secs(1)));
        assert_eq!(after(2, 120), Turn::Ask);
        assert_eq!(after(2, 240), Turn::TakeOver);
        assert_eq!(after(usize::MAX, 240), Turn::Ask);
    }
}
