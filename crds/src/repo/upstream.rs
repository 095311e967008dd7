//! `UpstreamUrl`: a checked URL that git may be given and anyone may print.

use std::fmt;
use std::str::FromStr;

use super::authority::Authority;
use super::{RepoId, RepoIdError, path};

/// How the upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Smart HTTP over TLS.
    Https,
    /// Smart HTTP in the clear.
    Http,
    /// The ssh transport.
    Ssh,
    /// A directory of the machine the agent runs on; only where the agent is told to allow it.
    File,
}

impl Scheme {
    /// The scheme as it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::File => "file",
        }
    }

    pub(super) fn default_port(self) -> Option<u16> {
        match self {
            Self::Https => Some(443),
            Self::Http => Some(80),
            Self::Ssh => Some(22),
            Self::File => None,
        }
    }
}

/// An upstream's URL: scheme, perhaps an ssh user, host, path; never a password, a query or a fragment.
///
/// `Debug` and `Display` print the whole of it, because there is nothing in it to hide.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UpstreamUrl {
    scheme: Scheme,
    text: String,
    id: RepoId,
}

impl UpstreamUrl {
    /// Parses an absolute https, http, ssh or file URL.
    ///
    /// The host's case, the scheme's own port and slashes at the end do not matter and are normalised away; the rest
    /// of the path stays as written, `.git` included, because some servers insist on it.
    pub fn parse(url: &str) -> Result<Self, RepoIdError> {
        let (scheme, rest) = split_scheme(url)?;
        if rest.contains(['?', '#']) {
            return Err(RepoIdError::Query);
        }
        if rest.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\') {
            return Err(RepoIdError::Control);
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RepoIdError::NotEncoded);
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let (user, authority) = parse_authority(scheme, authority)?;
        let id = RepoId { authority, path: path::canonical(path)? };
        let host = if scheme == Scheme::File { "" } else { id.host() };
        let text = format!("{}://{user}{host}/{path}", scheme.as_str());
        Ok(Self { scheme, text, id })
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The port, also where it is the scheme's own; a file URL has none.
    pub fn port(&self) -> Option<u16> {
        self.id.authority.port().or(self.scheme.default_port())
    }

    /// The URL to hand to git.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The repository's identity.
    pub fn id(&self) -> &RepoId {
        &self.id
    }

    /// The repository's identity, without the URL.
    pub fn into_id(self) -> RepoId {
        self.id
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamUrl({})", self.text)
    }
}

impl FromStr for UpstreamUrl {
    type Err = RepoIdError;

    fn from_str(url: &str) -> Result<Self, RepoIdError> {
        Self::parse(url)
    }
}

fn split_scheme(url: &str) -> Result<(Scheme, &str), RepoIdError> {
    let Some((scheme, rest)) = url.split_once("://") else {
        // git reads `host:path` as ssh when no slash comes before the colon.
        let scp = url.split_once(':').is_some_and(|(host, _)| !host.is_empty() && !host.contains('/'));
        return Err(if scp { RepoIdError::ScpLike } else { RepoIdError::Scheme });
    };
    let scheme = match scheme {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        "ssh" => Scheme::Ssh,
        "file" => Scheme::File,
        _ => return Err(RepoIdError::Scheme),
    };
    Ok((scheme, rest))
}

/// Splits off the ssh user (returned with its `@`) and parses the rest.
fn parse_authority(scheme: Scheme, text: &str) -> Result<(String, Authority), RepoIdError> {
    match (scheme, text.rsplit_once('@')) {
        (Scheme::File, _) if text.is_empty() => Ok((String::new(), Authority::parse("localhost", None)?)),
        (Scheme::File, _) => Err(RepoIdError::FileHost),
        (Scheme::Ssh, Some((user, host))) => {
            check_user(user)?;
            Ok((format!("{user}@"), Authority::parse(host, scheme.default_port())?))
        }
        (Scheme::Https | Scheme::Http, Some(_)) => Err(RepoIdError::Credentials),
        (_, None) => Ok((String::new(), Authority::parse(text, scheme.default_port())?)),
    }
}

/// An ssh user is part of how the server is addressed (`git@`), not a secret; a colon would start a password.
fn check_user(user: &str) -> Result<(), RepoIdError> {
    if user.contains(':') {
        return Err(RepoIdError::Credentials);
    }
    // A leading dash would reach ssh as an option.
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if user.is_empty() || user.starts_with('-') || !user.bytes().all(safe) {
        return Err(RepoIdError::User);
    }
    Ok(())
}
