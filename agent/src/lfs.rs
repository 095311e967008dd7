//! Git LFS: objects in a cache on the disk, each brought from the upstream once for all who ask.
//!
//! *Invariant:* only what hashes to its name is kept, and no reader is told that another content was whole: of an object
//! that comes from the upstream's own host the last byte is given out once the hash is right, of any other the first.
//! Each repository has a cache of its own.
//!
//! ```text
//! DATA/lfs/<host>/<path>.git/<aa>/<bb>/<oid>                            an object: appears here by rename only
//! DATA/lfs/<host>/<path>.git/snapshot/<commit>-<digest>.tar.zst         those that a worktree needs
//! ```

pub mod actions;
pub mod intake;
pub mod cache;
pub mod tree;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use http::StatusCode;
use tarn_crds::{repo::RepoId, v1alpha1::conditions::Reason};

use crate::{
    metrics::{Metrics, Outcome},
    protocol::lfs::{Action, LfsOid, Object, ObjectError},
    queue::{Activity, Priority, Queue},
    spool::{Sink, Usage},
    upstream::{
        Looker,
        lfs::{Download, LfsError},
    },
};
use actions::Actions;
use cache::{Cache, LfsReader};
use intake::{Intake, Shown};

/// Chunks that are written in one go, where so many have come.
const WRITTEN_AT_ONCE: usize = 32;

/// Who says how long an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthFrom {
    /// The pointer in the repository's tree: an object of another length is not taken.
    Pointer,
    /// Whoever asks for it, who may be wrong.
    Caller,
}

const OTHER_LENGTH: FetchError = FetchError::Mismatch("its pointer says another length");

/// Why an object cannot be had. The texts hold no secrets.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The upstream says of this object why not.
    #[error("{}", .0.message)]
    Object(ObjectError),
    /// The upstream's LFS.
    #[error(transparent)]
    Upstream(#[from] LfsError),
    /// There is no upstream to ask: the mirror is suspended, or cannot be set up.
    #[error("the object is not here, and the upstream is not asked")]
    NoUpstream,
    /// What came is not the object.
    #[error("what the upstream sent is not the object: {0}")]
    Mismatch(&'static str),
    /// This disk.
    #[error("cannot store the object: {0}")]
    Disk(#[from] io::Error),
    /// Nobody waited for it any more.
    #[error("nobody waits for the object any more")]
    GivenUp,
}

impl FetchError {
    /// The reason in metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Object(_) => Reason::RepositoryNotFound,
            Self::Upstream(error) => error.reason(),
            Self::NoUpstream => Reason::Suspended,
            Self::Mismatch(_) => Reason::VerificationFailed,
            Self::Disk(_) => Reason::DiskFull,
            Self::GivenUp => Reason::Retrying,
        }
    }

    /// The same, as LFS says it of an object.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Object(error) => StatusCode::from_u16(error.code)
                .ok()
                .filter(|status| status.is_client_error() || status.is_server_error())
                .unwrap_or(StatusCode::NOT_FOUND),
            Self::Upstream(LfsError::Absent | LfsError::Transport) => StatusCode::NOT_FOUND,
            Self::Upstream(LfsError::Look { pause: Some(_), .. }) => StatusCode::TOO_MANY_REQUESTS,
            Self::Upstream(LfsError::Look { .. }) | Self::NoUpstream | Self::GivenUp => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Upstream(_) | Self::Mismatch(_) => StatusCode::BAD_GATEWAY,
            Self::Disk(_) => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// For how long the upstream asks to be left alone, if it does: clients are told the same.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Self::Upstream(error) => error.pause(),
            _ => None,
        }
    }

    /// Whether trying again can help: not where the upstream has said that there is no such thing.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Object(error) => matches!(error.code, 400..=499),
            Self::Upstream(LfsError::Absent | LfsError::Transport) => true,
            _ => false,
        }
    }
}

/// The LFS objects of all mirrors. Cheap to clone.
#[derive(Clone)]
pub struct Lfs {
    cache: Cache,
    actions: Arc<Actions>,
    queue: Queue,
    metrics: Metrics,
}

impl Lfs {
    /// Takes up the objects below `root`; `incoming` is a directory for what is on its way, on the same file system.
    /// At most `budget` bytes are kept.
    ///
    /// # Errors
    /// The directories cannot be made or read.
    pub fn open(
        root: PathBuf,
        incoming: &Path,
        budget: u64,
        queue: Queue,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let cache = Cache::open(root, incoming, budget, metrics.clone())?;
        Ok(Self { cache, actions: Arc::default(), queue, metrics })
    }

    /// Which of `objects` can be had: those in the cache, and those that the upstream offers, which is asked for the
    /// others only.
    ///
    /// # Errors
    /// None is in the cache, and the upstream cannot be asked.
    pub async fn available(
        &self,
        repo: &RepoId,
        upstream: Option<&Looker>,
        objects: &[Object],
    ) -> Result<Vec<(Object, Result<(), ObjectError>)>, FetchError> {
        let missing: Vec<Object> =
            objects.iter().filter(|object| self.cache.holds(repo, object.oid).is_none()).copied().collect();
        if missing.is_empty() {
            return Ok(objects.iter().map(|object| (*object, Ok(()))).collect());
        }
        let asked = match upstream {
            Some(upstream) => upstream.lfs_batch(&missing).await.map_err(FetchError::from),
            None => Err(FetchError::NoUpstream),
        };
        let answered = match asked {
            Ok(answered) => Ok(self.actions.learn(repo, answered)),
            Err(error) if missing.len() == objects.len() => return Err(error),
            Err(error) => Err(ObjectError { code: error.status().as_u16(), message: error.to_string() }),
        };
        let unnamed = || ObjectError { code: 404, message: "the upstream says nothing of it".into() };
        let outcome = |object: &Object| match &answered {
            _ if !missing.contains(object) => Ok(()),
            Ok(answered) => answered.get(&object.oid).cloned().unwrap_or_else(|| Err(unnamed())),
            Err(error) => Err(error.clone()),
        };
        Ok(objects.iter().map(|object| (*object, outcome(object))).collect())
    }

    /// The object to read: from the cache, or while it comes from the upstream, once for all who read it. Returns once
    /// there is something to read. How long it is, the upstream says; what the caller thinks counts only where it does not.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn read(
        &self,
        repo: &RepoId,
        upstream: Option<Arc<Looker>>,
        object: Object,
        length_from: LengthFrom,
    ) -> Result<LfsReader, Arc<FetchError>> {
        let (own, from) = (self.clone(), repo.clone());
        let fill = move |sink| async move {
            let result = own.fill(&from, upstream.as_deref(), (object, length_from), sink).await;
            own.metrics.lfs.downloads.get_or_create(&Outcome::of(&result, FetchError::reason)).inc();
            result.inspect_err(
                |error| tracing::warn!(repo = %from, oid = %object.oid, %error, "an LFS object cannot be had"),
            )
        };
        let reading = self.cache.open_or_fill(repo, object.oid, fill).await?;
        match length_from {
            LengthFrom::Pointer if reading.bytes != object.bytes => Err(Arc::new(OTHER_LENGTH)),
            _ => Ok(reading),
        }
    }

    /// The object of this name, if it is in the cache.
    pub async fn kept(&self, repo: &RepoId, oid: LfsOid) -> Option<LfsReader> {
        self.cache.kept(repo, oid).await
    }

    /// The objects of all repositories on the disk, each with its file.
    ///
    /// # Errors
    /// A directory cannot be listed.
    pub fn objects(&self) -> io::Result<Vec<(RepoId, LfsOid, PathBuf)>> {
        self.cache.objects()
    }

    /// Lets an object go that is not what its name says; whoever asks for it next has it fetched again.
    pub fn discard(&self, repo: &RepoId, oid: LfsOid) {
        self.cache.spool.discard(&(repo.clone(), oid));
    }

    /// What the objects take on the disk.
    pub fn usage(&self) -> Usage {
        self.cache.usage()
    }

    /// Evicts at least `need` bytes of objects, as far as there are so many that nobody reads; returns how many went.
    pub async fn shrink(&self, need: u64) -> u64 {
        self.cache.spool.shrink(need).await
    }

    /// Where the repository's objects are.
    pub fn dir(&self, repo: &RepoId) -> PathBuf {
        self.cache.dir(repo)
    }

    /// Forgets what is known of a repository whose files are being removed.
    pub fn forget(&self, repo: &RepoId) {
        self.cache.forget(repo);
    }

    async fn fill(
        &self,
        repo: &RepoId,
        upstream: Option<&Looker>,
        (object, length_from): (Object, LengthFrom),
        sink: Sink<FetchError>,
    ) -> Result<u64, FetchError> {
        let upstream = upstream.ok_or(FetchError::NoUpstream)?;
        let priority = match length_from {
            LengthFrom::Pointer => Priority::Background,
            LengthFrom::Caller => Priority::Awaited,
        };
        let _turn = self.queue.acquire(Activity::Object, repo, priority).await;
        let remembered = self.actions.take(repo, object.oid);
        let known = remembered.is_some();
        let mut action = match remembered {
            Some(action) => action,
            None => locate(upstream, object).await?,
        };
        let mut begun = upstream.lfs_download(&action).await;
        // What was remembered may be good no longer.
        if known && matches!(begun, Err(LfsError::Refused(_))) {
            action = locate(upstream, object).await?;
            begun = upstream.lfs_download(&action).await;
        }
        let Download { length, own, chunks } = begun?;
        if length_from == LengthFrom::Pointer && length.is_some_and(|length| length != object.bytes) {
            return Err(OTHER_LENGTH);
        }
        let shown = if own { Shown::Growing } else { Shown::Whole };
        let mut intake = Intake::new(object.oid, length.unwrap_or(object.bytes), shown, sink);
        if shown == Shown::Whole {
            self.bring_to_its_end(repo, object.oid).await;
        }
        let mut chunks = std::pin::pin!(chunks.ready_chunks(WRITTEN_AT_ONCE));
        while let Some(chunks) = chunks.next().await {
            intake = intake.take(chunks.into_iter().collect::<Result<_, _>>()?).await?;
        }
        intake.finish()
    }
}

impl Lfs {
    /// Lets a download go on though its reader leaves: git-lfs waits 30 s for a first byte, and asks again. There are as
    /// many of them as there are downloads.
    async fn bring_to_its_end(&self, repo: &RepoId, oid: LfsOid) {
        if let Some(follower) = self.cache.spool.get(&(repo.clone(), oid)).await {
            tokio::spawn(async move { follower.whole().await.map(drop) });
        }
    }
}

async fn locate(upstream: &Looker, object: Object) -> Result<Action, FetchError> {
    let answered = upstream.lfs_batch(&[object]).await?;
    let found = answered.into_iter().find(|(oid, _)| *oid == object.oid);
    let unnamed = || ObjectError { code: 404, message: "the upstream says nothing of it".into() };
    found.map_or_else(|| Err(unnamed()), |(_, outcome)| outcome).map_err(FetchError::Object)
}
