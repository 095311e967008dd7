//! A file that one writer appends to while many readers follow it.
//!
//! Each reader goes at its own speed; a slow one delays nobody. A reader is told that the file is whole
//! only when its writer said so: what a writer leaves half done ends in an error, never in a short file
//! taken for whole.

use std::{fs, io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::{
    buffer::spare_capacity,
    io::{Errno, IoSliceMut, ReadWriteFlags, pread, preadv2},
};
use tokio::sync::watch;

use crate::files::blocking;

/// Read at once: large enough to make the system calls cheap, small enough that hundreds of readers fit
/// into a few dozen megabytes.
pub(crate) const CHUNK: usize = 128 * 1024;

/// Why a reader cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TailError {
    /// The writer failed; what was read is not the whole.
    #[error("{reason}")]
    Writer {
        /// Why.
        reason: Arc<str>,
        /// Whether the same request may succeed without the file.
        blame: Blame,
    },
    /// The file cannot be read.
    #[error("cannot read the cached answer: {0}")]
    Read(Arc<io::Error>),
}

/// Who made a writer fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request, or what should answer it: it would fail again.
    Request,
    /// The file or its writer: the request may succeed without them.
    File,
}

/// How far the writer is.
#[derive(Clone, Debug, Default)]
struct Progress {
    length: u64,
    end: Option<Result<(), (Arc<str>, Blame)>>,
}

/// The writer's side: says how far the file has grown. Dropping it before [`Writer::finish`] fails the
/// readers.
#[derive(Debug)]
pub struct Writer {
    progress: watch::Sender<Progress>,
}

/// The readers' side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tail {
    file: Arc<fs::File>,
    progress: watch::Receiver<Progress>,
}

/// A tail on `file`, which is empty now.
pub fn tail(file: fs::File) -> (Writer, Tail) {
    let (sender, receiver) = watch::channel(Progress::default());
    (Writer { progress: sender }, Tail { file: Arc::new(file), progress: receiver })
}

impl Writer {
    /// Says that the first `length` bytes are there.
    pub fn grown(&self, length: u64) {
        self.progress.send_if_modified(|progress| {
            let more = length > progress.length;
            progress.length = progress.length.max(length);
            more
        });
    }

    /// Says that the file is whole with `length` bytes.
    pub fn finish(self, length: u64) {
        self.progress.send_modify(|progress| (progress.length, progress.end) = (length, Some(Ok(()))));
    }

    /// Says that the file will never be whole, and why.
    pub fn fail(self, reason: &str, blame: Blame) {
        self.progress.send_modify(|progress| progress.end = Some(Err((reason.into(), blame))));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.progress.send_if_modified(|progress| {
            let unfinished = progress.end.is_none();
            if unfinished {
                progress.end = Some(Err(("the work was given up".into(), Blame::File)));
            }
            unfinished
        });
    }
}

impl Tail {
    /// The length of a whole file; `None` while it grows or after it failed.
    pub fn length(&self) -> Option<u64> {
        let progress = self.progress.borrow();
        progress.end.as_ref()?.as_ref().ok().map(|()| progress.length)
    }

    /// A file that is whole already, with `length` bytes.
    pub fn whole(file: fs::File, length: u64) -> Self {
        let (_, progress) = watch::channel(Progress { length, end: Some(Ok(())) });
        Self { file: Arc::new(file), progress }
    }

    /// Waits until there is something to read, or nothing ever will be.
    pub async fn begun(&self) -> Result<(), TailError> {
        let mut progress = self.progress.clone();
        let begun = progress.wait_for(|progress| progress.length > 0 || progress.end.is_some()).await;
        match begun.ok().filter(|progress| progress.length == 0).and_then(|progress| progress.end.clone()) {
            Some(Err((reason, blame))) => Err(TailError::Writer { reason, blame }),
            _ => Ok(()),
        }
    }

    /// Waits until the file is whole or has failed.
    pub async fn ended(&self) -> Result<(), TailError> {
        let mut progress = self.progress.clone();
        let end = progress.wait_for(|progress| progress.end.is_some()).await;
        match end.ok().and_then(|progress| progress.end.clone()) {
            Some(Err((reason, blame))) => Err(TailError::Writer { reason, blame }),
            _ => Ok(()),
        }
    }

    /// Reads from the start, following the writer, to the end.
    pub fn read(&self) -> impl Stream<Item = Result<Bytes, TailError>> + Send + use<> {
        self.read_part(0..u64::MAX)
    }

    /// Reads this part, following the writer, as far as the file goes.
    pub fn read_part(&self, part: Range<u64>) -> impl Stream<Item = Result<Bytes, TailError>> + Send + use<> {
        let start = (self.file.clone(), self.progress.clone(), part.start);
        stream::try_unfold(start, move |(file, mut progress, at)| async move {
            if at >= part.end {
                return Ok(None);
            }
            let length = {
                let wait = progress.wait_for(|progress| progress.length > at || progress.end.is_some());
                // The sender sets an end before it goes.
                let Ok(progress) = wait.await else { return Ok(None) };
                if progress.length <= at {
                    return match &progress.end {
                        Some(Err((reason, blame))) => {
                            Err(TailError::Writer { reason: reason.clone(), blame: *blame })
                        }
                        _ => Ok(None),
                    };
                }
                progress.length
            };
            let wanted = usize::try_from(length.min(part.end) - at).unwrap_or(CHUNK).min(CHUNK);
            let chunk = read_at(&file, at, wanted).await.map_err(|error| TailError::Read(Arc::new(error)))?;
            let next = at + u64::try_from(chunk.len()).unwrap_or(0);
            Ok(Some((chunk, (file, progress, next))))
        })
    }
}

/// Reads up to `wanted` bytes: at once where they are in the page cache, which they nearly always are;
/// else on a thread that may block.
pub(crate) async fn read_at(file: &Arc<fs::File>, at: u64, wanted: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; wanted];
    match preadv2(file, &mut [IoSliceMut::new(&mut buffer)], at, ReadWriteFlags::NOWAIT) {
        Ok(count @ 1..) => {
            buffer.truncate(count);
            return Ok(buffer.into());
        }
        Ok(0) => {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than its writer said",
            ));
        }
        Err(Errno::AGAIN | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let file = file.clone();
    let read = move || {
        let mut buffer = Vec::with_capacity(wanted);
        match pread(&file, spare_capacity(&mut buffer), at) {
            Ok(0) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than its writer said"))
            }
            Ok(_) => Ok(Bytes::from(buffer)),
            Err(error) => Err(error.into()),
        }
    };
    blocking(read).await
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures_util::{StreamExt, TryStreamExt};

    use super::*;

    async fn all(tail: &Tail) -> Result<Vec<u8>, TailError> {
        tail.read()
            .try_fold(Vec::new(), |mut all, chunk| async move {
                all.extend_from_slice(&chunk);
                Ok(all)
            })
            .await
    }

    fn file() -> (fs::File, fs::File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        (file.reopen().unwrap(), file.reopen().unwrap())
    }

    #[tokio::test]
    async fn every_reader_gets_everything_whenever_it_comes() {
        let (mut out, read) = file();
        let (writer, tail) = tail(read);
        let early = tokio::spawn({
            let tail = tail.clone();
            async move { all(&tail).await }
        });
        let content = vec![7_u8; 3 * CHUNK + 1];
        let mut written = 0;
        for part in content.chunks(CHUNK / 2 + 1) {
            out.write_all(part).unwrap();
            written += u64::try_from(part.len()).unwrap();
            writer.grown(written);
            tokio::task::yield_now().await;
        }
        assert_eq!(tail.length(), None);
        writer.finish(written);
        assert_eq!(early.await.unwrap().unwrap(), content);
        assert_eq!(all(&tail).await.unwrap(), content);
        assert_eq!(tail.length(), Some(written));
        let part = tail.read_part(5..9).try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(part, [content.get(5..9).unwrap()]);
    }

    #[tokio::test]
    async fn a_failed_or_vanished_writer_is_an_error_for_its_readers() {
        for vanish in [true, false] {
            let (mut out, read) = file();
            let (writer, tail) = tail(read);
            out.write_all(b"half").unwrap();
            writer.grown(4);
            let mut reader = Box::pin(tail.read());
            assert_eq!(reader.next().await.unwrap().unwrap(), "half");
            if vanish {
                drop(writer);
            } else {
                writer.fail("broken", Blame::Request);
            }
            assert!(reader.next().await.unwrap().is_err());
            assert!(all(&tail).await.is_err());
            assert!(tail.ended().await.is_err());
        }
    }
}
