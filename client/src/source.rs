//! What is to be cloned: the upstream's URL, its name in Tarn, and the password that was in it.
//!
//! The password leaves the URL here and goes nowhere but into the file that git's credential helper reads.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tarn_crds::repo::{RepoId, RepoIdError};

/// A repository to clone.
#[derive(Debug)]
pub struct Source {
    url: String,
    id: Result<RepoId, RepoIdError>,
    login: Option<Login>,
}

/// The user and password that stood in a URL. Cannot be printed.
pub struct Login {
    /// The scheme and host they were given for.
    scope: String,
    user: String,
    password: Option<String>,
}

/// Why a URL cannot be cloned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nothing to clone.
    #[error("the URL is empty")]
    Empty,
    /// Git would take it for an option.
    #[error("the URL starts with a dash")]
    Dash,
    /// Line breaks or other control characters, also when decoded.
    #[error("the URL has a control character")]
    Control,
    /// ssh asks for passwords itself.
    #[error("an ssh URL must not contain a password")]
    SshPassword,
    /// No directory can be named after it.
    #[error("the URL ends in nothing a directory could be named after; give the directory")]
    NoName,
}

impl Source {
    /// Takes a URL as `git clone` does, and takes the password out of it.
    ///
    /// # Errors
    /// Git could not clone from it either.
    pub fn parse(given: &str) -> Result<Self, SourceError> {
        if given.is_empty() {
            return Err(SourceError::Empty);
        }
        if given.starts_with('-') {
            return Err(SourceError::Dash);
        }
        if given.contains(char::is_control) {
            return Err(SourceError::Control);
        }
        let Some((scheme, rest)) = given.split_once("://") else {
            let id = RepoId::from_url(&scp_as_ssh(given).unwrap_or_else(|| given.to_owned()));
            return Ok(Self { url: given.to_owned(), id, login: None });
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let Some((login, host)) = authority.rsplit_once('@') else {
            return Ok(Self { url: given.to_owned(), id: RepoId::from_url(given), login: None });
        };
        if !matches!(scheme, "http" | "https") {
            if login.contains(':') {
                return Err(SourceError::SshPassword);
            }
            return Ok(Self { url: given.to_owned(), id: RepoId::from_url(given), login: None });
        }
        let scope = format!("{scheme}://{host}");
        let login = Login::parse(scope, login)?;
        let url = format!("{scheme}://{host}{path}");
        Ok(Self { id: RepoId::from_url(&url), url, login: Some(login) })
    }

    /// The URL without a password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The repository's name in Tarn.
    ///
    /// # Errors
    /// Tarn has no name for such a URL; git may still be able to clone it.
    pub fn id(&self) -> Result<&RepoId, RepoIdError> {
        self.id.as_ref().map_err(|error| *error)
    }

    /// The user and password that stood in the URL.
    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// The directory that `git clone` would make.
    ///
    /// # Errors
    /// The URL ends in nothing.
    pub fn directory(&self) -> Result<PathBuf, SourceError> {
        let path = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/.git").unwrap_or(path).trim_end_matches('/');
        let last = path.rsplit(['/', ':']).next().unwrap_or_default();
        let name = last.strip_suffix(".git").unwrap_or(last);
        if name.is_empty() || matches!(name, "." | "..") {
            return Err(SourceError::NoName);
        }
        Ok(PathBuf::from(name))
    }
}

/// `user@host:path` as the ssh URL that means the same repository; none for anything else.
fn scp_as_ssh(text: &str) -> Option<String> {
    let (host, path) = text.split_once(':')?;
    let remote = !host.is_empty() && !host.contains('/');
    remote.then(|| format!("ssh://{host}/{}", path.trim_start_matches('/')))
}

impl Login {
    fn parse(scope: String, text: &str) -> Result<Self, SourceError> {
        let decode = |part: &str| {
            let decoded = percent_decode_str(part).decode_utf8_lossy().into_owned();
            // A line break would add a line to what git's credential helper says.
            if decoded.contains(char::is_control) { Err(SourceError::Control) } else { Ok(decoded) }
        };
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (decode(user)?, Some(decode(password)?)),
            None => (decode(text)?, None),
        };
        Ok(Self { scope, user, password })
    }

    /// The scheme and host for which git may use it.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// What a credential helper answers; a secret.
    pub fn expose(&self) -> String {
        let password = self.password.as_ref().map(|password| format!("password={password}\n"));
        format!("username={}\n{}", self.user, password.unwrap_or_default())
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login(for {})", self.scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_named_as_tarn_names_it_and_its_directory_as_git_does() {
        for (given, id, directory) in [
            ("https://github.com/org/repo.git", Some("github.com/org/repo"), "repo"),
            ("https://github.com/org/repo/", Some("github.com/org/repo"), "repo"),
            ("git@github.com:org/repo.git", Some("github.com/org/repo"), "repo"),
            ("ssh://git@h:2222/a/b", Some("h:2222/a/b"), "b"),
            ("file:///srv/a.git", Some("localhost/srv/a"), "a"),
            ("../there", None, "there"),
            ("h:repo", Some("h/repo"), "repo"),
        ] {
            let source = Source::parse(given).unwrap();
            assert_eq!(source.id().ok().map(RepoId::route).as_deref(), id, "{given}");
            assert_eq!((source.url(), source.directory()), (given, Ok(PathBuf::from(directory))));
        }
        assert_eq!(Source::parse("https://h/").unwrap().directory(), Ok(PathBuf::from("h")));
    }

    #[test]
    fn a_password_leaves_the_url() {
        let source = Source::parse("https://ada:can%40ary@h:8443/a.git").unwrap();
        assert_eq!(source.url(), "https://h:8443/a.git");
        let login = source.login().unwrap();
        assert_eq!(login.scope(), "https://h:8443");
        assert_eq!(login.expose(), "username=ada\npassword=can@ary\n");
        assert!(!format!("{source:?}").contains("can"), "{source:?}");
        assert_eq!(Source::parse("https://token@h/a").unwrap().login().unwrap().expose(), "username=token\n");
    }

    #[test]
    fn what_git_would_misread_is_refused() {
        for (given, error) in [
            ("", SourceError::Empty),
            ("--upload-pack=x", SourceError::Dash),
            ("https://h/a\nb", SourceError::Control),
            ("https://u:a%0ab@h/a", SourceError::Control),
            ("ssh://git:pw@h/a", SourceError::SshPassword),
        ] {
            assert_eq!(Source::parse(given).unwrap_err(), error, "{given:?}");
        }
        assert_eq!(Source::parse("https:///").unwrap().directory(), Err(SourceError::NoName));
    }
}
