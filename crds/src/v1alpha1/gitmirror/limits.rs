//! What a mirror may take.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::Quantity;

/// What a mirror may take of a pod's disk.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MirrorLimits {
    /// The most bytes that the mirror's repository may take on a pod's disk, such as `20Gi`. A clone, fetch or restore that
    /// would take more is ended while it grows; what is there stays served. Absent: no limit but the disk's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))").message("must be above zero"))]
    pub max_bytes: Option<Quantity>,
}
