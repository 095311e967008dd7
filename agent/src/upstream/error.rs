//! Why a look gave no answer.

use std::time::Duration;

use http::StatusCode;

use super::{
    github_app::TokenError,
    http::{HttpError, Paused},
};
use crate::{
    git::{
        GitError,
        stderr::{FailureKind, plain},
    },
    protocol::{advertisement::AdvertisementError, ls_refs::LsRefsError},
};

/// Why a look gave no answer. The texts hold no secrets and go into status and answers.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// No answer, or not yet.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It wants other credentials, or any.
    #[error("the upstream refuses access (HTTP {0}): check the credentials in spec.secretRef")]
    Unauthorized(u16),
    /// No such repository, or not any more.
    #[error("the upstream has no such repository (HTTP {0}), or hides it without credentials")]
    NotFound(u16),
    /// It is elsewhere: on another host, or on another port of this one, to which no credentials follow.
    #[error("the upstream redirects to {to} (HTTP {status}): write that URL into spec.url")]
    Redirected {
        /// The HTTP status.
        status: u16,
        /// The repository's URL there.
        to: String,
    },
    /// Another HTTP error.
    #[error("the upstream answers HTTP {0}")]
    Status(u16),
    /// Not git's protocol: a web page, say.
    #[error("the upstream does not speak git's protocol: {0}")]
    NotGit(String),
    /// It speaks git, but says it cannot.
    #[error("{0}")]
    Refused(String),
    /// The credentials that the declaration names are missing, so the upstream is not asked.
    #[error("{0}")]
    NoCredentials(String),
    /// A GitHub App's installation has no token for the mirror.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A git command failed.
    #[error(transparent)]
    Git(#[from] GitError),
}

impl LookError {
    /// The refusal that a status means, if it means one: RFC 9110 and, for 451, RFC 7725. No other code has a list of such
    /// statuses, but that of git's messages, which a test compares with this one.
    pub(crate) fn refusal(status: StatusCode) -> Option<Self> {
        match status.as_u16() {
            status @ (401 | 403 | 451) => Some(Self::Unauthorized(status)),
            status @ (404 | 410) => Some(Self::NotFound(status)),
            _ => None,
        }
    }

    /// The kind of failure, whose code is the reason in status and metrics.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Http(error) => error.kind(),
            Self::Status(_) | Self::Redirected { .. } => FailureKind::Status,
            Self::Unauthorized(_) => FailureKind::Unauthorized,
            Self::NoCredentials(_) => FailureKind::Credentials,
            Self::NotFound(_) => FailureKind::NotFound,
            Self::NotGit(_) => FailureKind::NotGit,
            Self::Refused(_) => FailureKind::Other,
            Self::Token(error) => error.kind,
            Self::Git(error) => error.kind(),
        }
    }
}

impl LookError {
    /// Whether the same look may succeed at once: not where the upstream has said what it thinks.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Http(HttpError::Network(_)) | Self::NotGit(_) => true,
            Self::Status(status) => *status >= 500,
            Self::Http(_) | Self::Unauthorized(_) | Self::NotFound(_) | Self::Redirected { .. } => false,
            Self::Refused(_) | Self::NoCredentials(_) | Self::Token(_) | Self::Git(_) => false,
        }
    }
}

impl From<AdvertisementError> for LookError {
    fn from(error: AdvertisementError) -> Self {
        match error {
            AdvertisementError::Remote(_) => Self::Refused(plain(&error.to_string())),
            _ => Self::NotGit(plain(&error.to_string())),
        }
    }
}

impl From<LsRefsError> for LookError {
    fn from(error: LsRefsError) -> Self {
        match error {
            LsRefsError::Remote(_) => Self::Refused(plain(&error.to_string())),
            _ => Self::NotGit(plain(&error.to_string())),
        }
    }
}

impl LookError {
    /// For how long the upstream asks to be left alone, if it does.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Self::Http(HttpError::Paused(paused)) => Some(paused.left),
            _ => None,
        }
    }
}

impl From<Paused> for LookError {
    fn from(paused: Paused) -> Self {
        Self::Http(paused.into())
    }
}

impl From<reqwest::Error> for LookError {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::stderr::classify;

    #[test]
    fn what_refuses_over_http_refuses_when_git_tells_of_it() {
        let refuses = |code: &u16| {
            let error = LookError::refusal(StatusCode::from_u16(*code).unwrap());
            let text =
                format!("fatal: unable to access 'http://h/x/': The requested URL returned error: {code}");
            assert_eq!(error.is_some(), classify("fetch", &text).is_refusal(), "{code}");
            error.inspect(|error| assert!(error.kind().is_refusal(), "{code}")).is_some()
        };
        assert_eq!((400..600).filter(refuses).collect::<Vec<_>>(), [401, 403, 404, 410, 451]);
    }
}
