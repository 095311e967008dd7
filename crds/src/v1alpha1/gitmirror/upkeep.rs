//! What is kept of a mirror outside a pod's disk, and for how long.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::Duration;

/// The copy of the mirror in the store: what a new pod restores.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointPolicy {
    /// The shortest time between two checkpoints. None is made while no ref moves. At least 5s.
    #[serde(default = "default_checkpoint_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('5s')").message("must be at least 5s"))]
    pub interval: Duration,
    /// How many checkpoints to keep, 1 to 100: a new pod falls back to an older one when the newest is damaged.
    #[serde(default = "default_keep")]
    #[schemars(range(min = 1, max = 100))]
    pub keep: i32,
}

const CHECKPOINT_INTERVAL: Duration = Duration::written("10m", 10 * 60);
const KEEP: i32 = 3;

fn default_checkpoint_interval() -> Duration {
    CHECKPOINT_INTERVAL
}

fn default_keep() -> i32 {
    KEEP
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { interval: CHECKPOINT_INTERVAL, keep: KEEP }
    }
}

/// The archive of worktree and .git that clients download instead of cloning.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.maxAge) >= duration(self.interval)")
    .message(Message::Expression("'maxAge (' + self.maxAge + ') must not be shorter than interval (' + self.interval + ')'".into()))
    .field_path(".maxAge"))]
pub struct SnapshotPolicy {
    /// Build, find and serve no snapshot, bundle or archive of LFS objects. Those on the disks are removed.
    #[serde(default)]
    pub suspend: bool,
    /// The shortest time between two snapshots. None is made while HEAD does not move, up to maxAge. At least 10s.
    #[serde(default = "default_snapshot_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')").message("must be at least 10s"))]
    pub interval: Duration,
    /// A snapshot older than this is made anew even if HEAD did not move. Not shorter than interval.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
}

const SNAPSHOT_INTERVAL: Duration = Duration::written("1h", 60 * 60);
const MAX_AGE: Duration = Duration::written("24h", 24 * 60 * 60);

fn default_snapshot_interval() -> Duration {
    SNAPSHOT_INTERVAL
}

fn default_max_age() -> Duration {
    MAX_AGE
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self { suspend: false, interval: SNAPSHOT_INTERVAL, max_age: MAX_AGE }
    }
}

/// Whether a new pod restores a mirror before anyone asks for it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Prewarm {
    /// Before all others.
    Always,
    /// If it is among the most cloned of its GitCache; see the GitCache's spec.prewarm.
    #[default]
    Auto,
    /// Only when it is asked for.
    Never,
}

/// What happens to a mirror's objects in the store when its GitMirror is deleted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DeletionPolicy {
    /// They stay: a GitMirror of the same URL starts from them.
    #[default]
    Retain,
    /// They are deleted.
    Delete,
}
