//! The token by which Tarn knows the caller: read from a file, whenever it is needed, because pods' tokens are renewed.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::git::Git;

/// Where a pod has its token, if it was given one: the examples mount it there.
pub const IN_A_POD: &str = "/var/run/secrets/tarn.dev/token";

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
    /// Nobody said where it is.
    #[error("no token: give --token-file FILE, set TARN_TOKEN_FILE, or mount one at {IN_A_POD}")]
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
        let token = text.trim();
        let long = u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX;
        if token.is_empty() || long || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid());
        }
        Ok(Self(token.to_owned()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The file that is named by the flag or the variable, else by `git config tarn.tokenFile`, else a pod's, if it is there.
pub async fn file(given: Option<&Path>, git: &Git) -> Option<PathBuf> {
    if let Some(given) = given.filter(|path| !path.as_os_str().is_empty()) {
        return Some(given.to_owned());
    }
    let configured = git.anywhere().args(["config", "--type=path", "--get", "tarn.tokenFile"]).run().await;
    let configured = configured.ok().filter(|text| !text.is_empty()).map(PathBuf::from);
    configured.or_else(|| Some(PathBuf::from(IN_A_POD)).filter(|path| path.exists()))
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
