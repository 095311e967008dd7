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
//! `+`, `:`, `[`, `]`, none of them empty, `.` or `..`; whatever else comes is refused as
//! [`StoreError::BadKey`].

use std::{fmt, ops::Range, path::Path, sync::Arc, time::Duration};

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
    /// It fails with [`StoreError::Exists`].
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
