//! What an earlier process left on the disk.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::mpsc;

use super::Task;
use crate::{
    files::blocking,
    git::{GitError, ObjectFormat, Oid, RefSet, refs::RefsError, remote},
    mirror::{Message, Stored},
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
        let mut turn = self.queue.enter(Activity::Load, &self.site.id, Priority::Background);
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
        let spread = Duration::from_millis(self.spread.load(Ordering::Relaxed));
        if spread.is_zero() || self.settings.suspend {
            return self.want();
        }
        self.wanted = true;
        self.wait(spread.mul_f64(rand::random()));
    }

    /// Finds what an earlier process left on the disk. What is damaged is moved out of the way, to be made
    /// anew.
    async fn load(&mut self) {
        let dir = self.site.dir.clone();
        let found = tokio::task::spawn_blocking(move || read_mirror(&dir)).await;
        let problem = match found.map_err(|error| error.to_string()) {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(refs))) => match self.check(&refs).await {
                Ok(()) => {
                    self.upkeep.found(&refs);
                    self.stored = Some(Arc::new(Stored::new(Arc::new(refs))));
                    self.demand.load(&self.site.dir);
                    self.measure();
                    self.life.on_disk = true;
                    return;
                }
                Err(problem) => problem,
            },
            Ok(Err(error)) => error.to_string(),
            Err(error) => error,
        };
        tracing::warn!(problem, "the mirror on the disk is damaged; it will be made anew");
        let (disk, dir) = (self.site.disk.clone(), self.site.dir.clone());
        if let Err(error) = blocking(move || disk.discard(&dir)).await {
            tracing::warn!(%error, "the damaged mirror cannot be removed");
        }
    }

    /// Whether git can use the mirror, and has every object its refs name.
    async fn check(&self, refs: &RefSet) -> Result<(), String> {
        let tips: Vec<Oid> = refs.tips().collect();
        let missing = match remote::missing(&self.site.git, &self.site.dir, &tips).await {
            Ok(missing) => missing,
            Err(error @ GitError::Failed { .. }) => return Err(error.to_string()),
            // Git could not be asked: no reason to give a mirror up.
            Err(error) => {
                tracing::warn!(%error, "the mirror on the disk cannot be checked; it is taken as it is");
                return Ok(());
            }
        };
        missing
            .iter()
            .next()
            .map_or(Ok(()), |oid| Err(format!("{} objects are missing, such as {oid}", missing.len())))
    }
}

/// The refs of the mirror at `dir`; `None` where there is no mirror.
fn read_mirror(dir: &Path) -> Result<Option<RefSet>, RefsError> {
    if !dir.exists() {
        return Ok(None);
    }
    let config = fs::read_to_string(dir.join("config")).unwrap_or_default();
    let sha256 = config.to_ascii_lowercase().contains("objectformat = sha256");
    let format = if sha256 { ObjectFormat::Sha256 } else { ObjectFormat::Sha1 };
    RefSet::read(dir, format).map(Some)
}
