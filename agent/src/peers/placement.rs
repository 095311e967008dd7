//! Which pods keep a mirror, where not all of them do.
//!
//! Rendezvous hashing over the ready pods: each ranks all for a mirror, the first few own it. A pod that comes takes over
//! its share and nothing else moves; one that goes leaves its share to those that were next. A pod that is not ready for a
//! moment, as in a rolling update, keeps its mirrors: only after [`LINGER`] is it taken to be gone.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tarn_crds::repo::RepoId;
use tokio::{
    sync::watch,
    time::{sleep_until, timeout_at},
};

use super::{
    addresses::{Address, Addresses},
    weight,
};

/// How long a pod that is not ready any more keeps what it owns.
const LINGER: Duration = Duration::from_secs(60);

/// How long an agent that knows of no others waits before it goes about as if alone.
const ALONE: Duration = Duration::from_secs(10);

/// Those of `members` that own `id`, the first of them first.
pub fn owners(members: &[String], id: &RepoId, copies: usize) -> Vec<String> {
    let mut all: Vec<&String> = members.iter().collect();
    all.sort_by_cached_key(|member| std::cmp::Reverse(weight(member, id)));
    all.into_iter().take(copies).cloned().collect()
}

/// Who owns what, as this agent sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Placement {
    name: Arc<str>,
    copies: usize,
    /// `None` before the others are known.
    members: watch::Receiver<Option<Arc<[String]>>>,
}

impl Placement {
    /// Each mirror on `copies` of the agents at `addresses` and this one, which they call `name`.
    pub fn new(name: &str, copies: usize, addresses: &Addresses) -> (Self, Follower) {
        let (out, members) = watch::channel(None);
        let follower = Follower {
            name: name.to_owned(),
            addresses: addresses.watch(),
            out,
            members: Members::default(),
        };
        (Self { name: name.into(), copies, members }, follower)
    }

    /// The owners of `id`; none before the others are known.
    pub fn owners(&self, id: &RepoId) -> Vec<String> {
        let members = self.members.borrow();
        members.as_deref().map(|members| owners(members, id, self.copies)).unwrap_or_default()
    }

    /// Whether this agent owns `id`; it does not before it knows the others.
    pub fn keeps(&self, id: &RepoId) -> bool {
        self.owners(id).iter().any(|owner| **owner == *self.name)
    }

    /// How many owners of `id` come before this agent; all agents where it is none. `None` before they are known.
    pub fn rank(&self, id: &RepoId) -> Option<usize> {
        let members = self.members.borrow().clone()?;
        let own = owners(&members, id, self.copies).iter().position(|owner| **owner == *self.name);
        Some(own.unwrap_or(members.len()))
    }

    /// Whether the others are known.
    pub fn is_known(&self) -> bool {
        self.members.borrow().is_some()
    }

    /// Waits until the agents are others than when this was called. For ever where they will never be.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut members = self.members.clone();
        members.mark_unchanged();
        async move {
            if members.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Keeps a [`Placement`] up to date.
pub struct Follower {
    name: String,
    addresses: watch::Receiver<Arc<[Address]>>,
    out: watch::Sender<Option<Arc<[String]>>>,
    members: Members,
}

impl Follower {
    /// Follows the addresses, for ever.
    pub async fn run(mut self) {
        let alone = Instant::now() + ALONE;
        loop {
            let ready: Vec<String> =
                self.addresses.borrow_and_update().iter().map(|address| address.name.clone()).collect();
            let now = Instant::now();
            let known = self.members.update(ready, now);
            let known: Arc<[String]> = known.into_iter().chain([self.name.clone()]).collect();
            if known.len() > 1 || now >= alone {
                self.out.send_if_modified(|told| {
                    let changed = told.as_deref() != Some(&*known);
                    if changed {
                        tracing::info!(members = known.len(), "mirrors are placed anew");
                        *told = Some(known);
                    }
                    changed
                });
            }
            let next = self.members.next().into_iter().chain((now < alone).then_some(alone)).min();
            let changed = match next {
                Some(at) => timeout_at(at.into(), self.addresses.changed()).await,
                None => Ok(self.addresses.changed().await),
            };
            if let Ok(Err(_)) = changed {
                // The addresses will stay as they are; what lingers does not.
                match self.members.next().into_iter().chain((now < alone).then_some(alone)).min() {
                    Some(at) => sleep_until(at.into()).await,
                    None => return std::future::pending().await,
                }
            }
        }
    }
}

/// Agents that were ready lately, and since when they are not. Pure.
#[derive(Debug, Default)]
struct Members(BTreeMap<String, Option<Instant>>);

impl Members {
    /// Takes in who is ready at `now`; gives all that count.
    fn update(&mut self, ready: Vec<String>, now: Instant) -> Vec<String> {
        for (_, missing) in self.0.iter_mut().filter(|(name, _)| !ready.contains(name)) {
            missing.get_or_insert(now);
        }
        self.0.extend(ready.into_iter().map(|name| (name, None)));
        self.0.retain(|_, missing| missing.is_none_or(|since| since + LINGER > now));
        self.0.keys().cloned().collect()
    }

    /// When the next one is taken to be gone.
    fn next(&self) -> Option<Instant> {
        self.0.values().flatten().map(|since| *since + LINGER).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("c-{number}")).collect()
    }

    fn id(number: usize) -> RepoId {
        RepoId::from_route(&format!("example.org/r{number}")).unwrap()
    }

    #[test]
    fn scaling_moves_only_what_it_must() {
        for copies in [1, 2, 3] {
            let (eight, nine) = (names(8), names(9));
            let mut moved = 0;
            for number in 0..1000 {
                let (before, after) =
                    (owners(&eight, &id(number), copies), owners(&nine, &id(number), copies));
                let new: Vec<&String> = after.iter().filter(|owner| !before.contains(owner)).collect();
                assert!(new.iter().all(|owner| **owner == "c-8"), "nothing moves between those that stay");
                assert_eq!(after.len(), copies);
                moved += new.len();
            }
            // A ninth of all copies, more or less.
            let share = moved as f64 / (1000 * copies) as f64;
            assert!((0.08..0.15).contains(&share), "{copies} copies: {share}");
        }
        assert_eq!(owners(&names(2), &id(0), 5).len(), 2);
    }

    #[test]
    fn an_agent_that_is_away_for_a_moment_keeps_its_mirrors() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut members = Members::default();
        assert_eq!(members.update(names(3), at(0)), names(3));
        assert_eq!(members.update(names(2), at(10)), names(3));
        assert_eq!(members.next(), Some(at(70)));
        assert_eq!(members.update(names(3), at(60)), names(3));
        assert_eq!(members.next(), None);
        assert_eq!(members.update(names(2), at(100)), names(3));
        assert_eq!(members.update(names(2), at(160)), names(2));
    }

    #[tokio::test]
    async fn nobody_owns_anything_before_the_others_are_known() {
        let (addresses, found) = Addresses::new(Vec::new());
        let (placement, follower) = Placement::new("c-0", 1, &addresses);
        let _following = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(follower.run()));
        assert!(!placement.keeps(&id(0)) && placement.rank(&id(0)).is_none());
        let changed = placement.changed();
        let other = Address::of_pod("c-1", "http", std::net::IpAddr::from([10, 0, 0, 1]), 80);
        found.send_replace([other].into());
        changed.await;
        let kept = (0..100).filter(|number| placement.keeps(&id(*number))).count();
        assert!((30..70).contains(&kept), "{kept}");
        let first = (0..100).find(|number| !placement.keeps(&id(*number))).unwrap();
        assert_eq!(
            (placement.owners(&id(first)), placement.rank(&id(first))),
            (vec!["c-1".to_owned()], Some(2))
        );
    }
}
