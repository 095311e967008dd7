//! Sends what was built: what differs, and nothing else.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tarn_crds::v1alpha1::Quantity;

use super::{
    build::{Applied, DATA, Prepared, Resources, TEMPLATE_ANNOTATION, immutable, selector_text},
    dereference::Referenced,
    rollout::{Member, Rollout, member},
    validate::Validated,
};
use crate::{error::Error, ssa};

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// All is as built.
    Done(Box<Resources<Applied>>),
    /// The StatefulSet has to be made anew, because this field of it cannot change; its pods stay meanwhile.
    Recreating(&'static str),
}

/// Applies every object.
///
/// # Errors
/// The API server.
pub async fn apply(
    client: &Client,
    cache: &Validated,
    prepared: Resources<Prepared>,
    live: Option<StatefulSet>,
) -> Result<Outcome, Error> {
    let Resources {
        service_account,
        role,
        role_binding,
        service,
        pods_service,
        pdb,
        network_policy,
        stateful_set,
        state: _,
    } = prepared;
    // What the pods need before the pods.
    let service_account = ssa::apply(client, &service_account).await?;
    let role = ssa::apply(client, &role).await?;
    let role_binding = ssa::apply(client, &role_binding).await?;
    let service = ssa::apply(client, &service).await?;
    let pods_service = ssa::apply(client, &pods_service).await?;
    let pdb = ssa::apply(client, &pdb).await?;
    let network_policy = ssa::apply(client, &network_policy).await?;
    if let Some(live) = &live {
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Recreating("volumeClaimTemplates"));
        }
        if let Some(field) = immutable(live, &stateful_set) {
            ssa::orphan(client, live).await?;
            return Ok(Outcome::Recreating(field));
        }
    }
    grow(client, cache).await?;
    let stateful_set = ssa::apply_over(client, live, &stateful_set).await?;
    Ok(Outcome::Done(Box::new(Resources::applied(
        service_account,
        role,
        role_binding,
        service,
        pods_service,
        pdb,
        network_policy,
        stateful_set,
    ))))
}

/// Grows the claims that pods have already: a StatefulSet's template only speaks of new ones.
async fn grow(client: &Client, cache: &Validated) -> Result<(), Error> {
    let Some(claim) = &cache.storage.volume_claim else { return Ok(()) };
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &cache.namespace);
    let list = ListParams::default().labels(&selector_text(&cache.name));
    let found =
        claims.list(&list).await.map_err(|error| Error::api("list", "PersistentVolumeClaims", error))?;
    let ours = format!("{DATA}-{}-", cache.name);
    for there in found.items.iter().filter(|there| there.name_any().starts_with(&ours)) {
        let requests = there.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        let size = requests.and_then(|requests| requests.get("storage")?.0.parse::<Quantity>().ok());
        if size.is_none_or(|size| size.value() < claim.size.value()) {
            let body = json!({"spec": {"resources": {"requests": {"storage": claim.size.as_str()}}}});
            let name = there.name_any();
            let grown = claims.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await;
            grown.map_err(|error| Error::api("grow", format!("PersistentVolumeClaim {name}"), error))?;
        }
    }
    Ok(())
}

/// What the brake rests on; a StatefulSet that is not there yet has none.
pub fn rollout(cache: &Validated, wanted: &StatefulSet, around: &Referenced, now: Timestamp) -> Rollout {
    let live = around.stateful_set.as_ref();
    let status = live.and_then(|live| live.status.as_ref());
    let revision = status.and_then(|status| status.update_revision.as_deref());
    let pods = revision.map_or_else(Vec::new, |revision| {
        let member = |pod: &Arc<_>| member(pod, revision, &around.mirrors, now);
        around.pods.iter().filter_map(member).collect()
    });
    let update = live.and_then(|live| live.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref());
    let observed = live.zip(status).is_none_or(|(live, status)| {
        status.observed_generation.zip(live.metadata.generation).is_none_or(|(seen, now)| seen >= now)
    });
    // Pods without a StatefulSet were left by one that is made anew; they may be of another template.
    let changes = live.map_or(!around.pods.is_empty(), |live| changed(live, wanted));
    Rollout {
        replicas: cache.replicas,
        partition: update.and_then(|update| update.partition).unwrap_or(0),
        changes,
        // Until the controller has seen the newest template, no pod can be told to run it.
        pods: if observed {
            pods
        } else {
            pods.into_iter().map(|pod| Member { updated: false, ..pod }).collect()
        },
    }
}

/// Whether the pods' template differs.
fn changed(live: &StatefulSet, wanted: &StatefulSet) -> bool {
    let digest = |set: &StatefulSet| set.annotations().get(TEMPLATE_ANNOTATION).cloned();
    digest(live) != digest(wanted)
}
