//! Who reaches the pods: anyone the git port, anyone the admin port, nobody anything else.
//!
//! Probes come from the node and metrics from a namespace that only the cluster's owner knows, so the admin port is not
//! limited here. Policies only add: none of the user's can, so docs/security.md says what it shows. What pods reach is not
//! limited either: upstreams may be anywhere.

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Validated, metadata, selector};

pub(super) fn build(cache: &Validated) -> NetworkPolicy {
    let port = |name: &str| NetworkPolicyPort {
        port: Some(IntOrString::String(name.into())),
        protocol: Some("TCP".into()),
        end_port: None,
    };
    let ingress = NetworkPolicyIngressRule { ports: Some(vec![port("git"), port("admin")]), from: None };
    NetworkPolicy {
        metadata: metadata(cache, cache.name.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(cache)),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![ingress]),
            egress: None,
        }),
    }
}
