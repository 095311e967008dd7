//! Gathers what a GitCache refers to, from what watches brought; asks the API server for its StatefulSet alone.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, Secret},
};
use kube::{Api, ResourceExt};
use tarn_crds::{
    credentials::may_be_sent,
    repo::UpstreamUrl,
    v1alpha1::{GitCache, GitMirror},
};

use crate::{
    context::{Context, expired},
    error::Error,
};

/// What there is around a GitCache.
#[derive(Clone, Debug)]
pub struct Referenced {
    /// The mirrors that name it.
    pub mirrors: Vec<Arc<GitMirror>>,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
    /// Those of its pods that stopped reporting.
    pub silent: BTreeSet<String>,
    /// The Secrets that its mirrors name and may use.
    pub secrets: BTreeSet<String>,
    /// A Secret that its pods cannot start without, if there is no such Secret: its name, and the field that names it.
    pub missing_secret: Option<(String, &'static str)>,
    /// Its StatefulSet, as it is.
    pub stateful_set: Option<StatefulSet>,
}

/// Gathers it.
///
/// # Errors
/// The API server.
pub async fn dereference(cache: &GitCache, context: &Context, now: Timestamp) -> Result<Referenced, Error> {
    let name = cache.name_any();
    let namespace = cache.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let stores = &context.stores;
    let mirrors = stores.mirrors_of(&namespace, &name);
    let pods = stores.pods_of(&namespace, &name);
    let is_silent = |pod: &String| stores.lease(&namespace, pod).is_some_and(|lease| expired(&lease, now));
    let silent = pods.iter().map(|pod| pod.name_any()).filter(is_silent).collect();
    let allowed = |mirror: &Arc<GitMirror>| {
        let secret = mirror.spec.secret_ref.as_ref()?;
        let found = stores.secret(&namespace, &secret.name)?;
        let url = UpstreamUrl::parse(&mirror.spec.url).ok()?;
        let (labels, annotations) = (found.metadata.labels.as_ref(), found.metadata.annotations.as_ref());
        may_be_sent(&secret.name, labels, annotations, &url).is_ok().then(|| secret.name.clone())
    };
    let secrets = mirrors.iter().filter_map(allowed).collect();
    let store_secret = cache.spec.store.as_ref().and_then(|store| store.s3.as_ref()?.secret_ref.as_ref());
    let mut missing_secret = None;
    let store_key = cache.spec.store.as_ref().and_then(|store| store.signing_key_secret_ref.as_ref());
    let tokens_secret = cache.spec.auth.tokens_secret_ref.as_ref();
    let named = [
        (store_secret, "spec.store.s3.secretRef"),
        (store_key, "spec.store.signingKeySecretRef"),
        (tokens_secret, "spec.auth.tokensSecretRef"),
        (cache.spec.tls.as_ref().map(|tls| &tls.secret_ref), "spec.tls.secretRef"),
        (cache.spec.webhooks.as_ref().map(|webhooks| &webhooks.secret_ref), "spec.webhooks.secretRef"),
    ];
    for (secret, field) in named {
        let Some(secret) = secret else { continue };
        let secrets = Api::<Secret>::namespaced(context.client.clone(), &namespace);
        let found = secrets.get_metadata_opt(&secret.name).await;
        let found = found.map_err(|error| Error::api("read", format!("Secret {}", secret.name), error))?;
        if found.is_none() {
            missing_secret = Some((secret.name.clone(), field));
        }
    }
    let sets = Api::<StatefulSet>::namespaced(context.client.clone(), &namespace);
    let stateful_set = sets
        .get_opt(&name)
        .await
        .map_err(|error| Error::api("read", format!("StatefulSet {name}"), error))?;
    Ok(Referenced { mirrors, pods, silent, secrets, missing_secret, stateful_set })
}
