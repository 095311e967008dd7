//! What is true of a mirror now. The operator writes all of it but `replicas`, whose entries are their pods' own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::conditions::{pending, schema as conditions_schema};
use crate::v1alpha1::{Access, Replica};

/// What is true of the mirror now.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = pending()))]
pub struct GitMirrorStatus {
    /// Generation of the spec that this status speaks of; -1 before the operator saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled; and, only while something is wrong, Withheld, Damaged, FetchFailed, Stale, RestoreFailed, StoreFailed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Who may read the mirror, the default worked out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// The upstream's HEAD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// HEAD for people: branch and abbreviated commit, such as `main@99f1ac04c1d2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 320))]
    pub revision: Option<String>,
    /// Pods for people: ready and desired, such as `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub pods: Option<String>,
    /// Size on one pod's disk for people, such as `1.2 GiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub size: Option<String>,
    /// How many refs the mirror has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ref_count: Option<i64>,
    /// Digest over the names and objects of all refs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub refs_digest: Option<String>,
    /// When a pod last looked at the upstream successfully. A lower bound: written on changes, else at most every ten
    /// minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check_time: Option<Time>,
    /// When a pod last fetched successfully. A lower bound, as lastCheckTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fetch_time: Option<Time>,
    /// The newest checkpoint in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// The newest snapshot in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
    /// One entry per pod, each written by its own pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pod".into()]))]
    pub replicas: Vec<Replica>,
    /// How many pods serve the mirror from their disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// How many pods should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// The last value of the annotation `tarn.dev/requestedAt` that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub last_handled_requested_at: Option<String>,
}

/// The upstream's HEAD.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Full name of the branch that HEAD names; absent when HEAD is detached.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub ref_: Option<String>,
    /// Commit that HEAD names; absent when the branch has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub sha: Option<String>,
}

/// A checkpoint in the store.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct CheckpointStatus {
    /// Number of the checkpoint; each is one more than the one before.
    pub generation: i64,
    /// When it was taken.
    pub time: Time,
    /// Size of all that a restore downloads, in bytes.
    pub bytes: i64,
}

/// A snapshot in the store.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SnapshotStatus {
    /// Commit that is checked out in it.
    #[schemars(length(max = 64))]
    pub commit: String,
    /// When it was made.
    pub time: Time,
    /// Size of the download, in bytes.
    pub bytes: i64,
    /// Digest of the download.
    #[schemars(length(max = 128))]
    pub digest: String,
}
