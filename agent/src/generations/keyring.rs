//! The cache's keys: whether an agent of this cache wrote a manifest.
//!
//! A signature is an object beside its manifest, written before it and named by the manifest's digest: a reader finds both
//! or neither, and agents without a key pass it by. It is a keyed BLAKE3 over the manifest's own key and its exact bytes,
//! so that it is good for no other mirror, kind or generation. It does not say that the manifest is the newest.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;

use crate::files;

/// What keys are derived for: a key of another purpose never signs a manifest.
const CONTEXT: &str = "tarn.dev 2026-11-29 manifests in the store";

/// What a key's public name is derived for.
const NAME_CONTEXT: &str = "tarn.dev 2026-11-29 name of a key for manifests";

/// The first word of a signature: its format.
const FORMAT: &str = "tarn-mac-1";

/// The shortest secret: 32 characters of base64 are 192 bits.
const MIN_SECRET: usize = 32;

/// The longest file of keys.
const MAX_FILE: u64 = 64 << 10;

/// The longest signature.
pub(super) const MAX_SIGNATURE: u64 = 1 << 10;

/// What a manifest's signature says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authenticity {
    /// This agent has no key to tell.
    Unchecked,
    /// An agent of this cache wrote it.
    Signed,
    /// It has no signature.
    Unsigned,
    /// The key that signed it is none of this cache.
    UnknownKey,
    /// The signature is not that of this manifest under this name.
    Wrong,
}

impl Authenticity {
    /// Whether the manifest may be used.
    pub fn is_trusted(self) -> bool {
        matches!(self, Self::Unchecked | Self::Signed)
    }

    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unchecked => "unchecked",
            Self::Signed => "signed",
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown key",
            Self::Wrong => "wrong signature",
        }
    }
}

/// Why a file holds no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It cannot be read.
    #[error("cannot read the store's keys in {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A key is too easy to guess.
    #[error(
        "line {line} of the store's keys in {} is shorter than {MIN_SECRET} characters; make a key with: openssl rand -base64 48",
        path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// There is none.
    #[error("{} has no key; make one with: openssl rand -base64 48", .0.display())]
    Empty(PathBuf),
}

/// A key, and the name that signatures call it by.
#[derive(Clone)]
struct Key {
    secret: [u8; 32],
    name: String,
}

/// The keys of one cache: the first signs, all verify. Cheap to clone; without a key nothing is signed or checked.
#[derive(Clone, Default)]
pub struct Keyring {
    keys: Option<Arc<RwLock<Vec<Key>>>>,
    refused: Counter,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({} keys)", self.current().len())
    }
}

impl Keyring {
    /// The keys of the file at `path`: a secret a line. `refused` counts manifests that none of them has signed.
    ///
    /// # Errors
    /// It cannot be read, or holds no key that is long enough.
    pub fn open(path: &Path, refused: Counter) -> Result<Self, KeyringError> {
        let unreadable = |source| KeyringError::Unreadable { path: path.to_owned(), source };
        let keys = parse(path, &files::read_bounded(path, MAX_FILE).map_err(unreadable)?)?;
        Ok(Self { keys: Some(Arc::new(RwLock::new(keys))), refused })
    }

    /// Takes up what the file holds from now on, for ever. A file that is gone or holds no keys changes nothing.
    pub async fn follow(self, path: PathBuf) {
        let Some(current) = &self.keys else { return };
        let unreadable = |source| KeyringError::Unreadable { path: path.clone(), source };
        let take =
            |text: io::Result<&[u8]>| match text.map_err(unreadable).and_then(|text| parse(&path, text)) {
                Ok(keys) => *current.write() = keys,
                Err(error) => tracing::warn!(%error, "the store's keys stay as they were"),
            };
        files::follow(&path, MAX_FILE, take).await;
    }

    /// Whether there is a key.
    pub fn signs(&self) -> bool {
        self.keys.is_some()
    }

    /// The signature of a manifest, to be stored beside it; `None` without a key.
    pub(super) fn sign(&self, name: &str, text: &[u8]) -> Option<String> {
        let keys = self.current();
        let key = keys.first()?;
        Some(format!("{FORMAT} {} {}\n", key.name, mac(key, name, text).to_hex()))
    }

    /// What `signature` says of the manifest `text`, which is stored as `name`.
    pub(super) fn judge(&self, name: &str, text: &[u8], signature: Option<&[u8]>) -> Authenticity {
        if self.keys.is_none() {
            return Authenticity::Unchecked;
        }
        let judged = self.compare(name, text, signature);
        if !judged.is_trusted() {
            self.refused.inc();
        }
        judged
    }

    fn compare(&self, name: &str, text: &[u8], signature: Option<&[u8]>) -> Authenticity {
        let Some(signature) = signature else { return Authenticity::Unsigned };
        let words = str::from_utf8(signature).unwrap_or_default().trim_end_matches('\n');
        let [FORMAT, called, given] = *words.split(' ').collect::<Vec<_>>().as_slice() else {
            return Authenticity::Wrong;
        };
        let Ok(given) = blake3::Hash::from_hex(given) else { return Authenticity::Wrong };
        let keys = self.current();
        let Some(key) = keys.iter().find(|key| key.name == called) else {
            return Authenticity::UnknownKey;
        };
        // Hashes are compared in constant time.
        if mac(key, name, text) == given { Authenticity::Signed } else { Authenticity::Wrong }
    }

    fn current(&self) -> Vec<Key> {
        let keys = self.keys.as_ref();
        keys.map(|keys| keys.read().clone()).unwrap_or_default()
    }
}

/// The code of a manifest. The length keeps name and text apart.
fn mac(key: &Key, name: &str, text: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(&key.secret);
    hasher.update(&u64::try_from(name.len()).unwrap_or(u64::MAX).to_le_bytes());
    hasher.update(name.as_bytes()).update(text).finalize()
}

/// Reads a secret a line; lines that are empty or begin with # are no keys.
fn parse(path: &Path, text: &[u8]) -> Result<Vec<Key>, KeyringError> {
    let text = String::from_utf8_lossy(text);
    let mut keys = Vec::new();
    for (line, text) in (1..).zip(text.lines().map(str::trim)) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if text.len() < MIN_SECRET {
            return Err(KeyringError::Short { path: path.to_owned(), line });
        }
        let secret = blake3::derive_key(CONTEXT, text.as_bytes());
        let name = hex::encode(blake3::derive_key(NAME_CONTEXT, text.as_bytes()));
        keys.push(Key { secret, name: name.get(..16).unwrap_or_default().to_owned() });
    }
    if keys.is_empty() { Err(KeyringError::Empty(path.to_owned())) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "old old old old old old old old old";
    const NEW: &str = "new new new new new new new new new";

    fn keyring(text: &str) -> Keyring {
        let keys = parse(Path::new("keys"), text.as_bytes()).unwrap();
        Keyring { keys: Some(Arc::new(RwLock::new(keys))), refused: Counter::default() }
    }

    #[test]
    fn a_signature_is_good_for_one_text_under_one_name() {
        let keyring = keyring(NEW);
        let signature = keyring.sign("a/1.json", b"text").unwrap();
        let judge = |name, text, signature: &str| keyring.judge(name, text, Some(signature.as_bytes()));
        assert_eq!(judge("a/1.json", b"text", &signature), Authenticity::Signed);
        for (name, text) in [("a/1.json", &b"texts"[..]), ("a/2.json", b"text"), ("a/1.jsont", b"ext")] {
            assert_eq!(judge(name, text, &signature), Authenticity::Wrong, "{name}");
        }
        for wrong in ["", "x", "tarn-mac-2 a b", &signature.replace(' ', "  ")] {
            assert_eq!(judge("a/1.json", b"text", wrong), Authenticity::Wrong, "{wrong}");
        }
        assert_eq!(keyring.judge("a/1.json", b"text", None), Authenticity::Unsigned);
        assert_eq!(keyring.refused.get(), 8);
    }

    #[test]
    fn the_first_key_signs_and_all_verify() {
        let (old, both, new) = (keyring(OLD), keyring(&format!("# rotated\n{NEW}\n\n{OLD}\n")), keyring(NEW));
        let of = |keyring: &Keyring| keyring.sign("n", b"t").unwrap();
        let judge = |keyring: &Keyring, text: String| keyring.judge("n", b"t", Some(text.as_bytes()));
        assert_eq!(judge(&both, of(&old)), Authenticity::Signed);
        assert_eq!(judge(&new, of(&both)), Authenticity::Signed);
        assert_eq!(judge(&new, of(&old)), Authenticity::UnknownKey);
        assert_eq!(judge(&Keyring::default(), of(&old)), Authenticity::Unchecked);
        assert_eq!(Keyring::default().sign("n", b"t"), None);
    }

    #[test]
    fn a_key_that_can_be_guessed_is_refused_and_none_is_printed() {
        let refused =
            |text: &str| parse(Path::new("keys"), text.as_bytes()).map(drop).unwrap_err().to_string();
        assert!(refused("\n# nothing\n").contains("no key"));
        let short = refused(&format!("{NEW}\nsecret\n"));
        assert!(short.contains("line 2") && !short.contains("secret"), "{short}");
        assert!(!format!("{:?}", keyring(NEW)).contains("new"));
    }
}
