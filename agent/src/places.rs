//! Places that clients take: so many in all, and so many for each of them. A client is an address: it must be counted before
//! anybody knows its name.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The client has as many as it may.
    Client,
    /// All together have.
    All,
}

/// Who has taken how many. What the places of one client share, a `T`, is there as long as it has one.
#[derive(Debug)]
pub struct Places<T = ()> {
    all: usize,
    per_client: usize,
    taken: Arc<Mutex<Taken<T>>>,
}

#[derive(Debug)]
struct Taken<T> {
    all: usize,
    of: HashMap<IpAddr, Own<T>>,
}

#[derive(Debug)]
struct Own<T> {
    places: usize,
    shared: Arc<T>,
}

impl<T> Places<T> {
    /// None is taken, of so many for all and for each client.
    pub fn new(all: usize, per_client: usize) -> Self {
        Self { all, per_client, taken: Arc::new(Mutex::new(Taken { all: 0, of: HashMap::new() })) }
    }

    /// One more of `client`, for as long as the place lives; with its first one, what all of them are to share.
    ///
    /// # Errors
    /// There is none left.
    pub fn take(&self, client: IpAddr, shared: impl FnOnce() -> T) -> Result<Place<T>, Full> {
        let mut taken = lock(&self.taken);
        if taken.all >= self.all {
            return Err(Full::All);
        }
        if taken.of.get(&client).map_or(0, |own| own.places) >= self.per_client {
            return Err(Full::Client);
        }
        let own = taken.of.entry(client).or_insert_with(|| Own { places: 0, shared: Arc::new(shared()) });
        own.places += 1;
        let shared = own.shared.clone();
        taken.all += 1;
        Ok(Place { taken: self.taken.clone(), client, shared })
    }
}

fn lock<T>(taken: &Mutex<Taken<T>>) -> MutexGuard<'_, Taken<T>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place that is taken; dropped, it is free.
#[derive(Debug)]
pub struct Place<T = ()> {
    taken: Arc<Mutex<Taken<T>>>,
    client: IpAddr,
    shared: Arc<T>,
}

impl<T> Place<T> {
    /// What all places of this client share.
    pub fn shared(&self) -> &T {
        &self.shared
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.of.get_mut(&self.client) {
            own.places = own.places.saturating_sub(1);
            if own.places == 0 {
                taken.of.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_for_one_and_for_all_and_come_back() {
        let places = Places::new(3, 2);
        let [one, two]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let mut held = vec![places.take(one, || "one").unwrap(), places.take(one, || "another").unwrap()];
        assert_eq!(places.take(one, || "").unwrap_err(), Full::Client, "the third of one client");
        held.push(places.take(two, || "two").unwrap());
        assert_eq!(places.take(two, || "").unwrap_err(), Full::All, "the fourth of all");
        assert_eq!(held.iter().map(|place| *place.shared()).collect::<Vec<_>>(), ["one", "one", "two"]);
        held.remove(0);
        held.push(places.take(two, || "").unwrap());
        drop(held);
        assert!(lock(&places.taken).of.is_empty() && lock(&places.taken).all == 0);
    }
}
