//! Callers whose tokens are in a file, one a line: a name, blanks, the token. The file is read again when it changes.
//!
//! *Invariant:* a token counts for as long as the file has it, and half a minute longer at most. A line that makes no sense is no
//! token, and takes no other away. A file that is gone has no tokens.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::metrics::gauge::Gauge;

use crate::files;

/// The longest file: ten thousand tokens.
const MAX_FILE: u64 = 1 << 20;

/// The shortest token: what is shorter can be guessed.
const MIN_TOKEN: usize = 16;

/// How many bad lines of a file are told.
const MAX_TOLD: usize = 10;

/// The file of tokens cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct TokensError {
    path: PathBuf,
    source: io::Error,
}

/// What is wrong with a line. Names it by its number, and never what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BadLine {
    line: usize,
    problem: &'static str,
}

/// The callers as the file has them now.
pub struct Tokens {
    path: PathBuf,
    key: [u8; 32],
    known: RwLock<Arc<Names>>,
    /// Shows how many they are.
    count: Gauge,
}

/// The callers' names by the keyed hashes of their tokens: how long a lookup takes tells of hashes, and nothing of tokens.
type Names = HashMap<blake3::Hash, String>;

impl Tokens {
    /// Reads the file. `count` shows from now on how many tokens count.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path, count: Gauge) -> Result<Arc<Self>, TokensError> {
        let tokens = Self { path: path.to_owned(), key: rand::random(), known: RwLock::default(), count };
        let text = files::read_bounded(path, MAX_FILE)
            .map_err(|source| TokensError { path: path.to_owned(), source })?;
        tokens.take(&text);
        Ok(Arc::new(tokens))
    }

    /// Reads the file again whenever it changes, for ever.
    pub async fn follow(self: Arc<Self>) {
        let path = self.path.clone();
        files::follow(&path, MAX_FILE, |found| match found {
            Ok(text) => {
                self.take(text);
                tracing::info!(path = %self.path.display(), "the callers' tokens have been read");
            }
            Err(error) => {
                self.take(b"");
                tracing::error!(
                    path = %self.path.display(),
                    %error,
                    "the file of callers' tokens cannot be read: no token counts until it is back"
                );
            }
        })
        .await;
    }

    /// The name of the caller whose token this is. As quick with ten thousand tokens as with one: it is asked of every word
    /// that a caller would have handed on to an upstream.
    pub fn find(&self, token: &str) -> Option<String> {
        let hash = blake3::keyed_hash(&self.key, token.as_bytes());
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned()
    }

    fn take(&self, text: &[u8]) {
        let (known, bad) = self.parse(text);
        for BadLine { line, problem } in bad.iter().take(MAX_TOLD) {
            tracing::warn!(path = %self.path.display(), line, problem, "a line of the callers' tokens does not count");
        }
        self.count.set(i64::try_from(known.len()).unwrap_or(i64::MAX));
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known.into();
    }

    fn parse(&self, text: &[u8]) -> (Names, Vec<BadLine>) {
        let text = String::from_utf8_lossy(text);
        let (mut known, mut bad) = (Names::new(), Vec::new());
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let problem = match parse_line(text) {
                Err(problem) => problem,
                Ok((name, token)) => match known.entry(blake3::keyed_hash(&self.key, token.as_bytes())) {
                    Entry::Vacant(free) => {
                        free.insert(name.to_owned());
                        continue;
                    }
                    Entry::Occupied(_) => "the token is in an earlier line already",
                },
            };
            bad.push(BadLine { line, problem });
        }
        (known, bad)
    }
}

/// A caller's name and token.
fn parse_line(text: &str) -> Result<(&str, &str), &'static str> {
    let (name, token) = text.split_once([' ', '\t']).ok_or("write a name, a blank and the token")?;
    let token = token.trim();
    if token.contains(|c: char| c.is_whitespace() || c.is_control()) || !token.is_ascii() {
        return Err("the token must be one word of ASCII");
    }
    if token.len() < MIN_TOKEN {
        return Err("the token is shorter than 16 characters, and could be guessed");
    }
    Ok((name, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Arc<Tokens> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        Tokens::open(&path, Gauge::default()).unwrap()
    }

    #[test]
    fn a_token_names_its_caller() {
        let tokens = open("# callers\n\nci  0123456789abcdef\nbot\tfedcba9876543210\n");
        assert_eq!(tokens.find("0123456789abcdef").as_deref(), Some("ci"));
        assert_eq!(tokens.find("fedcba9876543210").as_deref(), Some("bot"));
        for wrong in ["", "0123456789abcde", "0123456789abcdef ", "ci"] {
            assert_eq!(tokens.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_bad_line_is_no_token_and_takes_no_other_away() {
        for (line, problem) in [
            ("canary-without-a-name", "a name, a blank"),
            ("ci canary", "shorter than 16"),
            ("ci canary canary-canary-canary", "one word"),
            ("ci kanarienvögel-canary-canary", "ASCII"),
            ("b 0123456789abcdef", "an earlier line"),
        ] {
            let text = format!("a 0123456789abcdef\n{line}\nc fedcba9876543210\n");
            let tokens = open(&text);
            let (known, bad) = tokens.parse(text.as_bytes());
            assert_eq!((known.len(), bad.len(), bad[0].line), (2, 1, 2), "{line}");
            assert!(bad[0].problem.contains(problem) && !bad[0].problem.contains("canary"), "{bad:?}");
            let names = ["0123456789abcdef", "fedcba9876543210"].map(|token| tokens.find(token));
            assert_eq!(names, [Some("a".to_owned()), Some("c".to_owned())], "{line}");
        }
    }

    #[test]
    fn what_a_file_no_longer_has_counts_no_longer() {
        let tokens = open("a 0123456789abcdef\n");
        tokens.take(b"a short\nb fedcba9876543210\n");
        assert_eq!(tokens.find("0123456789abcdef"), None, "broken, and not as it was");
        assert_eq!(tokens.find("fedcba9876543210").as_deref(), Some("b"));
        assert_eq!(tokens.count.get(), 1);
        tokens.take(b"");
        assert_eq!(tokens.count.get(), 0, "an alert can tell");
        assert_eq!(tokens.find("fedcba9876543210"), None);
    }
}
