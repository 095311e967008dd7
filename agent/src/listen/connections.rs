//! Who has connections to a port. Each client address may have a number of them, and so may all together; a client that comes
//! when there is no room takes the place of the connection that has been idle longest.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// How many connections a port takes.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at once, of all clients.
    pub total: usize,
    /// Connections at once, of one address.
    pub per_client: usize,
    /// Time that a client may take to send a request's head, be silent before the next, and take nothing of an answer.
    pub silence: Duration,
}

/// The open connections of a port.
#[derive(Debug)]
pub(super) struct Connections {
    limits: ConnectionLimits,
    table: Arc<Mutex<Table>>,
}

/// What became of a client that connects.
pub(super) enum Admitted {
    /// There was room.
    Yes(Arc<Seat>),
    /// An idle connection was closed for it.
    Instead(Arc<Seat>),
    /// All connections that it could replace have requests under way.
    No,
}

#[derive(Debug, Default)]
struct Table {
    open: usize,
    /// Counts how often a connection has become idle: a lower number is a longer time.
    idled: u64,
    clients: HashMap<IpAddr, Client>,
}

#[derive(Debug, Default)]
struct Client {
    open: usize,
    /// Connections without a request under way, by when they became idle.
    idle: BTreeMap<u64, CancellationToken>,
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, table: Arc::default() }
    }

    /// Takes one more connection of `client`; it is idle until [`Seat::begin`].
    pub(super) fn admit(&self, client: IpAddr) -> Admitted {
        let client = client.to_canonical();
        let mut table = lock(&self.table);
        let own = table.clients.get(&client).map_or(0, |client| client.open);
        let full = if own >= self.limits.per_client {
            Some(Some(client))
        } else {
            (table.open >= self.limits.total).then(|| table.most_connected())
        };
        if let Some(victim) = full
            && !victim.is_some_and(|victim| table.close_idle(victim))
        {
            return Admitted::No;
        }
        table.open += 1;
        table.clients.entry(client).or_default().open += 1;
        let seat = Arc::new(Seat {
            table: self.table.clone(),
            client,
            closed: CancellationToken::new(),
            requests: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
        });
        table.set_idle(&seat);
        if full.is_some() { Admitted::Instead(seat) } else { Admitted::Yes(seat) }
    }
}

impl Table {
    /// Among the clients with idle connections the one that has most; of equals the one that has been idle longest.
    fn most_connected(&self) -> Option<IpAddr> {
        let idle = self.clients.iter().filter_map(|(address, client)| {
            let (since, _) = client.idle.first_key_value()?;
            Some((client.open, Reverse(*since), *address))
        });
        idle.max().map(|(_, _, address)| address)
    }

    /// Ends the connection of `address` that has been idle longest; `false` where none is idle.
    fn close_idle(&mut self, address: IpAddr) -> bool {
        let idle = self.clients.get_mut(&address).and_then(|client| client.idle.pop_first());
        let Some((_, closed)) = idle else { return false };
        closed.cancel();
        self.release(address);
        true
    }

    fn set_idle(&mut self, seat: &Seat) {
        self.idled += 1;
        seat.idle_since.store(self.idled, Relaxed);
        if let Some(client) = self.clients.get_mut(&seat.client) {
            client.idle.insert(self.idled, seat.closed.clone());
        }
    }

    fn set_busy(&mut self, seat: &Seat) {
        if let Some(client) = self.clients.get_mut(&seat.client) {
            client.idle.remove(&seat.idle_since.load(Relaxed));
        }
    }

    fn release(&mut self, address: IpAddr) {
        self.open = self.open.saturating_sub(1);
        if let Some(client) = self.clients.get_mut(&address) {
            client.open = client.open.saturating_sub(1);
            if client.open == 0 {
                self.clients.remove(&address);
            }
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open connection; dropped, there is room for another. Its numbers change under the table's lock only.
#[derive(Debug)]
pub(super) struct Seat {
    table: Arc<Mutex<Table>>,
    client: IpAddr,
    closed: CancellationToken,
    requests: AtomicUsize,
    idle_since: AtomicU64,
}

impl Seat {
    /// Waits until the connection has to make way for another.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Begins a request: the connection is not idle for as long as the value lives.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        let mut table = lock(&self.table);
        if self.requests.fetch_add(1, Relaxed) == 0 {
            table.set_busy(self);
        }
        Busy(self.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let table = self.table.clone();
        let mut table = lock(&table);
        // One that had to make way has been counted out already.
        if !self.closed.is_cancelled() {
            table.set_busy(self);
            table.release(self.client);
        }
    }
}

/// A request under way on a connection, until its answer has been handed over.
#[derive(Debug)]
pub(super) struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut table = lock(&self.0.table);
        if self.0.requests.fetch_sub(1, Relaxed) == 1 && !self.0.closed.is_cancelled() {
            table.set_idle(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(total: usize, per_client: usize) -> Connections {
        Connections::new(ConnectionLimits { total, per_client, silence: Duration::ZERO })
    }

    fn client(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn take(connections: &Connections, address: IpAddr) -> Arc<Seat> {
        match connections.admit(address) {
            Admitted::Yes(seat) => seat,
            Admitted::Instead(_) => panic!("another had to make way"),
            Admitted::No => panic!("no room"),
        }
    }

    fn replace(connections: &Connections, address: IpAddr) -> Arc<Seat> {
        match connections.admit(address) {
            Admitted::Instead(seat) => seat,
            Admitted::Yes(_) => panic!("there was room"),
            Admitted::No => panic!("no room"),
        }
    }

    #[test]
    fn a_client_at_its_limit_replaces_its_own_longest_idle_connection() {
        let connections = connections(10, 3);
        let (other, first, second) =
            (take(&connections, client(2)), take(&connections, client(1)), take(&connections, client(1)));
        let third = take(&connections, client(1));
        let busy = first.begin();
        let fourth = replace(&connections, client(1));
        assert!(second.closed.is_cancelled(), "the first has a request under way");
        drop(busy);
        let fifth = replace(&connections, client(1));
        assert!(third.closed.is_cancelled() && !first.closed.is_cancelled(), "it became idle last");
        let busy: Vec<_> = [&first, &fourth, &fifth].iter().map(|seat| seat.begin()).collect();
        assert!(matches!(connections.admit(client(1)), Admitted::No));
        assert!(!other.closed.is_cancelled());
        drop((busy, first, second, third, fourth, fifth, other));
        let table = lock(&connections.table);
        assert!(table.open == 0 && table.clients.is_empty(), "{table:?}");
    }

    #[test]
    fn whoever_has_most_makes_way_when_all_is_full() {
        let connections = connections(4, 3);
        let few = take(&connections, client(1));
        let many: Vec<_> = (0..3).map(|_| take(&connections, client(2))).collect();
        let new = replace(&connections, client(3));
        assert!(many.first().is_some_and(|seat| seat.closed.is_cancelled()));
        assert!(!few.closed.is_cancelled() && !new.closed.is_cancelled());
        // An address that maps to the same client is the same client.
        let mapped: IpAddr = "::ffff:10.0.0.2".parse().unwrap();
        let _seat = replace(&connections, mapped);
        assert!(many.get(1).is_some_and(|seat| seat.closed.is_cancelled()));
    }
}
