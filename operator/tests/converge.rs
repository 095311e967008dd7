//! Whatever happens on the way, the reconcilers arrive, and then write nothing.

use std::{cell::Cell, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    coordination::v1::Lease,
    core::v1::{Pod, Secret},
};
use kube::{
    Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        reflector::{self, store::Writer},
        watcher::Event,
    },
};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tarn_crds::v1alpha1::{DeletionPolicy, GitCache, GitMirror};
use tarn_operator::{
    context::{Claims, Context, Stores},
    error::Error,
    events::Recorder,
    gitcache, gitmirror,
};

use crate::sim::{Answer, Sim};

const START: i64 = 1_767_229_200; // 2026-01-01T01:00:00Z

thread_local!(static SECONDS: Cell<i64> = const { Cell::new(0) });

fn now() -> Timestamp {
    Timestamp::from_second(START + SECONDS.get()).unwrap()
}

/// The cluster: the API server, the reconcilers' view of it, and whoever else works in it.
struct World {
    sim: Sim,
    context: Arc<Context>,
    mirrors: Writer<GitMirror>,
    caches: Writer<GitCache>,
    pods: Writer<Pod>,
    leases: Writer<Lease>,
    secrets: Writer<PartialObjectMeta<Secret>>,
    runtime: tokio::runtime::Runtime,
}

fn replace<K>(writer: &mut Writer<K>, objects: Vec<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    writer.apply_watcher_event(&Event::Init);
    for object in objects {
        writer.apply_watcher_event(&Event::InitApply(object));
    }
    writer.apply_watcher_event(&Event::InitDone);
}

impl World {
    fn new() -> Self {
        SECONDS.set(0);
        let sim = Sim::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let guard = runtime.enter();
        let client = sim.client();
        let (mirrors_read, mirrors) = reflector::store();
        let (caches_read, caches) = reflector::store();
        let (pods_read, pods) = reflector::store();
        let (leases_read, leases) = reflector::store();
        let (secrets_read, secrets) = reflector::store();
        let stores = Stores {
            mirrors: mirrors_read,
            caches: caches_read,
            pods: pods_read,
            leases: leases_read,
            secrets: secrets_read,
        };
        let context = Arc::new(Context {
            events: Recorder::new(client.clone(), None),
            client,
            stores,
            image: "tarn:1".into(),
            now,
            claims: Claims::default(),
        });
        drop(guard);
        let world = Self { sim, context, mirrors, caches, pods, leases, secrets, runtime };
        world.cache(json!({"replicas": 2}));
        world
    }

    fn cache(&self, spec: Value) {
        self.sim.put(
            "gitcaches",
            json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitCache",
            "metadata": {"name": "default"}, "spec": spec}),
        );
    }

    fn mirror(&self, name: &str, spec: Value) {
        self.sim.put(
            "gitmirrors",
            json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitMirror",
            "metadata": {"name": name}, "spec": spec}),
        );
    }

    fn unmirror(&self, name: &str) {
        let time = jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%SZ", now()).unwrap();
        self.sim.terminate("gitmirrors", name, &time);
    }

    fn secret(&self, hosts: &str) {
        self.sim.put(
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "creds",
            "labels": {"tarn.dev/credentials": "true"}, "annotations": {"tarn.dev/hosts": hosts}}}),
        );
    }

    fn list<K: DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        self.sim.list(plural)
    }

    /// The watches catch up.
    fn sync(&mut self) {
        replace(&mut self.mirrors, self.sim.list("gitmirrors"));
        replace(&mut self.caches, self.sim.list("gitcaches"));
        replace(&mut self.pods, self.sim.list("pods"));
        replace(&mut self.leases, self.sim.list("leases"));
        replace(&mut self.secrets, self.sim.list("secrets"));
        SECONDS.set(SECONDS.get() + 3);
    }

    /// Every object is reconciled once, with whatever view there is.
    fn reconcile(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        for cache in self.context.stores.caches.state() {
            let done = self.runtime.block_on(gitcache::reconcile(cache, self.context.clone()));
            errors.extend(done.err());
        }
        let mut mirrors = self.context.stores.mirrors.state();
        mirrors.sort_by_key(|mirror| mirror.name_any());
        for mirror in mirrors {
            let done = self.runtime.block_on(gitmirror::reconcile(mirror, self.context.clone()));
            errors.extend(done.err());
        }
        errors
    }

    /// The StatefulSet's controller and the agents do their part.
    fn others(&self) {
        let set: Option<StatefulSet> = self.list("statefulsets").pop();
        let Some(set) = set else { return };
        let spec = set.spec.clone().unwrap();
        let revision = &set.annotations()["tarn.dev/template"];
        let update = spec.update_strategy.unwrap().rolling_update.unwrap();
        let (partition, replicas) = (update.partition.unwrap(), spec.replicas.unwrap());
        for pod in self.list::<Pod>("pods") {
            let name = pod.name_any();
            let ordinal: i32 = name.rsplit_once('-').unwrap().1.parse().unwrap();
            let old = pod.labels()["controller-revision-hash"] != *revision;
            if ordinal >= replicas || (old && ordinal >= partition) {
                self.sim.remove("pods", &name);
                self.sim.remove("leases", &format!("tarn-agent-{name}"));
            }
        }
        for ordinal in 0..replicas {
            let name = format!("default-{ordinal}");
            if self.list::<Pod>("pods").iter().any(|pod| pod.name_any() == name) {
                continue;
            }
            self.sim.put(
                "pods",
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name,
                "uid": format!("{name}@{revision}@{}", SECONDS.get()),
                "labels": {"tarn.dev/cache": "default", "controller-revision-hash": revision}}}),
            );
            self.sim.put_status(
                "pods",
                &name,
                "kubelet",
                &json!({"conditions": [{"type": "Ready", "status": "True"}]}),
            );
        }
        self.sim.put_status(
            "statefulsets",
            "default",
            "controller",
            &json!({"replicas": replicas,
            "readyReplicas": replicas, "updateRevision": revision,
            "observedGeneration": set.metadata.generation}),
        );
        for pod in self.list::<Pod>("pods") {
            for mirror in self.list::<GitMirror>("gitmirrors") {
                // Agents forget what is on its way out; the publisher cleans up behind it.
                if mirror.metadata.deletion_timestamp.is_some() {
                    if pod.name_any() == "default-0" {
                        self.sim.put_status(
                            "gitmirrors",
                            &mirror.name_any(),
                            "tarn-agent.default-0",
                            &json!({"replicas": [{"pod": "default-0", "podUID": pod.uid(), "phase": "Absent",
                                "storeRemoved": true}]}),
                        );
                    }
                    continue;
                }
                self.sim.put_status(
                    "gitmirrors",
                    &mirror.name_any(),
                    &format!("tarn-agent.{}", pod.name_any()),
                    &json!({"replicas": [{"pod": pod.name_any(), "podUID": pod.uid(), "phase": "Ready",
                        "head": "99f1ac04c1d2aaaa", "headRef": "refs/heads/main", "bytes": 2048}]}),
                );
            }
        }
    }

    /// Goes on until nothing changes any more; then nothing is written.
    fn settle(&mut self) {
        self.sim.fail(None);
        for _ in 0..40 {
            self.sync();
            self.sim.writes();
            let version = self.sim.version();
            let errors = self.reconcile();
            self.others();
            if self.sim.version() == version && self.sim.writes().is_empty() && errors.is_empty() {
                self.sync();
                assert!(self.reconcile().is_empty());
                assert_eq!(self.sim.writes(), Vec::<String>::new());
                self.arrived();
                return;
            }
        }
        let errors = self.reconcile();
        panic!("still at work: {:?} {errors:?}", self.sim.writes());
    }

    /// What has to be so in the end.
    fn arrived(&self) {
        let cache: GitCache = self.list("gitcaches").pop().unwrap();
        let set: StatefulSet = self.list("statefulsets").pop().unwrap();
        let spec = set.spec.unwrap();
        assert_eq!(spec.replicas, Some(cache.spec.replicas));
        assert_eq!(
            spec.template.spec.unwrap().containers[0].image,
            cache.spec.image.or(Some("tarn:1".into()))
        );
        let revision = &set.metadata.annotations.unwrap()["tarn.dev/template"];
        let pods: Vec<Pod> = self.list("pods");
        assert_eq!(pods.len(), usize::try_from(cache.spec.replicas).unwrap());
        assert!(pods.iter().all(|pod| pod.labels()["controller-revision-hash"] == *revision));
        for mirror in self.list::<GitMirror>("gitmirrors") {
            assert!(mirror.metadata.deletion_timestamp.is_none(), "it stays for ever");
            let guarded = mirror.finalizers().contains(&"tarn.dev/store".to_owned());
            assert_eq!(guarded, mirror.spec.deletion_policy == DeletionPolicy::Delete);
            let status = mirror.status.clone().unwrap();
            assert_eq!(status.observed_generation, mirror.metadata.generation);
            assert_eq!(status.replicas.len(), pods.len(), "{:?}", status.replicas);
            assert_eq!(status.pods, Some(format!("{0}/{0}", pods.len())));
        }
    }

    /// Type, status and reason of a mirror's conditions.
    fn conditions(&self, name: &str) -> String {
        let mirrors: Vec<GitMirror> = self.list("gitmirrors");
        let mirror = mirrors.iter().find(|mirror| mirror.name_any() == name).unwrap();
        let conditions = &mirror.status.as_ref().unwrap().conditions;
        conditions
            .iter()
            .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn url(repo: &str) -> Value {
    json!({"url": format!("https://h/o/{repo}")})
}

#[test]
fn a_cache_and_its_mirrors_arrive() {
    let mut world = World::new();
    world.mirror("one", url("one"));
    world.mirror("two", url("one.git"));
    world.mirror("lost", json!({"url": "https://h/o/lost", "cacheRef": {"name": "other"}}));
    world.sync();
    world.reconcile();
    assert_eq!(world.conditions("lost"), "Ready=False/CacheNotFound Stalled=True/CacheNotFound");
    world.sim.remove("gitmirrors", "lost");
    world.settle();
    assert_eq!(world.conditions("one"), "Ready=True/Serving");
    assert_eq!(world.conditions("two"), "Ready=False/DuplicateUrl Stalled=True/DuplicateUrl");
    let mirrors: Vec<GitMirror> = world.list("gitmirrors");
    let status = mirrors[0].status.as_ref().unwrap();
    assert_eq!(status.revision.as_deref(), Some("main@99f1ac04c1d2"));
    assert_eq!((status.size.as_deref(), status.pods.as_deref()), (Some("2.0 KiB"), Some("2/2")));
}

#[test]
fn secrets_are_used_only_as_they_say() {
    let mut world = World::new();
    world.mirror("one", json!({"url": "https://h/o/r", "secretRef": {"name": "creds"}}));
    world.settle();
    assert_eq!(
        world.conditions("one"),
        "Ready=False/SecretNotFound Stalled=True/SecretNotFound InsecureTransport=True/NoTls"
    );
    world.secret("elsewhere");
    world.settle();
    assert_eq!(
        world.conditions("one"),
        "Ready=False/SecretNotAllowed Stalled=True/SecretNotAllowed InsecureTransport=True/NoTls"
    );
    world.secret("elsewhere, h");
    world.settle();
    assert_eq!(world.conditions("one"), "Ready=True/Serving InsecureTransport=True/NoTls");
    let roles: Vec<Value> = world.list("roles");
    assert!(roles[0].to_string().contains(r#""resourceNames":["creds"]"#), "{}", roles[0]);
}

#[test]
fn a_mirror_of_a_host_that_the_cache_does_not_name_is_stalled_until_the_cache_names_it() {
    let mut world = World::new();
    world.cache(json!({"replicas": 2, "upstreams": {"allowedHosts": ["github.com"]}}));
    world.mirror("one", json!({"url": "https://h/o/r"}));
    world.mirror("two", json!({"url": "https://github.com/o/r"}));
    world.settle();
    assert_eq!(world.conditions("one"), "Ready=False/UpstreamNotAllowed Stalled=True/UpstreamNotAllowed");
    assert_eq!(world.conditions("two"), "Ready=True/Serving");
    world.cache(json!({"replicas": 2, "upstreams": {"allowedHosts": ["github.com", "h:443"]}}));
    world.settle();
    assert_eq!(world.conditions("one"), "Ready=True/Serving");
    world.cache(json!({"replicas": 2, "upstreams": {"allowedHosts": ["10.0.0.1/8"]}}));
    world.settle();
    let caches: Vec<GitCache> = world.list("gitcaches");
    let status = serde_json::to_string(&caches[0].status).unwrap();
    assert!(status.contains("InvalidSpec") && status.contains("allowedHosts[0]"), "{status}");
}

#[test]
fn callers_tokens_without_tls_are_told_of_the_mirror_and_its_cache_until_there_is_tls() {
    let mut world = World::new();
    let guarded = |access: &str| json!({"url": "https://h/o/r", "access": access});
    let told = |world: &World| {
        let caches: Vec<Value> = world.list("gitcaches");
        let cache = caches[0]["status"]["conditions"].to_string().contains("InsecureTransport");
        (world.conditions("one").contains("InsecureTransport=True/NoTls"), cache)
    };
    world.mirror("one", guarded("Upstream"));
    world.settle();
    assert_eq!(told(&world), (true, true));
    world.mirror("one", guarded("Anonymous"));
    world.settle();
    assert_eq!(told(&world), (false, false));
    world.mirror("one", guarded("RBAC"));
    world.settle();
    assert_eq!(told(&world), (true, true));
    world.cache(json!({"replicas": 2, "tls": {"secretRef": {"name": "tls"}}}));
    world.sim.put("secrets", json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}}));
    world.settle();
    assert_eq!(told(&world), (false, false));
    assert_eq!(world.conditions("one"), "Ready=True/Serving");
}

#[test]
fn pods_start_once_there_is_the_secret_of_their_webhooks() {
    let mut world = World::new();
    world.cache(json!({"replicas": 2, "webhooks": {"secretRef": {"name": "hooks"}}}));
    world.sync();
    assert!(world.reconcile().is_empty());
    let cache: GitCache = world.list("gitcaches").pop().unwrap();
    let conditions = cache.status.unwrap().conditions;
    let stalled = conditions.iter().find(|condition| condition.type_ == "Stalled").unwrap();
    assert_eq!((stalled.status.as_str(), stalled.reason.as_str()), ("True", "SecretNotFound"));
    assert_eq!(stalled.message, "there is no Secret hooks, which spec.webhooks.secretRef names: add it");
    assert_eq!(world.list::<StatefulSet>("statefulsets"), vec![]);
    world.sim.put("secrets", json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hooks"}}));
    world.settle();
    let set = world.list::<Value>("statefulsets").pop().unwrap().to_string();
    assert!(set.contains("--webhook-secret-file"), "{set}");
}

#[test]
fn a_reconciler_that_dies_at_any_request_leaves_nothing_undone() {
    for answer in [Answer::LostAfter as fn(usize) -> Answer, Answer::NeverAfter] {
        for requests in 0..30 {
            let mut world = World::new();
            world.mirror("one", url("one"));
            world.sync();
            world.sim.fail(Some(answer(requests)));
            world.reconcile();
            world.settle();
            world.cache(json!({"replicas": 3, "image": "tarn:2"}));
            world.sync();
            world.sim.fail(Some(answer(requests)));
            world.reconcile();
            world.settle();
            assert_eq!(world.conditions("one"), "Ready=True/Serving");
        }
    }
}

#[test]
fn pods_are_replaced_one_after_another() {
    let mut world = World::new();
    world.cache(json!({"replicas": 3}));
    world.settle();
    world.cache(json!({"replicas": 3, "image": "tarn:2"}));
    let mut most = 0;
    for _ in 0..12 {
        let before: Vec<Pod> = world.list("pods");
        world.sync();
        world.reconcile();
        world.others();
        let after: Vec<Pod> = world.list("pods");
        let replaced = after.iter().filter(|pod| before.iter().all(|old| old.uid() != pod.uid())).count();
        most = most.max(replaced);
    }
    assert_eq!(most, 1);
    world.settle();
}

#[test]
fn a_larger_volume_makes_the_stateful_set_anew() {
    let mut world = World::new();
    let volumes = |size: &str| json!({"replicas": 2, "storage": {"volumeClaim": {"size": size}}});
    world.cache(volumes("1Gi"));
    world.sim.put(
        "persistentvolumeclaims",
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-default-0"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}),
    );
    world.settle();
    let old: Vec<StatefulSet> = world.list("statefulsets");
    world.cache(volumes("2Gi"));
    world.sync();
    world.reconcile();
    let caches: Vec<GitCache> = world.list("gitcaches");
    let conditions = &caches[0].status.as_ref().unwrap().conditions;
    assert!(conditions.iter().any(|c| c.message.contains("volumeClaimTemplates")), "{conditions:?}");
    world.settle();
    let new: Vec<StatefulSet> = world.list("statefulsets");
    assert_ne!(old[0].uid(), new[0].uid());
    let claims: Vec<Value> = world.list("persistentvolumeclaims");
    assert_eq!(claims[0]["spec"]["resources"]["requests"]["storage"], "2Gi");
}

#[test]
fn a_pod_that_stops_reporting_makes_what_it_serves_stale() {
    let mut world = World::new();
    world.mirror("one", url("one"));
    world.settle();
    world.sim.put("leases", json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "tarn-agent-default-1"},
        "spec": {"leaseDurationSeconds": 40, "renewTime": format!("{}", jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%S.000000Z", now()).unwrap())}}));
    world.sync();
    world.reconcile();
    assert_eq!(world.conditions("one"), "Ready=True/Serving");
    SECONDS.set(SECONDS.get() + 60);
    world.sync();
    world.reconcile();
    assert_eq!(
        world.conditions("one"),
        "Ready=False/PodsSilent Reconciling=True/Retrying Stale=True/PodsSilent"
    );
}

/// A cache with a store, and a mirror whose objects are to go with it.
fn guarded() -> World {
    let mut world = World::new();
    world.cache(json!({"replicas": 2, "store": {"s3": {"bucket": "b"}}}));
    world.mirror("one", json!({"url": "https://h/o/one", "deletionPolicy": "Delete"}));
    world.settle();
    world
}

/// The operator works alone for as long.
fn wait(world: &mut World, seconds: i64) {
    SECONDS.set(SECONDS.get() + seconds);
    world.sync();
    assert!(world.reconcile().is_empty());
}

#[test]
fn a_mirror_stays_until_an_agent_has_removed_its_objects() {
    let mut world = guarded();
    world.unmirror("one");
    wait(&mut world, 300);
    assert_eq!(world.list::<GitMirror>("gitmirrors").len(), 1);
    world.others();
    wait(&mut world, 1);
    assert!(world.list::<GitMirror>("gitmirrors").is_empty());
    assert!(!world.sim.events().iter().any(|event| event.contains("StoreLeft")), "{:?}", world.sim.events());
}

#[test]
fn a_mirror_whose_objects_nobody_removes_goes_after_ten_minutes_and_says_what_is_left() {
    let mut world = guarded();
    world.unmirror("one");
    wait(&mut world, 590);
    assert_eq!(world.list::<GitMirror>("gitmirrors").len(), 1);
    wait(&mut world, 20);
    assert!(world.list::<GitMirror>("gitmirrors").is_empty());
    let events = world.sim.events();
    assert!(events.iter().any(|e| e.contains("StoreLeft") && e.contains("v1/h/o/one.git/")), "{events:?}");
}

#[test]
fn a_mirror_of_a_cache_that_is_gone_or_has_no_pods_goes() {
    for gone in [true, false] {
        let mut world = guarded();
        match gone {
            true => world.sim.remove("gitcaches", "default"),
            false => world.cache(json!({"replicas": 0, "store": {"s3": {"bucket": "b"}}})),
        }
        world.unmirror("one");
        wait(&mut world, 1);
        assert!(world.list::<GitMirror>("gitmirrors").is_empty());
        assert!(world.sim.events().iter().any(|event| event.contains("StoreLeft")));
    }
}

#[test]
fn objects_that_another_mirror_uses_are_not_waited_for() {
    let mut world = guarded();
    world.mirror("two", url("one.git"));
    world.settle();
    world.unmirror("one");
    wait(&mut world, 1);
    let left: Vec<String> = world.list::<GitMirror>("gitmirrors").iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["two"]);
    assert!(!world.sim.events().iter().any(|event| event.contains("StoreLeft")), "{:?}", world.sim.events());
    world.settle();
    assert_eq!(world.conditions("two"), "Ready=True/Serving");
}

#[test]
fn a_mirror_that_is_to_retain_its_objects_again_is_not_held() {
    let mut world = guarded();
    world.mirror("one", json!({"url": "https://h/o/one", "deletionPolicy": "Retain"}));
    world.settle();
    world.unmirror("one");
    assert!(world.list::<GitMirror>("gitmirrors").is_empty());
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Replicas(i32, u8),
    Mirror(u8, bool),
    Unmirror(u8),
    Secret(bool),
    KillPod(u8),
    Work { synced: bool, others: bool },
    Die(usize, bool),
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..4, 0..3_u8).prop_map(|(replicas, image)| Step::Replicas(replicas, image)),
        (0..4_u8, any::<bool>()).prop_map(|(mirror, suspend)| Step::Mirror(mirror, suspend)),
        (0..4_u8).prop_map(Step::Unmirror),
        any::<bool>().prop_map(Step::Secret),
        (0..4_u8).prop_map(Step::KillPod),
        (any::<bool>(), any::<bool>()).prop_map(|(synced, others)| Step::Work { synced, others }),
        (0..40_usize, any::<bool>()).prop_map(|(after, lost)| Step::Die(after, lost)),
        (0..900_u16).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_arrives(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Replicas(replicas, image) =>
                    world.cache(json!({"replicas": replicas, "image": format!("tarn:{image}")})),
                // Two of the four share a repository, and one has credentials.
                Step::Mirror(at, suspend) => world.mirror(&format!("m{at}"), json!({"suspend": suspend,
                    "url": format!("https://h/o/{}", at / 2),
                    "deletionPolicy": if at % 2 == 0 { "Delete" } else { "Retain" },
                    "secretRef": (at == 3).then(|| json!({"name": "creds"}))})),
                Step::Unmirror(at) => world.unmirror(&format!("m{at}")),
                Step::Secret(fits) => world.secret(if fits { "h" } else { "x" }),
                Step::KillPod(at) => world.sim.remove("pods", &format!("default-{at}")),
                Step::Work { synced, others } => {
                    world.sim.fail(None);
                    if synced { world.sync(); }
                    world.reconcile();
                    if others { world.others(); }
                }
                Step::Die(after, lost) => {
                    world.sim.fail(Some(if lost { Answer::LostAfter(after) } else { Answer::NeverAfter(after) }));
                    world.reconcile();
                    world.sim.fail(None);
                }
                Step::Wait(seconds) =>
                    SECONDS.set(SECONDS.get() + i64::try_from(Duration::from_secs(seconds.into()).as_secs()).unwrap()),
            }
        }
        world.settle();
    }
}
