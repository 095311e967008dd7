//! One clone or fetch: objects first, then the refs, whole.
//!
//! What is on the disk before stays valid until the last rename; a failure at any point leaves it so (P2).

use std::{collections::HashSet, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{Mutex, watch};

use super::{
    disk::{Disk, size},
    entitlement::{self, Note},
    quota::{Quota, QuotaError, Writes},
};
use crate::{
    backoff::backoff,
    files::blocking,
    git::{
        Git, GitError, Oid, RefSet,
        refs::RefsError,
        remote::{self, Patience},
        stderr::FailureKind,
    },
    queue::Ticket,
    upstream::{Looker, credentials::Installed},
};

/// What grew too far is tried again after this, …
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// … each further time twice as late, up to this.
const LAST_RETRY: Duration = Duration::from_secs(3600);

/// Why a clone or fetch failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The upstream lacks an object that its refs named: they moved since the look.
    #[error("the upstream moved during the fetch")]
    Raced,
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The refs could not be written.
    #[error("cannot write the refs: {0}")]
    Refs(#[from] RefsError),
    /// The mirror could not be put in place.
    #[error("cannot write to the data directory: {0}")]
    Disk(#[from] io::Error),
    /// It would have grown the mirror too far.
    #[error(transparent)]
    Quota(#[from] QuotaError),
}

impl FetchError {
    /// How long to wait after so many failures, where the usual wait is too short: each attempt costs as many bytes as the
    /// mirror may have.
    pub fn retry_after(&self, failures: u32) -> Option<Duration> {
        let ended = matches!(self, Self::Quota(_)) && !self.pleads();
        ended.then(|| backoff(FIRST_RETRY, LAST_RETRY, failures, rand::random()))
    }

    /// Whether other mirrors are to make way for another attempt.
    pub fn pleads(&self) -> bool {
        match self {
            Self::Quota(QuotaError::Disk { pleads, .. }) => *pleads,
            _ => self.kind() == FailureKind::Disk,
        }
    }

    /// The kind of failure, whose code is the reason in status and metrics.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Raced => FailureKind::NotOurRef,
            Self::Git(error) => error.kind(),
            Self::Refs(_) | Self::Disk(_) | Self::Quota(QuotaError::Disk { .. }) => FailureKind::Disk,
            Self::Quota(QuotaError::Limit { .. }) => FailureKind::TooLarge,
        }
    }
}

/// What to fetch, and from where.
pub struct Fetch {
    /// The installed git.
    pub git: Git,
    /// The data directory.
    pub disk: Arc<Disk>,
    /// Where the mirror is, or will be.
    pub dir: PathBuf,
    /// How far the mirror may grow.
    pub quota: Quota,
    /// Held by whoever rewrites the mirror's packs.
    pub packs: Arc<Mutex<()>>,
    /// From where.
    pub upstream: Arc<Looker>,
    /// Keeps the files with credentials, which a changed declaration replaces.
    pub installed: Option<Arc<Installed>>,
    /// The refs on the disk; `None` makes a new mirror.
    pub stored: Option<Arc<RefSet>>,
    /// The refs to have afterwards.
    pub target: Arc<RefSet>,
    /// Ask for refs by name: wants by object name have been refused.
    pub by_name: bool,
    /// How patient to be with a silent upstream.
    pub patience: Patience,
    /// How long it may take.
    pub timeout: Duration,
    /// Where progress goes.
    pub progress: Arc<watch::Sender<Option<String>>>,
    /// What is noted in a new mirror of how it was fetched.
    pub note: Note,
    /// Its place in the queue.
    pub ticket: Ticket,
}

impl Fetch {
    /// Runs it; returns the mirror's size in bytes. A dropped future leaves leftovers in staging only, or
    /// a temporary pack.
    ///
    /// # Errors
    /// The mirror on the disk, if any, is as it was.
    pub async fn run(mut self) -> Result<u64, FetchError> {
        self.ticket.called().await;
        match &self.stored {
            Some(stored) if stored.format() == self.target.format() => self.update(stored).await?,
            // A new mirror, or an upstream replaced by one with another hash function.
            _ => self.create().await?,
        }
        let dir = self.dir;
        Ok(tokio::task::spawn_blocking(move || size(&dir)).await.unwrap_or(0))
    }

    async fn create(&self) -> Result<(), FetchError> {
        let staged = self.disk.staging();
        let made = async {
            remote::init(&self.git, &staged, self.target.format()).await?;
            self.objects(&staged, self.target.tips().collect()).await?;
            self.write_refs(staged.clone()).await
        };
        let made = self.quota.hold(Writes::Aside(vec![staged.clone()]), made, FetchError::from).await;
        let made = match made {
            Ok(()) => {
                let (disk, staged, dir) = (self.disk.clone(), staged.clone(), self.dir.clone());
                let note = self.note.clone();
                let place = move || {
                    entitlement::save(&staged, &note)?;
                    disk.publish(&staged, &dir)
                };
                blocking(place).await.map_err(FetchError::from)
            }
            Err(error) => Err(error),
        };
        if made.is_err() {
            let (disk, staged) = (self.disk.clone(), staged.clone());
            let _ = blocking(move || disk.discard(&staged)).await;
        }
        made
    }

    async fn update(&self, stored: &RefSet) -> Result<(), FetchError> {
        let had: HashSet<Oid> = stored.tips().collect();
        let lacking = self.target.tips().filter(|oid| !had.contains(oid)).collect();
        let writes = Writes::Into(self.dir.clone(), self.packs.clone());
        self.quota.hold(writes, self.objects(&self.dir, lacking), FetchError::from).await?;
        self.write_refs(self.dir.clone()).await
    }

    async fn objects(&self, dir: &std::path::Path, oids: HashSet<Oid>) -> Result<(), FetchError> {
        if oids.is_empty() {
            return Ok(());
        }
        let (git, progress) = (&self.git, self.progress.clone());
        let remote = self.upstream.for_git().await?;
        if !self.by_name {
            let fetched = remote.fetch(git, dir, &oids, self.patience, self.timeout, progress).await;
            return fetched.map_err(|error| match error.kind() {
                FailureKind::NotOurRef => FetchError::Raced,
                _ => error.into(),
            });
        }
        let fetched =
            remote.fetch_by_name(git, dir, &self.target, self.patience, self.timeout, progress).await;
        // After a failure, too: nothing else may see these refs.
        remote::clear_incoming(dir)?;
        fetched?;
        let oids: Vec<_> = oids.into_iter().collect();
        if remote::missing(git, dir, &oids).await?.is_empty() { Ok(()) } else { Err(FetchError::Raced) }
    }

    async fn write_refs(&self, dir: PathBuf) -> Result<(), FetchError> {
        let target = self.target.clone();
        tokio::task::spawn_blocking(move || target.write(&dir)).await.map_err(io::Error::other)??;
        Ok(())
    }
}
