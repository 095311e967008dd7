//! What an earlier process left on the disk.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bstr::ByteSlice;
use tarn_crds::v1alpha1::conditions::Reason;
use tokio::sync::mpsc;

use super::Task;
use crate::{
    files,
    git::{ObjectFormat, Oid, RefSet, refs::RefsError, remote},
    mirror::{Message, Stored, Trouble, disk::size},
    queue::{Activity, Priority},
};

impl Task {
    /// Loads what is on the disk when it is this mirror's turn: not a thousand of them at once. Gives the messages that came
    /// meanwhile, which hasten it; `None` once nobody is left to send any.
    pub(super) async fn wait_to_load(&mut self, inbox: &mut mpsc::Receiver<Message>) -> Option<Vec<Message>> {
        let mut early = Vec::new();
        if !self.site.dir.exists() {
            return Some(early);
        }
        let mut turn = self.services.queue.enter(Activity::Load, &self.site.id, Priority::Background);
        let lift = turn.lift();
        loop {
            tokio::select! {
                () = turn.called() => break,
                message = inbox.recv() => {
                    early.push(message?);
                    lift.lift();
                }
            }
        }
        self.load().await;
        Some(early)
    }

    /// Brings what was found on the disk up to date: at once, or among many within a while.
    pub(super) fn begin(&mut self) {
        let spread = Duration::from_millis(self.services.spread.load(Ordering::Relaxed));
        if spread.is_zero() || self.settings.suspend {
            return self.want();
        }
        self.wanted = true;
        self.wait(spread.mul_f64(rand::random()));
    }

    /// Finds what an earlier process left on the disk. What is damaged is set aside, and the mirror made anew.
    async fn load(&mut self) {
        let dir = self.site.dir.clone();
        let found = tokio::task::spawn_blocking(move || read_mirror(&dir)).await;
        let problem = match found.map_err(|error| error.to_string()) {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(refs))) => match self.check(&refs).await {
                Ok(doubt) => {
                    self.upkeep.found(&refs);
                    self.stored = Some(Arc::new(Stored::new(Arc::new(refs))));
                    self.entitled.load();
                    self.demand.load(&self.site.dir);
                    self.measure();
                    self.life.on_disk = true;
                    // Only what is published can be examined.
                    self.publish();
                    if let Some(said) = doubt {
                        self.site.integrity.doubt(&self.site.id, &said);
                    }
                    return;
                }
                Err(problem) => problem,
            },
            Ok(Err(error)) => error.to_string(),
            Err(error) => error,
        };
        self.replace(Trouble { reason: Reason::MirrorDamaged, message: problem });
    }

    /// Measures the mirror: repacking changes its size.
    pub(super) fn measure(&mut self) {
        self.bytes = size(&self.site.dir);
    }

    /// Whether git has every object that the mirror's refs name; git's words where it cannot tell.
    async fn check(&self, refs: &RefSet) -> Result<Option<String>, String> {
        let tips: Vec<Oid> = refs.tips().collect();
        // A child that lacks descriptors or memory misses what is there: only what is missed twice is missing.
        for attempt in 1.. {
            let missing = match remote::missing(&self.site.git, &self.site.dir, &tips).await {
                Ok(missing) => missing,
                // No reason to give a mirror up, and one to look at its files.
                Err(error) => {
                    tracing::warn!(%error, "the mirror on the disk cannot be checked; it is taken as it is");
                    return Ok(Some(error.to_string()));
                }
            };
            match missing.iter().next() {
                None => return Ok(None),
                Some(oid) if attempt > 1 => {
                    return Err(format!("{} objects are missing, such as {oid}", missing.len()));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }
}

/// The refs of the mirror at `dir`; `None` where there is no mirror. Its configuration is made what it should be: an older
/// agent wrote another one, and git fails on a damaged one.
fn read_mirror(dir: &Path) -> Result<Option<RefSet>, RefsError> {
    if !dir.exists() {
        return Ok(None);
    }
    let path = dir.join("config");
    let config = fs::read(&path).unwrap_or_default();
    let format = RefSet::format_at(dir).unwrap_or_else(|| {
        let sha256 = config.to_ascii_lowercase().contains_str("objectformat = sha256");
        if sha256 { ObjectFormat::Sha256 } else { ObjectFormat::Sha1 }
    });
    let expected = remote::config(format).as_bytes();
    if config != expected {
        files::replace(&path, expected).map_err(|source| RefsError::Io { path, source })?;
    }
    RefSet::read(dir, format).map(Some)
}
