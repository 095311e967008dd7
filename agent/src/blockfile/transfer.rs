//! One request's way from the store to the disk: a run of blocks, each hashed while it is written.

use std::{mem, ops::Range, os::unix::fs::FileExt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{BlockFileError, Digest, Disk, Options, Shared, Source, blocking, disk_error};
use crate::{backoff::backoff, store::StoreError};

/// Written and hashed at once, off the runtime. From here on up, larger is not faster: 1.8 GB/s into a tmpfs,
/// 8 requests on 2 cores, chunks of 16 KiB; a quarter of it gives 1.3.
pub(super) const BATCH: usize = 256 << 10;

/// The longest wait between two attempts.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// A run of blocks that are fetched with one request, and again from where it broke.
pub(super) struct Transfer {
    shared: Arc<Shared>,
    disk: Disk,
    source: Arc<Source>,
    options: Arc<Options>,
    /// The block under way, and the run's end.
    blocks: Range<usize>,
    /// How far the block has been written, and hashed by `hasher`.
    at: u64,
    hasher: blake3::Hasher,
}

impl Transfer {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Disk,
        source: Arc<Source>,
        options: Arc<Options>,
        blocks: Range<usize>,
    ) -> Self {
        let at = shared.layout.range(blocks.start).start;
        Self { shared, disk, source, options, blocks, at, hasher: blake3::Hasher::new() }
    }

    /// Fetches the blocks, each of them in as many attempts as the options allow.
    pub(super) async fn run(mut self) -> Result<(), BlockFileError> {
        let mut failures = 0;
        while !self.blocks.is_empty() {
            let block = self.blocks.start;
            let Err(error) = self.attempt().await else { continue };
            failures = if self.blocks.start == block { failures + 1 } else { 1 };
            if !may_heal(&error) || failures >= self.options.attempts {
                return Err(error);
            }
            let wait = backoff(self.options.first_wait, LAST_WAIT, failures, rand::random());
            warn!(key = self.source.key, block = self.blocks.start, %error, ?wait, "a block is fetched again");
            sleep(wait).await;
        }
        Ok(())
    }

    /// One request for all that is missing of the run.
    async fn attempt(&mut self) -> Result<(), BlockFileError> {
        let end = self.shared.layout.range(self.blocks.end.saturating_sub(1)).end;
        let source = self.source.clone();
        let silence = self.options.silence;
        let silent = || StoreError::Unreachable(format!("it sent nothing for {silence:?}"));
        let request = source.store.get_range(&source.key, self.at..end, source.version.as_ref());
        let answer = timeout(silence, request).await.unwrap_or_else(|_| Err(silent()));
        let mut body = answer.map_err(|error| self.store_error(error))?;
        let mut batch = Batch::default();
        // What comes after the last block, were there more, belongs to none.
        while !self.blocks.is_empty() {
            let chunk = match timeout(silence, body.next()).await.unwrap_or_else(|_| Some(Err(silent()))) {
                Some(chunk) => chunk.map_err(|error| self.store_error(error))?,
                None => return Err(BlockFileError::Length { key: self.key(), block: self.blocks.start }),
            };
            self.take(&mut batch, chunk).await?;
        }
        Ok(())
    }

    /// Adds a chunk of the body to the batch, and writes that wherever it is full or a block ends.
    async fn take(&mut self, batch: &mut Batch, mut chunk: Bytes) -> Result<(), BlockFileError> {
        while !chunk.is_empty() && !self.blocks.is_empty() {
            let block_end = self.shared.layout.range(self.blocks.start).end;
            let left = block_end.saturating_sub(self.at);
            let room = usize::try_from(left).unwrap_or(BATCH).min(BATCH).saturating_sub(batch.bytes);
            let part = chunk.split_to(room.min(chunk.len()));
            batch.bytes += part.len();
            batch.parts.push(part);
            let filled = self.at + u64::try_from(batch.bytes).unwrap_or(0);
            if batch.bytes >= BATCH || filled >= block_end {
                self.write(mem::take(batch)).await?;
            }
            if self.at >= block_end {
                self.verify()?;
            }
        }
        Ok(())
    }

    /// Writes and hashes a batch, on a thread that may block.
    async fn write(&mut self, batch: Batch) -> Result<(), BlockFileError> {
        let (disk, mut hasher, mut at) = (self.disk.clone(), mem::take(&mut self.hasher), self.at);
        let write = move || {
            for part in batch.parts {
                hasher.update(&part);
                disk.file.write_all_at(&part, at).map_err(|error| disk_error("write", &disk.path, error))?;
                at += u64::try_from(part.len()).unwrap_or(0);
            }
            Ok((hasher, at))
        };
        (self.hasher, self.at) = blocking(self.disk.path.clone(), "write", write).await?;
        Ok(())
    }

    /// Shows a written block to the readers, if it is right; else it is to be fetched from its start.
    fn verify(&mut self) -> Result<(), BlockFileError> {
        let (layout, block) = (self.shared.layout, self.blocks.start);
        let found = Digest::finish(&mem::take(&mut self.hasher));
        if self.shared.digests.get(block) != Some(&found) {
            self.at = layout.range(block).start;
            return Err(BlockFileError::Digest { key: self.key(), block });
        }
        self.blocks.start = block + 1;
        self.at = layout.range(self.blocks.start).start;
        self.shared.state.send_modify(|state| state.add(layout, block));
        Ok(())
    }

    fn store_error(&self, source: StoreError) -> BlockFileError {
        BlockFileError::Store { key: self.key(), block: self.blocks.start, source }
    }

    fn key(&self) -> Arc<str> {
        self.source.key.as_str().into()
    }
}

/// Chunks of the store's that are not yet written.
#[derive(Default)]
struct Batch {
    parts: Vec<Bytes>,
    bytes: usize,
}

/// Whether another attempt may do better.
fn may_heal(error: &BlockFileError) -> bool {
    match error {
        BlockFileError::Store { source, .. } => {
            !matches!(source, StoreError::Changed(_) | StoreError::BadKey(_) | StoreError::Local { .. })
        }
        BlockFileError::Length { .. } | BlockFileError::Digest { .. } => true,
        BlockFileError::Digests { .. }
        | BlockFileError::Disk { .. }
        | BlockFileError::Spoilt { .. }
        | BlockFileError::Range { .. }
        | BlockFileError::GivenUp => false,
    }
}
