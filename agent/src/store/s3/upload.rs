//! Files on their way into the bucket: small ones whole, others in parts, several at once. Parts are read one
//! by one, so memory holds [`AT_ONCE`] of them at most. An upload that fails or is dropped is aborted; what
//! a SIGKILL leaves, [`abort_old`] finds.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::{S3Store, client, errors, errors::Asked, timestamp};
use crate::{
    files::blocking,
    store::{PutMode, Store, StoreError, check_prefix, clock::store_clock},
};

/// Files up to this length are sent whole.
const WHOLE: u64 = 16 << 20;

/// The length of a part. Larger ones gain nothing, and lose more when they fail.
const PART: u64 = 8 << 20;

/// The most parts S3 takes.
const PARTS: u64 = 10_000;

/// Parts on their way at the same time.
const AT_ONCE: usize = 4;

pub(super) async fn put_file(store: &S3Store, key: &str, path: &Path) -> Result<(), StoreError> {
    store.full(key)?;
    let named = path.to_owned();
    let opened = blocking(move || {
        let file = File::open(&named)?;
        Ok((file.metadata()?.len(), file))
    });
    let (length, file) = opened.await.map_err(|error| StoreError::local(path, &error))?;
    let file = Arc::new(file);
    if length <= WHOLE {
        let body = read(&file, path, 0, length).await?;
        return store.put_until_decided(key, body, PutMode::Overwrite).await;
    }
    let mut upload = Upload::begin(store, key).await?;
    let sent = upload.send(path, &file, length).await;
    match sent {
        Ok(()) => {
            upload.over = true;
            Ok(())
        }
        Err(error) => {
            // Aborted here, in the open, not by the drop: whoever retries meets no leftovers.
            upload.over = true;
            if let Err(error) = abort(&upload.client, store.bucket(), &upload.full, &upload.id).await {
                tracing::debug!(key, %error, "an upload that failed is left for later");
            }
            Err(error)
        }
    }
}

/// An upload in parts, aborted when dropped before it is over.
struct Upload<'a> {
    store: &'a S3Store,
    client: Client,
    key: &'a str,
    full: String,
    id: String,
    over: bool,
}

impl<'a> Upload<'a> {
    async fn begin(store: &'a S3Store, key: &'a str) -> Result<Self, StoreError> {
        let client = store.client().await.clone();
        let full = store.full(key)?;
        let request = client.create_multipart_upload().bucket(store.bucket()).key(&full);
        let request = request.checksum_algorithm(ChecksumAlgorithm::Crc32C);
        let begun = Box::pin(request.send()).await;
        let begun = begun.map_err(|error| errors::read(&error, store.target(key, Asked::Whatever)))?;
        let id = begun.upload_id.ok_or_else(|| StoreError::Failed("it gives an upload no id".into()))?;
        Ok(Self { store, client, key, full, id, over: false })
    }

    async fn send(&self, path: &Path, file: &Arc<File>, length: u64) -> Result<(), StoreError> {
        let part = part_length(length);
        let parts = stream::iter((0..length.div_ceil(part)).map(|index| async move {
            let start = index * part;
            let body = read(file, path, start, part.min(length - start)).await?;
            let number = i32::try_from(index + 1).map_err(|error| StoreError::Failed(error.to_string()))?;
            self.send_part(number, body).await
        }));
        let sent: Vec<CompletedPart> = parts.buffered(AT_ONCE).try_collect().await?;
        let count = sent.len();
        let request = self.client.complete_multipart_upload().bucket(self.store.bucket()).key(&self.full);
        let request = request.upload_id(&self.id);
        let request =
            request.multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(sent)).build());
        let done = Box::pin(request.customize().config_override(client::patient()).send()).await;
        match done.map_err(|error| errors::read(&error, self.store.target(self.key, Asked::Whatever))) {
            Ok(_) => Ok(()),
            // An attempt whose answer was lost may have done it.
            Err(StoreError::NotFound(_)) => {
                let (meta, version) = self.store.head(self.key).await?;
                let ours =
                    meta.bytes == length && version.0.trim_matches('"').ends_with(&format!("-{count}"));
                if ours { Ok(()) } else { Err(StoreError::Failed("it lost an upload".into())) }
            }
            Err(error) => Err(error),
        }
    }

    async fn send_part(&self, number: i32, body: Bytes) -> Result<CompletedPart, StoreError> {
        let limits = client::limits(body.len() as u64);
        let request = self.client.upload_part().bucket(self.store.bucket()).key(&self.full);
        let request = request.upload_id(&self.id).part_number(number);
        let request = request.checksum_algorithm(ChecksumAlgorithm::Crc32C).body(ByteStream::from(body));
        let sent = Box::pin(request.customize().config_override(limits).send()).await;
        let sent =
            sent.map_err(|error| errors::read(&error, self.store.target(self.key, Asked::Whatever)))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .set_checksum_crc32_c(sent.checksum_crc32_c)
            .build())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let (client, bucket) = (self.client.clone(), self.store.bucket().to_owned());
        let (full, id) = (std::mem::take(&mut self.full), std::mem::take(&mut self.id));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = abort(&client, &bucket, &full, &id).await {
                    tracing::debug!(key = full, %error, "an upload given up is left for later");
                }
            });
        }
    }
}

/// Aborts the uploads below `prefix` that began longer ago than `age`, by the store's clock. Returns how many.
pub(super) async fn abort_old(store: &S3Store, prefix: &str, age: Duration) -> Result<usize, StoreError> {
    check_prefix(prefix)?;
    let mut before = None;
    let (client, bucket) = (store.client().await, store.bucket());
    let below = format!("{}{prefix}", store.shared.config.prefix);
    let (mut keys, mut ids, mut aborted) = (None, None, 0);
    loop {
        let request = client.list_multipart_uploads().bucket(bucket).prefix(&below);
        let request = request.set_key_marker(keys).set_upload_id_marker(ids);
        let page = Box::pin(request.send()).await;
        let page = page.map_err(|error| errors::read(&error, store.target(prefix, Asked::Whatever)))?;
        let before = match before {
            Some(before) => before,
            // The clock costs a write.
            None if page.uploads().is_empty() => Timestamp::MIN,
            None => {
                let now = store_clock(store).await?;
                *before.insert(now.checked_sub(age).unwrap_or(Timestamp::MIN))
            }
        };
        for upload in page.uploads() {
            let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
            // One without a time is not known to be old.
            let old = upload.initiated().is_some_and(|begun| timestamp(Some(begun)) < before);
            // Some servers take the prefix for a wish.
            if old && key.starts_with(&below) {
                abort(client, bucket, key, id).await?;
                aborted += 1;
            }
        }
        if !page.is_truncated().unwrap_or_default() {
            return Ok(aborted);
        }
        if page.next_key_marker.is_none() {
            return Err(StoreError::Failed("it does not say where the list of uploads continues".into()));
        }
        (keys, ids) = (page.next_key_marker, page.next_upload_id_marker);
    }
}

/// Aborts an upload; one that is over already is no error.
async fn abort(client: &Client, bucket: &str, full: &str, id: &str) -> Result<(), StoreError> {
    let request = client.abort_multipart_upload().bucket(bucket).key(full).upload_id(id);
    let target = errors::Target { bucket, key: full, asked: Asked::Whatever };
    match Box::pin(request.send()).await.map_err(|error| errors::read(&error, target)) {
        Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// As long as usual, or as long as it takes to need no more parts than there may be.
fn part_length(length: u64) -> u64 {
    length.div_ceil(PARTS).max(PART)
}

async fn read(file: &Arc<File>, path: &Path, start: u64, length: u64) -> Result<Bytes, StoreError> {
    let file = file.clone();
    let done = blocking(move || {
        let mut part = BytesMut::zeroed(usize::try_from(length).map_err(io::Error::other)?);
        file.read_exact_at(&mut part, start)?;
        Ok(part.freeze())
    });
    done.await.map_err(|error| StoreError::local(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_length_has_no_more_parts_than_there_may_be() {
        for length in [WHOLE + 1, 80 << 30, (80 << 30) + 1, 1 << 40, 5 << 40] {
            let part = part_length(length);
            assert!(part >= PART && length.div_ceil(part) <= PARTS, "{length}");
        }
        assert_eq!(part_length(1 << 30), PART);
    }
}
