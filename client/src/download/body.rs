//! From the network's tasks to a blocking reader: pieces in order, each a queue bounded by its bytes.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Makes the two ends: where pieces are announced in order, and what reads them.
pub(super) fn channel(pieces: usize, total: u64) -> (mpsc::Sender<Piece>, Body) {
    let (announce, announced) = mpsc::channel(pieces);
    (announce, Body { announced, piece: None, chunk: Bytes::new(), left: total })
}

/// One range, as its reader sees it.
#[derive(Debug)]
pub(super) struct Piece {
    chunks: mpsc::UnboundedReceiver<Bytes>,
    room: Arc<Semaphore>,
    /// What the reader has not had of it yet.
    left: u64,
    /// Given back when the piece has been read.
    _slot: OwnedSemaphorePermit,
}

impl Piece {
    /// A piece of `size` bytes, of which at most `held` wait to be read, and where they are put.
    pub(super) fn new(slot: OwnedSemaphorePermit, size: u64, held: u64) -> (Self, Room) {
        let (sender, chunks) = mpsc::unbounded_channel();
        let bytes = u32::try_from(held).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(bytes as usize));
        (Self { chunks, room: Arc::clone(&room), left: size, _slot: slot }, Room { sender, room, bytes })
    }
}

/// Where the bytes of one range are put.
#[derive(Debug)]
pub struct Room {
    sender: mpsc::UnboundedSender<Bytes>,
    room: Arc<Semaphore>,
    bytes: u32,
}

/// The reader is gone.
#[derive(Debug)]
pub(super) struct Gone;

impl Room {
    /// Puts a chunk; waits while there is no room for it.
    pub(super) async fn send(&self, chunk: Bytes) -> Result<(), Gone> {
        let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX).min(self.bytes);
        tokio::select! {
            permit = self.room.acquire_many(bytes) => permit.map_err(|_| Gone)?.forget(),
            () = self.sender.closed() => return Err(Gone),
        }
        self.sender.send(chunk).map_err(|_| Gone)
    }
}

/// The archive as one stream, for a thread that may block.
#[derive(Debug)]
pub struct Body {
    announced: mpsc::Receiver<Piece>,
    piece: Option<Piece>,
    chunk: Bytes,
    left: u64,
}

impl BufRead for Body {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() && self.left > 0 {
            let Some(piece) = &mut self.piece else {
                self.piece = Some(self.announced.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)?);
                continue;
            };
            if piece.left == 0 {
                self.piece = None;
                continue;
            }
            // A download that failed says why itself; here its bytes just end.
            let chunk = piece.chunks.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)?;
            piece.room.add_permits(chunk.len());
            piece.left = piece.left.saturating_sub(chunk.len() as u64);
            self.left = self.left.saturating_sub(chunk.len() as u64);
            self.chunk = chunk;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount.min(self.chunk.len()));
    }
}

impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), available.get(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        Ok(count)
    }
}
