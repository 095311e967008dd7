//! Removes the objects of GitMirrors that are deleted with deletionPolicy Delete from the store.
//!
//! The mirror's owner among the agents that share the store does it (see [`crate::peers`]); each further rank waits
//! longer, in case those before it are gone or look after another cache. The operator holds the GitMirror until one of
//! them says that it is done, and not for ever.
//!
//! *Invariant:* nothing goes while a GitMirror of the cache declares the repository.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::board::{Board, Leaving};
use crate::{
    checkpoint::{Archive, wipe::wipe},
    fleet::Fleet,
    peers::Peers,
};

/// What the others may still be publishing ends within this once they know.
const SETTLE: Duration = Duration::from_secs(5);

/// How much longer each further rank waits.
const TURN: Duration = Duration::from_secs(60);

/// How often it is looked whose turn has come, and what has failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// How long the objects of one mirror may take; what is left then goes at the next attempt.
const PATIENCE: Duration = Duration::from_secs(120);

/// Mirrors at once.
const AT_ONCE: usize = 4;

/// What there is to clean up, and where.
pub struct Cleanup {
    /// Which mirrors are on their way out.
    pub board: Board,
    /// What is declared.
    pub fleet: Arc<Fleet>,
    /// The store and who shares it; none where there is nothing to remove.
    pub store: Option<(Arc<Archive>, Peers)>,
}

impl Cleanup {
    /// Cleans up, for ever.
    pub async fn run(self) {
        loop {
            let waiting = self.board.unremoved();
            if waiting.is_empty() {
                self.board.left().await;
                continue;
            }
            let due = waiting.into_iter().filter(|(_, leaving)| self.is_due(leaving));
            let jobs = due.map(|(name, leaving)| self.clean(name, leaving));
            futures_util::stream::iter(jobs).buffer_unordered(AT_ONCE).collect::<()>().await;
            sleep(AGAIN).await;
        }
    }

    fn is_due(&self, leaving: &Leaving) -> bool {
        let Some((_, peers)) = &self.store else { return true };
        let Some(rank) = peers.rank(&leaving.repo) else { return false };
        let turn = TURN.saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX));
        leaving.since.elapsed() >= SETTLE.saturating_add(turn)
    }

    async fn clean(&self, name: String, leaving: Leaving) {
        let repo = &leaving.repo;
        // Asked before every object: a GitMirror of the same repository may be there, or come.
        let wanted = || self.board.leaving(&name).is_some() && self.fleet.get(repo).is_none();
        if !wanted() {
            return;
        }
        let Some((archive, _)) = &self.store else {
            self.board.removed(&name);
            return;
        };
        match timeout(PATIENCE, wipe(&*archive.store, repo, wanted)).await {
            Ok(Ok(Some(objects))) => {
                tracing::info!(name, %repo, objects, "a deleted mirror's objects are gone from the store");
                self.board.removed(&name);
            }
            Ok(Ok(None)) => tracing::info!(name, %repo, "the repository is declared again; its objects stay"),
            Ok(Err(error)) => {
                tracing::warn!(name, %repo, %error, "a deleted mirror's objects are still in the store; trying again");
            }
            Err(_) => {
                tracing::warn!(name, %repo, "a deleted mirror's objects take long to go; going on");
            }
        }
    }
}
