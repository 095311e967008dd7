//! `RepoId`: the only mapping between a repository's URL, its HTTP route, its directory and its store prefix.
//!
//! A repository is its host and its path: `ssh://git@h/a/b.git`, `https://h/a/b` and the route `h/a/b` are one.
//! Host names ignore case. Paths do not: `h/Org/Repo` and `h/org/repo` are two repositories even where the
//! upstream thinks them one, because nothing but the upstream can know (a mirror too many beats a wrong one).
//!
//! Invariants: two ids are equal exactly when their directories are; a directory never leaves the root it is
//! joined to, and never lies inside another repository's directory; nothing here can hold a password, and no
//! error repeats any part of its input.

mod authority;
mod list;
mod path;
mod upstream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use authority::Authority;

pub use authority::host_and_port;
pub use list::{EntryProblem, InvalidEntry, UpstreamList};
pub use upstream::{Scheme, UpstreamUrl};

/// The longest canonical path, in bytes. An S3 key has at most 1,024, of which the host (255), the bucket prefix
/// and the object's own name need their share.
pub const MAX_PATH: usize = 512;

/// The longest path segment, in bytes: a file name on disk has at most 255, and the last one gets `.git`.
pub const MAX_SEGMENT: usize = 251;

/// The longest host name, in bytes: a file name on disk has at most 255, and a port adds `._65535`.
pub const MAX_HOST: usize = 248;

/// Names one upstream repository, whichever URL it was written as.
///
/// The path is kept in one canonical, percent-encoded form: ASCII letters, digits, `-`, `.`, `_` and `~` stand for
/// themselves, everything else is `%XX`. So an id is safe to print, to join to a directory and to put into a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoId {
    authority: Authority,
    path: String,
}

impl RepoId {
    /// Names the repository behind an upstream URL; see [`UpstreamUrl::parse`] for what is accepted.
    pub fn from_url(url: &str) -> Result<Self, RepoIdError> {
        UpstreamUrl::parse(url).map(UpstreamUrl::into_id)
    }

    /// Names the repository of an HTTP route: the part between `/git/` and the verb, still percent-encoded.
    ///
    /// `host[:port]/path…`, with or without `.git`. Stricter than a URL: a slash too many is an error.
    pub fn from_route(route: &str) -> Result<Self, RepoIdError> {
        let (authority, path) = route.split_once('/').ok_or(RepoIdError::NoPath)?;
        Ok(Self { authority: Authority::parse(authority, None)?, path: path::canonical(path)? })
    }

    /// Names the repository whose directory, relative to the root, is `dir`; only what [`Self::dir`] returns is accepted.
    pub fn from_dir(dir: &Path) -> Result<Self, RepoIdError> {
        let text = dir.to_str().ok_or(RepoIdError::NotUtf8)?;
        let (authority, path) = text.split_once('/').ok_or(RepoIdError::NoPath)?;
        let authority = Authority::from_dir(authority)?;
        let id = Self { authority, path: path::canonical(path)? };
        // Another spelling of the same path would be a second directory for one repository.
        if id.store_prefix() == text { Ok(id) } else { Err(RepoIdError::NotADirectory) }
    }

    /// The host in lower case, with its port unless that is the scheme's own: `github.com`, `git.corp:8443`.
    pub fn host(&self) -> &str {
        self.authority.as_str()
    }

    /// The host in lower case, without a port.
    pub fn hostname(&self) -> &str {
        self.authority.hostname()
    }

    /// The host and port as one word without a colon, as in [`Self::dir`]: `github.com`, `git.corp._8443`.
    pub fn host_word(&self) -> String {
        self.authority.dir()
    }

    /// The canonical path, without a leading slash and without `.git`: `org/repo`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory of this repository relative to the data root: `github.com/org/repo.git`.
    ///
    /// A port becomes a label of its own (`git.corp._8443`): colons separate paths in git's environment variables.
    pub fn dir(&self) -> PathBuf {
        PathBuf::from(self.store_prefix())
    }

    /// What the keys of this repository's objects start with, without the store's version and a closing slash.
    pub fn store_prefix(&self) -> String {
        format!("{}/{}.git", self.authority.dir(), self.path)
    }

    /// The part of Tarn's own URLs that names this repository; [`Self::from_route`] reads it back.
    pub fn route(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.authority.as_str(), self.path)
    }
}

/// Reads what `Display` wrote.
impl FromStr for RepoId {
    type Err = RepoIdError;

    fn from_str(text: &str) -> Result<Self, RepoIdError> {
        Self::from_route(text)
    }
}

/// Why a text names no repository. Carries no part of that text: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepoIdError {
    /// No scheme that Tarn speaks.
    #[error("must be an https://, http://, ssh:// or file:// URL")]
    Scheme,
    /// `git@host:org/repo`.
    #[error("is in the short form of ssh; write it as ssh://git@host/org/repo")]
    ScpLike,
    /// A user name or password.
    #[error("must not contain credentials; put them in a Secret and name it in spec.secretRef")]
    Credentials,
    /// The user name of an ssh URL could be taken for something else.
    #[error("has an ssh user that is not made of letters, digits, dots, dashes and underscores")]
    User,
    /// A file URL that names a host.
    #[error("is a file URL with a host; write file:/// and an absolute path")]
    FileHost,
    /// No valid host name.
    #[error("has no valid host name (letters, digits, dashes, dots; or an IPv6 address in brackets)")]
    Host,
    /// The host name is longer than [`MAX_HOST`].
    #[error("has a host name longer than {MAX_HOST} bytes")]
    HostTooLong,
    /// No valid port.
    #[error("has a port that is not a number from 1 to 65535")]
    Port,
    /// A host and nothing behind it.
    #[error("has no path after the host")]
    NoPath,
    /// A query or fragment.
    #[error("must not contain a query or a fragment")]
    Query,
    /// Two slashes in a row, or one at the end of a route.
    #[error("has an empty path segment (a slash too many)")]
    EmptySegment,
    /// `.` or `..`.
    #[error("must not contain the path segments . and ..")]
    DotSegment,
    /// A segment longer than [`MAX_SEGMENT`].
    #[error("has a path segment longer than {MAX_SEGMENT} bytes")]
    SegmentTooLong,
    /// A path longer than [`MAX_PATH`].
    #[error("has a path longer than {MAX_PATH} bytes")]
    PathTooLong,
    /// `%` without two hexadecimal digits.
    #[error("has a % that is not followed by two hexadecimal digits")]
    PercentEncoding,
    /// A slash, a backslash or a dot hidden by percent-encoding.
    #[error("must not percent-encode a slash, a backslash or a dot")]
    EncodedSeparator,
    /// A control character or a backslash.
    #[error("must not contain control characters or backslashes")]
    Control,
    /// A character that a URL must percent-encode.
    #[error("has a space or a character outside ASCII; percent-encode it")]
    NotEncoded,
    /// Bytes that are not UTF-8 once decoded.
    #[error("is not UTF-8 once percent-decoded")]
    NotUtf8,
    /// A segment ending in `.git` that is not the last, or ends so twice.
    #[error(
        "has a path segment that ends in .git before the end; such a repository cannot be kept apart from its parent"
    )]
    InnerGit,
    /// A directory Tarn would not have made.
    #[error("is not the directory of a repository")]
    NotADirectory,
}

#[cfg(test)]
mod tests;
