//! Why a git command gave no result.

use std::{io, process::ExitStatus, time::Duration};

use super::stderr::{Culprit, FailureKind, classify_ended, plain, talks, telling_line};
use crate::files::is_full;

/// The oldest git that works: 2.39 is Debian 12's, what all figures were taken with; `cat-file -Z`,
/// `--refmap=` together with `--stdin` and MIDX bitmaps are all older.
pub const MINIMUM_VERSION: (u32, u32) = (2, 39);

/// How much a child whose whole output is wanted may print; 100,000 refs take 7.5 MB.
pub(super) const STDOUT_KEPT: u64 = 256 * 1024 * 1024;

/// Why a git command gave no result.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git.
    #[error("cannot run git ({source}): install git {}.{} or newer and put it on PATH", MINIMUM_VERSION.0, MINIMUM_VERSION.1)]
    Missing {
        /// What the operating system said.
        source: io::Error,
    },
    /// Git is too old, or says something else than its version.
    #[error("{found:?} is too old: install git {}.{} or newer and put it first on PATH", MINIMUM_VERSION.0, MINIMUM_VERSION.1)]
    TooOld {
        /// What `git --version` printed.
        found: String,
    },
    /// The process could not be started or talked to.
    #[error("cannot run git {verb}: {source}")]
    Io {
        /// The git command.
        verb: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Git ended with an error.
    #[error("git {verb} failed: {message}")]
    Failed {
        /// The git command.
        verb: String,
        /// What kind of failure the messages tell of.
        kind: FailureKind,
        /// The most telling line, redacted.
        message: String,
    },
    /// Git took too long and was ended.
    #[error("git {verb} took longer than {}s and was ended", limit.as_secs())]
    TimedOut {
        /// The git command.
        verb: String,
        /// How long it had.
        limit: Duration,
    },
    /// Git printed more than is kept: nobody takes a part for the whole.
    #[error("git {verb} printed more than {} MiB, which the agent does not read", STDOUT_KEPT >> 20)]
    TooMuch {
        /// The git command.
        verb: String,
    },
    /// Git showed no sign of life and was ended.
    #[error("git {verb} heard nothing from the upstream for {}s and was ended", silence.as_secs_f32())]
    Silent {
        /// The git command.
        verb: String,
        /// For how long there was none.
        silence: Duration,
    },
}

impl GitError {
    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Failed { kind, .. } => *kind,
            Self::TimedOut { .. } | Self::Silent { .. } => FailureKind::TimedOut,
            Self::Io { source, .. } if is_full(source) => FailureKind::Disk,
            Self::Io { .. } => FailureKind::Machine,
            Self::Missing { .. } | Self::TooOld { .. } | Self::TooMuch { .. } => FailureKind::Other,
        }
    }

    /// Where the cause lies. A command that talks to nobody and takes too long is slow here.
    pub fn culprit(&self) -> Culprit {
        match self {
            Self::TimedOut { verb, .. } if !talks(verb) => Culprit::Machine,
            _ => self.kind().culprit(),
        }
    }
}

/// The error that a child's exit status and standard error amount to.
pub fn failure(verb: &str, status: ExitStatus, stderr: &str) -> GitError {
    let message = match stderr.trim() {
        "" => status.to_string(),
        text => plain(telling_line(verb, text)),
    };
    GitError::Failed { verb: verb.to_owned(), kind: classify_ended(verb, status, stderr), message }
}
