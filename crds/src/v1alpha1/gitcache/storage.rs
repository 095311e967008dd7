//! Where a pod keeps its mirrors.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::Quantity;

/// Where a pod keeps its mirrors: one of the two; an emptyDir if neither is set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.emptyDir) && has(self.volumeClaim))").message("set one of emptyDir and volumeClaim, not both"))]
#[x_kube(validation = Rule::new("has(self.volumeClaim) == has(oldSelf.volumeClaim)")
    .message("cannot change between emptyDir and volumeClaim; create another GitCache"))]
pub struct Storage {
    /// The node's own disk, emptied when the pod goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// A volume claim for each pod, kept while the pod restarts or the GitCache is scaled down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_claim: Option<VolumeClaim>,
}

/// The node's own disk.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDir {
    /// The kubelet evicts a pod that fills more than this. Absent: no limit but the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// A volume claim for each pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
    .message("storageClassName is immutable; create another GitCache").field_path(".storageClassName"))]
pub struct VolumeClaim {
    /// Size of each volume, such as `200Gi`. It may grow where the storage class allows that, and never shrinks.
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))").message("must be above zero"))]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0").message("a volume cannot shrink"))]
    pub size: Quantity,
    /// Storage class of the volumes. Absent: the cluster's default. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}
