//! A store in a bucket of S3, or of anything that speaks its protocol.
//!
//! The SDK signs, retries with jittered waits and corrects the clock. What it does not do is here: conflicts
//! of conditional writes, bodies that break off in [`Store::get`], and uploads in parts. Bodies of
//! [`Store::get_range`] are streamed as they arrive and counted, so that none ends early unnoticed.

mod client;
mod errors;
mod upload;

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_sdk_s3::{Client, primitives::ByteStream, types::ChecksumAlgorithm};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use self::errors::{Asked, Target};
use super::{Body, MAX_SMALL, Meta, Page, PutMode, Store, StoreError, Version, check_key, check_prefix};
use crate::backoff::backoff;

/// The most attempts of one call.
const ATTEMPTS: u32 = 5;

/// As many answers in a row with a wrong checksum mean that the object is damaged, and not the line.
const MISMATCHES: u32 = 2;

/// The most objects in a page; S3 itself has no larger ones.
const PAGE: i32 = 1000;

/// Which bucket, and how it is reached.
#[derive(Clone, Debug, Default)]
pub struct S3Config {
    /// Its name.
    pub bucket: String,
    /// What all keys in it start with; empty, or ends in `/`.
    pub prefix: String,
    /// The server's URL, for those that are not AWS.
    pub endpoint: Option<String>,
    /// The region; that of the environment or profile where it is not given, else `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket stands in the URL's path instead of its host.
    pub path_style: bool,
    /// Who asks; `None` means the usual chain: environment, profile, web identity, container, instance.
    pub credentials: Option<S3Credentials>,
    /// A PEM file with certificates of authorities that are trusted besides the system's.
    pub ca_bundle: Option<PathBuf>,
}

/// An access key with its secret, which is never shown.
#[derive(Clone)]
pub struct S3Credentials {
    access_key: String,
    secret_key: String,
    session_token: Option<String>,
}

impl S3Credentials {
    /// Credentials; the token is that of temporary ones.
    pub fn new(access_key: &str, secret_key: &str, session_token: Option<&str>) -> Self {
        let (access_key, secret_key) = (access_key.to_owned(), secret_key.to_owned());
        Self { access_key, secret_key, session_token: session_token.map(str::to_owned) }
    }
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Credentials").finish_non_exhaustive()
    }
}

/// A store in a bucket.
#[derive(Clone, Debug)]
pub struct S3Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: S3Config,
    /// The system's authorities and those of [`S3Config::ca_bundle`], in PEM.
    trusted: Vec<u8>,
    /// Made at the first call: finding out the region may take requests of its own.
    client: OnceCell<Client>,
}

impl S3Store {
    /// A store that has not been asked anything yet.
    ///
    /// # Errors
    /// The endpoint is no URL, or the file with authorities holds none.
    pub fn new(config: S3Config) -> Result<Self, StoreError> {
        if let Some(endpoint) = &config.endpoint {
            let url = url::Url::parse(endpoint).ok();
            let usable = |url: &url::Url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
            };
            if !url.is_some_and(|url| usable(&url)) {
                let remedy = "give one such as https://s3.example.com, without a name or password";
                return Err(StoreError::Failed(format!("the S3 endpoint is no http or https URL; {remedy}")));
            }
        }
        let trusted = client::trusted(config.ca_bundle.as_deref())?;
        Ok(Self { shared: Arc::new(Shared { config, trusted, client: OnceCell::new() }) })
    }

    async fn client(&self) -> &Client {
        self.shared
            .client
            .get_or_init(|| Box::pin(client::build(&self.shared.config, &self.shared.trusted)))
            .await
    }

    fn bucket(&self) -> &str {
        &self.shared.config.bucket
    }

    fn full(&self, key: &str) -> Result<String, StoreError> {
        check_key(key)?;
        Ok(format!("{}{key}", self.shared.config.prefix))
    }

    /// For the texts of errors.
    fn target<'a>(&'a self, key: &'a str, asked: Asked) -> Target<'a> {
        Target { bucket: self.bucket(), key, asked }
    }

    async fn put_once(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let full = self.full(key)?;
        let (condition, asked) = match mode {
            PutMode::Create => (Some("*".to_owned()), Asked::Create),
            PutMode::Overwrite => (None, Asked::Whatever),
        };
        let limits = client::limits(body.len() as u64);
        let request = self.client().await.put_object().bucket(self.bucket()).key(full);
        let request = request.set_if_none_match(condition).checksum_algorithm(ChecksumAlgorithm::Crc32C);
        let request = request.body(ByteStream::from(body)).customize().config_override(limits);
        let sent = Box::pin(request.send()).await;
        sent.map(drop).map_err(|error| errors::read(&error, self.target(key, asked)))
    }

    /// Two creators at the same moment: S3 may let neither win, and asks to try again.
    async fn put_until_decided(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.put_once(key, body.clone(), mode).await {
                Err(StoreError::Failed(text)) if text == errors::CONFLICT => {
                    if attempt == ATTEMPTS {
                        return Err(match mode {
                            PutMode::Create => StoreError::Exists(key.into()),
                            PutMode::Overwrite => StoreError::Failed(text),
                        });
                    }
                    pause(attempt).await;
                }
                done => return done,
            }
        }
    }

    async fn get_once(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let full = self.full(key)?;
        let request = self.client().await.get_object().bucket(self.bucket()).key(full);
        let request = request.customize().config_override(client::limits(0));
        let answer = Box::pin(request.send()).await;
        let mut answer = answer.map_err(|error| errors::read(&error, self.target(key, Asked::Whatever)))?;
        let too_large = || StoreError::TooLarge { key: key.into(), limit };
        let announced = answer.content_length().and_then(|bytes| u64::try_from(bytes).ok());
        if announced.is_some_and(|bytes| bytes > limit) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.body.next().await {
            let chunk = chunk.map_err(|error| errors::body(&error))?;
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        if announced.is_some_and(|bytes| bytes != body.len() as u64) {
            return Err(StoreError::Unreachable(errors::BROKEN.into()));
        }
        Ok(body.freeze())
    }

    async fn open_range(
        &self,
        key: &str,
        range: Range<u64>,
        version: Option<&Version>,
    ) -> Result<Body, StoreError> {
        let full = self.full(key)?;
        let short = || StoreError::Short { key: key.into(), end: range.end };
        if range.start > range.end {
            return Err(short());
        }
        // A header cannot ask for nothing.
        if range.is_empty() {
            let (meta, now) = self.head(key).await?;
            if version.is_some_and(|version| *version != now) {
                return Err(StoreError::Changed(key.into()));
            }
            return if range.end > meta.bytes { Err(short()) } else { Ok(stream::empty().boxed()) };
        }
        let request = self.client().await.get_object().bucket(self.bucket()).key(full);
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let request = request.set_if_match(version.map(|version| version.0.clone()));
        let request = request.customize().config_override(client::limits(0));
        let asked = Asked::Range { end: range.end };
        let answer = Box::pin(request.send()).await;
        let answer = answer.map_err(|error| errors::read(&error, self.target(key, asked)))?;
        let wanted = range.end - range.start;
        let announced = answer.content_length().and_then(|bytes| u64::try_from(bytes).ok());
        let starts = match answer.content_range() {
            Some(given) => given.starts_with(&format!("bytes {}-", range.start)),
            None => range.start == 0,
        };
        match announced {
            Some(bytes) if starts && bytes == wanted => {}
            Some(bytes) if starts && bytes < wanted => return Err(short()),
            _ => {
                let text = format!("it answers with other bytes of {key} than those asked for");
                return Err(StoreError::Failed(text));
            }
        }
        Ok(counted(answer.body, wanted))
    }

    async fn list_page(&self, prefix: &str, from: Option<&str>) -> Result<Page, StoreError> {
        check_prefix(prefix)?;
        let ours = &self.shared.config.prefix;
        let request = self.client().await.list_objects_v2().bucket(self.bucket());
        let request = request.prefix(format!("{ours}{prefix}")).max_keys(PAGE);
        let request = request.set_continuation_token(from.map(str::to_owned));
        let answer = Box::pin(request.send()).await;
        let answer = answer.map_err(|error| errors::read(&error, self.target(prefix, Asked::Whatever)))?;
        // Other people's objects, such as the consoles' markers of directories, are none of ours.
        let known = |object: &aws_sdk_s3::types::Object| {
            let key = object.key()?.strip_prefix(ours.as_str())?;
            check_key(key).ok()?;
            Some(Meta {
                key: key.to_owned(),
                bytes: u64::try_from(object.size()?).ok()?,
                modified: timestamp(object.last_modified()),
            })
        };
        let objects = answer.contents().iter().filter_map(known).collect();
        match (answer.is_truncated().unwrap_or_default(), answer.next_continuation_token) {
            (false, _) => Ok(Page { objects, next: None }),
            (true, Some(next)) => Ok(Page { objects, next: Some(next) }),
            // What is missing would be taken for not there.
            (true, None) => Err(StoreError::Failed("it does not say where a list continues".into())),
        }
    }
}

impl Store for S3Store {
    fn location(&self) -> String {
        format!("s3://{}/{}", self.bucket(), self.shared.config.prefix.trim_end_matches('/'))
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            check_key(key)?;
            if body.len() as u64 > MAX_SMALL {
                return Err(StoreError::TooLarge { key: key.into(), limit: MAX_SMALL });
            }
            self.put_until_decided(key, body, mode).await
        }
        .boxed()
    }

    fn put_file<'a>(&'a self, key: &'a str, file: &'a Path) -> BoxFuture<'a, Result<(), StoreError>> {
        upload::put_file(self, key, file).boxed()
    }

    fn get<'a>(&'a self, key: &'a str, limit: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        async move {
            let mut attempt = 0;
            loop {
                attempt += 1;
                match self.get_once(key, limit.min(MAX_SMALL)).await {
                    // The SDK retries until an answer begins, not when its body breaks off.
                    Err(StoreError::Unreachable(text)) if text.starts_with(errors::BROKEN) => {
                        if errors::is_mismatch(&text) && attempt == MISMATCHES {
                            return Err(StoreError::Corrupt(key.into()));
                        }
                        if attempt == ATTEMPTS {
                            return Err(StoreError::Unreachable(text));
                        }
                        pause(attempt).await;
                    }
                    done => return done,
                }
            }
        }
        .boxed()
    }

    fn get_range<'a>(
        &'a self,
        key: &'a str,
        range: Range<u64>,
        version: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Body, StoreError>> {
        self.open_range(key, range, version).boxed()
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Meta, Version), StoreError>> {
        async move {
            let full = self.full(key)?;
            let request = self.client().await.head_object().bucket(self.bucket()).key(full);
            let answer = Box::pin(request.send()).await;
            let answer = answer.map_err(|error| errors::read(&error, self.target(key, Asked::Whatever)))?;
            let told = || StoreError::Failed(format!("it tells no length or no ETag of {key}"));
            let bytes =
                answer.content_length().and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(told)?;
            let modified = timestamp(answer.last_modified());
            let version = Version(answer.e_tag.ok_or_else(told)?);
            Ok((Meta { key: key.into(), bytes, modified }, version))
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str, from: Option<&'a str>) -> BoxFuture<'a, Result<Page, StoreError>> {
        self.list_page(prefix, from).boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let full = self.full(key)?;
            let request = self.client().await.delete_object().bucket(self.bucket()).key(full);
            let answer = Box::pin(request.send()).await;
            match answer.map_err(|error| errors::read(&error, self.target(key, Asked::Whatever))) {
                Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn abort_uploads<'a>(
        &'a self,
        prefix: &'a str,
        age: Duration,
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        upload::abort_old(self, prefix, age).boxed()
    }
}

/// The body, which ends with an error if it has not exactly `wanted` bytes.
fn counted(body: ByteStream, wanted: u64) -> Body {
    stream::try_unfold((body, wanted), |(mut body, left)| async move {
        match body.next().await {
            Some(Ok(chunk)) => {
                let left = left.checked_sub(chunk.len() as u64);
                let left =
                    left.ok_or_else(|| StoreError::Failed("an answer is longer than announced".into()))?;
                Ok(Some((chunk, (body, left))))
            }
            Some(Err(error)) => Err(errors::body(&error)),
            None if left == 0 => Ok(None),
            None => Err(StoreError::Unreachable(format!("{}: {left} bytes are missing", errors::BROKEN))),
        }
    })
    .boxed()
}

fn timestamp(time: Option<&aws_sdk_s3::primitives::DateTime>) -> Timestamp {
    let seconds = time.map(aws_sdk_s3::primitives::DateTime::secs);
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default()
}

/// Waits before the next attempt: longer each time, and not in step with others.
async fn pause(attempt: u32) {
    // One step further than the SDK's own: its attempts have failed before.
    let wait = backoff(client::FIRST_WAIT, client::LONGEST_WAIT, attempt.saturating_add(1), rand::random());
    tokio::time::sleep(wait).await;
}
