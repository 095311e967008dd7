//! `GitCache`: a set of agent pods and what they share.

mod budget;
mod limits;
mod pods;
mod serving;
mod storage;
mod store;
mod upstreams;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::Duration;
use super::conditions::{pending, schema as conditions_schema};

pub use budget::{Budget, BudgetError, Disk};
pub use limits::Limits;
pub use pods::{Resources, Scheduling};
pub use serving::{Auth, CacheNetworkPolicy, Service, ServiceType, Tls, Webhooks};
pub use storage::{EmptyDir, Storage, VolumeClaim};
pub use store::{S3, Store};
pub use upstreams::Upstreams;

use pods::open_object;

/// A set of agent pods as a user wants it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tarn.dev",
    version = "v1alpha1",
    kind = "GitCache",
    namespaced,
    doc = "A set of agent pods that serve the GitMirrors of their namespace which name it.",
    status = "GitCacheStatus",
    derive = "PartialEq",
    shortname = "gc",
    category = "tarn",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new("self.metadata.name.size() <= 52")
        .message("name must be at most 52 characters: pods of a StatefulSet get a label of the name and 11 more, and a label has at most 63"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether all pods run as specified."
    ),
    printcolumn(name = "Pods", type_ = "string", json_path = ".status.pods", description = "Ready pods, of those wanted."),
    printcolumn(name = "Mirrors", type_ = "integer", json_path = ".status.mirrors", description = "GitMirrors that name this GitCache."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Warm", type_ = "string", json_path = ".status.warm", description = "GitMirrors ready on a pod, of those not left until somebody asks for them.", priority = 1),
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.store.s3.bucket", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What there is to know about Ready.",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct GitCacheSpec {
    /// How many agent pods, 0 to 100. Defaults to 2.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: i32,
    /// Image of the agent. Defaults to the one of the operator's own version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Resources of the agent's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Where a pod keeps its mirrors. Defaults to an emptyDir.
    #[serde(default)]
    pub storage: Storage,
    /// The store that pods publish to and restore from. Without one a new pod clones from the upstreams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    /// Which mirrors a new pod restores before anyone asks for them.
    #[serde(default)]
    pub prewarm: CachePrewarm,
    /// On how many pods each mirror is kept.
    #[serde(default)]
    pub placement: Placement,
    /// How much of a pod's disk mirrors may fill.
    #[serde(default)]
    pub disk: Disk,
    /// The Service that clients reach.
    #[serde(default)]
    pub service: Service,
    /// Serve over TLS. Without it Tarn serves plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How callers are known.
    #[serde(default)]
    pub auth: Auth,
    /// Who reaches the pods.
    #[serde(default)]
    pub network_policy: CacheNetworkPolicy,
    /// Hear webhooks of upstreams. Without it Tarn hears none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhooks: Option<Webhooks>,
    /// Which hosts the agents may ask. Without it, the upstreams of the GitMirrors, and public addresses where an upstream
    /// sends a request on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Upstreams>,
    /// What clients may cost each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How long answers under way may take to finish when a pod is told to stop, 0s to 1h. Without it, 25s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('1h')")
        .message("must be from 0s to 1h"))]
    pub drain: Option<Duration>,
    /// Where the pods may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<Scheduling>,
    /// Merged over the pod template that the operator builds, lists by their names: for what the fields above do not
    /// cover. The API server does not look into it; the operator reports what does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open_object")]
    pub pod_template: Option<serde_json::Value>,
}

fn default_replicas() -> i32 {
    2
}

/// Which mirrors a new pod restores before anyone asks for them.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CachePrewarm {
    /// Of the mirrors with `prewarm: Auto`, how many of the most cloned ones, 0 to 10000. Defaults to 20.
    #[serde(default = "default_most_cloned")]
    #[schemars(range(min = 0, max = 10_000))]
    pub most_cloned: i32,
    /// Over which time clones are counted. Defaults to 336h, two weeks. At least 1h.
    #[serde(default = "default_window")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1h')").message("must be at least 1h"))]
    pub window: Duration,
    /// How many mirrors one pod restores at a time, 1 to 64. Defaults to 2; mirrors that are asked for do not queue here.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: i32,
}

const WINDOW: Duration = Duration::written("336h", 336 * 60 * 60);

fn default_most_cloned() -> i32 {
    20
}

fn default_window() -> Duration {
    WINDOW
}

// One restore saturates a pod's network for most of its time; the second fills the gaps.
fn default_concurrency() -> i32 {
    2
}

impl Default for CachePrewarm {
    fn default() -> Self {
        Self { most_cloned: default_most_cloned(), window: WINDOW, concurrency: default_concurrency() }
    }
}

/// On how many pods each mirror is kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// On how many pods each mirror is kept; the others pass requests on to them. Absent, or more than there are pods:
    /// on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub replication: Option<i32>,
}

/// What is true of the cache now.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = pending()))]
pub struct GitCacheStatus {
    /// Generation of the spec that this status speaks of; -1 before the operator saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready; and, only while they hold, Reconciling, Stalled and InsecureTransport.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How many pods there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// How many pods are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Pods for people: ready and wanted, such as `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub pods: Option<String>,
    /// Label selector of the pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,
    /// How many GitMirrors name this GitCache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrors: Option<i32>,
    /// GitMirrors that at least one pod has ready on its disk, of those that are not left until somebody asks for them,
    /// for people: such as `18/20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub warm: Option<String>,
    /// What the pods found the store able to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_capabilities: Option<StoreCapabilities>,
}

/// What the pods found the store able to do when they started.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StoreCapabilities {
    /// Whether the store refuses to create an object that exists when asked to. Without it, publishing relies on a
    /// lease object in the store, which a paused pod can overrun.
    pub conditional_writes: bool,
    /// When this was found out.
    pub probe_time: Time,
    /// What was found, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

impl Default for GitCacheSpec {
    fn default() -> Self {
        Self {
            replicas: default_replicas(),
            image: None,
            resources: None,
            storage: Storage::default(),
            store: None,
            prewarm: CachePrewarm::default(),
            placement: Placement::default(),
            disk: Disk::default(),
            service: Service::default(),
            tls: None,
            auth: Auth::default(),
            network_policy: CacheNetworkPolicy::default(),
            webhooks: None,
            upstreams: None,
            limits: None,
            drain: None,
            scheduling: None,
            pod_template: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_an_empty_manifest_gives() {
        let read: GitCacheSpec = serde_json::from_value(serde_json::json!({})).unwrap();
        assert_eq!(read, GitCacheSpec::default());
        assert_eq!(WINDOW, WINDOW.as_str().parse().unwrap());
    }
}
