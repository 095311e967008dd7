//! The store that pods publish to and restore from.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::SecretRef;

/// The store that pods publish to and restore from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.s3)").message("needs s3"))]
pub struct Store {
    /// A bucket of S3, or of anything that speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,
    /// Secret whose key `keys` holds the keys of this cache, one in each line: the first signs checkpoints and snapshots, all
    /// verify them. Pods restore and serve only what one of them signed. Absent: whoever can write to the bucket decides what
    /// new pods serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key_secret_ref: Option<SecretRef>,
    /// Keep the audit log in the bucket as well, in compressed batches below `audit/`. Defaults to false.
    #[serde(default)]
    pub audit: bool,
}

/// A bucket of S3, or of anything that speaks its protocol.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct S3 {
    /// Name of the bucket. It must exist.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$')")
        .message("must be the name of a bucket: 3 to 63 lower-case letters, digits, dots and dashes"))]
    pub bucket: String,
    /// What every key in the bucket starts with, without slashes at either end; by default NAMESPACE/NAME of the GitCache.
    /// An empty prefix is the bucket itself. Caches that share bucket and prefix share their checkpoints; do that only where
    /// each may see the other's mirrors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    #[x_kube(validation = Rule::new("self == '' || self.matches('^[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*$') && !self.matches('(^|/)[.][.]?(/|$)')")
        .message("must be letters, digits and . _ = - in segments between single slashes, none of them . or .."))]
    pub prefix: Option<String>,
    /// URL of another service than AWS's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?/?$')")
        .message("must be http:// or https:// and a host, perhaps a port; credentials belong in the Secret of secretRef"))]
    pub endpoint: Option<String>,
    /// Region of the bucket. Absent: what the pod's environment says, else us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9-]+$')").message("must be the name of a region such as eu-central-1"))]
    pub region: Option<String>,
    /// Put the bucket's name into the path instead of the host name, as most services but AWS's need.
    #[serde(default)]
    pub force_path_style: bool,
    /// Secret with `accessKeyID` and `secretAccessKey` (and perhaps `sessionToken`). Absent: the pod's own identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}
