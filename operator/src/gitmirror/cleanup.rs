//! Keeps a GitMirror with deletionPolicy Delete until its objects are gone from the store, and never for ever.
//!
//! Only agents have the store's credentials: the one that publishes the mirror removes the objects, and says so in its
//! entry. Whatever keeps it from that, the mirror goes in the end, and an Event names what is left.

use std::time::Duration;

use jiff::Timestamp;
use kube::{ResourceExt, runtime::controller::Action};
use tarn_crds::{
    STORE_FINALIZER,
    repo::RepoId,
    v1alpha1::{DeletionPolicy, GitCache, GitMirror, conditions::Reason},
};

use super::observe::ready;
use crate::{context::Context, error::Error, events::Transition, ssa};

/// How long the objects may take to go.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How long a cache may be without a ready pod: as a restart takes.
const NO_PODS: Duration = Duration::from_secs(60);

/// How often is looked again, besides at every change of the mirror.
const AGAIN: Duration = Duration::from_secs(10);

/// What is known when a mirror is to go.
#[derive(Clone, Copy, Debug, Default)]
struct Facts<'a> {
    /// Whether an agent has removed the objects.
    removed: bool,
    /// The cache, if it is still there.
    cache: Option<&'a GitCache>,
    /// Whether one of its pods is ready.
    ready: bool,
    /// Another mirror of the repository in the same cache.
    shared_with: Option<&'a str>,
    /// Since the mirror was deleted.
    waited: Duration,
}

/// What becomes of a mirror that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// It stays for now.
    Wait,
    /// It goes: nothing of it is left in the store, or what is there is another's.
    Go,
    /// It goes, and leaves its objects; why.
    Leave(&'static str),
}

fn step(facts: Facts<'_>) -> Step {
    let Facts { removed, cache, ready, shared_with, waited } = facts;
    let Some(cache) = cache else { return Step::Leave("its GitCache is gone") };
    if removed || shared_with.is_some() || cache.spec.store.is_none() {
        return Step::Go;
    }
    if cache.spec.replicas == 0 {
        return Step::Leave("its GitCache has no pods");
    }
    match waited {
        waited if waited >= PATIENCE => Step::Leave("no pod has removed them within ten minutes"),
        waited if waited >= NO_PODS && !ready => Step::Leave("no pod of its GitCache is ready"),
        _ => Step::Wait,
    }
}

/// Sees to it that the finalizer is there where it is wanted, and nowhere else; answers with the mirror as it is then.
///
/// # Errors
/// The API server; a conflict if the mirror changed since it was read.
pub async fn guard(mirror: GitMirror, context: &Context) -> Result<GitMirror, Error> {
    let wanted = mirror.spec.deletion_policy == DeletionPolicy::Delete;
    if wanted == guarded(&mirror) {
        return Ok(mirror);
    }
    let finalizers: &[&str] = if wanted { &[STORE_FINALIZER] } else { &[] };
    ssa::finalizers(&context.client, &mirror, finalizers).await
}

/// Lets a mirror go that was deleted at `since`, as soon as it may.
///
/// # Errors
/// The API server; a conflict if the mirror changed since it was read.
pub async fn leave(mirror: &GitMirror, since: Timestamp, context: &Context) -> Result<Action, Error> {
    if !guarded(mirror) {
        return Ok(Action::await_change());
    }
    let now = (context.now)();
    let namespace = mirror.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let name = &mirror.spec.cache_ref.name;
    let cache = context.stores.cache(&namespace, name);
    let cache = cache.filter(|cache| cache.metadata.deletion_timestamp.is_none());
    let shared_with = context.claims.shared_with(mirror, &context.stores, now);
    let entries = mirror.status.as_ref().map_or(&[][..], |status| &status.replicas);
    let step = step(Facts {
        removed: entries.iter().any(|entry| entry.store_removed == Some(true)),
        cache: cache.as_deref(),
        ready: context.stores.pods_of(&namespace, name).iter().any(|pod| ready(pod)),
        shared_with: shared_with.as_deref(),
        waited: Duration::try_from(now.duration_since(since)).unwrap_or_default(),
    });
    match step {
        Step::Wait => return Ok(Action::requeue(AGAIN)),
        Step::Go => tracing::info!(mirror = mirror.name_any(), "the mirror may go"),
        Step::Leave(why) => {
            // Told before it goes: a mirror that is gone is asked about no more.
            let left = left(mirror, why);
            tracing::warn!(mirror = mirror.name_any(), reason = left.message, "objects stay in the store");
            context.events.tell(mirror, &[left]).await;
        }
    }
    ssa::finalizers(&context.client, mirror, &[]).await?;
    Ok(Action::await_change())
}

fn guarded(mirror: &GitMirror) -> bool {
    mirror.finalizers().iter().any(|finalizer| finalizer == STORE_FINALIZER)
}

/// What an Event says of objects that stay.
fn left(mirror: &GitMirror, why: &str) -> Transition {
    let message = match RepoId::from_url(&mirror.spec.url) {
        Ok(repo) => format!(
            "{why}: objects below v1/{}/ stay in the store; remove them with `tarn-agent store rm {repo}`",
            repo.store_prefix()
        ),
        Err(_) => format!("{why}, and spec.url names no repository"),
    };
    Transition { bad: true, condition: "Deleting".into(), reason: Reason::StoreLeft.to_string(), message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cache(replicas: i32, store: bool) -> GitCache {
        let store = store.then(|| json!({"s3": {"bucket": "b"}}));
        let spec = json!({"replicas": replicas, "store": store});
        let object = json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitCache",
            "metadata": {"name": "default"}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_mirror_goes_when_its_objects_have_gone_and_in_the_end_anyway() {
        let (full, bare, scaled) = (cache(2, true), cache(2, false), cache(0, true));
        let at = |seconds: u64| Duration::from_secs(seconds);
        let base = Facts { cache: Some(&full), ready: true, ..Facts::default() };
        for (facts, expected) in [
            (base, Step::Wait),
            (Facts { waited: at(599), ..base }, Step::Wait),
            (Facts { removed: true, ..base }, Step::Go),
            (Facts { shared_with: Some("two"), ..base }, Step::Go),
            (Facts { cache: Some(&bare), ..base }, Step::Go),
            (Facts { waited: at(59), ready: false, ..base }, Step::Wait),
            (Facts { waited: at(60), ready: false, ..base }, Step::Leave("no pod of its GitCache is ready")),
            (Facts { cache: Some(&scaled), ..base }, Step::Leave("its GitCache has no pods")),
            (Facts { cache: None, ..base }, Step::Leave("its GitCache is gone")),
            (Facts { waited: at(600), ..base }, Step::Leave("no pod has removed them within ten minutes")),
        ] {
            assert_eq!(step(facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn what_stays_is_named_with_its_remedy() {
        let spec = tarn_crds::v1alpha1::GitMirrorSpec::for_url("https://h/o/r");
        let told = left(&GitMirror::new("m", spec), "its GitCache is gone");
        assert_eq!(
            told.message,
            "its GitCache is gone: objects below v1/h/o/r.git/ stay in the store; remove them with \
             `tarn-agent store rm h/o/r`"
        );
    }
}
