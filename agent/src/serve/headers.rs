//! Headers of this agent's own, and what is noted of an answer for the layers above.

use http::HeaderName;
use tarn_crds::repo::RepoId;

use crate::access::caller::Caller;

/// Marks a request that another agent hands on, with that agent's name.
pub const PROXIED_BY: HeaderName = HeaderName::from_static("tarn-proxied-by");

/// What the answer to such a request is worth: `warm`, `cold` or `failed`.
pub const PEER: HeaderName = HeaderName::from_static("tarn-peer");

/// The commit that is checked out; the name is cachew's, so that its clients work here too.
pub(super) const COMMIT: HeaderName = HeaderName::from_static("x-cachew-snapshot-commit");
/// Where what was pushed since is to be had.
pub(super) const BUNDLE: HeaderName = HeaderName::from_static("x-cachew-bundle-url");
/// Seconds since the snapshot was made.
pub(super) const AGE: HeaderName = HeaderName::from_static("tarn-snapshot-age");

/// Marks an answer whose HTTP status says nothing of the failure that its body tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told;

/// What a request turned out to be, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Its label in metrics.
    pub(super) label: &'static str,
    /// Whose it is, and of which repository.
    pub(super) of: Option<(RepoId, Caller)>,
    /// What the audit log calls it, where that is more than its label says.
    pub(super) what: Option<&'static str>,
    /// The objects, refs or locks that it is about.
    pub(super) wants: String,
}
