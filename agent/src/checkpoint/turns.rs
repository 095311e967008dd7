//! Whose restore or clone is next: first the mirrors that somebody waits for, then the popular ones, then in the order
//! of arrival.
//!
//! What decides is the pure [`Queue`]. A [`Place`] in it is given up by dropping it, before its turn or after.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tarn_crds::repo::RepoId;
use tokio::sync::oneshot;

use crate::popularity::Popularity;

/// How much it matters that a mirror is restored soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nobody has asked for it yet.
    Idle,
    /// A request waits, or is answered by the upstream meanwhile.
    Awaited,
}

/// As many turns at once as it was made with, and some more for those that somebody waits for. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns {
    queue: Arc<Mutex<Queue<oneshot::Sender<()>>>>,
    popularity: Popularity,
}

impl Turns {
    /// Lets `limit` go at once, and beyond them `spare` that somebody waits for.
    pub fn new(limit: usize, spare: usize, popularity: Popularity) -> Self {
        let queue = Queue { limit, spare, taken: 0, next: 0, waiting: BTreeMap::new() };
        Self { queue: Arc::new(Mutex::new(queue)), popularity }
    }

    /// Queues up for `id`; also gives what makes the place urgent later.
    pub fn enter(&self, id: &RepoId, urgency: Urgency) -> (Place, Lift) {
        let (called, turn) = oneshot::channel();
        let ticket = self.lock().enter(id.clone(), urgency, called);
        self.call();
        (Place { turns: self.clone(), ticket, turn }, Lift { turns: self.clone(), ticket })
    }

    /// Calls those whose turn it is.
    fn call(&self) {
        let mut queue = self.lock();
        // What is popular may have become known since they came.
        while let Some(called) = queue.next(|id| self.popularity.of(id).weight()) {
            // Whoever has gone in this instant gives its turn back when it gets the lock.
            let _ = called.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<oneshot::Sender<()>>> {
        // Each step leaves the queue whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue; once it has been called, a turn. Ends when dropped.
#[derive(Debug)]
pub struct Place {
    turns: Turns,
    ticket: u64,
    turn: oneshot::Receiver<()>,
}

impl Place {
    /// Waits for the turn, which lasts until this is dropped.
    pub async fn called(&mut self) {
        // The sender lies in the queue, which this keeps alive, until it is called.
        let _ = (&mut self.turn).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turns.lock().leave(self.ticket);
        self.turns.call();
    }
}

/// Makes a place urgent.
#[derive(Debug)]
pub struct Lift {
    turns: Turns,
    ticket: u64,
}

impl Lift {
    /// Somebody waits now. Does nothing once it has been called.
    pub fn lift(&self) {
        self.turns.lock().lift(self.ticket);
        // There may be a spare turn.
        self.turns.call();
    }
}

/// Who waits, and how many may still go.
#[derive(Debug)]
struct Queue<W> {
    limit: usize,
    spare: usize,
    /// Turns under way.
    taken: usize,
    next: u64,
    waiting: BTreeMap<u64, Waiting<W>>,
}

#[derive(Debug)]
struct Waiting<W> {
    id: RepoId,
    urgency: Urgency,
    who: W,
}

impl<W> Queue<W> {
    fn enter(&mut self, id: RepoId, urgency: Urgency, who: W) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.waiting.insert(ticket, Waiting { id, urgency, who });
        ticket
    }

    fn lift(&mut self, ticket: u64) {
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.urgency = Urgency::Awaited;
        }
    }

    /// Takes out whose turn it is; `None` while no turn is free or nobody waits.
    fn next(&mut self, weight: impl Fn(&RepoId) -> u64) -> Option<W> {
        let place = |(ticket, waiting): &(&u64, &Waiting<W>)| {
            (waiting.urgency, weight(&waiting.id), Reverse(**ticket))
        };
        let (ticket, first) = self.waiting.iter().max_by_key(place)?;
        let spare = if first.urgency == Urgency::Awaited { self.spare } else { 0 };
        if self.taken >= self.limit + spare {
            return None;
        }
        let ticket = *ticket;
        self.taken += 1;
        self.waiting.remove(&ticket).map(|waiting| waiting.who)
    }

    /// Gives a place up, or the turn that it has become.
    fn leave(&mut self, ticket: u64) {
        if self.waiting.remove(&ticket).is_none() {
            self.taken -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(limit: usize) -> Queue<&'static str> {
        Queue { limit, spare: 0, taken: 0, next: 0, waiting: BTreeMap::new() }
    }

    fn id(name: &str) -> RepoId {
        RepoId::from_route(&format!("example.org/{name}")).unwrap()
    }

    fn alike(_: &RepoId) -> u64 {
        0
    }

    #[test]
    fn who_is_awaited_goes_first_then_who_is_popular_then_who_came_first() {
        let mut queue = queue(9);
        queue.enter(id("plain"), Urgency::Idle, "first");
        queue.enter(id("plain"), Urgency::Awaited, "second");
        let third = queue.enter(id("plain"), Urgency::Idle, "third");
        queue.enter(id("popular"), Urgency::Idle, "fourth");
        queue.enter(id("plain"), Urgency::Idle, "fifth");
        queue.enter(id("popular"), Urgency::Awaited, "sixth");
        queue.lift(third);
        let weight = |id: &RepoId| if id.path() == "popular" { 7 } else { 0 };
        let order: Vec<_> = std::iter::from_fn(|| queue.next(weight)).collect();
        assert_eq!(order, ["sixth", "second", "third", "fourth", "first", "fifth"]);
    }

    #[test]
    fn no_more_go_than_there_are_turns() {
        let mut queue = queue(1);
        let first = queue.enter(id("x"), Urgency::Idle, "first");
        let second = queue.enter(id("x"), Urgency::Idle, "second");
        queue.enter(id("x"), Urgency::Idle, "third");
        assert_eq!(queue.next(alike), Some("first"));
        assert_eq!(queue.next(alike), None);
        queue.leave(second);
        assert_eq!(queue.next(alike), None, "a place that was given up is no turn");
        queue.leave(first);
        assert_eq!(queue.next(alike), Some("third"));
        assert_eq!(queue.next(alike), None);
    }

    #[test]
    fn spare_turns_are_for_those_that_somebody_waits_for() {
        let mut queue = Queue { spare: 1, ..queue(1) };
        queue.enter(id("x"), Urgency::Idle, "first");
        let second = queue.enter(id("x"), Urgency::Idle, "second");
        assert_eq!(queue.next(alike), Some("first"));
        assert_eq!(queue.next(alike), None);
        queue.lift(second);
        assert_eq!(queue.next(alike), Some("second"));
        queue.enter(id("x"), Urgency::Awaited, "third");
        assert_eq!(queue.next(alike), None);
    }

    #[tokio::test]
    async fn a_dropped_place_passes_its_turn_on() {
        let turns = Turns::new(1, 0, Popularity::default());
        let (mut first, _) = turns.enter(&id("x"), Urgency::Idle);
        first.called().await;
        let (second, _) = turns.enter(&id("x"), Urgency::Idle);
        let (mut third, lift) = turns.enter(&id("x"), Urgency::Idle);
        let (fourth, _) = turns.enter(&id("x"), Urgency::Idle);
        lift.lift();
        drop(second);
        drop(first);
        third.called().await;
        // Called, and never heard of it.
        drop(third);
        drop(fourth);
        let (mut last, _) = turns.enter(&id("x"), Urgency::Idle);
        last.called().await;
    }
}
