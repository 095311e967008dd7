//! What reconcilers share: the client, what is known of the cluster, the clock.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Pod, Secret},
};
use kube::{
    Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store, store::WriterDropped},
};
use tarn_crds::{
    CACHE_LABEL,
    repo::RepoId,
    v1alpha1::{GitCache, GitMirror},
};

use crate::events::Recorder;

/// What reconcilers share.
#[derive(Clone)]
pub struct Context {
    /// Talks to the API server.
    pub client: Client,
    /// What watches brought.
    pub stores: Stores,
    /// Image of the agents of GitCaches that name none.
    pub image: String,
    /// Writes Events.
    pub events: Recorder,
    /// The time.
    pub now: fn() -> Timestamp,
    /// Which mirror has which repository.
    pub claims: Claims,
}

/// What watches brought; perhaps not the newest.
#[derive(Clone)]
pub struct Stores {
    /// All GitMirrors.
    pub mirrors: Store<GitMirror>,
    /// All GitCaches.
    pub caches: Store<GitCache>,
    /// The agents' pods.
    pub pods: Store<Pod>,
    /// The agents' Leases.
    pub leases: Store<Lease>,
    /// Secrets that are labelled as credentials; never what they hold.
    pub secrets: Store<PartialObjectMeta<Secret>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("image", &self.image).finish_non_exhaustive()
    }
}

/// Whose labels say that it belongs to the cache.
fn belongs(object: &impl ResourceExt, namespace: &str, cache: &str) -> bool {
    object.namespace().as_deref() == Some(namespace)
        && object.labels().get(CACHE_LABEL).is_some_and(|name| name == cache)
}

impl Stores {
    /// Waits until every watch has brought what there is: before that, what is not known would count as absent.
    ///
    /// # Errors
    /// The watches have ended.
    pub async fn ready(&self) -> Result<(), WriterDropped> {
        self.mirrors.wait_until_ready().await?;
        self.caches.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.leases.wait_until_ready().await?;
        self.secrets.wait_until_ready().await
    }

    /// The cache of this name.
    pub fn cache(&self, namespace: &str, name: &str) -> Option<Arc<GitCache>> {
        self.caches.get(&ObjectRef::new(name).within(namespace))
    }

    /// The mirrors that name the cache.
    pub fn mirrors_of(&self, namespace: &str, cache: &str) -> Vec<Arc<GitMirror>> {
        self.mirrors.state_filter(|mirror| {
            mirror.metadata.namespace.as_deref() == Some(namespace) && mirror.spec.cache_ref.name == cache
        })
    }

    /// The pods of the cache.
    pub fn pods_of(&self, namespace: &str, cache: &str) -> Vec<Arc<Pod>> {
        self.pods.state_filter(|pod| belongs(pod, namespace, cache))
    }

    /// The Lease of a pod.
    pub fn lease(&self, namespace: &str, pod: &str) -> Option<Arc<Lease>> {
        self.leases.get(&ObjectRef::new(&lease_name(pod)).within(namespace))
    }

    /// The Secret of this name, if it is labelled as credentials.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Arc<PartialObjectMeta<Secret>>> {
        self.secrets.get(&ObjectRef::new(name).within(namespace))
    }
}

/// What an agent calls the Lease of its pod.
pub fn lease_name(pod: &str) -> String {
    format!("tarn-agent-{pod}")
}

/// A pod whose Lease was not renewed for its duration and this long is silent; clocks may differ by as much.
const SKEW: Duration = Duration::from_secs(10);

/// Whether the Lease has expired. One that was never renewed has not.
pub fn expired(lease: &Lease, now: Timestamp) -> bool {
    let Some(spec) = &lease.spec else { return false };
    let Some(renewed) = &spec.renew_time else { return false };
    let lasts = u64::try_from(spec.lease_duration_seconds.unwrap_or(30)).unwrap_or(30);
    renewed.0 + Duration::from_secs(lasts) + SKEW < now
}

/// Which GitMirror of a cache has a repository: the oldest that names it.
///
/// An index, because thousands of mirrors ask for it and each answer would otherwise read them all. It is built from the
/// store, at most every [`KEEP`] unless the one who asks is not in it.
#[derive(Clone, Debug, Default)]
pub struct Claims(Arc<Mutex<Index>>);

#[derive(Debug, Default)]
struct Index {
    built: Option<Timestamp>,
    all: HashMap<Claim, BTreeSet<(Option<Timestamp>, String)>>,
    members: HashMap<(String, String), Claim>,
}

type Claim = (String, String, RepoId);

/// How old the index may be.
const KEEP: Duration = Duration::from_secs(2);

impl Claims {
    /// The name of the mirror that has the repository of `mirror`, if that is another one.
    pub fn taken_by(&self, mirror: &GitMirror, stores: &Stores, now: Timestamp) -> Option<String> {
        self.others(mirror, stores, now, |all| {
            let (_, first) = all.first()?;
            (*first != mirror.name_any()).then(|| first.clone())
        })
    }

    /// The name of another mirror of the cache that has the repository of `mirror`, or would have it if that were gone.
    pub fn shared_with(&self, mirror: &GitMirror, stores: &Stores, now: Timestamp) -> Option<String> {
        let stays = |name: &str| {
            let found = stores.mirrors.get(&ObjectRef::new(name).within(&mirror.namespace()?));
            found.filter(|found| found.metadata.deletion_timestamp.is_none())
        };
        self.others(mirror, stores, now, |all| {
            let other = |name: &&String| **name != mirror.name_any() && stays(name).is_some();
            all.iter().map(|(_, name)| name).find(other).cloned()
        })
    }

    fn others(
        &self,
        mirror: &GitMirror,
        stores: &Stores,
        now: Timestamp,
        choose: impl Fn(&BTreeSet<(Option<Timestamp>, String)>) -> Option<String>,
    ) -> Option<String> {
        let member = (mirror.namespace()?, mirror.name_any());
        let mut index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let young = index.built.is_some_and(|built| now.duration_since(built).unsigned_abs() < KEEP);
        if !young || !index.members.contains_key(&member) {
            *index = Index::of(&stores.mirrors.state(), now);
        }
        let other = choose(index.all.get(index.members.get(&member)?)?)?;
        stores.mirrors.get(&ObjectRef::new(&other).within(&member.0)).map(|_| other)
    }
}

impl Index {
    fn of(mirrors: &[Arc<GitMirror>], now: Timestamp) -> Self {
        let mut index = Self { built: Some(now), ..Self::default() };
        for mirror in mirrors {
            let (Some(namespace), Ok(repo)) = (mirror.namespace(), RepoId::from_url(&mirror.spec.url)) else {
                continue;
            };
            let claim = (namespace.clone(), mirror.spec.cache_ref.name.clone(), repo);
            let created = mirror.metadata.creation_timestamp.as_ref().map(|time| time.0);
            index.all.entry(claim.clone()).or_default().insert((created, mirror.name_any()));
            index.members.insert((namespace, mirror.name_any()), claim);
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime};

    use super::*;

    #[test]
    fn a_lease_expires_after_its_duration_and_a_margin() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        let spec = LeaseSpec {
            renew_time: Some(MicroTime(at(0))),
            lease_duration_seconds: Some(40),
            ..LeaseSpec::default()
        };
        let lease = Lease { spec: Some(spec), ..Lease::default() };
        for (seconds, silent) in [(0, false), (50, false), (51, true)] {
            assert_eq!(expired(&lease, at(seconds)), silent, "{seconds}");
        }
        assert!(!expired(&Lease::default(), at(0)));
    }
}
