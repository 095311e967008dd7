//! Decides who works next: a priority queue over several bounds at once. It is a plain value.
//!
//! A request names all the [`Bound`]s that it counts against, such as "fetches" and "connections to this host", and
//! gets all of them or none. So a request that waits for one bound never holds a place of another.
//!
//! Requests with the same bounds and priority wait in one [`Lane`]. A lane that cannot go on is parked at a bound that is
//! full, in order; when a place there is given back, the best lane goes on, or is parked at another bound that is full.
//! *Invariant:* after each call, every lane is parked at a bound that is full for its priority. Entering and
//! leaving take O(log n).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

/// How urgent work is, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A client waits for it, or is answered by the upstream meanwhile.
    Awaited,
    /// No client has asked for it yet.
    Background,
}

/// How many holders one bound has at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Capacity {
    /// Background work begins only while there are fewer holders than this.
    pub(super) background: usize,
    /// Awaited work begins only while there are fewer holders than this.
    pub(super) awaited: usize,
}

impl Capacity {
    /// The same for all work.
    pub(super) const fn of(all: usize) -> Self {
        Self { background: all, awaited: all }
    }

    /// A bound of nothing would hold work back for ever.
    fn at(self, priority: Priority) -> usize {
        match priority {
            Priority::Awaited => self.awaited.max(1),
            Priority::Background => self.background.max(1),
        }
    }
}

/// A bound that a request counts against. Whoever names the same `key` names the same `capacity`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bound<K> {
    /// Its name.
    pub(super) key: K,
    /// How many holders it has at most.
    pub(super) capacity: Capacity,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Request<K, O> {
    /// What it counts against.
    pub(super) bounds: Arc<[Bound<K>]>,
    /// How urgent it is.
    pub(super) priority: Priority,
    /// Lanes of one priority and a smaller rank go first, whoever has had a turn.
    pub(super) rank: u8,
    /// A larger one goes first in a lane.
    pub(super) weight: u64,
    /// Who takes turns with others in a lane.
    pub(super) owner: O,
}

/// Who waits, and who holds what. `K` names bounds, `O` the owners among whom a lane is fair, and `W` is handed out to
/// the caller when its turn has come.
#[derive(Debug)]
pub(super) struct Schedule<K, O, W> {
    levels: HashMap<K, Level<K>>,
    lanes: HashMap<LaneKey<K>, Lane<K, O, W>>,
    tickets: HashMap<u64, State<K>>,
    /// Counts tickets, and the lanes' turns.
    clock: u64,
}

type Bounds<K> = Arc<[Bound<K>]>;
type LaneKey<K> = (Priority, u8, Bounds<K>);

/// The place of a lane among others: by priority, by rank, by turn. The first is the best; the turn is unique.
type Rank = (Priority, u8, u64);
/// The place of a ticket in its lane: by weight, by round, by arrival.
type Order = (Reverse<u64>, u64, u64);

/// How full one bound is.
#[derive(Debug)]
struct Level<K> {
    holders: usize,
    parked: BTreeMap<Rank, LaneKey<K>>,
}

#[derive(Debug)]
enum State<K> {
    Waiting(LaneKey<K>, Order),
    Holding(Bounds<K>),
}

/// Those who wait for the same. Its owners take turns: each has one ticket a round.
#[derive(Debug)]
struct Lane<K, O, W> {
    waiting: BTreeMap<Order, (O, W)>,
    /// Of the owners that wait: their last round, and how many tickets they have.
    rounds: HashMap<O, (u64, usize)>,
    /// The round that has been reached.
    round: u64,
    /// When it was last called; lanes of the same rank take turns.
    turn: u64,
    parked: Option<(K, Rank)>,
}

impl<K, O, W> Default for Schedule<K, O, W> {
    fn default() -> Self {
        Self { levels: HashMap::new(), lanes: HashMap::new(), tickets: HashMap::new(), clock: 0 }
    }
}

impl<K: Clone + Eq + Hash, O: Clone + Eq + Hash, W> Schedule<K, O, W> {
    /// Queues up; returns the ticket, and `who` if its turn has come at once.
    pub(super) fn enter(&mut self, request: Request<K, O>, who: W) -> (u64, Option<W>) {
        self.clock += 1;
        let ticket = self.clock;
        let Request { bounds, priority, rank, weight, owner } = request;
        let called = self.insert(ticket, &(priority, rank, bounds), weight, owner, who);
        (ticket, called)
    }

    /// Whether a ticket has not been called yet.
    pub(super) fn is_waiting(&self, ticket: u64) -> bool {
        matches!(self.tickets.get(&ticket), Some(State::Waiting(..)))
    }

    /// Makes a waiting ticket urgent; returns who may begin now. Does nothing once the ticket has been called.
    pub(super) fn lift(&mut self, ticket: u64) -> Option<W> {
        let Some(State::Waiting(lane, (Reverse(weight), ..))) = self.tickets.get(&ticket) else {
            return None;
        };
        let ((priority, rank, bounds), weight) = (lane.clone(), *weight);
        if priority == Priority::Awaited {
            return None;
        }
        let (owner, who) = self.take_out(ticket)?;
        self.insert(ticket, &(Priority::Awaited, rank, bounds), weight, owner, who)
    }

    /// Gives up a ticket, or the work that it has become; returns who may begin now.
    pub(super) fn leave(&mut self, ticket: u64) -> Vec<W> {
        let Some(State::Holding(bounds)) = self.tickets.get(&ticket) else {
            self.take_out(ticket);
            return Vec::new();
        };
        let bounds = bounds.clone();
        self.tickets.remove(&ticket);
        for Bound { key, .. } in &*bounds {
            if let Some(level) = self.levels.get_mut(key) {
                level.holders -= 1;
            }
        }
        let mut called = Vec::new();
        while let Some(lane) = self.best_at(&bounds) {
            called.extend(self.advance(&lane));
        }
        for Bound { key, .. } in &*bounds {
            if self.levels.get(key).is_some_and(|level| level.holders == 0) {
                self.levels.remove(key);
            }
        }
        called
    }

    /// Weighs those who wait anew: `weigh` gets the first of a ticket's bounds and its owner.
    pub(super) fn reweigh(&mut self, weigh: impl Fn(&K, &O) -> u64) {
        let keys: Vec<_> = self.lanes.keys().cloned().collect();
        for key in keys {
            let (Some(first), Some(lane)) = (key.2.first(), self.lanes.get_mut(&key)) else { continue };
            for ((_, round, ticket), waiting) in std::mem::take(&mut lane.waiting) {
                let order = (Reverse(weigh(&first.key, &waiting.0)), round, ticket);
                lane.waiting.insert(order, waiting);
                self.tickets.insert(ticket, State::Waiting(key.clone(), order));
            }
        }
    }

    fn insert(&mut self, ticket: u64, key: &LaneKey<K>, weight: u64, owner: O, who: W) -> Option<W> {
        self.clock += 1;
        let turn = self.clock;
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane {
            waiting: BTreeMap::new(),
            rounds: HashMap::new(),
            round: 0,
            turn,
            parked: None,
        });
        let (last, count) = lane.rounds.entry(owner.clone()).or_insert((lane.round, 0));
        (*last, *count) = ((*last).max(lane.round) + 1, *count + 1);
        let order = (Reverse(weight), *last, ticket);
        lane.waiting.insert(order, (owner, who));
        self.tickets.insert(ticket, State::Waiting(key.clone(), order));
        self.advance(key)
    }

    /// Takes a waiting ticket out.
    fn take_out(&mut self, ticket: u64) -> Option<(O, W)> {
        let Some(State::Waiting(key, order)) = self.tickets.remove(&ticket) else { return None };
        let waiting = self.lanes.get_mut(&key)?.take(&order)?;
        self.park(&key);
        Some(waiting)
    }

    /// The best lane that is parked at one of `bounds` and need not be any more.
    fn best_at(&self, bounds: &[Bound<K>]) -> Option<LaneKey<K>> {
        let first = |bound: &Bound<K>| {
            let level = self.levels.get(&bound.key)?;
            let (rank, lane) = level.parked.first_key_value()?;
            (level.holders < bound.capacity.at(rank.0)).then_some((rank, lane))
        };
        bounds.iter().filter_map(first).min_by_key(|(rank, _)| *rank).map(|(_, lane)| lane.clone())
    }

    /// Calls the first of a lane if nothing holds it back, and parks the lane.
    fn advance(&mut self, key: &LaneKey<K>) -> Option<W> {
        let mut called = None;
        if self.full(key).is_none() {
            let lane = self.lanes.get_mut(key)?;
            let order = *lane.waiting.first_key_value()?.0;
            self.clock += 1;
            (lane.turn, lane.round) = (self.clock, lane.round.max(order.1));
            let (_, who) = lane.take(&order)?;
            for Bound { key, .. } in &*key.2 {
                self.levels.entry(key.clone()).or_default().holders += 1;
            }
            self.tickets.insert(order.2, State::Holding(key.2.clone()));
            called = Some(who);
        }
        self.park(key);
        called
    }

    /// The first bound that holds a lane back.
    fn full(&self, (priority, _, bounds): &LaneKey<K>) -> Option<K> {
        let full = |bound: &&Bound<K>| {
            let holders = self.levels.get(&bound.key).map_or(0, |level| level.holders);
            holders >= bound.capacity.at(*priority)
        };
        bounds.iter().find(full).map(|bound| bound.key.clone())
    }

    /// Parks a lane where it is held back, by its present rank; forgets it when it is empty.
    fn park(&mut self, key: &LaneKey<K>) {
        let full = self.full(key);
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if let Some((at, rank)) = lane.parked.take()
            && let Some(level) = self.levels.get_mut(&at)
        {
            level.parked.remove(&rank);
        }
        if lane.waiting.is_empty() {
            self.lanes.remove(key);
            return;
        }
        let rank = (key.0, key.1, lane.turn);
        if let Some(full) = full
            && let Some(level) = self.levels.get_mut(&full)
        {
            lane.parked = Some((full, rank));
            level.parked.insert(rank, key.clone());
        }
    }
}

impl<K, O: Eq + Hash, W> Lane<K, O, W> {
    fn take(&mut self, order: &Order) -> Option<(O, W)> {
        let waiting = self.waiting.remove(order)?;
        if let Some((_, count)) = self.rounds.get_mut(&waiting.0) {
            *count -= 1;
            if *count == 0 {
                self.rounds.remove(&waiting.0);
            }
        }
        Some(waiting)
    }
}

impl<K> Default for Level<K> {
    fn default() -> Self {
        Self { holders: 0, parked: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests;
