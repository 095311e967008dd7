//! The one door for writes: server-side apply with the operator's own field manager, and only where it changes something.
//!
//! An identical apply changes nothing, yet costs the API server as much as a write. So what would be applied is compared
//! with what is there. A digest in an annotation tells what was applied last, so that a field which is no longer wanted
//! counts as a change; fields that others added do not.

mod compare;

use std::fmt::Debug;

use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::error::Error;

pub use compare::covers;

/// The operator's field manager.
pub const MANAGER: &str = "tarn-operator";

/// Digest of what the operator applied last.
pub const APPLIED_ANNOTATION: &str = "tarn.dev/applied";

/// What the operator makes: named, in a namespace, and made of plain data.
pub trait Object:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug
{
}

impl<K> Object for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug
{
}

/// Names an object for errors and logs.
pub fn describe<K: Object>(object: &K) -> String {
    format!("{} {}", K::kind(&()), object.name_any())
}

/// The client for the namespace that `object` is in.
///
/// # Errors
/// It has none.
pub fn api<K: Object>(client: &Client, object: &K) -> Result<Api<K>, Error> {
    let namespace = object.namespace().ok_or(Error::Incomplete("a namespace"))?;
    Ok(Api::namespaced(client.clone(), &namespace))
}

/// Reads what there is of `desired`'s name.
///
/// # Errors
/// The API server.
pub async fn live<K: Object>(client: &Client, desired: &K) -> Result<Option<K>, Error> {
    let found = api(client, desired)?.get_opt(&desired.name_any()).await;
    found.map_err(|error| Error::api("read", describe(desired), error))
}

/// Makes what is there as `desired`, and answers with the result; sends nothing if it is so already.
///
/// # Errors
/// The API server.
pub async fn apply<K: Object>(client: &Client, desired: &K) -> Result<K, Error> {
    let live = live(client, desired).await?;
    apply_over(client, live, desired).await
}

/// As [`apply`], over what was read already.
///
/// # Errors
/// The API server.
pub async fn apply_over<K: Object>(client: &Client, live: Option<K>, desired: &K) -> Result<K, Error> {
    let body = marked(desired)?;
    if let Some(live) = live {
        let there = serde_json::to_value(&live).map_err(|source| convert(desired, source))?;
        if covers(&there, &body) {
            return Ok(live);
        }
    }
    let parameters = PatchParams::apply(MANAGER).force();
    let applied = api(client, desired)?.patch(&desired.name_any(), &parameters, &Patch::Apply(&body)).await;
    tracing::debug!(object = describe(desired), ok = applied.is_ok(), "applied");
    applied.map_err(|error| Error::api("apply", describe(desired), error))
}

/// Applies the status that `body` holds, as `manager`; fails with a conflict if the object is no longer at the
/// resourceVersion that `body` names.
///
/// # Errors
/// The API server.
pub async fn apply_status<K: Object>(
    client: &Client,
    object: &K,
    body: &Value,
    manager: &str,
) -> Result<K, Error> {
    let parameters = PatchParams::apply(manager).force();
    let patch = Patch::Apply(body);
    let applied = api(client, object)?.patch_status(&object.name_any(), &parameters, &patch).await;
    applied.map_err(|error| Error::api("write the status of", describe(object), error))
}

/// Makes the operator's finalizers of an object these, and answers with the object; others' stay. Fails with a conflict if
/// the object is no longer at the resourceVersion that is known, so that none is made anew.
///
/// # Errors
/// The API server.
pub async fn finalizers<K: Object>(client: &Client, object: &K, finalizers: &[&str]) -> Result<K, Error> {
    let mut body = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "resourceVersion": object.resource_version()},
    });
    if let Some(metadata) = body.get_mut("metadata").filter(|_| !finalizers.is_empty()) {
        metadata["finalizers"] = json!(finalizers);
    }
    let parameters = PatchParams::apply(MANAGER).force();
    let applied = api(client, object)?.patch(&object.name_any(), &parameters, &Patch::Apply(&body)).await;
    applied.map_err(|error| Error::api("write the finalizers of", describe(object), error))
}

/// Deletes an object and leaves what it owns; only this very one, not another of its name.
///
/// # Errors
/// The API server.
pub async fn orphan<K: Object>(client: &Client, object: &K) -> Result<(), Error> {
    let parameters = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api(client, object)?.delete(&object.name_any(), &parameters).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::api("delete", describe(object), error)),
        Ok(_) => Ok(()),
    }
}

/// The body to send: the object, with the digest of itself.
fn marked<K: Object>(desired: &K) -> Result<Value, Error> {
    let plain = serde_json::to_vec(desired).map_err(|source| convert(desired, source))?;
    let digest = blake3::hash(&plain).to_hex();
    let mut marked = desired.clone();
    let digest = digest.get(..16).unwrap_or_default().to_owned();
    marked.annotations_mut().insert(APPLIED_ANNOTATION.to_owned(), digest);
    serde_json::to_value(&marked).map_err(|source| convert(desired, source))
}

fn convert<K: Object>(object: &K, source: serde_json::Error) -> Error {
    Error::Convert { what: describe(object), source }
}
