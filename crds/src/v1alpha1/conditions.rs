//! The conditions of GitMirror and GitCache: which there are, when each is present, and the reasons they give.
//!
//! Polarity: `Ready` is good when True. All others are bad or passing news, and are absent when there is none, so that
//! `kubectl describe` of a healthy object shows one line. Every condition carries the observedGeneration.

use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A type of condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// Always present; positive. GitMirror: at least one pod serves the mirror from its disk, and what it serves is as
    /// fresh as the user asked for. GitCache: all pods run as specified. Unknown until the operator has looked.
    Ready,
    /// Present (True) while something is under way or is being retried; neutral. kstatus: InProgress.
    Reconciling,
    /// Present (True) while nothing can go on before a person acts; negative, never together with Reconciling.
    /// kstatus: Failed.
    Stalled,
    /// GitMirror. Present (True) while a pod serves nothing of the mirror: the upstream refuses it, or no check with the
    /// present credentials has succeeded; negative. Takes Ready down.
    Withheld,
    /// GitMirror. Present (True) while a pod replaces a mirror that its disk damaged, and for an hour after a second
    /// damage of the same mirror; negative. Ready stays up while other pods serve.
    Damaged,
    /// GitMirror. Present (True) while the last fetch or look failed; negative. Takes Ready down.
    FetchFailed,
    /// GitMirror. Present (True) while answers rest on a look older than spec.freshness allows; negative. Takes Ready
    /// down.
    Stale,
    /// GitMirror. Present (True) while a pod could not restore the newest checkpoint; negative. Ready stays up while
    /// other pods serve: an older checkpoint or a clone takes its place.
    RestoreFailed,
    /// Present (True) while checkpoints or snapshots cannot be published; negative. Ready stays up: serving does not
    /// need the store.
    StoreFailed,
    /// Present (True) while callers' tokens travel unencrypted: the GitCache has no TLS, and the mirror's access is not
    /// Anonymous; negative. Ready stays up. GitCache: one of its GitMirrors is such a mirror.
    InsecureTransport,
}

impl ConditionType {
    /// Every type, in the order in which status lists them.
    pub const ALL: [Self; 10] = [
        Self::Ready,
        Self::Reconciling,
        Self::Stalled,
        Self::Withheld,
        Self::Damaged,
        Self::FetchFailed,
        Self::Stale,
        Self::RestoreFailed,
        Self::StoreFailed,
        Self::InsecureTransport,
    ];

    /// The type as it stands in status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Withheld => "Withheld",
            Self::Damaged => "Damaged",
            Self::FetchFailed => "FetchFailed",
            Self::Stale => "Stale",
            Self::RestoreFailed => "RestoreFailed",
            Self::StoreFailed => "StoreFailed",
            Self::InsecureTransport => "InsecureTransport",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Declares the reasons once: the enum, their names, and the list of all.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Why a condition is as it is; also the reason of Events, and the label of error metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason as it stands in status.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    /// Ready Unknown: nobody has looked at the object yet.
    Pending,
    /// Ready True: served, and as fresh as asked for; or all pods run as specified.
    Serving,
    /// Ready True: no pod has it on its disk, and none is to before somebody asks for it; requests are passed on.
    OnDemand,
    /// Ready True or False: spec.suspend is set; what is on disk is served as it is.
    Suspended,
    /// Ready False: there are no pods to serve, because none are wanted.
    NoPods,
    /// Ready False, Reconciling: pods are starting, or have not reported yet.
    WaitingForPods,
    /// Reconciling: the GitCache's pods are being replaced, one after another.
    RollingOut,
    /// Reconciling: the first clone from the upstream is under way.
    Cloning,
    /// Reconciling: a checkpoint is being restored from the store.
    Restoring,
    /// Reconciling: data is on disk, and its first look and fetch are under way.
    CatchingUp,
    /// Reconciling: something failed and is being tried again; the condition of that name says what.
    Retrying,

    /// Stalled: spec.url names no repository that Tarn can mirror.
    InvalidUrl,
    /// Stalled: another GitMirror of the cache names the same repository.
    DuplicateUrl,
    /// Stalled: spec.url is on a host that the GitCache's spec.upstreams.allowedHosts does not name. FetchFailed: the
    /// upstream's name, or its answer, leads to an address that agents may not ask.
    UpstreamNotAllowed,
    /// Stalled: file URLs are allowed only where the agent is started so.
    FileUpstreamForbidden,
    /// Stalled: there is no GitCache of the name in spec.cacheRef.
    CacheNotFound,
    /// Stalled: there is no Secret of the name in a secretRef.
    SecretNotFound,
    /// Stalled: the Secret does not carry the label, or does not list the host, that would let Tarn use it.
    SecretNotAllowed,
    /// Stalled: the Secret holds no complete credential.
    SecretInvalid,
    /// Stalled: the access that the spec asks for needs what is not there, such as a cluster.
    AccessUnsupported,
    /// Stalled: the API server or the kubelet will not take what spec leads to.
    InvalidSpec,

    /// FetchFailed, Stale: no connection to the upstream.
    UpstreamUnreachable,
    /// FetchFailed, Stale: the upstream did not answer in time.
    UpstreamTimeout,
    /// FetchFailed, Stale: the upstream's certificate or host key is not trusted.
    UpstreamUntrusted,
    /// FetchFailed, Stale: the upstream refuses the credentials, or asks for some.
    AuthenticationFailed,
    /// FetchFailed, Stale: the upstream knows no such repository, or does not show it to these credentials.
    RepositoryNotFound,
    /// Withheld: the upstream has refused three checks over ten minutes, or the first one under this declaration.
    UpstreamRefuses,
    /// Withheld: what is there was fetched with other credentials, and no check with the present ones has succeeded.
    AccessUnproven,
    /// FetchFailed, Stale: the upstream asks for fewer requests.
    RateLimited,
    /// FetchFailed, Stale: the upstream answered with an error of its own.
    UpstreamError,
    /// FetchFailed, Stale: what the upstream answered is not git's protocol.
    ProtocolError,
    /// FetchFailed: git failed for a reason of which Tarn knows no more.
    GitFailed,
    /// FetchFailed: what was fetched does not verify.
    VerificationFailed,
    /// FetchFailed, RestoreFailed: the mirror would take more bytes than spec.limits.maxBytes.
    MirrorTooLarge,
    /// FetchFailed, RestoreFailed, StoreFailed: the pod's disk is full.
    DiskFull,
    /// Damaged: the files of the mirror on the pod's disk are damaged; the pod restores or clones the mirror again.
    MirrorDamaged,
    /// Damaged: the pod's disk damaged the same mirror again within an hour, or fails to read it.
    DiskFailing,
    /// Stale: the pods that serve the mirror have stopped reporting.
    PodsSilent,

    /// RestoreFailed: the newest checkpoint is incomplete or damaged, and was passed over.
    CheckpointDamaged,
    /// RestoreFailed, StoreFailed: no key of the cache signed what the store has, which was passed over.
    StoreUntrusted,
    /// StoreFailed: a worktree has too many files, too many bytes or too long paths for a snapshot.
    WorktreeTooLarge,
    /// RestoreFailed, StoreFailed: no connection to the store.
    StoreUnreachable,
    /// RestoreFailed, StoreFailed: the store refuses the credentials.
    StoreDenied,
    /// RestoreFailed, StoreFailed: the store answered with an error of its own.
    StoreError,

    /// InsecureTransport: the GitCache has no certificate.
    NoTls,

    /// An Event's only: a GitMirror is gone, and its objects are still in the store though spec.deletionPolicy is Delete.
    StoreLeft,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The status a new object gets from the schema, so that `kubectl wait` never takes silence for readiness.
pub(super) fn pending() -> Value {
    json!({
        "observedGeneration": -1,
        "conditions": [{
            "type": ConditionType::Ready.as_str(),
            "status": "Unknown",
            "reason": Reason::Pending.as_str(),
            "message": "Waiting for the operator",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }],
    })
}

/// `metav1.Condition` with the limits Kubernetes puts on its own: k8s-openapi's schema has none.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {
                    "type": "string",
                    "maxLength": 316,
                    "description": "Kind of condition, in CamelCase.",
                },
                "status": {
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                    "description": "True, False or Unknown.",
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "Generation of the spec that this condition speaks of.",
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When status last changed.",
                },
                "reason": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, in one CamelCase word.",
                },
                "message": {
                    "type": "string",
                    "maxLength": 32768,
                    "description": "Why, for people.",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn reasons_are_distinct_camel_case_words() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(
                name.starts_with(|c: char| c.is_ascii_uppercase())
                    && name.chars().all(|c| c.is_ascii_alphanumeric())
            );
        }
    }
}
