//! `tarn.dev/v1alpha1`: the kinds, their parts, and the conditions they report.

#![expect(unreachable_pub, reason = "KubeSchema repeats each struct, `pub` and all, inside a function")]
#![expect(clippy::duplicated_attributes, reason = "clippy takes the fields of two printer columns for one")]

mod duration;
mod quantity;
mod reference;

mod gitmirror;
mod replica;

mod gitcache;

pub mod conditions;

#[cfg(test)]
mod rules;

pub use duration::{Duration, DurationError};
pub use gitcache::{
    Auth, Budget, BudgetError, CacheNetworkPolicy, CachePrewarm, Disk, EmptyDir, GitCache, GitCacheSpec,
    GitCacheStatus, Limits, Placement, Resources, S3, Scheduling, Service, ServiceType, Storage, Store,
    StoreCapabilities, Tls, Upstreams, VolumeClaim, Webhooks,
};
pub use gitmirror::{
    Access, CheckpointPolicy, CheckpointStatus, DeletionPolicy, Freshness, GitMirror, GitMirrorSpec,
    GitMirrorStatus, Head, OnUpstreamFailure, OnUpstreamRefusal, Prewarm, Refs, SnapshotPolicy,
    SnapshotStatus,
};
pub use quantity::{Quantity, QuantityError};
pub use reference::{CacheRef, SecretRef};
pub use replica::{Phase, Replica, ReplicaFinding};

/// The schema of `T` for a field that may be absent: of an optional enum, kube would drop what the field's own
/// documentation says.
fn present<T: schemars::JsonSchema>(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<T>()
}

/// Patterns in the schema, named so that their meaning can be put in words.
pub(crate) mod patterns {
    pub(crate) const DURATION: &str = "^([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$";
    pub(crate) const QUANTITY: &str =
        r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]{1,2}))?$";
    pub(crate) const HOST: &str = concat!(
        r"^(\*|(\*\.)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?(:[0-9]{1,5})?|[0-9.]+/[0-9]{1,2}|",
        r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/[0-9]{1,3})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?)$"
    );
    pub(crate) const REF: &str = r"^refs/[^\s]+$";
}
