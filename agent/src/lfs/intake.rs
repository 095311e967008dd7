//! An object on its way to the disk: hashed as it is written.

use std::{fs, io::Write, sync::Arc};

use sha2::{Digest, Sha256};

use super::FetchError;
use crate::{protocol::lfs::Object, tail::Writer};

/// See the module.
pub struct Intake {
    object: Object,
    file: fs::File,
    writer: Arc<Writer>,
    hasher: Sha256,
    taken: u64,
}

impl Intake {
    pub(super) fn new(object: Object, file: fs::File, writer: Arc<Writer>) -> Self {
        Self { object, file, writer, hasher: Sha256::new(), taken: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are too many, or the disk is full.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.taken = self.taken.saturating_add(bytes.len() as u64);
        if self.taken > self.object.bytes {
            return Err(FetchError::Mismatch("it is longer"));
        }
        // Into the page cache; a full disk is the one thing that fails here.
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        // Readers get the last byte when all of them are known to be right.
        self.writer.grown(self.taken.min(self.object.bytes.saturating_sub(1)));
        Ok(())
    }

    /// Ends the object.
    ///
    /// # Errors
    /// It is not what its name says.
    pub fn finish(self) -> Result<(), FetchError> {
        if self.taken < self.object.bytes {
            return Err(FetchError::Mismatch("it is shorter"));
        }
        let name: String = self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let right = name == self.object.oid.to_string();
        if right { Ok(()) } else { Err(FetchError::Mismatch("its SHA-256 is another")) }
    }
}
