//! The agent's queue: whatever is bounded in number waits here for its turn, in one order.
//!
//! Work that a client waits for goes before work in the background, which never has all places. Hosts, clients and mirrors
//! take turns, and none of them has more than half of what they share. What decides is the pure
//! [`schedule::Schedule`]; [`Activity`] says what is bounded, and by how much.

mod activity;
mod schedule;

use std::{fmt, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tarn_crds::repo::RepoId;
use tokio::sync::{oneshot, watch};

pub use activity::{Activity, Capacities};
pub use schedule::Priority;

use crate::metrics::Metrics;
use activity::Key;
use schedule::{Request, Schedule};

/// Tickets of one kind of work that clients cause: more are turned away.
const MAX_WAITING: usize = 4096;

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    capacities: Capacities,
    popularity: Box<dyn Fn(&RepoId) -> u64 + Send + Sync>,
    metrics: Metrics,
    /// Children that make answers.
    packs: watch::Sender<usize>,
}

struct State {
    schedule: Schedule<Key, RepoId, Waiting>,
    /// Changes when other mirrors are popular.
    popular: watch::Receiver<u64>,
    /// Tickets that wait for work that clients cause.
    crowd: usize,
}

struct Waiting {
    activity: Activity,
    called: oneshot::Sender<()>,
}

impl Queue {
    /// An empty queue. `popularity` says how often a mirror is asked for; `popular` changes when that has changed.
    pub fn new(
        capacities: Capacities,
        popularity: impl Fn(&RepoId) -> u64 + Send + Sync + 'static,
        popular: watch::Receiver<u64>,
        metrics: Metrics,
    ) -> Self {
        let state = Mutex::new(State { schedule: Schedule::default(), popular, crowd: 0 });
        let (popularity, packs) = (Box::new(popularity), watch::Sender::new(0));
        Self { inner: Arc::new(Inner { state, capacities, popularity, metrics, packs }) }
    }

    /// Queues up for `activity` at `mirror`.
    pub fn enter(&self, activity: Activity, mirror: &RepoId, priority: Priority) -> Ticket {
        self.inner.enter(&mut self.lock(), self, activity, mirror, priority)
    }

    /// Waits for the turn of `activity`, which lasts until the ticket is dropped. A dropped future leaves the queue.
    pub async fn acquire(&self, activity: Activity, mirror: &RepoId, priority: Priority) -> Ticket {
        let mut ticket = self.enter(activity, mirror, priority);
        ticket.called().await;
        ticket
    }

    /// Queues up for work that a client causes; `None` when too many wait.
    pub fn admit(&self, activity: Activity, mirror: &RepoId, priority: Priority) -> Option<Ticket> {
        let mut state = self.lock();
        let room = state.crowd < MAX_WAITING;
        room.then(|| self.inner.enter(&mut state, self, activity, mirror, priority))
    }

    /// Waits until no child makes an answer.
    pub async fn calm(&self) {
        // The sender is here.
        let _ = self.inner.packs.subscribe().wait_for(|packs| *packs == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each step leaves it whole.
        let mut state = self.inner.state.lock();
        // What is popular may have become known since those who wait came.
        if state.popular.has_changed().unwrap_or(false) {
            state.popular.mark_unchanged();
            state.schedule.reweigh(|key, mirror| self.inner.weight(key, mirror));
        }
        state
    }
}

impl Inner {
    fn enter(
        &self,
        state: &mut State,
        queue: &Queue,
        activity: Activity,
        mirror: &RepoId,
        priority: Priority,
    ) -> Ticket {
        let (called, turn) = oneshot::channel();
        let bounds = self.capacities.bounds(activity, mirror);
        let weight = bounds.first().map_or(0, |bound| self.weight(&bound.key, mirror));
        let request = Request { bounds, priority, rank: activity.rank(), weight, owner: mirror.clone() };
        self.waits(state, activity, 1);
        let (number, first) = state.schedule.enter(request, Waiting { activity, called });
        self.call(state, first);
        Ticket { queue: queue.clone(), activity, number, turn }
    }

    fn weight(&self, key: &Key, mirror: &RepoId) -> u64 {
        if key.is_by_popularity() { (self.popularity)(mirror) } else { 0 }
    }

    /// Calls those whose turn has come.
    fn call(&self, state: &mut State, called: impl IntoIterator<Item = Waiting>) {
        for Waiting { activity, called } in called {
            self.waits(state, activity, -1);
            self.works(activity, 1);
            // A ticket that is dropped in this instant gives its turn back when it gets the lock.
            let _ = called.send(());
        }
    }

    fn waits(&self, state: &mut State, activity: Activity, more: i8) {
        let metrics = &self.metrics;
        metrics.queue.waiting.get_or_create(&activity.label()).inc_by(more.into());
        if activity.is_upstream() {
            metrics.upstream.waiting.inc_by(more.into());
        }
        if activity.is_caused_by_clients() {
            state.crowd = state.crowd.saturating_add_signed(more.into());
        }
    }

    fn works(&self, activity: Activity, more: i8) {
        let metrics = &self.metrics;
        metrics.queue.running.get_or_create(&activity.label()).inc_by(more.into());
        if activity.is_upstream() {
            metrics.upstream.connections.inc_by(more.into());
        }
        if activity.is_pack() {
            metrics.serve.upload_packs.inc_by(more.into());
            self.packs.send_modify(|packs| *packs = packs.saturating_add_signed(more.into()));
        }
    }
}

/// A place in the queue; once it has been called, the right to work. Ends when dropped.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    queue: Queue,
    activity: Activity,
    number: u64,
    turn: oneshot::Receiver<()>,
}

impl Ticket {
    /// Waits for the turn, which lasts until the ticket is dropped. Called once.
    pub async fn called(&mut self) {
        // The sender is in the queue, which this keeps alive, until the ticket is called.
        let _ = (&mut self.turn).await;
    }

    /// What makes the ticket urgent while another task waits with it.
    pub fn lift(&self) -> Lift {
        Lift { queue: self.queue.clone(), number: self.number }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if state.schedule.is_waiting(self.number) {
            self.queue.inner.waits(&mut state, self.activity, -1);
        } else {
            self.queue.inner.works(self.activity, -1);
        }
        let called = state.schedule.leave(self.number);
        self.queue.inner.call(&mut state, called);
    }
}

/// Makes a ticket urgent.
#[derive(Debug)]
pub struct Lift {
    queue: Queue,
    number: u64,
}

impl Lift {
    /// A client waits now. Does nothing once the ticket has been called, or is gone.
    pub fn lift(&self) {
        let mut state = self.queue.lock();
        let called = state.schedule.lift(self.number);
        self.queue.inner.call(&mut state, called);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("capacities", &self.inner.capacities).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn id(name: &str) -> RepoId {
        RepoId::from_route(&format!("example.org/{name}")).unwrap()
    }

    fn queue(popular: &watch::Sender<u64>) -> Queue {
        let capacities = Capacities { prewarms: 1, connections: 1, processors: 1 };
        let sums = popular.subscribe();
        let known = sums.clone();
        let weigh = move |mirror: &RepoId| *known.borrow() * u64::from(mirror.path() == "popular");
        Queue::new(capacities, weigh, sums, Metrics::new())
    }

    #[tokio::test]
    async fn a_dropped_ticket_passes_its_turn_on() {
        let popular = watch::Sender::new(0);
        let queue = queue(&popular);
        let first = queue.acquire(Activity::LargeUpkeep, &id("x"), Priority::Background).await;
        let second = queue.enter(Activity::LargeUpkeep, &id("x"), Priority::Background);
        let mut third = queue.enter(Activity::LargeUpkeep, &id("x"), Priority::Background);
        let fourth = queue.enter(Activity::LargeUpkeep, &id("x"), Priority::Background);
        third.lift().lift();
        drop(second);
        drop(first);
        third.called().await;
        // Called, and never heard of it.
        drop(third);
        drop(fourth);
        drop(queue.acquire(Activity::LargeUpkeep, &id("x"), Priority::Background).await);
        let metrics = queue.inner.metrics.clone();
        let label = Activity::LargeUpkeep.label();
        assert_eq!(metrics.queue.waiting.get_or_create(&label).get(), 0);
        assert_eq!(metrics.queue.running.get_or_create(&label).get(), 0);
    }

    #[tokio::test]
    async fn popular_mirrors_are_restored_first() {
        let popular = watch::Sender::new(0);
        let queue = queue(&popular);
        let first = queue.acquire(Activity::Restore, &id("x"), Priority::Background).await;
        let mut plain = queue.enter(Activity::Restore, &id("plain"), Priority::Background);
        let mut second = queue.enter(Activity::Restore, &id("popular"), Priority::Background);
        // It becomes known when both are there.
        popular.send_replace(1);
        drop(first);
        assert!(plain.called().now_or_never().is_none());
        assert!(second.called().now_or_never().is_some());
    }

    #[tokio::test]
    async fn upkeep_waits_for_children_that_serve() {
        let popular = watch::Sender::new(0);
        let queue = queue(&popular);
        queue.calm().await;
        let child = queue.acquire(Activity::Pack(None), &id("x"), Priority::Awaited).await;
        assert!(queue.calm().now_or_never().is_none());
        drop(child);
        assert!(queue.calm().now_or_never().is_some());
    }
}
