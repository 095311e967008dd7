//! Removes what pods that are gone have said.
//!
//! An entry belongs to its pod's field manager. Applying nothing as that manager takes the entry away, and leaves nothing
//! of the manager behind.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tarn_crds::v1alpha1::GitMirror;

use crate::{context::Context, error::Error, ssa};

/// What each pod's field manager is called: this and the pod's name.
pub const MANAGER_PREFIX: &str = "tarn-agent.";

/// Removes the entries of `pods`, and answers with the mirror as it is then.
///
/// Each pod is asked for once more: it may have come up since the watch last told. The mirror's resourceVersion keeps an
/// entry that was written meanwhile.
///
/// # Errors
/// The API server; a conflict if the mirror changed.
pub async fn remove(mirror: GitMirror, pods: &[String], context: &Context) -> Result<GitMirror, Error> {
    let namespace = mirror.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let there = Api::<Pod>::namespaced(context.client.clone(), &namespace);
    let mut mirror = mirror;
    for pod in pods {
        let found = there.get_metadata_opt(pod).await;
        if found.map_err(|error| Error::api("read", format!("Pod {pod}"), error))?.is_some() {
            continue;
        }
        let body = json!({
            "apiVersion": GitMirror::api_version(&()),
            "kind": GitMirror::kind(&()),
            "metadata": {
                "name": mirror.name_any(),
                "resourceVersion": mirror.resource_version(),
            },
            "status": {},
        });
        let manager = format!("{MANAGER_PREFIX}{pod}");
        mirror = ssa::apply_status(&context.client, &mirror, &body, &manager).await?;
        tracing::info!(mirror = mirror.name_any(), pod, "what a departed pod said is removed");
    }
    Ok(mirror)
}
