//! Gathers what there is to know of a GitMirror, from what watches brought. Sends nothing, but for a Secret that is not
//! among the labelled ones: whether it is there at all is asked then.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, ResourceExt};
use tarn_crds::{
    REQUESTED_AT_ANNOTATION,
    allowed_hosts::AllowedHosts,
    credentials::may_be_sent,
    repo::UpstreamUrl,
    summarize::Note,
    v1alpha1::{GitCache, GitMirror, Replica, conditions::Reason},
};

use crate::{
    context::{Context, expired},
    error::Error,
};

/// A GitMirror and what is around it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What keeps it from being mirrored until a person acts.
    pub stalled: Option<Note>,
    /// How many pods should have it.
    pub desired: i32,
    /// What living pods say of it, each with what is known of the pod.
    pub entries: Vec<Entry>,
    /// How many pods the cache is to have.
    pub pods: i32,
    /// Names of pods that have an entry and are not there.
    pub departed: Vec<String>,
    /// The value of the annotation that asks for a look at once.
    pub requested: Option<String>,
    /// Whether clients reach the pods without TLS.
    pub plaintext: bool,
}

/// What a living pod says.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its words.
    pub replica: Replica,
    /// Whether clients reach the pod.
    pub reachable: bool,
    /// Whether it has stopped reporting.
    pub silent: bool,
}

/// Gathers it.
///
/// # Errors
/// The API server.
pub async fn observe(mirror: &GitMirror, context: &Context, now: Timestamp) -> Result<Observed, Error> {
    let namespace = mirror.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let (stores, spec) = (&context.stores, &mirror.spec);
    let cache = stores.cache(&namespace, &spec.cache_ref.name);
    let pods: BTreeMap<String, Arc<Pod>> = stores
        .pods_of(&namespace, &spec.cache_ref.name)
        .into_iter()
        .map(|pod| (pod.name_any(), pod))
        .collect();
    let desired = cache.as_ref().map_or(0, |cache| {
        let replicas = cache.spec.replicas;
        cache.spec.placement.replication.map_or(replicas, |copies| copies.min(replicas))
    });
    let said = mirror.status.as_ref().map_or(&[][..], |status| &status.replicas);
    let (there, gone): (Vec<&Replica>, Vec<&Replica>) =
        said.iter().partition(|entry| pods.contains_key(&entry.pod));
    let entry = |replica: &Replica| {
        let pod = pods.get(&replica.pod)?;
        // Names of pods recur: this was said by the one before.
        (pod.uid() == replica.pod_uid).then(|| Entry {
            replica: replica.clone(),
            reachable: ready(pod),
            silent: stores.lease(&namespace, &replica.pod).is_some_and(|lease| expired(&lease, now)),
        })
    };
    Ok(Observed {
        stalled: stalled(mirror, &namespace, cache.as_deref(), context, now).await?,
        desired,
        pods: cache.as_ref().map_or(0, |cache| cache.spec.replicas),
        entries: there.into_iter().filter_map(entry).collect(),
        departed: gone.into_iter().map(|entry| entry.pod.clone()).collect(),
        plaintext: cache.as_ref().is_some_and(|cache| cache.spec.tls.is_none()),
        requested: mirror.annotations().get(REQUESTED_AT_ANNOTATION).cloned(),
    })
}

/// Whether clients reach the pod.
pub(super) fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}

async fn stalled(
    mirror: &GitMirror,
    namespace: &str,
    cache: Option<&GitCache>,
    context: &Context,
    now: Timestamp,
) -> Result<Option<Note>, Error> {
    let spec = &mirror.spec;
    let url = match UpstreamUrl::parse(&spec.url) {
        Ok(url) => url,
        Err(error) => return Ok(Some(Note::new(Reason::InvalidUrl, format!("spec.url {error}")))),
    };
    let Some(cache) = cache else {
        let name = &spec.cache_ref.name;
        let message = format!("there is no GitCache {name} in this namespace: create it");
        return Ok(Some(Note::new(Reason::CacheNotFound, message)));
    };
    // What is wrong with the list is the GitCache's own condition.
    let allowed = cache.spec.upstreams.as_ref().and_then(|upstreams| upstreams.list().ok());
    if allowed.is_some_and(|allowed| !allowed.admits(&url)) {
        let message = format!("spec.url {}", AllowedHosts::refusal(&url));
        return Ok(Some(Note::new(Reason::UpstreamNotAllowed, message)));
    }
    if let Some(owner) = context.claims.taken_by(mirror, &context.stores, now) {
        let message =
            format!("GitMirror {owner} mirrors the same repository, {}: remove one of the two", url.id());
        return Ok(Some(Note::new(Reason::DuplicateUrl, message)));
    }
    let Some(name) = spec.secret_ref.as_ref().map(|secret| secret.name.as_str()) else { return Ok(None) };
    let mut secret = context.stores.secret(namespace, name).map(|secret| secret.metadata.clone());
    if secret.is_none() {
        let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
        let found = secrets.get_metadata_opt(name).await;
        let found = found.map_err(|error| Error::api("read", format!("Secret {name}"), error))?;
        secret = found.map(|found| found.metadata);
    }
    Ok(match secret {
        None => Some(Note::new(Reason::SecretNotFound, format!("there is no Secret {name}: add it"))),
        Some(secret) => may_be_sent(name, secret.labels.as_ref(), secret.annotations.as_ref(), &url)
            .err()
            .map(|denied| Note::new(Reason::SecretNotAllowed, denied.to_string())),
    })
}
