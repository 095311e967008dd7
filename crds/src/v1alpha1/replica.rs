//! What one pod says of one mirror.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CheckpointStatus, SnapshotStatus, present};

/// What one agent pod holds of this mirror, written by that pod alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Name of the pod.
    #[schemars(length(min = 1, max = 253))]
    pub pod: String,
    /// UID of the pod: pod names recur, and an entry that another pod of this name left behind is ignored.
    #[serde(rename = "podUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// Where the mirror is in its life on this pod. Absent: nothing on disk. Restoring: from the store. Cloning: from the
    /// upstream. CatchingUp: data on disk, its first look and fetch not done. Ready; a fetch under way is told as Ready
    /// too, as it would double the writes. Backoff: restore or clone failed, another attempt follows. OnDemand: nothing on
    /// disk, and nothing brought before somebody asks this pod for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "present::<Phase>")]
    pub phase: Option<Phase>,
    /// Commit that HEAD names on this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub head: Option<String>,
    /// Full name of the branch that HEAD names on this pod; absent when HEAD is detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub head_ref: Option<String>,
    /// How many refs the mirror has on this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ref_count: Option<i64>,
    /// Digest over the names and objects of all refs on this pod; equal digests mean equal refs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub refs_digest: Option<String>,
    /// When this pod last looked at the upstream successfully. A lower bound: it is written at most every ten minutes
    /// unless something changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check_time: Option<Time>,
    /// When this pod last fetched successfully. A lower bound, as lastCheckTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fetch_time: Option<Time>,
    /// When the checkpoint that this pod last published or restored was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_time: Option<Time>,
    /// When the snapshot that this pod serves was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_time: Option<Time>,
    /// The newest checkpoint in the store that this pod knows of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// The newest snapshot in the store that this pod knows of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
    /// Size of the mirror on this pod's disk, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// What is wrong on this pod, the worst first; absent while nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub findings: Vec<ReplicaFinding>,
    /// The last value of the annotation `tarn.dev/requestedAt` that this pod acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub last_handled_requested_at: Option<String>,
    /// True once this pod has removed the mirror's objects from the store, where the mirror is being deleted and
    /// spec.deletionPolicy is Delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_removed: Option<bool>,
    /// What the pod is doing, or why it fails, for people. Never holds a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
}

/// Something that is wrong on one pod: the condition it makes true, and why.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ReplicaFinding {
    /// The condition: Stalled, Withheld, Damaged, Stale, FetchFailed, RestoreFailed or StoreFailed.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// Why, in one CamelCase word.
    #[schemars(length(max = 64))]
    pub reason: String,
}

impl Replica {
    /// An entry that says nothing yet but whose it is.
    pub fn new(pod: impl Into<String>, pod_uid: impl Into<String>) -> Self {
        Self {
            pod: pod.into(),
            pod_uid: Some(pod_uid.into()),
            phase: None,
            head: None,
            head_ref: None,
            ref_count: None,
            refs_digest: None,
            last_check_time: None,
            last_fetch_time: None,
            checkpoint_time: None,
            snapshot_time: None,
            checkpoint: None,
            snapshot: None,
            bytes: None,
            findings: Vec::new(),
            last_handled_requested_at: None,
            store_removed: None,
            message: None,
        }
    }
}

/// Where a mirror is in its life on one pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing is on disk and nothing is under way.
    Absent,
    /// A checkpoint is being restored from the store.
    Restoring,
    /// The first clone from the upstream is under way.
    Cloning,
    /// Data is on disk, but the first look and fetch since it came there are not done.
    CatchingUp,
    /// Data is on disk and was fresh at the last look.
    Ready,
    /// As Ready, with a fetch under way.
    Fetching,
    /// Restore or clone failed; another attempt follows.
    Backoff,
    /// Nothing is on disk, and nothing is brought before somebody asks for it here.
    OnDemand,
}

impl Phase {
    /// The phase as it stands in status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "Absent",
            Self::Restoring => "Restoring",
            Self::Cloning => "Cloning",
            Self::CatchingUp => "CatchingUp",
            Self::Ready => "Ready",
            Self::Fetching => "Fetching",
            Self::Backoff => "Backoff",
            Self::OnDemand => "OnDemand",
        }
    }

    /// Whether this pod can answer from its own disk, caught up since it got the data.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Fetching)
    }
}
