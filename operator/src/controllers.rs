//! Watches, and the two controllers that they set in motion.
//!
//! What concerns many objects at once (a pod, a Lease that expires, a Secret) is not mapped to each of them: a digest of
//! it is taken every second, and when that differs everything is reconciled, which costs no request where nothing
//! follows from it.

use std::{
    fmt::Debug,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{Pod, Secret},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt, controller,
        controller::Action,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tarn_crds::{CACHE_LABEL, CREDENTIALS_LABEL, v1alpha1::GitCache};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{Metrics, Reconciliation},
    context::{Claims, Context, Stores, expired},
    error::Error,
    events::Recorder,
    gitcache, gitmirror, reviewers,
};

/// Pods report a change within moments of each other; it is summed up once.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// How often what concerns many objects is looked over.
const LOOK_OVER: Duration = Duration::from_secs(1);
/// How many objects of a kind are reconciled at a time.
const AT_A_TIME: u16 = 8;

/// Looks after one namespace, or all, until `stopping`.
pub async fn run(
    client: Client,
    namespace: Option<String>,
    image: String,
    reviewers: Option<String>,
    metrics: Metrics,
    stopping: CancellationToken,
) {
    let scope = namespace.as_deref();
    let all = watcher::Config::default();
    let agents = watcher::Config::default().labels(CACHE_LABEL);
    let (mirrors, mirror_stream) = watched(api(&client, scope), all.clone());
    let (caches, cache_stream) = watched(api::<GitCache>(&client, scope), all);
    let (pods, pod_stream) = watched(api::<Pod>(&client, scope), agents.clone());
    let (leases, lease_stream) = watched(api::<Lease>(&client, scope), agents.clone());
    let credentials = watcher::Config::default().labels(&format!("{CREDENTIALS_LABEL}=true"));
    // Their metadata alone: what they hold is no business of the operator's.
    let (secrets, secret_stream) = watched(api::<PartialObjectMeta<Secret>>(&client, scope), credentials);
    let context = Arc::new(Context {
        events: Recorder::new(client.clone(), std::env::var("POD_NAME").ok()),
        stores: Stores { mirrors: mirrors.clone(), caches: caches.clone(), pods, leases, secrets },
        client: client.clone(),
        image,
        now: Timestamp::now,
        claims: Claims::default(),
    });
    let ((poke_mirrors, mirror_pokes), (poke_caches, cache_pokes)) = (mpsc::channel(1), mpsc::channel(1));
    let stop = stopping.clone();
    let config = || controller::Config::default().concurrency(AT_A_TIME);
    let of_mirrors = Controller::for_stream(mirror_stream, mirrors)
        .with_config(config().debounce(DEBOUNCE))
        .reconcile_all_on(pokes(mirror_pokes))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(when_ready(gitmirror::reconcile), action, context.clone())
        .for_each(|done| counted(&done, "GitMirror", &metrics));
    let of_caches = Controller::for_stream(cache_stream, caches)
        .owns(api::<StatefulSet>(&client, scope), agents)
        .with_config(config())
        .reconcile_all_on(pokes(cache_pokes))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(when_ready(gitcache::reconcile), action, context.clone())
        .for_each(|done| counted(&done, "GitCache", &metrics));
    let others = async {
        tokio::join!(
            drain(pod_stream),
            drain(lease_stream),
            drain(secret_stream),
            look_over(&context.stores, &poke_mirrors, &poke_caches),
            reviewers::follow(&client, reviewers.as_deref(), scope, &context.stores.caches)
        )
    };
    let controllers = async { tokio::join!(of_mirrors, of_caches) };
    tokio::select! {
        _ = controllers => {}
        _ = others => {}
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// A store, and the stream that fills it. What field managers own is left out: it is half of an object.
fn watched<K>(
    api: Api<K>,
    config: watcher::Config,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(api, config)
        .default_backoff()
        .modify(|object: &mut K| object.managed_fields_mut().clear())
        .reflect(writer)
        .applied_objects();
    (store, stream)
}

async fn drain<T>(stream: impl Stream<Item = Result<T, watcher::Error>>) {
    let log = |item: Result<T, watcher::Error>| async {
        if let Err(error) = item {
            tracing::warn!(%error, "a watch broke off; trying again");
        }
    };
    stream.for_each(log).await;
}

fn pokes(mut receiver: mpsc::Receiver<()>) -> impl Stream<Item = ()> + Send {
    stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// Says when something changed that concerns many objects.
async fn look_over(stores: &Stores, mirrors: &mpsc::Sender<()>, caches: &mpsc::Sender<()>) {
    let mut ticks = tokio::time::interval(LOOK_OVER);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut around, mut declared) = (0, 0);
    loop {
        ticks.tick().await;
        let (now_around, now_declared) = (around_digest(stores, Timestamp::now()), declared_digest(stores));
        // A full channel holds a poke already.
        if now_around != around {
            let _ = mirrors.try_send(());
        }
        if (now_around, now_declared) != (around, declared) {
            let _ = caches.try_send(());
        }
        (around, declared) = (now_around, now_declared);
    }
}

/// Pods, silent ones, Secrets, GitCaches.
fn around_digest(stores: &Stores, now: Timestamp) -> u64 {
    let pods = stores.pods.state().into_iter();
    let pods = pods.map(|pod| digest(&(pod.namespace(), pod.resource_version())));
    let silent = stores.leases.state().into_iter().filter(|lease| expired(lease, now));
    let silent = silent.map(|lease| digest(&(lease.namespace(), lease.name_any())));
    let secrets = stores.secrets.state().into_iter();
    let secrets = secrets.map(|secret| digest(&(secret.namespace(), secret.resource_version())));
    let caches = stores.caches.state().into_iter();
    let caches = caches.map(|cache| digest(&(cache.uid(), cache.metadata.generation)));
    together(pods.chain(silent).chain(secrets).chain(caches))
}

/// Which mirrors there are, their caches, Secrets and accesses.
fn declared_digest(stores: &Stores) -> u64 {
    let mirrors = stores.mirrors.state().into_iter();
    together(mirrors.map(|mirror| {
        let secret = mirror.spec.secret_ref.as_ref().map(|secret| secret.name.clone());
        let access = mirror.spec.effective_access().as_str();
        digest(&(mirror.uid(), mirror.spec.cache_ref.name.clone(), secret, access))
    }))
}

/// One digest of many, whatever their order.
fn together(digests: impl Iterator<Item = u64>) -> u64 {
    digests.fold(0, u64::wrapping_add)
}

fn digest(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// `reconcile`, once everything around the object is known.
fn when_ready<K, F>(
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
) -> impl Fn(Arc<K>, Arc<Context>) -> futures_util::future::BoxFuture<'static, Result<Action, Error>>
where
    K: Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    move |object, context| {
        Box::pin(async move {
            context.stores.ready().await.map_err(|_| Error::Ended)?;
            reconcile(object, context).await
        })
    }
}

fn action<K>(_: Arc<K>, error: &Error, _: Arc<Context>) -> Action {
    error.action()
}

/// The one reporter of what came of a reconciliation.
fn counted<K: Resource<DynamicType = ()>>(
    done: &Result<(reflector::ObjectRef<K>, Action), controller::Error<Error, watcher::Error>>,
    kind: &'static str,
    metrics: &Metrics,
) -> impl Future<Output = ()> + use<K> {
    let outcome = match done {
        Ok(_) => "ok",
        Err(controller::Error::ReconcilerFailed(error, object)) => {
            let source = std::error::Error::source(error).map(ToString::to_string);
            match error {
                Error::Conflict { .. } | Error::Ended => tracing::debug!(%object, %error, "read again"),
                Error::Api { .. } | Error::Incomplete(_) | Error::Convert { .. } => {
                    tracing::warn!(%object, %error, source, "trying again");
                }
            }
            error.category()
        }
        Err(error) => {
            tracing::debug!(%error, "a controller waits");
            "queue"
        }
    };
    if outcome != "queue" {
        metrics.reconciliations.get_or_create(&Reconciliation { kind, outcome }).inc();
    }
    std::future::ready(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_digests_make_one_whatever_their_order() {
        let (a, b) = (u64::MAX - 1, u64::MAX);
        assert_eq!(together([a, b].into_iter()), together([b, a].into_iter()));
        assert_ne!(together([a, b].into_iter()), together([a, a].into_iter()));
    }
}
