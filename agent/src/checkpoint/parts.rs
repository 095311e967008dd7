//! What a restore has downloaded, in a directory that outlives the process: a restore that was killed goes on where
//! it was.
//!
//! Nothing here is trusted or served. Files are named by the pack they belong to; whatever the manifest does not
//! name is removed, and every block of the rest is hashed again before it counts. A mirror gets links to files
//! that are whole.

use std::{fs, io, path::PathBuf};

use super::manifest::{File, Manifest};
use crate::{
    blockfile::{BlockFile, BlockFileError, Digest},
    files::{blocking, remove_tree},
};

/// The directory of one mirror.
#[derive(Clone, Debug)]
pub struct Parts(pub PathBuf);

impl Parts {
    /// Makes the directory, and removes what `manifest` does not name.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn prepare(&self, manifest: &Manifest) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let named: Vec<String> = manifest.files().map(|(pack, file)| name(pack, file)).collect();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let known =
                entry.file_name().to_str().is_some_and(|name| named.iter().any(|known| known == name));
            match entry.file_type()?.is_file() {
                true if known => {}
                true => fs::remove_file(entry.path())?,
                false => remove_tree(&entry.path())?,
            }
        }
        Ok(())
    }

    /// The file of a pack: as far as it is here, or empty.
    pub(super) async fn open(&self, pack: Digest, file: &File) -> Result<BlockFile, BlockFileError> {
        let (path, blocks) = (self.0.join(name(pack, file)), file.blocks.clone());
        // An empty one need not be hashed.
        if path.exists() {
            BlockFile::resume(&path, file.bytes, blocks).await
        } else {
            BlockFile::create(&path, file.bytes, blocks).await
        }
    }

    /// Links all files of `manifest`, which are whole, into the repository at `repository`. They stay here too, for
    /// as long as the restore may be killed.
    pub(super) async fn link(&self, manifest: &Manifest, repository: PathBuf) -> io::Result<()> {
        let names: Vec<String> = manifest.files().map(|(pack, file)| name(pack, file)).collect();
        let parts = self.0.clone();
        let link = move || {
            let packs = repository.join("objects/pack");
            names.iter().try_for_each(|name| fs::hard_link(parts.join(name), packs.join(name)))
        };
        blocking(link).await
    }
}

/// As git calls it.
pub(super) fn name(pack: Digest, file: &File) -> String {
    format!("pack-{pack}.{}", file.kind.extension())
}
