//! The token by which Tarn knows the caller: read from a file, or had from kubectl, whenever it is needed, because pods' tokens are
//! renewed and kubectl's are good for a short time.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::cli::TokenArgs;
use crate::git::Git;
use crate::kubectl::{KubectlError, ServiceAccount};
use crate::server::Server;

/// Where a pod has its token, if it was given one: the examples mount it there.
pub const IN_A_POD: &str = "/var/run/secrets/tarn.dev/token";

/// In git's configuration: the file,
pub const TOKEN_FILE: &str = "tarn.tokenFile";
/// or the service account,
pub const SERVICE_ACCOUNT: &str = "tarn.serviceAccount";
/// its namespace,
pub const NAMESPACE: &str = "tarn.namespace";
/// and whom its tokens are for.
pub const AUDIENCE_KEY: &str = "tarn.audience";

/// The longest token.
const MAX: u64 = 16 * 1024;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token of {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What it holds is none.
    #[error("{} holds no token: one word of ASCII is", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
    },
    /// kubectl.
    #[error(transparent)]
    Kubectl(#[from] KubectlError),
    /// What kubectl printed is none.
    #[error("kubectl printed no token: one word of ASCII is")]
    Printed,
    /// Nobody said where it is.
    #[error(
        "no token: give --token-file FILE or --service-account NAME, set TARN_TOKEN_FILE, or mount one at {IN_A_POD}"
    )]
    Unknown,
}

/// A token, which cannot be printed.
pub struct Token(String);

impl Token {
    /// The text, for where it must be sent.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Read { path: path.to_owned(), source };
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(MAX + 1).read_to_end(&mut text)).map_err(failed)?;
        let invalid = || TokenError::Invalid { path: path.to_owned() };
        let text = String::from_utf8(text).map_err(|_| invalid())?;
        Self::parse(&text).ok_or_else(invalid)
    }

    fn parse(text: &str) -> Option<Self> {
        let token = text.trim();
        let long = u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX;
        let fits = !token.is_empty() && !long && token.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(token.to_owned()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where a token is had from, whenever one is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// A service account, by way of kubectl.
    Account(ServiceAccount),
}

impl Origin {
    /// What is named by a flag or the variable, else by git's configuration, else a pod's file, if it is there. A flag that names
    /// a service account goes before a file.
    pub async fn find(args: &TokenArgs, git: &Git, server: &Server) -> Option<Self> {
        if let Some(name) = args.service_account.clone() {
            let namespace = args.namespace.clone();
            let audience = args.audience.clone().or_else(|| server.audience());
            return Some(Self::Account(ServiceAccount { name, namespace, audience }));
        }
        if let Some(given) = args.token_file.as_ref().filter(|path| !path.as_os_str().is_empty()) {
            return Some(Self::File(given.clone()));
        }
        let configured = async |asked: &[&str]| {
            let value = git.anywhere().args(["config"]).args(asked).run().await;
            value.ok().filter(|text| !text.is_empty())
        };
        if let Some(file) = configured(&["--type=path", "--get", TOKEN_FILE]).await {
            return Some(Self::File(file.into()));
        }
        if let Some(name) = configured(&["--get", SERVICE_ACCOUNT]).await {
            let namespace = configured(&["--get", NAMESPACE]).await;
            let audience = configured(&["--get", AUDIENCE_KEY]).await.or_else(|| server.audience());
            return Some(Self::Account(ServiceAccount { name, namespace, audience }));
        }
        Some(PathBuf::from(IN_A_POD)).filter(|path| path.exists()).map(Self::File)
    }

    /// A token, as it is now.
    ///
    /// # Errors
    /// The file cannot be read, kubectl makes none, or what there is is none.
    pub async fn token(&self) -> Result<Token, TokenError> {
        match self {
            Self::File(path) => Token::read(path),
            Self::Account(account) => {
                Token::parse(&account.request_token().await?).ok_or(TokenError::Printed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (text, fine) in [
            ("canary\n", true),
            ("canary", true),
            ("", false),
            ("\n", false),
            ("canary canary", false),
            ("canary\nusername=x", false),
        ] {
            std::fs::write(&path, text).unwrap();
            let read = Token::read(&path);
            assert_eq!(read.is_ok(), fine, "{text:?}");
            assert!(
                !format!("{read:?}").contains("canary")
                    && read.map_or_else(
                        |error| !error.to_string().contains("canary"),
                        |token| token.expose() == "canary"
                    )
            );
        }
    }
}
