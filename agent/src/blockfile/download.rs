//! The download of one object: which blocks are in flight, and how it ends.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{
    BlockFileError, Disk, Progress, Reader, Shared, Source, blocking, disk_error, transfer::Transfer,
};

/// Blocks in flight, unless told otherwise: what it takes to fill a link to a distant bucket.
const FLIGHTS: usize = 8;

/// How a download goes about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many requests are under way at once; shared by downloads that should share the bound.
    pub flights: Arc<Semaphore>,
    /// How many times a block is tried before the download fails.
    pub attempts: u32,
    /// The wait before the second attempt. It doubles with each further one.
    pub first_wait: Duration,
    /// How long the store may send nothing before an attempt counts as failed.
    pub silence: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flights: Arc::new(Semaphore::new(FLIGHTS)),
            attempts: 5,
            first_wait: Duration::from_millis(500),
            silence: Duration::from_secs(30),
        }
    }
}

/// A running or ended download. Cheap to clone; dropping the last clone ends it, and its readers get
/// [`BlockFileError::GivenUp`] for blocks that are not there.
#[derive(Clone, Debug)]
pub struct Download {
    shared: Arc<Shared>,
    _driver: Arc<AbortOnDropHandle<()>>,
}

impl Download {
    pub(super) fn start(shared: Arc<Shared>, disk: Disk, source: Source, options: Options) -> Self {
        let ending = Ending(shared.clone());
        let driver = Driver {
            missing: {
                let state = shared.state.borrow();
                (0..shared.layout.count()).filter(|block| !state.has(*block)).collect()
            },
            shared: shared.clone(),
            disk,
            source: Arc::new(source),
            options: Arc::new(options),
        };
        let drive = async move {
            let end = driver.drive().await;
            ending.end(end);
        };
        let task = tokio::spawn(drive.in_current_span());
        Self { shared, _driver: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Waits until every block is verified and on the disk, or the download has failed.
    pub async fn wait(&self) -> Result<(), BlockFileError> {
        let mut state = self.shared.state.subscribe();
        let ended = state.wait_for(|state| state.end.is_some()).await;
        ended.ok().and_then(|state| state.end.clone()).unwrap_or(Err(BlockFileError::GivenUp))
    }

    /// How much is here.
    pub fn progress(&self) -> Progress {
        self.shared.progress()
    }

    /// Something to read with.
    pub fn reader(&self) -> Reader {
        Reader::new(self.shared.clone())
    }
}

/// Tells the readers how the download ended, even where its task was aborted.
struct Ending(Arc<Shared>);

impl Ending {
    fn end(&self, end: Result<(), BlockFileError>) {
        self.0.state.send_if_modified(|state| {
            let running = state.end.is_none();
            if running {
                state.end = Some(end);
            }
            running
        });
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.end(Err(BlockFileError::GivenUp));
    }
}

/// The sole owner of what is missing and of what is in flight.
struct Driver {
    shared: Arc<Shared>,
    disk: Disk,
    source: Arc<Source>,
    options: Arc<Options>,
    /// Neither there nor in flight.
    missing: BTreeSet<usize>,
}

impl Driver {
    async fn drive(mut self) -> Result<(), BlockFileError> {
        let mut flights = JoinSet::new();
        let mut progress = self.shared.state.subscribe();
        let mut opening = None;
        while !(self.missing.is_empty() && flights.is_empty()) {
            // Until the first small block is there, only as many requests as somebody waits for: others would share
            // the line with it, and it is what a reader's first byte takes.
            opening = opening.filter(|block| !progress.borrow_and_update().has(*block));
            let held_back = opening.is_some() && flights.len() >= self.shared.readers.lock().count().max(1);
            tokio::select! {
                Some(landed) = flights.join_next() => {
                    let failed = |error| disk_error("write", &self.disk.path, io::Error::other(error));
                    landed.map_err(failed).flatten()?;
                }
                _ = progress.changed(), if held_back => {}
                () = self.shared.arrived.notified(), if held_back => {}
                permit = self.options.flights.clone().acquire_owned(), if !self.missing.is_empty() && !held_back => {
                    let permit = permit.map_err(|_| BlockFileError::GivenUp)?;
                    // Chosen only now: readers may have come while this waited for its turn.
                    let next = self.shared.readers.lock().next(self.shared.layout, &mut self.missing);
                    let Some(blocks) = next else { continue };
                    if flights.is_empty() && self.shared.layout.is_small(blocks.start) {
                        opening = Some(blocks.start);
                    }
                    let transfer = Transfer::new(
                        self.shared.clone(),
                        self.disk.clone(),
                        self.source.clone(),
                        self.options.clone(),
                        blocks,
                    );
                    let flight = async move {
                        let _permit = permit;
                        transfer.run().await
                    };
                    flights.spawn(flight.in_current_span());
                }
            }
        }
        let disk = self.disk.clone();
        blocking(disk.path.clone(), "flush", move || {
            disk.file.sync_data().map_err(|error| disk_error("flush", &disk.path, error))
        })
        .await
    }
}
