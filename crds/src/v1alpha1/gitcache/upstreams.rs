//! Which hosts agents may ask.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{
    allowed_hosts::{AllowedHostError, AllowedHosts},
    v1alpha1::patterns::HOST,
};

/// Which hosts the agents may ask.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Upstreams {
    /// Hosts that the agents may ask, 1 to 256: `github.com`, `git.corp.example:8443`, `*.corp.example`, `10.0.0.0/8`, or
    /// `*` for every host. GitMirrors of other hosts are Stalled, and Tarn follows no URL of an upstream's answer to another
    /// host. An entry also lets an upstream send Tarn to a private address.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 260), regex(pattern = HOST)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_hosts: Vec<String>,
}

impl Upstreams {
    /// The list that these entries make.
    ///
    /// # Errors
    /// Which entry is wrong, counted from 0, and why.
    pub fn list(&self) -> Result<AllowedHosts, (usize, AllowedHostError)> {
        AllowedHosts::parse(&self.allowed_hosts)
    }
}
