//! What clients may cost a pod.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::{Duration, Quantity};

/// What clients may cost each pod. A client is an address: it must be limited before anybody knows its name; behind a proxy,
/// all clients have the same.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections at once, 1 to 1000000. Without it, 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<i32>,
    /// Connections at once of one client, 1 to 1000000. Without it, 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections_per_client: Option<i32>,
    /// Requests under way at once, 1 to 1000000; more are answered with 503. Without it, 2048.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<i32>,
    /// Requests under way at once of one client, 1 to 1000000; more are answered with 429. Without it, 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests_per_client: Option<i32>,
    /// Bytes of answers a second to all clients, such as `500Mi`. Without it, as many as there can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('1Ki')) >= 0").message("must be at least 1Ki"))]
    pub max_bytes_per_second: Option<Quantity>,
    /// Bytes of answers a second to one client. Without it, as many as there can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('1Ki')) >= 0").message("must be at least 1Ki"))]
    pub max_bytes_per_second_per_client: Option<Quantity>,
    /// How long a client may be silent before a request is there, and take nothing of an answer, 1s to 1h. Without it, 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
        .message("must be from 1s to 1h"))]
    pub client_timeout: Option<Duration>,
}
