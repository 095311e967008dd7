//! One pod at a time may be evicted.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Validated, metadata, selector};

pub(super) fn build(cache: &Validated) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: metadata(cache, cache.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(cache)),
            // A pod that does not run serves nobody: it must not hold up the draining of a node.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
