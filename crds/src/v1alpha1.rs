//! `tarn.dev/v1alpha1`: the kinds, their parts, and the conditions they report.

#![expect(unreachable_pub, reason = "KubeSchema repeats each struct, `pub` and all, inside a function")]

mod duration;
mod quantity;
mod reference;

mod gitmirror;
mod replica;

mod gitcache;

pub mod conditions;

pub use duration::{Duration, DurationError};
pub use gitcache::{
    Auth, Budget, BudgetError, CachePrewarm, Disk, EmptyDir, GitCache, GitCacheSpec, GitCacheStatus,
    Placement, Resources, S3, Scheduling, Service, ServiceType, Storage, Store, StoreCapabilities, Tls,
    VolumeClaim,
};
pub use gitmirror::{
    Access, CheckpointPolicy, CheckpointStatus, DeletionPolicy, Freshness, GitMirror, GitMirrorSpec,
    GitMirrorStatus, Head, OnUpstreamFailure, Prewarm, RefEntry, Refs, SnapshotPolicy, SnapshotStatus,
};
pub use quantity::{Quantity, QuantityError};
pub use reference::{CacheRef, SecretRef};
pub use replica::{Phase, Replica};
