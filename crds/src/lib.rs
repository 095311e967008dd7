//! The `tarn.dev` API: what users write, what Tarn answers in status, and how a repository is named.
//!
//! Nothing here touches a disk, a network or a clock: types, their schema, and pure functions over them.

pub mod allowed_hosts;
pub mod credentials;
#[cfg(feature = "crdgen")]
pub mod generate;
#[cfg(feature = "manifest")]
pub mod manifest;
pub mod repo;
#[cfg(feature = "api")]
pub mod schema;
#[cfg(feature = "api")]
pub mod summarize;
#[cfg(feature = "api")]
pub mod v1alpha1;

pub use credentials::{CREDENTIALS_LABEL, HOSTS_ANNOTATION};

/// The API group of every kind.
pub const GROUP: &str = "tarn.dev";

/// Writing a new value to this annotation of a GitMirror asks for a look at the upstream at once.
pub const REQUESTED_AT_ANNOTATION: &str = "tarn.dev/requestedAt";

/// Keeps a GitMirror with deletionPolicy Delete until its objects are gone from the store.
pub const STORE_FINALIZER: &str = "tarn.dev/store";

/// Every object that belongs to a GitCache, its pods and their Leases included, carries this label with its name.
pub const CACHE_LABEL: &str = "tarn.dev/cache";

/// The audience of the tokens by which a GitCache's agents prove themselves to each other; for nothing else.
pub const PEER_AUDIENCE: &str = "peers.tarn.dev";

/// The audience of callers' tokens for a GitCache that names none. Each GitCache has its own: none can use at another what its
/// callers show it.
pub fn audience(namespace: &str, cache: &str) -> String {
    format!("{cache}.{namespace}.{GROUP}")
}

/// The name of the ServiceAccount of a GitCache's agents.
pub fn agent_account(cache: &str) -> String {
    format!("{cache}-agent")
}

/// The name of a GitCache's headless Service, by whose EndpointSlices its pods find each other.
pub fn pods_service(cache: &str) -> String {
    format!("{cache}-pods")
}
