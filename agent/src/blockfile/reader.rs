//! Reading what is there, and waiting for what is not.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::{BlockFileError, Opened, Progress, Shared, State, disk_error};
use crate::spool;

/// Reads an object while it is downloaded, and afterwards. Cheap to clone; keeps no download alive, and no file open.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    opened: Option<Arc<Opened>>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, opened: None }
    }

    /// One that keeps the file open: it reads on whatever becomes of the file's name.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn opened(&self) -> Result<Self, BlockFileError> {
        Ok(Self { shared: self.shared.clone(), opened: Some(self.shared.open().await?) })
    }

    /// Waits until somebody who reads finds that the file is not what was written; for ever where nobody does.
    pub async fn spoilt(&self) -> BlockFileError {
        let mut state = self.shared.state.subscribe();
        let spoilt = state.wait_for(|state| state.spoilt.is_some()).await;
        match spoilt.ok().and_then(|state| state.spoilt.clone()) {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// How much is here.
    pub fn progress(&self) -> Progress {
        self.shared.progress()
    }

    /// Reads `range`, as soon as its blocks are there. They are fetched before others until the stream is
    /// dropped. A stream that ends without an error has given all of the range.
    pub fn read(
        &self,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, BlockFileError>> + Send + use<>, BlockFileError> {
        let layout = self.shared.layout;
        if range.start > range.end || range.end > layout.bytes() {
            let Range { start, end } = range;
            return Err(BlockFileError::Range { start, end, bytes: layout.bytes() });
        }
        Ok(self.stream(range))
    }

    /// Reads the whole object, as [`Reader::read`] does.
    pub fn read_all(&self) -> impl Stream<Item = Result<Bytes, BlockFileError>> + Send + use<> {
        self.stream(0..self.shared.layout.bytes())
    }

    fn stream(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, BlockFileError>> + Send + use<> {
        let layout = self.shared.layout;
        let last = range.end.checked_sub(1).and_then(|last| layout.containing(last)).unwrap_or(0);
        let place = layout.containing(range.start).filter(|_| !range.is_empty());
        let place = place.map(|block| Place::arrive(&self.shared, block, last));
        let opened = self.opened.clone();
        let cursor = Cursor { state: self.shared.state.subscribe(), place, opened, range };
        stream::try_unfold(cursor, |mut cursor| async move {
            Ok(cursor.next().await?.map(|chunk| (chunk, cursor)))
        })
    }
}

/// How far one stream has come.
struct Cursor {
    state: watch::Receiver<State>,
    /// `None` where nothing is left to read.
    place: Option<Place>,
    /// Open from the first byte to the last.
    opened: Option<Arc<Opened>>,
    range: Range<u64>,
}

impl Cursor {
    async fn next(&mut self) -> Result<Option<Bytes>, BlockFileError> {
        let Some(place) = &mut self.place else { return Ok(None) };
        let block = place.block;
        {
            let wait = self.state.wait_for(|state| state.has(block) || matches!(state.end, Some(Err(_))));
            // The sender lives in what the place shares.
            let Ok(state) = wait.await else { return Err(BlockFileError::GivenUp) };
            if let (false, Some(Err(error))) = (state.has(block), &state.end) {
                return Err(error.clone());
            }
        }
        let shared = &place.shared;
        let opened = match &self.opened {
            Some(opened) => opened,
            None => self.opened.insert(shared.open().await?),
        };
        shared.check(opened, block).await?;
        let block_end = shared.layout.range(block).end;
        let left = self.range.end.min(block_end).saturating_sub(self.range.start);
        let wanted = usize::try_from(left).unwrap_or(spool::CHUNK).min(spool::CHUNK);
        let read = spool::read_at(&opened.file, self.range.start, wanted).await;
        let chunk = read.map_err(|error| disk_error("read", &shared.path, error));
        let chunk = chunk.inspect_err(|error| shared.spoil(error))?;
        self.range.start += u64::try_from(chunk.len()).unwrap_or(0);
        if self.range.is_empty() {
            self.place = None;
        } else if self.range.start >= block_end {
            place.go_on();
        }
        Ok(Some(chunk))
    }
}

/// The block a stream is at, told to the download for as long as this lives.
struct Place {
    shared: Arc<Shared>,
    block: usize,
    last: usize,
    arrival: u64,
}

impl Place {
    fn arrive(shared: &Arc<Shared>, block: usize, last: usize) -> Self {
        let arrival = shared.readers.lock().arrive(block, last);
        shared.arrived.notify_one();
        Self { shared: shared.clone(), block, last, arrival }
    }

    fn go_on(&mut self) {
        self.block += 1;
        let mut readers = self.shared.readers.lock();
        readers.leave(self.arrival);
        self.arrival = readers.arrive(self.block, self.last);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.readers.lock().leave(self.arrival);
    }
}
