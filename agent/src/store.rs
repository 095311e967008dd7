//! Where checkpoints and snapshots are kept: a directory or a bucket, behind one small trait.
//!
//! # Contract
//! - An object appears whole or not at all, and a reader of an object that is being replaced gets the whole
//!   old one, the whole new one, or an error.
//! - Who creates ([`PutMode::Create`]) wins alone: of several creators of one key exactly one succeeds, where
//!   the store [honours conditions](Capabilities::conditional_create).
//! - What [`Store::put`] and [`Store::put_file`] have returned survives a crash of the store's machine.
//! - Reads see the newest write that has returned, and lists too.
//! - Every call ends: it is retried a few times with growing, jittered waits, and each attempt has a limit. A
//!   dropped future leaves either nothing or the whole object.
//!
//! Keys are relative paths of one to sixteen segments of ASCII letters, digits and `.`, `-`, `_`, `~`, `%`, `@`,
//! `+`, `:`, `[`, `]`, none of them empty, `.` or `..`, none longer than 255 bytes, all together at most 800; the
//! first is not `.staging`. Whatever else comes is refused as [`StoreError::BadKey`].
//!
//! A key that continues another one's (`a` and `a/b`) is not to be written: a directory cannot hold both.

pub mod clock;
pub mod dir;
pub mod s3;
pub mod probe;

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use jiff::Timestamp;

/// The most that [`Store::get`] and [`Store::put`] take: manifests and lists of refs. 100,000 refs take 5 MB.
pub const MAX_SMALL: u64 = 64 << 20;

/// What tells one content of a key from another: an ETag, or what a directory has in its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// What a write does where the key exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// It replaces the object.
    Overwrite,
    /// It fails with [`StoreError::Exists`]. The object that exists may be this very one: written by an
    /// attempt whose answer was lost. Who must know reads it back.
    Create,
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
}

/// Part of a list, in the order of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The objects.
    pub objects: Vec<Meta>,
    /// What to list from to get the next part; `None` at the end.
    pub next: Option<String>,
}

/// What a store turned out to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Of several creators of one key exactly one wins. Some stores accept the condition and ignore it.
    pub conditional_create: bool,
}

/// Why a call failed. The texts hold no secrets.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No such object.
    #[error("the store has no object {0}")]
    NotFound(String),
    /// The object to be created is there.
    #[error("the store has an object {0} already")]
    Exists(String),
    /// The object is no longer the one that was asked for.
    #[error("the object {0} has changed")]
    Changed(String),
    /// The object ends before the range that was asked for.
    #[error("the object {key} ends before byte {end}")]
    Short {
        /// Its key.
        key: String,
        /// The range's end.
        end: u64,
    },
    /// What the store gives is not what was stored, by the checksum it keeps itself: again and again, so that it
    /// did not happen on the way.
    #[error("the object {0} is damaged: its checksum differs")]
    Corrupt(String),
    /// The key is not one the agent would write.
    #[error("{0:?} is no key")]
    BadKey(String),
    /// The object is larger than it may be.
    #[error("the object {key} has more than {limit} bytes")]
    TooLarge {
        /// Its key.
        key: String,
        /// The most it may have.
        limit: u64,
    },
    /// No connection, or no answer in time, after several attempts.
    #[error("cannot reach the store: {0}")]
    Unreachable(String),
    /// The credentials are missing, wrong or not enough.
    #[error("the store refuses access: {0}")]
    Denied(String),
    /// Its disk is full.
    #[error("the store's disk is full")]
    Full,
    /// Another error of the store, after several attempts.
    #[error("the store fails: {0}")]
    Failed(String),
    /// A file on this side cannot be read.
    #[error("cannot read {path} for the store: {reason}")]
    Local {
        /// The file.
        path: String,
        /// What the operating system said.
        reason: String,
    },
}

impl StoreError {
    fn local(path: &Path, error: &io::Error) -> Self {
        Self::Local { path: path.display().to_string(), reason: error.to_string() }
    }

    /// Whether the object itself is at fault, and not the way to it: another attempt finds the same.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::TooLarge { .. } | Self::Corrupt(_))
    }
}

/// The body of an object, or of a part of it, as it arrives.
pub type Body = BoxStream<'static, Result<Bytes, StoreError>>;

/// See the module.
pub trait Store: fmt::Debug + Send + Sync {
    /// Where it is, for people: `s3://bucket/prefix` or a path.
    fn location(&self) -> String;

    /// Writes a small object.
    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Writes a file of any length, which must not change meanwhile. An existing object is replaced.
    fn put_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Reads a small object whole; at most `limit` bytes of it, which are at most [`MAX_SMALL`].
    fn get<'a>(&'a self, key: &'a str, limit: u64) -> BoxFuture<'a, Result<Bytes, StoreError>>;

    /// Begins to read `range` of an object. The stream ends after exactly so many bytes or with an error, and
    /// is **not** retried: whoever reads knows best what is still missing. With `version`, only of that one.
    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: Range<u64>,
        version: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Body, StoreError>>;

    /// What is known of an object, and its version.
    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Meta, Version), StoreError>>;

    /// Lists the objects whose keys start with `prefix`, up to 1,000, after those of the page whose `next` is
    /// `from`.
    fn list<'a>(&'a self, prefix: &'a str, from: Option<&'a str>) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// Deletes an object; one that is not there is no error.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Ends uploads below `prefix` that began longer ago than `age` and were never finished. Returns how many.
    fn abort_uploads<'a>(
        &'a self,
        prefix: &'a str,
        age: Duration,
    ) -> BoxFuture<'a, Result<usize, StoreError>>;
}

/// A store shared by all parts.
pub type SharedStore = Arc<dyn Store>;

/// All objects whose keys begin with `prefix`.
///
/// # Errors
/// The store's.
pub async fn list_all(store: &dyn Store, prefix: &str) -> Result<Vec<Meta>, StoreError> {
    let (mut objects, mut from) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, from.as_deref()).await?;
        objects.extend(page.objects);
        match page.next {
            Some(next) => from = Some(next),
            None => return Ok(objects),
        }
    }
}

/// Where a store is, as the flag says it: `s3://BUCKET/PREFIX` or a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// A directory, which is made where it is missing.
    Directory(PathBuf),
    /// A bucket.
    S3 {
        /// Its name.
        bucket: String,
        /// What the keys of all objects start with; empty, or ends in `/`.
        prefix: String,
    },
}

/// Why a text names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Nothing at all.
    #[error("the store is empty: give a directory or s3://BUCKET/PREFIX")]
    Empty,
    /// A URL of another kind.
    #[error("the agent has no {0}:// stores: give a directory or s3://BUCKET/PREFIX")]
    Scheme(String),
    /// No bucket may be called so.
    #[error(
        "{0:?} is no name of a bucket: it has 3 to 63 lower-case letters, digits, dots and hyphens, as in \
         s3://my-bucket/tarn"
    )]
    Bucket(String),
    /// No key may start so.
    #[error(
        "{0:?} cannot start a key: use letters, digits, '.', '-', '_' and '/', as in s3://my-bucket/tarn"
    )]
    Prefix(String),
}

impl FromStr for StoreLocation {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if text.is_empty() {
            return Err(LocationError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Directory(text.into()));
        };
        if scheme != "s3" {
            return Err(LocationError::Scheme(scheme.into()));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        let ends = |c: char| c.is_ascii_alphanumeric();
        let framed = bucket.starts_with(ends) && bucket.ends_with(ends);
        if !(framed && (3..=63).contains(&bucket.len()) && bucket.bytes().all(named)) {
            return Err(LocationError::Bucket(bucket.into()));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        // S3's keys have up to 1,024 bytes, ours up to 800 of them.
        if !prefix.is_empty() && (prefix.len() > 200 || check_key(prefix).is_err()) {
            return Err(LocationError::Prefix(prefix.into()));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self::S3 { bucket: bucket.into(), prefix })
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{}", prefix.trim_end_matches('/')),
        }
    }
}

/// How a bucket is reached; all of it as in the AWS SDKs' environment and profiles where it is not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The server's URL, for those that are not AWS.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` where nobody names one.
    pub region: Option<String>,
    /// Whether the bucket stands in the URL's path instead of its host.
    pub path_style: bool,
}

/// Opens a store. A directory is made and tried; a bucket is first asked when it is used.
///
/// # Errors
/// The directory cannot be made, the endpoint is no URL, or `AWS_CA_BUNDLE` names no certificates.
pub fn open(location: &StoreLocation, options: S3Options) -> Result<SharedStore, StoreError> {
    match location {
        StoreLocation::Directory(path) => Ok(Arc::new(dir::DirStore::open(path)?)),
        StoreLocation::S3 { bucket, prefix } => {
            let S3Options { endpoint, region, path_style } = options;
            let (bucket, prefix) = (bucket.clone(), prefix.clone());
            // As the AWS tools have it. The SDK for Rust does not read it.
            let ca_bundle = std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from);
            let credentials = None;
            let config =
                s3::S3Config { bucket, prefix, endpoint, region, path_style, credentials, ca_bundle };
            Ok(Arc::new(s3::S3Store::new(config)?))
        }
    }
}

/// Where a directory keeps what is being written; no key starts with it in any store, so that all are alike.
const STAGING: &str = ".staging";

/// Whether `key` is one; see the module.
fn check_key(key: &str) -> Result<(), StoreError> {
    let whole = |segment: &str| !matches!(segment, "" | "." | "..");
    if key.split('/').all(whole) && key.split('/').next() != Some(STAGING) && is_plain(key) {
        return Ok(());
    }
    Err(StoreError::BadKey(key.into()))
}

/// Whether `prefix` can start a key: nothing, or whole segments and the beginning of one.
fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    let Some((segments, _)) = prefix.rsplit_once('/') else {
        return if is_plain(prefix) { Ok(()) } else { Err(StoreError::BadKey(prefix.into())) };
    };
    if !is_plain(prefix) {
        return Err(StoreError::BadKey(prefix.into()));
    }
    check_key(segments).map_err(|_| StoreError::BadKey(prefix.into()))
}

/// Whether a text has only bytes of keys and is not too long.
fn is_plain(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"./-_~%@+:[]".contains(&byte);
    text.len() <= 800
        && text.bytes().all(known)
        && text.split('/').count() <= 16
        && text.split('/').all(|segment| segment.len() <= 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_bucket_or_a_directory() {
        let s3 =
            |bucket: &str, prefix: &str| StoreLocation::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (text, location, shown) in [
            ("s3://my-bucket/tarn/a", s3("my-bucket", "tarn/a/"), "s3://my-bucket/tarn/a"),
            ("s3://my-bucket/tarn/", s3("my-bucket", "tarn/"), "s3://my-bucket/tarn"),
            ("s3://my.bucket", s3("my.bucket", ""), "s3://my.bucket/"),
            ("s3://my.bucket/", s3("my.bucket", ""), "s3://my.bucket/"),
            ("/srv/store", StoreLocation::Directory("/srv/store".into()), "/srv/store"),
            ("store", StoreLocation::Directory("store".into()), "store"),
        ] {
            assert_eq!(text.parse(), Ok(location.clone()), "{text}");
            assert_eq!(location.to_string(), shown);
        }
        for text in [
            "",
            "gs://bucket/a",
            "file:///srv",
            "s3://",
            "s3://A_b",
            "s3://-ab",
            "s3://bucket/a//b",
            "s3://bucket/..",
        ] {
            let error = text.parse::<StoreLocation>().unwrap_err().to_string();
            assert!(error.contains("s3://"), "the remedy is named: {error}");
        }
    }

    #[test]
    fn only_plain_relative_paths_are_keys() {
        let deep = |segments: usize| vec!["a"; segments].join("/");
        for key in ["a", "v1/github.com/a%20b/c.git/packs/x.pack", "a/.hidden", "[::1]:80/@a+b~c", &deep(16)]
        {
            check_key(key).unwrap();
            check_prefix(key).unwrap();
        }
        for key in
            ["", "/a", "a/", "a//b", ".", "a/../b", "a/.", "a b", "a\\b", "ä", "a\0", ".staging/a", &deep(17)]
        {
            assert!(matches!(check_key(key), Err(StoreError::BadKey(_))), "{key}");
        }
        assert!(check_key(&"a".repeat(256)).is_err());
        assert!(check_key(&vec!["a".repeat(200); 5].join("/")).is_err());
        for prefix in ["", "a/", "a/b/", "a/.", "v1/_"] {
            check_prefix(prefix).unwrap();
        }
        for prefix in ["/", "a//", "../", "a/../b", ".staging/", "ä"] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
    }
}
