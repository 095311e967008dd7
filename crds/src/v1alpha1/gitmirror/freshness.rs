//! How old an answer may be.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::Duration;

/// How old an answer about refs may be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Freshness {
    /// Answer without asking the upstream if the last look at it is no older than this. The default, 0s, asks for every
    /// request; requests at the same time share one look.
    #[serde(default = "default_max_staleness")]
    pub max_staleness: Duration,
    /// How long one look at the upstream may take before onUpstreamFailure applies. At least 1s.
    #[serde(default = "default_look_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("must be at least 1s"))]
    pub look_timeout: Duration,
    /// What to answer when the upstream does not. ServeStale: the last known state, saying so in a header, a metric and
    /// the condition Stale. Fail: an error.
    #[serde(default)]
    pub on_upstream_failure: OnUpstreamFailure,
    /// What to answer when the upstream refuses access (HTTP 401, 403, 404, 410 or 451, or the same over ssh) in three
    /// checks over ten minutes. Fail: an error for every request, until a check succeeds. ServeStale: the same as during an
    /// outage, for a repository that Tarn shall serve after the upstream has removed it.
    #[serde(default)]
    pub on_upstream_refusal: OnUpstreamRefusal,
}

// git itself waits for 25 s of silence; five leave room for a second look within that.
const LOOK_TIMEOUT: Duration = Duration::written("5s", 5);

fn default_max_staleness() -> Duration {
    Duration::ZERO
}

fn default_look_timeout() -> Duration {
    LOOK_TIMEOUT
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            max_staleness: Duration::ZERO,
            look_timeout: LOOK_TIMEOUT,
            on_upstream_failure: OnUpstreamFailure::default(),
            on_upstream_refusal: OnUpstreamRefusal::default(),
        }
    }
}

/// What to answer when the upstream does not.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnUpstreamFailure {
    /// The last known state, saying so in a header, a metric and the condition Stale.
    #[default]
    ServeStale,
    /// An error.
    Fail,
}

/// What to answer when the upstream refuses access.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnUpstreamRefusal {
    /// An error for every request, until a check succeeds.
    #[default]
    Fail,
    /// The last known state, as during an outage.
    ServeStale,
}
