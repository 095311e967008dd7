//! What the agent bounds, and by how much: every number of things that may happen at once is here.

use std::{net::IpAddr, sync::Arc, thread};

use tarn_crds::repo::RepoId;

use super::schedule::{Bound, Capacity};
use crate::metrics::Work;

/// Work that takes its turn in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    /// Checking a mirror that an earlier process left on the disk.
    Load,
    /// Restoring a mirror from the store.
    Restore,
    /// Cloning a mirror from its upstream.
    Clone,
    /// Bringing objects into a mirror that is there.
    Fetch,
    /// Asking an upstream for its refs.
    Look,
    /// Publishing a checkpoint.
    Publish,
    /// Repacking a mirror, or making its seed.
    Upkeep,
    /// The same for a large mirror.
    LargeUpkeep,
    /// Building a snapshot.
    Snapshot,
    /// Asking the store for the newest snapshot.
    Find,
    /// A child that makes an answer, for the client at this address; without one, ahead of who will ask.
    Pack(Option<IpAddr>),
    /// The same, where the answer holds all history: it takes seconds of a processor, or minutes.
    WholePack(Option<IpAddr>),
    /// A child that says whether objects are in a mirror.
    Lookup,
    /// Downloading an object of LFS from an upstream.
    Object,
}

/// What is counted, and among whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(Counted, Among);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Counted {
    Loads,
    Restores,
    Clones,
    Fetches,
    /// Clones and fetches.
    Transfers,
    /// Clones, fetches and looks.
    Connections,
    Publishes,
    Upkeeps,
    LargeUpkeeps,
    Snapshots,
    Finds,
    Packs,
    WholePacks,
    Lookups,
    Objects,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Among {
    All,
    Host(String),
    Client(IpAddr),
    Mirror(RepoId),
}

/// Mirrors checked at once when an agent starts, and as many more that a client waits for: each takes a child.
const LOADS: usize = 4;
/// Clones at once, of one host, in the background; more where more mirrors are prewarmed at once.
const CLONES: usize = 4;
/// Clones at once, of one host, beyond them, and restores, that a client waits for. Other hosts' clones have as many more.
const AWAITED: usize = 2;
/// Fetches at once. Each is a child that mostly waits for its upstream, and then takes a processor for a moment.
const FETCHES: usize = 16;
/// Publishings at once: a large one must not keep small ones waiting for long.
const PUBLISHES: usize = 2;
/// Mirrors whose packs are put in order at once, one large one at most: each takes a processor, beside those who serve.
const UPKEEPS: usize = 2;
/// The store is asked for so many snapshots at once.
const FINDS: usize = 8;
/// Children that make answers, for each processor: they write to files, so they never wait for a client, and more of
/// them would only take turns. Each has about 18 MB of its own besides the packs it maps.
const PACKS_PER_PROCESSOR: usize = 2;

/// Objects of LFS that are downloaded at once: git-lfs itself downloads 8.
const OBJECTS: usize = 32;

/// What the agent's flags and its machine say about the bounds.
#[derive(Clone, Copy, Debug)]
pub struct Capacities {
    /// Mirrors brought at once before a client asks.
    pub prewarms: usize,
    /// Connections to one upstream host.
    pub connections: usize,
    /// Processors.
    pub processors: usize,
}

impl Capacities {
    /// With this machine's processors.
    pub fn here(prewarms: usize, connections: usize) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self { prewarms, connections, processors }
    }

    /// What `activity` counts against, for a mirror. No host, client or mirror ever has more than half of what hosts,
    /// clients or mirrors share, so that a slow or greedy one leaves the others their places.
    pub(super) fn bounds(self, activity: Activity, mirror: &RepoId) -> Arc<[Bound<Key>]> {
        use Counted as C;
        let all = |counted, capacity| Bound { key: Key(counted, Among::All), capacity };
        let of_host = |counted, capacity| {
            let key = Key(counted, Among::Host(mirror.host().to_owned()));
            Bound { key, capacity }
        };
        let awaited = |background, awaited| Capacity { background, awaited };
        let clones = self.prewarms.max(CLONES);
        let packs = self.processors * PACKS_PER_PROCESSOR;
        let connections = self.connections;
        let transfers = (connections / 2).max(1);
        let connection = [
            // Looks are short, and a client mostly waits for them: they can have all connections.
            of_host(C::Transfers, awaited(three_quarters(transfers), transfers)),
            of_host(C::Connections, awaited(connections - connections / 8, connections)),
        ];
        let transfer = |own: [Bound<Key>; 2]| own.into_iter().chain(connection.clone()).collect();
        match activity {
            Activity::Load => [all(C::Loads, awaited(LOADS, 2 * LOADS))].into(),
            Activity::Restore => [all(C::Restores, awaited(self.prewarms, self.prewarms + AWAITED))].into(),
            Activity::Clone => transfer([
                all(C::Clones, awaited(clones + AWAITED, clones + 2 * AWAITED)),
                of_host(C::Clones, awaited(clones, clones + AWAITED)),
            ]),
            Activity::Fetch => transfer([
                all(C::Fetches, awaited(three_quarters(FETCHES), FETCHES)),
                of_host(C::Fetches, awaited(three_quarters(FETCHES / 2), FETCHES / 2)),
            ]),
            Activity::Look => connection.into_iter().skip(1).collect(),
            Activity::Publish => [all(C::Publishes, Capacity::of(PUBLISHES))].into(),
            Activity::Upkeep => [all(C::Upkeeps, Capacity::of(UPKEEPS))].into(),
            Activity::LargeUpkeep => {
                [all(C::Upkeeps, Capacity::of(UPKEEPS)), all(C::LargeUpkeeps, Capacity::of(1))].into()
            }
            Activity::Snapshot => [all(C::Snapshots, Capacity::of(1))].into(),
            Activity::Find => [all(C::Finds, Capacity::of(FINDS))].into(),
            Activity::Pack(client) | Activity::WholePack(client) => {
                let of_client = client.map(|client| Bound {
                    key: Key(C::Packs, Among::Client(client)),
                    capacity: Capacity::of(packs / 2),
                });
                // A storm of them leaves half of the places to what takes a moment.
                let whole = matches!(activity, Activity::WholePack(_));
                let of_whole = whole.then(|| all(C::WholePacks, Capacity::of(packs / 2)));
                let all = all(C::Packs, awaited(packs / 2, packs));
                [Some(all), of_client, of_whole].into_iter().flatten().collect()
            }
            Activity::Lookup => {
                let key = Key(C::Lookups, Among::Mirror(mirror.clone()));
                [all(C::Lookups, Capacity::of(packs)), Bound { key, capacity: Capacity::of(packs / 2) }]
                    .into()
            }
            Activity::Object => [
                all(C::Objects, awaited(three_quarters(OBJECTS), OBJECTS)),
                of_host(C::Objects, awaited(three_quarters(OBJECTS / 2), OBJECTS / 2)),
            ]
            .into(),
        }
    }
}

impl Activity {
    /// Its label in metrics.
    pub(super) fn label(self) -> Work {
        let work = match self {
            Self::Load => "load",
            Self::Restore => "restore",
            Self::Clone => "clone",
            Self::Fetch => "fetch",
            Self::Look => "look",
            Self::Publish => "publish",
            Self::Upkeep | Self::LargeUpkeep => "upkeep",
            Self::Snapshot => "snapshot",
            Self::Find => "find",
            Self::Pack(_) | Self::WholePack(_) => "pack",
            Self::Lookup => "lookup",
            Self::Object => "object",
        };
        Work { work }
    }

    /// Looks go before fetches where they share connections.
    pub(super) fn rank(self) -> u8 {
        u8::from(matches!(self, Self::Fetch | Self::Clone))
    }

    /// Whether it takes a connection to an upstream.
    pub(super) fn is_upstream(self) -> bool {
        matches!(self, Self::Fetch | Self::Clone | Self::Look)
    }

    /// Whether clients can make any number of them.
    pub(super) fn is_caused_by_clients(self) -> bool {
        self.is_pack() || self == Self::Lookup
    }

    /// Whether it is a child that makes an answer.
    pub(super) fn is_pack(self) -> bool {
        matches!(self, Self::Pack(_) | Self::WholePack(_))
    }
}

impl Key {
    /// Whether popular mirrors go first.
    pub(super) fn is_by_popularity(&self) -> bool {
        matches!(self.0, Counted::Loads | Counted::Restores | Counted::Clones)
    }
}

/// What background work leaves to awaited work.
fn three_quarters(all: usize) -> usize {
    all - all / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITIES: Capacities = Capacities { prewarms: 4, connections: 16, processors: 2 };

    fn bounds(activity: Activity, mirror: &str) -> Arc<[Bound<Key>]> {
        CAPACITIES.bounds(activity, &RepoId::from_route(mirror).unwrap())
    }

    #[test]
    fn no_host_client_or_mirror_has_more_than_half_of_what_others_need() {
        let client = Some("10.0.0.1".parse().unwrap());
        for activity in [Activity::Fetch, Activity::Pack(client), Activity::Lookup, Activity::Object] {
            let bounds = bounds(activity, "h/a");
            assert_eq!(bounds[0].key.1, Among::All, "{activity:?}");
            assert_ne!(bounds[1].key.1, Among::All, "{activity:?}");
            assert!(bounds[1].capacity.awaited * 2 <= bounds[0].capacity.awaited, "{activity:?}");
            assert!(
                bounds[1].capacity.background * 2
                    <= bounds[0].capacity.background.max(bounds[0].capacity.awaited)
            );
        }
        let clones = bounds(Activity::Clone, "h/a");
        assert!(clones[1].capacity.awaited < clones[0].capacity.background + AWAITED);
    }

    #[test]
    fn a_storm_of_dear_answers_leaves_half_of_the_places_to_small_ones() {
        let client = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        let small = bounds(Activity::Pack(client(1)), "h/a");
        let dear = bounds(Activity::WholePack(client(2)), "h/a");
        assert_eq!(small[0], dear[0], "they share the processors");
        let of_dear = dear.iter().find(|bound| !small.contains(bound) && bound.key.1 == Among::All).unwrap();
        assert_eq!(of_dear.capacity.awaited * 2, small[0].capacity.awaited);
    }

    #[test]
    fn mirrors_of_one_host_share_its_connections_and_of_two_do_not() {
        let last = |activity, mirror| bounds(activity, mirror).last().unwrap().clone();
        assert_eq!(last(Activity::Look, "h/a"), last(Activity::Clone, "h/b"));
        assert_eq!(last(Activity::Look, "h/a").capacity.awaited, 16);
        assert_ne!(last(Activity::Look, "h/a"), last(Activity::Look, "i/a"));
    }
}
