//! Bounds how often callers' credentials are tried at upstreams, and how many at a time: nobody guesses passwords through
//! this agent, and no flood of credentials reaches an upstream.
//!
//! After [`REFUSALS`] refusals within [`WITHIN`], an address or a user waits. A credential that the upstream has accepted
//! within an hour never waits, even if others guess from the same address or for the same user. The agent keeps keyed
//! hashes and times, and no credential.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Refusal, answers::Key, credential::Credential};
use crate::upstream::LookError;

/// Attempts under way at one upstream host, at most.
const AT_ONCE: usize = 16;

/// So many refusals within [`WITHIN`], and the next attempt waits.
const REFUSALS: usize = 5;

/// The time in which refusals add up.
const WITHIN: Duration = Duration::from_secs(60);

/// The time for which an accepted credential does not wait: the shortest tokens of forges live so long.
const GOOD: Duration = Duration::from_secs(3600);

/// Addresses and users that are remembered, and accepted credentials, each at most: 2 MB.
const MAX_KEPT: usize = 10_000;

/// User names that GitHub, GitLab, Bitbucket and Gitea document for tokens. Many callers share such a name, so its refusals
/// count by address only. Nobody guesses a token.
const PLACEHOLDERS: [&str; 8] = [
    "",
    "git",
    "oauth2",
    "token",
    "x-access-token",
    "x-token-auth",
    "x-bitbucket-api-token-auth",
    "gitlab-ci-token",
];

/// Remembers refusals and accepted credentials.
#[derive(Default)]
pub struct Throttle {
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    refused: Mutex<HashMap<Source, Vec<Instant>>>,
    good: Mutex<HashMap<Key, Instant>>,
}

/// Who tries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Address(IpAddr),
    User(Key),
}

/// An attempt with one credential. Its outcome goes to [`Attempt::ended`].
pub struct Attempt<'a> {
    throttle: &'a Throttle,
    /// The credential at this host. None where the caller sent none: that is not a guess.
    credential: Option<Key>,
    sources: Vec<Source>,
}

impl Throttle {
    /// Begins an attempt with `credential` at one host. `key` stands for the credential at that host, and `user` gives the
    /// key of a user name there.
    ///
    /// # Errors
    /// The host has refused too many credentials from this address, or of this user.
    pub(super) fn attempt(
        &self,
        credential: &Credential,
        key: Key,
        user: impl FnOnce(&str) -> Key,
        address: Option<IpAddr>,
    ) -> Result<Attempt<'_>, Refusal> {
        let mut sources: Vec<Source> = address.map(Source::Address).into_iter().collect();
        match credential {
            Credential::None => return Ok(Attempt { throttle: self, credential: None, sources: Vec::new() }),
            Credential::Basic { user: name, .. } if !PLACEHOLDERS.contains(&name.as_str()) => {
                sources.push(Source::User(user(name)));
            }
            Credential::Basic { .. } | Credential::Bearer(_) => {}
        }
        let now = Instant::now();
        let good = lock(&self.good).get(&key).is_some_and(|at| now.duration_since(*at) < GOOD);
        let refused = lock(&self.refused);
        let held = sources.iter().filter_map(|source| held(refused.get(source)?, now)).max();
        match held.filter(|_| !good) {
            Some(wait) => Err(Refusal::TooMany(wait)),
            None => Ok(Attempt { throttle: self, credential: Some(key), sources }),
        }
    }

    /// Waits for one of the [`AT_ONCE`] places at `host`. Dropping the permit frees the place.
    ///
    /// # Errors
    /// No place is free within `patience`.
    pub(super) async fn place(
        &self,
        host: &str,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit, Refusal> {
        let places = {
            let mut hosts = lock(&self.hosts);
            hosts.retain(|_, places| Arc::strong_count(places) > 1);
            let places = hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
            places.clone()
        };
        let busy = || Refusal::Away("too many credentials are being tried there; try again".into());
        timeout(patience, places.acquire_owned()).await.ok().and_then(Result::ok).ok_or_else(busy)
    }
}

impl Attempt<'_> {
    /// Notes how the upstream answered.
    pub fn ended(self, status: StatusCode) {
        let Some(credential) = self.credential else { return };
        let now = Instant::now();
        if status.is_success() {
            keep(&mut lock(&self.throttle.good), credential, now, |at| *at);
        } else if LookError::refusal(status).is_some() {
            lock(&self.throttle.good).remove(&credential);
            let mut refused = lock(&self.throttle.refused);
            for source in self.sources {
                let mut times = refused.remove(&source).unwrap_or_default();
                times.retain(|at| now.duration_since(*at) < WITHIN);
                times.push(now);
                times.drain(..times.len().saturating_sub(REFUSALS));
                keep(&mut refused, source, times, |times| times.last().copied().unwrap_or(now));
            }
        }
    }
}

/// The rest of the wait after refusals at these times, if there is one.
fn held(times: &[Instant], now: Instant) -> Option<Duration> {
    let first = times.len().checked_sub(REFUSALS).and_then(|at| times.get(at))?;
    WITHIN.checked_sub(now.duration_since(*first)).filter(|left| !left.is_zero())
}

/// Keeps `value` under `key`; where there are too many, the oldest tenth goes.
fn keep<K: Eq + Hash + Clone, V>(all: &mut HashMap<K, V>, key: K, value: V, at: impl Fn(&V) -> Instant) {
    if all.len() >= MAX_KEPT && !all.contains_key(&key) {
        let mut times: Vec<Instant> = all.values().map(&at).collect();
        let (_, oldest, _) = times.select_nth_unstable(MAX_KEPT / 10);
        let oldest = *oldest;
        all.retain(|_, value| at(value) > oldest);
    }
    all.insert(key, value);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole values come and go: a panic leaves none half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{super::answers::Hashes, *};
    use crate::upstream::Secret;

    struct Desk {
        throttle: Throttle,
        hashes: Hashes,
    }

    impl Desk {
        fn new() -> Self {
            Self { throttle: Throttle::default(), hashes: Hashes::new() }
        }

        fn attempt(&self, user: &str, password: &str, address: u8) -> Result<Attempt<'_>, Refusal> {
            let credential = match user {
                "-" => Credential::None,
                "bearer" => Credential::Bearer(Secret::new(password)),
                _ => Credential::Basic { user: user.into(), password: Secret::new(password) },
            };
            let key = self.hashes.key("c", &[user.as_bytes(), password.as_bytes()]);
            let address = Some(IpAddr::from([10, 0, 0, address]));
            let user = |name: &str| self.hashes.key("u", &[name.as_bytes()]);
            self.throttle.attempt(&credential, key, user, address)
        }

        fn refused(&self, user: &str, password: &str, address: u8) {
            self.attempt(user, password, address).ok().unwrap().ended(StatusCode::UNAUTHORIZED);
        }
    }

    #[test]
    fn after_five_refusals_in_a_minute_an_address_and_a_user_wait() {
        let desk = Desk::new();
        (0..5).for_each(|guess| desk.refused("ada", &guess.to_string(), 1));
        for (user, address) in [("ada", 1), ("ada", 2), ("bob", 1), ("bearer", 1)] {
            let held = desk.attempt(user, "next", address).err();
            let wait = match held {
                Some(Refusal::TooMany(wait)) => wait,
                other => panic!("{user} {address}: {other:?}"),
            };
            assert!(wait <= WITHIN && wait > WITHIN / 2, "{wait:?}");
        }
        assert!(desk.attempt("bob", "next", 2).is_ok());
        assert!(desk.attempt("-", "", 1).is_ok(), "who sends none guesses nothing");
    }

    #[test]
    fn whose_credential_was_taken_lately_is_not_held_up_by_others() {
        let desk = Desk::new();
        desk.attempt("ada", "right", 1).ok().unwrap().ended(StatusCode::OK);
        (0..5).for_each(|guess| desk.refused("ada", &guess.to_string(), 1));
        assert!(desk.attempt("ada", "right", 1).is_ok());
        assert!(desk.attempt("ada", "wrong", 1).is_err());
        // Until the upstream takes it no more.
        desk.refused("ada", "right", 1);
        assert!(desk.attempt("ada", "right", 1).is_err());
    }

    #[test]
    fn users_that_stand_for_a_token_are_shared_and_hold_nobody_up() {
        let desk = Desk::new();
        (0..5).for_each(|guess| desk.refused("x-access-token", &guess.to_string(), 1));
        assert!(desk.attempt("x-access-token", "next", 1).is_err());
        assert!(desk.attempt("x-access-token", "next", 2).is_ok());
    }

    #[test]
    fn refusals_run_out_one_by_one() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let times = [0, 10, 20, 30, 40].map(at);
        assert_eq!(held(&times, at(45)), Some(Duration::from_secs(15)));
        assert_eq!(held(&times, at(60)), None);
        assert_eq!(held(&times[1..], at(45)), None);
    }

    #[test]
    fn an_upstream_that_fails_is_no_refusal() {
        let desk = Desk::new();
        for _ in 0..9 {
            desk.attempt("ada", "pw", 1).ok().unwrap().ended(StatusCode::BAD_GATEWAY);
        }
        assert!(desk.attempt("ada", "pw", 1).is_ok());
    }

    #[test]
    fn every_status_that_refuses_counts_and_no_other() {
        for code in 100..600 {
            let (desk, status) = (Desk::new(), StatusCode::from_u16(code).unwrap());
            for _ in 0..REFUSALS {
                desk.attempt("ada", "pw", 1).ok().unwrap().ended(status);
            }
            let held = desk.attempt("ada", "pw", 1).is_err();
            assert_eq!(held, LookError::refusal(status).is_some(), "{code}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut all = HashMap::new();
        for number in 0..3 * MAX_KEPT {
            keep(&mut all, number, Instant::now(), |at| *at);
            assert!(all.len() <= MAX_KEPT);
        }
        assert!(all.contains_key(&(3 * MAX_KEPT - 1)));
    }

    #[tokio::test]
    async fn sixteen_are_tried_at_a_time_at_one_host() {
        let throttle = Throttle::default();
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            held.push(throttle.place("h", Duration::from_secs(60)).await.unwrap());
        }
        let late = throttle.place("h", Duration::from_millis(10)).await;
        assert!(matches!(late, Err(Refusal::Away(_))));
        drop(throttle.place("other", Duration::from_millis(10)).await.unwrap());
        held.pop();
        drop(throttle.place("h", Duration::from_secs(60)).await.unwrap());
    }
}
