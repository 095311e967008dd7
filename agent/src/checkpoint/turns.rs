//! Whose restore is next: first the mirrors that somebody waits for, then in the order of arrival.
//!
//! What decides is the pure [`Queue`]. A [`Place`] in it is given up by dropping it, before its turn or after.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// How much it matters that a mirror is restored soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nobody has asked for it yet.
    Idle,
    /// A request waits, or is answered by the upstream meanwhile.
    Awaited,
}

/// As many turns at once as it was made with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Mutex<Queue<oneshot::Sender<()>>>>);

impl Turns {
    /// Lets `free` go at once.
    pub fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue { free, next: 0, waiting: BTreeMap::new() })))
    }

    /// Queues up; also gives what makes the place urgent later.
    pub fn enter(&self, urgency: Urgency) -> (Place, Lift) {
        let (called, turn) = oneshot::channel();
        let ticket = self.lock().enter(urgency, called);
        self.call();
        (Place { turns: self.clone(), ticket, turn }, Lift { turns: self.clone(), ticket })
    }

    /// Calls those whose turn it is.
    fn call(&self) {
        let mut queue = self.lock();
        while let Some(called) = queue.next() {
            // Whoever has gone in this instant gives its turn back when it gets the lock.
            let _ = called.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<oneshot::Sender<()>>> {
        // Each step leaves the queue whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    }
}

/// Who waits, and how many may still go.
#[derive(Debug)]
struct Queue<W> {
    free: usize,
    next: u64,
    waiting: BTreeMap<u64, (Urgency, W)>,
}

impl<W> Queue<W> {
    fn enter(&mut self, urgency: Urgency, who: W) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.waiting.insert(ticket, (urgency, who));
        ticket
    }

    fn lift(&mut self, ticket: u64) {
        if let Some((urgency, _)) = self.waiting.get_mut(&ticket) {
            *urgency = Urgency::Awaited;
        }
    }

    /// Takes out whose turn it is; `None` while no turn is free or nobody waits.
    fn next(&mut self) -> Option<W> {
        let left = self.free.checked_sub(1)?;
        let place = |(ticket, (urgency, _)): &(&u64, &(Urgency, W))| (*urgency, Reverse(**ticket));
        let ticket = *self.waiting.iter().max_by_key(place)?.0;
        self.free = left;
        self.waiting.remove(&ticket).map(|(_, who)| who)
    }

    /// Gives a place up, or the turn that it has become.
    fn leave(&mut self, ticket: u64) {
        if self.waiting.remove(&ticket).is_none() {
            self.free += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(free: usize) -> Queue<&'static str> {
        Queue { free, next: 0, waiting: BTreeMap::new() }
    }

    #[test]
    fn who_is_awaited_goes_first_and_otherwise_who_came_first() {
        let mut queue = queue(9);
        queue.enter(Urgency::Idle, "first");
        queue.enter(Urgency::Awaited, "second");
        let third = queue.enter(Urgency::Idle, "third");
        queue.enter(Urgency::Idle, "fourth");
        queue.lift(third);
        let order: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(order, ["second", "third", "first", "fourth"]);
    }

    #[test]
    fn no_more_go_than_there_are_turns() {
        let mut queue = queue(1);
        let first = queue.enter(Urgency::Idle, "first");
        let second = queue.enter(Urgency::Idle, "second");
        queue.enter(Urgency::Idle, "third");
        assert_eq!(queue.next(), Some("first"));
        assert_eq!(queue.next(), None);
        queue.leave(second);
        assert_eq!(queue.next(), None, "a place that was given up is no turn");
        queue.leave(first);
        assert_eq!(queue.next(), Some("third"));
        assert_eq!(queue.next(), None);
    }

    #[tokio::test]
    async fn a_dropped_place_passes_its_turn_on() {
        let turns = Turns::new(1);
        let (mut first, _) = turns.enter(Urgency::Idle);
        first.called().await;
        let (second, _) = turns.enter(Urgency::Idle);
        let (mut third, lift) = turns.enter(Urgency::Idle);
        let (fourth, _) = turns.enter(Urgency::Idle);
        lift.lift();
        drop(second);
        drop(first);
        third.called().await;
        // Called, and never heard of it.
        drop(third);
        drop(fourth);
        let (mut last, _) = turns.enter(Urgency::Idle);
        last.called().await;
    }
}
