//! What to do after a step failed: one answer for logs and for the next attempt.

use std::time::Duration;

use kube::runtime::controller::Action;

/// Why a reconciliation ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object changed after it was read; what is newer arrives by the watch.
    #[error("{what} changed meanwhile")]
    Conflict {
        /// The object.
        what: String,
    },
    /// The API server did not do what was asked.
    #[error("cannot {verb} {what}")]
    Api {
        /// What was asked.
        verb: &'static str,
        /// Of which object.
        what: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The watches have ended, because the operator stops.
    #[error("the watches have ended")]
    Ended,
    /// An object has no name or no namespace, which the API server never lets happen.
    #[error("an object lacks {0}")]
    Incomplete(&'static str),
    /// An object cannot be written as JSON, or read back.
    #[error("cannot convert {what}")]
    Convert {
        /// The object.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A conflict is settled as soon as the watch has caught up.
const AFTER_CONFLICT: Duration = Duration::from_millis(500);
/// The API server is down or refuses; it is neither helped by haste nor are people by sloth.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

impl Error {
    /// Wraps an answer of the API server; conflicts are told apart.
    pub fn api(verb: &'static str, what: impl Into<String>, source: kube::Error) -> Self {
        match source {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict { what: what.into() },
            source => Self::Api { verb, what: what.into(), source: Box::new(source) },
        }
    }

    /// The label of metrics.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::Api { .. } => "api",
            Self::Ended | Self::Incomplete(_) | Self::Convert { .. } => "internal",
        }
    }

    /// When to try again.
    pub fn action(&self) -> Action {
        Action::requeue(match self {
            Self::Conflict { .. } => AFTER_CONFLICT,
            Self::Api { .. } | Self::Ended | Self::Incomplete(_) | Self::Convert { .. } => AFTER_FAILURE,
        })
    }

    /// Whether the API server refuses what it was sent as invalid, so that only a change of the spec helps; with its
    /// words.
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if matches!(status.code, 400 | 422) => Some(status.message.clone()),
                _ => None,
            },
            Self::Conflict { .. } | Self::Ended | Self::Incomplete(_) | Self::Convert { .. } => None,
        }
    }
}
