//! What requests may cost: how many are under way, how many bytes of bodies they hold, and how fast answers are sent; of all
//! clients and of one. A client is an address: it must be limited before anybody knows its name.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// How far ahead of its rate a client may get, so that small answers are not slowed down at all.
const BURST: Duration = Duration::from_millis(200);

/// Bytes of a body that are not counted: nearly all requests are shorter.
pub(super) const UNCOUNTED: usize = 32 << 10;

/// Bytes of bodies in memory, of all clients. With what a request becomes when it is read, it takes some three times that.
const BODIES: usize = 128 << 20;

/// Bytes of bodies in memory, of one client: one of the longest, before and after it is unpacked.
const BODIES_PER_CLIENT: usize = 32 << 20;

/// What the semaphores count.
const UNIT: usize = 1 << 10;

/// How long a request waits for room for its body.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is allowed.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Requests under way, of all.
    pub total: usize,
    /// Requests under way, of one client.
    pub per_client: usize,
    /// Bytes of answers a second to all.
    pub rate: Option<u64>,
    /// Bytes of answers a second to one client.
    pub rate_per_client: Option<u64>,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { total: 2048, per_client: 512, rate: None, rate_per_client: None }
    }
}

/// Whose limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// The client's own.
    Client,
    /// That of all together.
    Total,
}

/// The requests under way.
#[derive(Debug)]
pub struct Requests {
    limits: RequestLimits,
    pace: Option<Arc<Pace>>,
    bodies: Arc<Semaphore>,
    under_way: Arc<Mutex<UnderWay>>,
}

#[derive(Debug, Default)]
struct UnderWay {
    total: usize,
    /// Of each client the number of its requests, and what they share.
    of: HashMap<IpAddr, (usize, Arc<Client>)>,
}

/// What the requests of one client share.
#[derive(Debug)]
struct Client {
    pace: Option<Pace>,
    bodies: Arc<Semaphore>,
}

impl Requests {
    /// None is under way.
    pub fn new(limits: RequestLimits) -> Self {
        let pace = limits.rate.map(|rate| Arc::new(Pace::new(rate)));
        Self { limits, pace, bodies: Arc::new(Semaphore::new(BODIES / UNIT)), under_way: Arc::default() }
    }

    /// One more of `client`, for as long as the value lives.
    pub(super) fn begin(&self, client: IpAddr) -> Result<UnderLimits, Exceeded> {
        let mut under_way = lock(&self.under_way);
        if under_way.total >= self.limits.total {
            return Err(Exceeded::Total);
        }
        if under_way.of.get(&client).is_some_and(|(count, _)| *count >= self.limits.per_client) {
            return Err(Exceeded::Client);
        }
        under_way.total += 1;
        let (count, shared) = under_way.of.entry(client).or_insert_with(|| {
            let pace = self.limits.rate_per_client.map(Pace::new);
            (0, Arc::new(Client { pace, bodies: Arc::new(Semaphore::new(BODIES_PER_CLIENT / UNIT)) }))
        });
        *count += 1;
        let shared = shared.clone();
        let bodies = BodyBudget { own: shared.bodies.clone(), all: self.bodies.clone() };
        Ok(UnderLimits { under_way: self.under_way.clone(), client, shared, pace: self.pace.clone(), bodies })
    }
}

fn lock(under_way: &Mutex<UnderWay>) -> MutexGuard<'_, UnderWay> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request under way; dropped, there is room for another.
#[derive(Debug)]
pub(super) struct UnderLimits {
    under_way: Arc<Mutex<UnderWay>>,
    client: IpAddr,
    shared: Arc<Client>,
    pace: Option<Arc<Pace>>,
    /// Where its body finds room.
    pub(super) bodies: BodyBudget,
}

impl UnderLimits {
    /// Until when the next bytes have to wait, now that `bytes` are sent; `None` where they need not.
    pub(super) fn send(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let own = self.shared.pace.as_ref().map(|pace| pace.send(bytes, now));
        let all = self.pace.as_ref().map(|pace| pace.send(bytes, now));
        own.max(all).filter(|until| *until > now)
    }
}

impl Drop for UnderLimits {
    fn drop(&mut self) {
        let mut under_way = lock(&self.under_way);
        under_way.total = under_way.total.saturating_sub(1);
        if let Some((count, _)) = under_way.of.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                under_way.of.remove(&self.client);
            }
        }
    }
}

/// Where the bodies of a client's requests find room in memory.
#[derive(Clone, Debug)]
pub(super) struct BodyBudget {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

impl BodyBudget {
    /// No room yet but for a short body.
    pub(super) fn open(&self) -> BodyRoom {
        BodyRoom { budget: self.clone(), own: None, all: None }
    }
}

/// Room for one body; dropped, it is others'.
#[derive(Debug)]
pub(super) struct BodyRoom {
    budget: BodyBudget,
    own: Option<OwnedSemaphorePermit>,
    all: Option<OwnedSemaphorePermit>,
}

impl BodyRoom {
    /// Makes sure that there is room for a body of `bytes`; waits a little for it.
    ///
    /// # Errors
    /// Others' bodies hold it all that time.
    pub(super) async fn reserve(&mut self, bytes: usize) -> Result<(), Exceeded> {
        if bytes <= UNCOUNTED {
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        for (held, from, exceeded) in [
            (&mut self.own, &self.budget.own, Exceeded::Client),
            (&mut self.all, &self.budget.all, Exceeded::Total),
        ] {
            let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = u32::try_from(bytes.div_ceil(UNIT).saturating_sub(has)).unwrap_or(u32::MAX);
            let taken = timeout(until - Instant::now(), from.clone().acquire_many_owned(more)).await;
            let Ok(Ok(taken)) = taken else { return Err(exceeded) };
            match held {
                Some(held) => held.merge(taken),
                None => *held = Some(taken),
            }
        }
        Ok(())
    }

    /// Gives back what a body of `bytes` does not need.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let needs = if bytes <= UNCOUNTED { 0 } else { bytes.div_ceil(UNIT) };
        for held in [&mut self.own, &mut self.all].into_iter().flatten() {
            drop(held.split(held.num_permits().saturating_sub(needs)));
        }
    }
}

/// A rate of bytes a second.
#[derive(Debug)]
struct Pace {
    rate: u64,
    /// When what has been sent so far has passed.
    free: Mutex<Instant>,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), free: Mutex::new(Instant::now()) }
    }

    /// When more may be sent.
    fn send(&self, bytes: usize, now: Instant) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        *free = (*free).max(now) + takes;
        free.checked_sub(BURST).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const LIMITS: RequestLimits =
        RequestLimits { total: 3, per_client: 2, rate: None, rate_per_client: None };

    fn clients() -> [IpAddr; 2] {
        ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap())
    }

    #[test]
    fn one_client_leaves_room_for_others_and_all_have_a_limit() {
        let (requests, [one, two]) = (Requests::new(LIMITS), clients());
        let mut held = vec![requests.begin(one).unwrap(), requests.begin(one).unwrap()];
        assert_eq!(requests.begin(one).unwrap_err(), Exceeded::Client);
        held.push(requests.begin(two).unwrap());
        assert_eq!(requests.begin(two).unwrap_err(), Exceeded::Total);
        held.clear();
        assert!([two, two, one].map(|client| requests.begin(client)).iter().all(Result::is_ok));
        assert!(lock(&requests.under_way).of.is_empty() && lock(&requests.under_way).total == 0);
    }

    #[test]
    fn answers_are_sent_at_the_rate_and_small_ones_at_once() {
        let [one, two] = clients();
        let limits = RequestLimits { rate: Some(3_000), rate_per_client: Some(1_000), ..LIMITS };
        let requests = Requests::new(limits);
        let (first, second) = (requests.begin(one).unwrap(), requests.begin(one).unwrap());
        let other = requests.begin(two).unwrap();
        // All may send by then.
        let now = Instant::now() + Duration::from_secs(1);
        let wait = |request: &UnderLimits, bytes| {
            request.send(bytes, now).map(|until| ((until - now).as_secs_f64() * 1e3).round())
        };
        assert_eq!(wait(&first, 100), None);
        // Both of a client share its rate: 1,100 bytes, less the burst.
        assert_eq!(wait(&second, 1_000), Some(900.0));
        // At the rate of all: 1,500 bytes at 3,000 a second, more than its own 400 at 1,000.
        assert_eq!(wait(&other, 400), Some(300.0));
    }

    #[tokio::test]
    async fn bodies_have_room_for_one_client_and_for_all_and_give_it_back() {
        let requests = Requests::new(RequestLimits::default());
        let under_way: Vec<_> = (0..5).map(|n| requests.begin([10, 0, 0, n].into()).unwrap()).collect();
        let room = |client: usize| under_way.get(client).unwrap().bodies.open();
        let waits = |client| room(client).reserve(UNCOUNTED + 1).now_or_never().is_none();
        let long = BODIES_PER_CLIENT / 2;
        let mut held = Vec::new();
        for client in [0, 0, 1, 1, 2, 2, 3] {
            let mut room = room(client);
            room.reserve(long / 4).await.unwrap();
            room.reserve(long).await.unwrap();
            held.push(room);
        }
        assert!(waits(0) && !waits(3) && !waits(4), "the first client has its share");
        let mut last = room(3);
        last.reserve(long).await.unwrap();
        assert!(waits(4), "there is nothing left for anybody");
        assert_eq!(room(4).reserve(UNCOUNTED).await, Ok(()), "short ones are not counted");
        last.shrink(long / 2);
        assert!(!waits(4) && !waits(3));
        held.iter_mut().chain([&mut last]).for_each(|room| room.shrink(UNCOUNTED));
        assert_eq!(requests.bodies.available_permits(), BODIES / UNIT);
    }
}
