//! Decompression on a thread of its own: blocks of plain bytes, a few ahead of whoever writes them.

use std::io::{self, BufRead, Read as _};
use std::marker::PhantomData;
use std::sync::mpsc;
use std::thread::Scope;

/// Bytes of a block: a few system calls per megabyte, and still in the processor's cache when they are written.
const BLOCK: usize = 256 * 1024;

/// Blocks that wait for the writer.
const WAITING: usize = 8;

/// The largest window accepted, as a power of two: zstd's own limit unless it is told `--long`.
const WINDOW_LOG: u32 = 27;

type Block = Vec<u8>;

/// Plain bytes, as they are decompressed.
#[derive(Debug)]
pub(super) struct Blocks<'scope> {
    full: mpsc::Receiver<io::Result<Block>>,
    empty: mpsc::Sender<Block>,
    block: Block,
    at: usize,
    thread: PhantomData<&'scope ()>,
}

impl<'scope> Blocks<'scope> {
    /// Starts to decompress `body`, which may grow to `limit` bytes. The thread ends when this is dropped, or with
    /// the body.
    pub(super) fn decode<'env>(
        scope: &'scope Scope<'scope, 'env>,
        body: impl BufRead + Send + 'scope,
        limit: u64,
    ) -> Self {
        let (to_writer, full) = mpsc::sync_channel(WAITING);
        let (empty, from_writer) = mpsc::channel();
        scope.spawn(move || {
            if let Err(error) = decode(body, limit, &to_writer, &from_writer) {
                // A writer that is gone has its own error.
                let _ = to_writer.send(Err(error));
            }
        });
        Self { full, empty, block: Block::new(), at: 0, thread: PhantomData }
    }

    /// The next plain bytes; empty at the end.
    pub(super) fn fill(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.block.len() {
            match self.full.recv() {
                Ok(Ok(block)) => {
                    let used = std::mem::replace(&mut self.block, block);
                    self.at = 0;
                    // The decoder may have ended already.
                    let _ = self.empty.send(used);
                }
                Ok(Err(error)) => return Err(error),
                Err(mpsc::RecvError) => return Ok(&[]),
            }
        }
        Ok(self.block.get(self.at..).unwrap_or_default())
    }

    /// Takes so many of the bytes that [`Blocks::fill`] gave.
    pub(super) fn take(&mut self, count: usize) {
        self.at += count;
    }
}

/// Decompresses to the end. Blocks are used again: at most `WAITING + 3` are ever made.
fn decode(
    body: impl BufRead,
    limit: u64,
    to_writer: &mpsc::SyncSender<io::Result<Block>>,
    from_writer: &mpsc::Receiver<Block>,
) -> io::Result<()> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body)?;
    decoder.window_log_max(WINDOW_LOG)?;
    let mut total: u64 = 0;
    loop {
        let mut block = from_writer.try_recv().unwrap_or_else(|_| vec![0; BLOCK]);
        block.resize(BLOCK, 0);
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let count = decoder.read(rest)?;
            if count == 0 {
                break;
            }
            filled += count;
        }
        block.truncate(filled);
        total += filled as u64;
        if total > limit {
            return Err(io::Error::other(format!("more than {limit} bytes come out of it")));
        }
        if filled == 0 || to_writer.send(Ok(block)).is_err() {
            return Ok(());
        }
    }
}
