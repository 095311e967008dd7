//! Who reaches the pods: anyone the git port, those whom the GitCache names the admin port, nobody anything else.
//!
//! Probes need no rule: a node always reaches its own pods. Without a name of Prometheus' namespace, which only the cluster's
//! owner knows, the admin port is open to all, and asks strangers itself. Policies only add, so no policy of the user's takes
//! back what this one allows. What pods reach is not limited either: upstreams may be anywhere.

use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{Validated, metadata, selector};

/// A label that no pod has: a policy that selects it is none. The operator has no right to delete NetworkPolicies.
const OFF: &str = "tarn.dev/network-policy-off";

pub(super) fn build(cache: &Validated) -> NetworkPolicy {
    let port = |name: &str| NetworkPolicyPort {
        port: Some(IntOrString::String(name.into())),
        protocol: Some("TCP".into()),
        end_port: None,
    };
    let rule = |ports: &[&str], from| NetworkPolicyIngressRule {
        ports: Some(ports.iter().map(|name| port(name)).collect()),
        from,
    };
    let ingress = match &cache.network_policy.metrics_from {
        None => vec![rule(&["git", "admin"], None)],
        // To Kubernetes, an empty list is everybody.
        Some(nobody) if nobody.is_empty() => vec![rule(&["git"], None)],
        Some(some) => vec![rule(&["git"], None), rule(&["admin"], Some(some.clone()))],
    };
    let mut pods: LabelSelector = selector(cache);
    if !cache.network_policy.enabled {
        pods.match_labels.get_or_insert_default().insert(OFF.into(), "true".into());
    }
    NetworkPolicy {
        metadata: metadata(cache, cache.name.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(ingress),
            egress: None,
        }),
    }
}
