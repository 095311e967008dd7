//! Callers whose tokens stand in a file, one a line: a name, blanks, the token. The file is read again when it changes.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use crate::files;

/// The longest file: ten thousand tokens.
const MAX_FILE: u64 = 1 << 20;

/// The shortest token: what is shorter can be guessed.
const MIN_TOKEN: usize = 16;

/// Why a file of tokens cannot be used. Names lines, never what stands there.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A line.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The callers as the file has them now.
pub struct Tokens {
    path: PathBuf,
    key: [u8; 32],
    known: RwLock<Arc<[Known]>>,
}

struct Known {
    name: String,
    hash: blake3::Hash,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or a line makes no sense.
    pub fn open(path: &Path) -> Result<Arc<Self>, TokensError> {
        let tokens = Self { path: path.to_owned(), key: rand::random(), known: RwLock::new(Arc::new([])) };
        let text = files::read_bounded(path, MAX_FILE)
            .map_err(|source| TokensError::Read { path: path.to_owned(), source })?;
        tokens.take(&text)?;
        Ok(Arc::new(tokens))
    }

    /// Reads the file again whenever it changes, for ever. One that cannot be used leaves all as it was.
    pub async fn follow(self: Arc<Self>) {
        let path = self.path.clone();
        files::follow(&path, MAX_FILE, |text| match self.take(text) {
            Ok(()) => tracing::info!(path = %self.path.display(), "the callers' tokens have changed"),
            Err(error) => tracing::warn!(%error, "the callers' tokens stay as they were"),
        })
        .await;
    }

    /// The name of the caller whose token this is. It takes as long whichever it is, and whether it is any: hashes are
    /// compared, in constant time, with all of them.
    pub fn find(&self, token: &str) -> Option<String> {
        let hash = blake3::keyed_hash(&self.key, token.as_bytes());
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = None;
        for one in known.iter() {
            if one.hash == hash {
                found = Some(&one.name);
            }
        }
        found.cloned()
    }

    fn take(&self, text: &[u8]) -> Result<(), TokensError> {
        let text = String::from_utf8_lossy(text);
        let mut known = Vec::new();
        let mut seen = BTreeSet::new();
        for (line, text) in (1..).zip(text.lines()) {
            let wrong = |problem| TokensError::Line { path: self.path.clone(), line, problem };
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (name, token) = text
                .split_once([' ', '\t'])
                .map(|(name, token)| (name, token.trim()))
                .ok_or_else(|| wrong("write a name, a blank and the token"))?;
            if token.contains(|c: char| c.is_whitespace() || c.is_control()) || !token.is_ascii() {
                return Err(wrong("the token must be one word of ASCII"));
            }
            if token.len() < MIN_TOKEN {
                return Err(wrong("the token is shorter than 16 characters, and could be guessed"));
            }
            let hash = blake3::keyed_hash(&self.key, token.as_bytes());
            if !seen.insert(*hash.as_bytes()) {
                return Err(wrong("the token stands in an earlier line already"));
            }
            known.push(Known { name: name.to_owned(), hash });
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Arc<Tokens>, TokensError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        Tokens::open(&path)
    }

    #[test]
    fn a_token_names_its_caller() {
        let tokens = open("# callers\n\nci  0123456789abcdef\nbot\tfedcba9876543210\n").unwrap();
        assert_eq!(tokens.find("0123456789abcdef").as_deref(), Some("ci"));
        assert_eq!(tokens.find("fedcba9876543210").as_deref(), Some("bot"));
        for wrong in ["", "0123456789abcde", "0123456789abcdef ", "ci"] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_bad_line_is_named_without_its_token() {
        for text in [
            "canary-without-a-name",
            "ci canary",
            "ci canary canary-canary-canary",
            "# fine\nci kanarienvögel-canary-canary",
        ] {
            let error = open(text).map(drop).unwrap_err().to_string();
            assert!(error.contains("line") && !error.contains("canary"), "{error}");
        }
        let twice = "a 0123456789abcdef\nb 0123456789abcdef\n";
        assert!(open(twice).map(drop).unwrap_err().to_string().contains("line 2"));
    }
}
