//! `GitMirror`: one upstream repository, as its user wants it mirrored.
//!
//! The rules about `url` are CEL and never `pattern`: the API server's message about a pattern repeats the value,
//! which may hold a password. They say what `repo::UpstreamUrl::parse` says, as far as CEL can; a test compares them.

mod freshness;
mod limits;
mod refs;
mod status;
mod upkeep;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CacheRef, Duration, SecretRef, present};

pub use freshness::{Freshness, OnUpstreamFailure, OnUpstreamRefusal};
pub use limits::MirrorLimits;
pub use refs::Refs;
pub use status::{CheckpointStatus, GitMirrorStatus, Head, SnapshotStatus};
pub use upkeep::{CheckpointPolicy, DeletionPolicy, Prewarm, SnapshotPolicy};

/// What a user wants mirrored, and how.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "tarn.dev",
    version = "v1alpha1",
    kind = "GitMirror",
    namespaced,
    doc = "A mirror of one upstream git repository, kept fresh and served inside the cluster.",
    status = "GitMirrorStatus",
    derive = "PartialEq",
    shortname = "gm",
    category = "tarn",
    selectable = ".spec.url",
    selectable = ".spec.cacheRef.name",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the mirror is served and fresh."
    ),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = ".status.pods",
        description = "Pods that serve this mirror from their disk, of those that should."
    ),
    printcolumn(
        name = "Head",
        type_ = "string",
        json_path = ".status.revision",
        description = "Default branch and its commit."
    ),
    printcolumn(
        name = "Checked",
        type_ = "date",
        json_path = ".status.lastCheckTime",
        description = "Age of the last look at the upstream: how fresh the mirror is."
    ),
    printcolumn(
        name = "Snapshot",
        type_ = "date",
        json_path = ".status.snapshot.time",
        description = "Age of the archive that clients download."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Fetched",
        type_ = "date",
        json_path = ".status.lastFetchTime",
        description = "Age of the last fetch.",
        priority = 1
    ),
    printcolumn(
        name = "Checkpoint",
        type_ = "date",
        json_path = ".status.checkpoint.time",
        description = "Age of the copy in the store that new pods restore.",
        priority = 1
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.size",
        description = "Size on one pod's disk.",
        priority = 1
    ),
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.url", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What there is to know about Ready.",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.secretRef) || !self.url.startsWith('file://')")
    .message("a file:// upstream takes no secretRef").field_path(".secretRef"))]
#[x_kube(validation = Rule::new("!has(self.access) || self.access != 'Upstream' || self.url.startsWith('http')")
    .message("Upstream needs an https or http url: git's ssh credentials never reach Tarn").field_path(".access"))]
pub struct GitMirrorSpec {
    /// The upstream repository: an absolute https, http or ssh URL (file only where the agent is told to allow it),
    /// without credentials, query or fragment. Host and path are the repository's identity; `.git` at the end makes no
    /// difference. Immutable.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^((https?|ssh)://[^/]+|file://)/+[^/]')")
        .message("must be an absolute https, http, ssh or file URL with a path; git@host:org/repo is written ssh://git@host/org/repo"))]
    #[x_kube(validation = Rule::new("!self.matches('^https?://[^/]*@') && !self.matches('^ssh://[^/]*:[^/]*@')")
        .message("must not contain credentials; put them in a Secret and name it in spec.secretRef"))]
    #[x_kube(validation = Rule::new(r"self.matches('^[!-~]*$') && !self.matches('[?#\\\\]')")
        .message("must not contain a query, a fragment, a backslash, spaces, control characters or anything outside ASCII"))]
    #[x_kube(validation = Rule::new(r"self.matches('^file://') || self.matches('^[a-z]+://([A-Za-z0-9._][A-Za-z0-9._-]*@)?([A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*|\\[[0-9A-Fa-f:.]+\\])(:0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?(/|$)')")
        .message("must name a valid host and, if any, a port from 1 to 65535"))]
    #[x_kube(validation = Rule::new("!self.matches('^[a-z]+://[^/]*/(.*/)?([.][.]?([.]git)?/*$|[.][.]?/|/+[^/])')")
        .message("must not contain empty path segments or the segments . and .."))]
    #[x_kube(validation = Rule::new("!self.matches('^[a-z]+://[^/]*/(.*/)?([^/]*[.]git(/+[^/]|[.]git/*$)|[.]git/*$)')")
        .message("must not have a path segment that ends in .git before the end, or a repository named .git"))]
    #[x_kube(validation = Rule::new("!self.matches('%([^0-9A-Fa-f]|.[^0-9A-Fa-f]|.?$)') && !self.matches('(?i)%(2f|5c|2e|0.|1.|7f)')")
        .message("must percent-encode with two hexadecimal digits, and neither slashes, backslashes, dots nor control characters"))]
    #[x_kube(validation = Rule::new("self.split('/').all(segment, segment.size() <= 251) && (self.split('/').size() < 4 || self.split('/', 4)[3].size() <= 516)")
        .message("must have at most 251 characters in a path segment and 512 in the whole path"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("is immutable; create another GitMirror"))]
    pub url: String,
    /// The GitCache, in the same namespace, whose pods serve this mirror. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("is immutable; create another GitMirror"))]
    pub cache_ref: CacheRef,
    /// How often to look at the upstream and fetch in the background, with up to 10 % of jitter. Requests look for
    /// themselves, so this bounds what the first of them has to wait for. At least 10s.
    #[serde(default = "default_interval")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')").message("must be at least 10s"))]
    pub interval: Duration,
    /// How long one fetch or clone may take before it is stopped and tried again. At least 10s.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s')").message("must be at least 10s"))]
    pub timeout: Duration,
    /// Stop looking, fetching and publishing. What is on disk stays served, as it is.
    #[serde(default)]
    pub suspend: bool,
    /// Secret with the credentials for the upstream: `username` and `password`, or `bearerToken`, or `identity` and
    /// `known_hosts`, or `githubAppID`, `githubAppInstallationID` and `githubAppPrivateKey` (with `githubAppBaseURL` where
    /// the API is not at its usual place); and `ca.crt`. It is used only if it carries the label `tarn.dev/credentials=true` and its annotation `tarn.dev/hosts` lists the upstream, such as `github.com/org/*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Which refs are mirrored. HEAD always is.
    #[serde(default)]
    pub refs: Refs,
    /// How old an answer about refs may be, and what to answer when the upstream is down.
    #[serde(default)]
    pub freshness: Freshness,
    /// The copy of the mirror in the store: what a new pod restores.
    #[serde(default)]
    pub checkpoint: CheckpointPolicy,
    /// The archive of worktree and .git that clients download instead of cloning.
    #[serde(default)]
    pub snapshot: SnapshotPolicy,
    /// What the mirror may take of a pod's disk.
    #[serde(default)]
    pub limits: MirrorLimits,
    /// Whether a new pod restores this mirror before anyone asks for it. Always: before all others. Auto: if it is among
    /// the most cloned of its GitCache. Never: only when asked for.
    #[serde(default)]
    pub prewarm: Prewarm,
    /// Who may read the mirror. Anonymous: anyone who reaches the port. Authenticated: anyone with a token of the
    /// GitCache's auth.tokensSecretRef. RBAC: anyone whose Kubernetes token may `get` the subresource `clone` of this GitMirror. Upstream: anyone
    /// whose own credentials the upstream accepts. By default Anonymous without a secretRef and RBAC with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "present::<Access>")]
    pub access: Option<Access>,
    /// What happens to the mirror's objects in the store when this GitMirror is deleted. Retain: they stay, and a
    /// GitMirror of the same URL starts from them. Delete: the GitMirror stays until an agent has deleted them, ten minutes
    /// at most.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

const INTERVAL: Duration = Duration::written("15m", 15 * 60);
const TIMEOUT: Duration = Duration::written("30m", 30 * 60);

fn default_interval() -> Duration {
    INTERVAL
}

fn default_timeout() -> Duration {
    TIMEOUT
}

/// Who may read a mirror.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Anyone who reaches the port.
    Anonymous,
    /// Anyone with a token of the GitCache's `auth.tokensSecretRef`.
    Authenticated,
    /// Anyone whose Kubernetes token may `get` the subresource `clone` of this GitMirror.
    #[serde(rename = "RBAC")]
    Rbac,
    /// Anyone whose own credentials the upstream accepts for this repository.
    Upstream,
}

impl Access {
    /// The value as it stands in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "Anonymous",
            Self::Authenticated => "Authenticated",
            Self::Rbac => "RBAC",
            Self::Upstream => "Upstream",
        }
    }
}

impl GitMirrorSpec {
    /// A spec with every default, for a URL nobody has checked yet.
    pub fn for_url(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            cache_ref: CacheRef::default(),
            interval: INTERVAL,
            timeout: TIMEOUT,
            suspend: false,
            secret_ref: None,
            refs: Refs::default(),
            freshness: Freshness::default(),
            checkpoint: CheckpointPolicy::default(),
            snapshot: SnapshotPolicy::default(),
            limits: MirrorLimits::default(),
            prewarm: Prewarm::default(),
            access: None,
            deletion_policy: DeletionPolicy::default(),
        }
    }

    /// Who may read the mirror, the default worked out: what took a credential to fetch is not handed to strangers.
    pub fn effective_access(&self) -> Access {
        let default = if self.secret_ref.is_some() { Access::Rbac } else { Access::Anonymous };
        self.access.unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_with_credentials_is_not_anonymous_unless_said_so() {
        let mut spec = GitMirrorSpec::for_url("https://h/a");
        assert_eq!(spec.effective_access(), Access::Anonymous);
        spec.secret_ref = Some(SecretRef { name: "creds".into() });
        assert_eq!(spec.effective_access(), Access::Rbac);
        spec.access = Some(Access::Anonymous);
        assert_eq!(spec.effective_access(), Access::Anonymous);
    }

    #[test]
    fn for_url_has_the_defaults_of_an_empty_manifest() {
        let read: GitMirrorSpec = serde_json::from_value(serde_json::json!({"url": "https://h/a"})).unwrap();
        assert_eq!(read, GitMirrorSpec::for_url("https://h/a"));
    }

    #[test]
    fn literal_durations_mean_what_they_say() {
        let (freshness, checkpoint, snapshot) =
            (Freshness::default(), CheckpointPolicy::default(), SnapshotPolicy::default());
        for literal in [
            Duration::ZERO,
            INTERVAL,
            TIMEOUT,
            freshness.look_timeout,
            freshness.max_staleness,
            checkpoint.interval,
            snapshot.interval,
            snapshot.max_age,
        ] {
            assert_eq!(literal, literal.as_str().parse().unwrap());
        }
    }
}
