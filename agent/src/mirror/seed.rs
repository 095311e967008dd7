//! A repository that serves shallow clones cheaply. Its directory goes with the last who holds it: a child may read a
//! seed that a newer one has replaced.

use std::{path::PathBuf, sync::Arc};

use tokio::runtime::Handle;

use super::disk::Disk;
use crate::{
    git::{Oid, base::Base},
    recipe::Proof,
};

/// See the module.
#[derive(Debug)]
pub struct Seed {
    /// Where it is.
    pub dir: PathBuf,
    /// The commit it was made for.
    pub tip: Oid,
    /// Its pack, and what is known of it.
    pub proof: Arc<Proof>,
    disk: Arc<Disk>,
}

impl Seed {
    pub(super) fn new(dir: PathBuf, tip: Oid, base: Base, disk: Arc<Disk>) -> Self {
        Self { dir, tip, proof: Arc::new(Proof::new(Arc::new(base))), disk }
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        let (disk, dir) = (self.disk.clone(), std::mem::take(&mut self.dir));
        let remove = move || {
            if let Err(error) = disk.discard(&dir) {
                tracing::debug!(%error, "a seed is removed at the next start");
            }
        };
        // Outside the runtime the process is ending, and the next one empties staging.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(remove);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::git::base;

    #[tokio::test]
    async fn a_seed_stays_while_someone_holds_it_and_goes_with_the_last() {
        let data = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::open(data.path(), None).unwrap());
        let dir = disk.staging();
        fs::create_dir(&dir).unwrap();
        let base = base::tests::empty(data.path());
        let seed = Arc::new(Seed::new(dir.clone(), Oid::from_hex(&[b'1'; 40]).unwrap(), base, disk));
        let reader = seed.clone();
        drop(seed);
        assert!(dir.exists());
        drop(reader);
        for _ in 0..1000 {
            if !dir.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it is still there");
    }
}
