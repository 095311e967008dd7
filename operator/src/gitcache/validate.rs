//! From what was read to what the builders need: a pure function. Afterwards nobody reads the raw object.
//!
//! The API server has checked the spec against the CRD's rules. What is left is what those rules cannot say.

use std::collections::BTreeSet;

use k8s_openapi::{api::core::v1::PodTemplateSpec, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Resource, ResourceExt};
use tarn_crds::{
    repo::UpstreamList,
    summarize::Note,
    v1alpha1::{
        Auth, Budget, CacheNetworkPolicy, CachePrewarm, Duration, GitCache, Limits, Scheduling, Service,
        Storage, Store, Tls, Upstreams, Webhooks, conditions::Reason,
    },
};

use crate::{error::Error, ssa::covers};

/// A GitCache whose objects can be built; the builders' only input.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// Its name, which is also the StatefulSet's and the client Service's.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What its objects point back to, so that they go with it.
    pub owner: OwnerReference,
    /// How many pods.
    pub replicas: i32,
    /// The agent's image.
    pub image: String,
    /// Resources of the agent's container.
    pub resources: Option<k8s_openapi::api::core::v1::ResourceRequirements>,
    /// Where pods keep their mirrors.
    pub storage: Storage,
    /// The store.
    pub store: Option<Store>,
    /// Which mirrors pods bring before anyone asks.
    pub prewarm: CachePrewarm,
    /// How much of the volume the agents' data may take.
    pub budget: Budget,
    /// On how many pods each mirror is kept, if not on all.
    pub replication: Option<i32>,
    /// The client Service.
    pub service: Service,
    /// How callers are known.
    pub auth: Auth,
    /// Who reaches the pods.
    pub network_policy: CacheNetworkPolicy,
    /// The certificate of the git port.
    pub tls: Option<Tls>,
    /// Whose webhooks are heard.
    pub webhooks: Option<Webhooks>,
    /// Which hosts the agents may ask; all, where none is named.
    pub allowed_hosts: Vec<String>,
    /// What clients may cost each pod.
    pub limits: Limits,
    /// How long answers under way may take when a pod stops, if not as long as the agent's default.
    pub drain: Option<Duration>,
    /// Where pods may run.
    pub scheduling: Scheduling,
    /// What is merged over the pod template.
    pub overrides: Option<PodTemplateSpec>,
    /// The Secrets that the agents may read.
    pub secrets: BTreeSet<String>,
    /// Ordinal from which pods are replaced; see `rollout`.
    pub partition: i32,
}

/// Checks `cache`. `secrets` are those that its mirrors name and Tarn may use; `image` is the agent's default.
///
/// # Errors
/// The outer one never happens with objects of an API server. The inner one says what its user has to change.
pub fn validate(
    cache: &GitCache,
    secrets: BTreeSet<String>,
    image: &str,
) -> Result<Result<Validated, Note>, Error> {
    let spec = &cache.spec;
    let invalid = |message: String| Ok(Err(Note::new(Reason::InvalidSpec, message)));
    let overrides = match overrides(spec.pod_template.as_ref()) {
        Ok(overrides) => overrides,
        Err(message) => return invalid(message),
    };
    let unbound = UpstreamList::parse(&spec.auth.unbound_credentials_to.join(","));
    if let Some(wrong) = unbound.invalid().first() {
        return invalid(format!("spec.auth.unboundCredentialsTo: {wrong}"));
    }
    if let Some(Err((at, error))) = spec.upstreams.as_ref().map(Upstreams::list) {
        return invalid(format!("spec.upstreams.allowedHosts[{at}] {error}"));
    }
    Ok(Ok(Validated {
        name: cache.name_any(),
        namespace: cache.namespace().ok_or(Error::Incomplete("a namespace"))?,
        owner: cache.controller_owner_ref(&()).ok_or(Error::Incomplete("a uid"))?,
        replicas: spec.replicas,
        image: spec.image.clone().unwrap_or_else(|| image.to_owned()),
        resources: spec.resources.as_ref().map(Into::into),
        storage: spec.storage.clone(),
        store: spec.store.clone(),
        prewarm: spec.prewarm.clone(),
        budget: spec.disk.budget.clone(),
        replication: spec.placement.replication,
        service: spec.service.clone(),
        auth: spec.auth.clone(),
        network_policy: spec.network_policy.clone(),
        tls: spec.tls.clone(),
        webhooks: spec.webhooks.clone(),
        allowed_hosts: spec.upstreams.clone().unwrap_or_default().allowed_hosts,
        limits: spec.limits.clone().unwrap_or_default(),
        drain: spec.drain.clone(),
        scheduling: spec.scheduling.clone().unwrap_or_default(),
        overrides,
        secrets,
        partition: 0,
    }))
}

/// Reads the overrides. The API server stores them unseen, so a misspelt field is found here.
fn overrides(raw: Option<&serde_json::Value>) -> Result<Option<PodTemplateSpec>, String> {
    let Some(raw) = raw else { return Ok(None) };
    let parsed: PodTemplateSpec = serde_json::from_value(raw.clone())
        .map_err(|error| format!("spec.podTemplate is no pod template: {error}"))?;
    let back = serde_json::to_value(&parsed).map_err(|error| format!("spec.podTemplate: {error}"))?;
    if !covers(&back, raw) {
        return Err(
            "spec.podTemplate has a field that a pod template does not have; check its spelling".into()
        );
    }
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn overrides_with_unknown_fields_are_refused() {
        for (raw, fine) in [
            (json!({"spec": {"priorityClassName": "high"}}), true),
            (
                json!({"spec": {"containers": [{"name": "agent", "env": [{"name": "A", "value": "b"}]}]}}),
                true,
            ),
            (json!({"spec": {"priorityClass": "high"}}), false),
            (json!({"spec": {"containers": "none"}}), false),
        ] {
            assert_eq!(overrides(Some(&raw)).is_ok(), fine, "{raw}");
        }
    }
}
