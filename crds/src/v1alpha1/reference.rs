//! References to other objects; always in the namespace of the one that refers.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Names a GitCache in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CacheRef {
    /// Name of the GitCache. Defaults to `default`.
    #[serde(default = "default_cache")]
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

fn default_cache() -> String {
    "default".into()
}

impl Default for CacheRef {
    fn default() -> Self {
        Self { name: default_cache() }
    }
}

/// Names a Secret in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
