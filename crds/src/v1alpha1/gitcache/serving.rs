//! How clients and webhooks reach the pods, and how they are told apart.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::SecretRef;

/// The Service that clients reach.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Kind of Service: ClusterIP (the default), NodePort or LoadBalancer.
    #[serde(rename = "type", default)]
    pub type_: ServiceType,
    /// Port of the Service, 1 to 65535. Defaults to 443 with tls and 80 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Annotations of the Service, for the load balancer of a cloud.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

/// Kind of Service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ServiceType {
    /// Reached from inside the cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Reached on a port of every node.
    NodePort,
    /// Reached through a load balancer of the cloud.
    LoadBalancer,
}

impl ServiceType {
    /// The value as it stands in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Serve over TLS.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Secret of type kubernetes.io/tls with `tls.crt` and `tls.key`; a renewed certificate is shown within about a minute.
    pub secret_ref: SecretRef,
}

/// Hear webhooks of upstreams.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Webhooks {
    /// Secret whose key `secret` holds what senders sign with, one in each line, so that a new one can be brought in beside
    /// the old one. A change takes effect within about a minute.
    pub secret_ref: SecretRef,
}

/// Who reaches the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CacheNetworkPolicy {
    /// Let pods and clients reach the git port and the admin port, and nothing else. Defaults to true; false leaves the pods to
    /// other NetworkPolicies.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Who reaches the admin port (probes, metrics, status), as `from` of a NetworkPolicy: Prometheus, above all. An empty list:
    /// nobody but the pods' own nodes, whose kubelets probe. Without it, everybody, and metrics then name only mirrors whose
    /// access is Anonymous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub metrics_from: Option<Vec<NetworkPolicyPeer>>,
}

fn yes() -> bool {
    true
}

impl Default for CacheNetworkPolicy {
    fn default() -> Self {
        Self { enabled: yes(), metrics_from: None }
    }
}

/// How callers are known, for mirrors whose access is Authenticated or RBAC.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// Audiences of which a Kubernetes token must name one, 1 to 8. Without them `NAME.NAMESPACE.tarn.dev`, of the GitCache's own
    /// name and namespace: no other GitCache accepts a token that this one was shown. Name none that the API server accepts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub audiences: Vec<String>,
    /// Secret whose key `tokens` lists the callers of mirrors with access Authenticated: a name, a blank and a token of
    /// 16 characters or more in each line. A change takes effect within about a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_secret_ref: Option<SecretRef>,
    /// Upstreams that get callers' credentials which do not say for which upstream they are, up to 64, written as in the
    /// annotation `tarn.dev/hosts`: `github.com/org/*`, `http://git.corp`. All others get only those whose user name is
    /// `USER@HOST`, because git offers what was typed for one upstream to all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub unbound_credentials_to: Vec<String>,
}
