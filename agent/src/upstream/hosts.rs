//! How many connections looks and fetches have to one upstream host at once.
//!
//! A thousand mirrors of one host must not all ask it at once when an agent starts. Looks are short, and somebody mostly
//! waits for them; fetches are long. So looks go first, and fetches have half of the places at most. Requests that are
//! handed on, pushes and LFS go by themselves: their clients are limited elsewhere.
//!
//! What decides is the pure [`Line`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// What a connection is for, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// A look that a request waits for.
    AwaitedLook,
    /// A fetch that a request waits for.
    AwaitedFetch,
    /// A look in the background.
    Look,
    /// A fetch in the background.
    Fetch,
}

impl Purpose {
    fn is_fetch(self) -> bool {
        matches!(self, Self::AwaitedFetch | Self::Fetch)
    }
}

/// The hosts that are asked now. Cheap to clone.
#[derive(Clone)]
pub struct Hosts {
    limit: usize,
    lines: Arc<Mutex<HashMap<String, Line<oneshot::Sender<()>>>>>,
    metrics: Metrics,
}

impl Hosts {
    /// At most `limit` connections to each.
    pub fn new(limit: usize, metrics: Metrics) -> Self {
        Self { limit, lines: Arc::default(), metrics }
    }

    /// Waits for a connection to `host`, which is given back by dropping it. A dropped future leaves the line.
    pub async fn connect(&self, host: &str, purpose: Purpose) -> Connection {
        let (called, turn) = oneshot::channel();
        let ticket = {
            let mut lines = self.lock();
            let line = lines.entry(host.to_owned()).or_insert_with(|| Line::new(self.limit));
            line.enter(purpose, called)
        };
        let connection = Connection { hosts: self.clone(), host: host.to_owned(), purpose, ticket };
        self.call(host);
        // The sender lies in the line until it is called.
        let _ = turn.await;
        connection
    }

    fn call(&self, host: &str) {
        let mut lines = self.lock();
        let Some(line) = lines.get_mut(host) else { return };
        while let Some(called) = line.next() {
            // Whoever has gone in this instant gives its place back when it gets the lock.
            let _ = called.send(());
        }
        if line.is_idle() {
            lines.remove(host);
        }
        let sum = |count: fn(&Line<oneshot::Sender<()>>) -> usize| {
            i64::try_from(lines.values().map(count).sum::<usize>()).unwrap_or(i64::MAX)
        };
        self.metrics.upstream_connections.set(sum(|line| line.looks + line.fetches));
        self.metrics.upstream_waiting.set(sum(|line| line.waiting.len()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Line<oneshot::Sender<()>>>> {
        // Each step leaves the lines whole.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one connection, or a place in the line for it.
pub struct Connection {
    hosts: Hosts,
    host: String,
    purpose: Purpose,
    ticket: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(line) = self.hosts.lock().get_mut(&self.host) {
            line.leave(self.purpose, self.ticket);
        }
        self.hosts.call(&self.host);
    }
}

/// Those who wait for one host, and how many are connected.
#[derive(Debug)]
struct Line<W> {
    limit: usize,
    looks: usize,
    fetches: usize,
    next: u64,
    waiting: BTreeMap<(Purpose, u64), W>,
}

impl<W> Line<W> {
    fn new(limit: usize) -> Self {
        Self { limit, looks: 0, fetches: 0, next: 0, waiting: BTreeMap::new() }
    }

    fn enter(&mut self, purpose: Purpose, who: W) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.waiting.insert((purpose, ticket), who);
        ticket
    }

    /// Takes out whose turn it is.
    fn next(&mut self) -> Option<W> {
        if self.looks + self.fetches >= self.limit {
            return None;
        }
        let may_fetch = self.fetches < (self.limit / 2).max(1);
        let key = *self.waiting.keys().find(|(purpose, _)| may_fetch || !purpose.is_fetch())?;
        if key.0.is_fetch() {
            self.fetches += 1;
        } else {
            self.looks += 1;
        }
        self.waiting.remove(&key)
    }

    /// Gives a place in the line up, or the connection that it has become.
    fn leave(&mut self, purpose: Purpose, ticket: u64) {
        if self.waiting.remove(&(purpose, ticket)).is_some() {
            return;
        }
        if purpose.is_fetch() {
            self.fetches -= 1;
        } else {
            self.looks -= 1;
        }
    }

    fn is_idle(&self) -> bool {
        self.looks + self.fetches == 0 && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_go_before_fetches_and_who_is_waited_for_before_the_others() {
        use Purpose::{AwaitedFetch, AwaitedLook, Fetch, Look};
        let mut line = Line::new(9);
        for purpose in [Fetch, Look, AwaitedFetch, AwaitedLook, AwaitedLook] {
            line.enter(purpose, purpose);
        }
        let order: Vec<_> = std::iter::from_fn(|| line.next()).collect();
        assert_eq!(order, [AwaitedLook, AwaitedLook, AwaitedFetch, Look, Fetch]);
    }

    #[test]
    fn fetches_leave_half_of_the_places_to_looks() {
        let mut line = Line::new(4);
        let tickets: Vec<_> = (0..4).map(|_| line.enter(Purpose::AwaitedFetch, "fetch")).collect();
        assert_eq!(std::iter::from_fn(|| line.next()).count(), 2);
        for _ in 0..3 {
            line.enter(Purpose::Look, "look");
        }
        assert_eq!(std::iter::from_fn(|| line.next()).collect::<Vec<_>>(), ["look", "look"]);
        line.leave(Purpose::AwaitedFetch, tickets[0]);
        assert_eq!(line.next(), Some("fetch"));
        let mut alone = Line::new(1);
        alone.enter(Purpose::Fetch, "fetch");
        assert_eq!(alone.next(), Some("fetch"));
    }

    #[tokio::test]
    async fn a_connection_that_is_given_back_goes_to_the_next_and_hosts_do_not_wait_for_each_other() {
        let hosts = Hosts::new(1, Metrics::new());
        let first = hosts.connect("a", Purpose::Look).await;
        let _other = hosts.connect("b", Purpose::Look).await;
        let waiting = hosts.clone();
        let second = tokio::spawn(async move { waiting.connect("a", Purpose::Look).await });
        let given_up = hosts.clone();
        let third = tokio::spawn(async move { given_up.connect("a", Purpose::AwaitedLook).await });
        tokio::task::yield_now().await;
        third.abort();
        let _ = third.await;
        drop(first);
        drop(second.await.unwrap());
        assert_eq!(hosts.lock().len(), 1, "idle hosts are forgotten");
    }
}
