//! The file as those have it who read it now: opened with the first of them, closed with the last, and each of its blocks
//! hashed before one of them gets a byte of it.
//!
//! What was right when it was written may have rotted since. Where it has, all handles are told, so that their owner has
//! the file made or fetched again.

use std::{fs, sync::Arc};

use parking_lot::Mutex;

use super::{BlockFileError, Shared, blocking, digest::digest_block, disk_error};

/// See the module.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: Arc<fs::File>,
    /// The blocks that have been read and found right.
    checked: Mutex<Vec<bool>>,
}

impl Opened {
    fn is_checked(&self, block: usize) -> bool {
        let checked = self.checked.lock();
        checked.get(block).copied().unwrap_or(false)
    }

    fn set_checked(&self, block: usize) {
        let mut checked = self.checked.lock();
        if let Some(checked) = checked.get_mut(block) {
            *checked = true;
        }
    }
}

impl Shared {
    /// The file, opened unless somebody reads it already.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Arc<Opened>, BlockFileError> {
        let shared = self.clone();
        let opened = blocking(self.path.clone(), "open", move || {
            let mut slot = shared.opened.lock();
            if let Some(opened) = slot.upgrade() {
                return Ok(opened);
            }
            let file =
                fs::File::open(&shared.path).map_err(|error| disk_error("open", &shared.path, error))?;
            let checked = Mutex::new(vec![false; shared.layout.count()]);
            let opened = Arc::new(Opened { file: Arc::new(file), checked });
            *slot = Arc::downgrade(&opened);
            Ok(opened)
        });
        // One that cannot be opened for want of a descriptor is well.
        opened.await.inspect_err(|error| {
            if error.is_gone() {
                self.spoil(error);
            }
        })
    }

    /// Makes sure that `block`, which is there, is on the disk as it was written.
    pub(super) async fn check(
        self: &Arc<Self>,
        opened: &Arc<Opened>,
        block: usize,
    ) -> Result<(), BlockFileError> {
        if opened.is_checked(block) {
            return Ok(());
        }
        let (shared, file) = (self.clone(), opened.file.clone());
        let found = blocking(self.path.clone(), "read", move || {
            let read = digest_block(&file, shared.layout, block);
            let found = read.map_err(|error| disk_error("read", &shared.path, error))?;
            let right = shared.digests.get(block) == Some(&found);
            if right { Ok(()) } else { Err(BlockFileError::Spoilt { path: shared.path.clone(), block }) }
        });
        found.await.inspect_err(|error| self.spoil(error))?;
        opened.set_checked(block);
        Ok(())
    }

    /// Tells all handles that the file is of no use.
    pub(super) fn spoil(&self, error: &BlockFileError) {
        self.state.send_if_modified(|state| {
            let first = state.spoilt.is_none();
            if first {
                state.spoilt = Some(error.clone());
            }
            first
        });
    }
}
