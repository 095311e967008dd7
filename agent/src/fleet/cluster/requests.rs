//! Looks that users ask for by the annotation `tarn.dev/requestedAt`: each new value one look, and the fetch after it.

use std::{collections::BTreeSet, future::pending, time::Duration};

use tokio::{task::JoinSet, time::timeout};

use super::board::Board;
use crate::{fleet::Fleet, mirror::Mirror};

/// A request that was acted on.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) name: String,
    pub(super) value: String,
}

/// Requests under way, at most one for each GitMirror.
#[derive(Debug, Default)]
pub(super) struct Requests {
    running: BTreeSet<String>,
    jobs: JoinSet<Done>,
}

impl Requests {
    /// Starts what is asked for and not under way. A suspended mirror asks its upstream nothing: its requests wait.
    pub(super) fn start(&mut self, board: &Board, fleet: &Fleet) {
        for (name, value) in board.asked() {
            if self.running.contains(&name) {
                continue;
            }
            let mirror = fleet.named(&name).filter(|mirror| !mirror.settings().suspend);
            let Some(mirror) = mirror else { continue };
            tracing::info!(name, "a look was asked for");
            self.running.insert(name.clone());
            self.jobs.spawn(async move {
                look(mirror).await;
                Done { name, value }
            });
        }
    }

    /// The next one that was acted on; never where none is under way. A dropped future loses none.
    pub(super) async fn next(&mut self) -> Option<Done> {
        match self.jobs.join_next().await {
            Some(Ok(done)) => {
                self.running.remove(&done.name);
                Some(done)
            }
            // A job that panicked is tried again once the others are done.
            Some(Err(_)) | None => {
                if self.jobs.is_empty() {
                    self.running.clear();
                }
                pending().await
            }
        }
    }
}

/// Looks, and waits for the fetch of what moved. A failure is an answer too: the mirror's findings say why.
async fn look(mirror: Mirror) {
    let settings = mirror.settings();
    let patience = settings.timeout + settings.look_timeout + Duration::from_secs(10);
    let work = async {
        if let Ok((refs, began)) = mirror.look(&[]).await {
            let tips: Vec<_> = refs.tips().collect();
            if let Err(error) = mirror.settle(&tips, began).await {
                tracing::debug!(%error, "what was asked for cannot be fetched");
            }
        }
    };
    let _ = timeout(patience, work).await;
}
