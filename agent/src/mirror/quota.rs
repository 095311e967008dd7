//! How far work may make a mirror grow. What the work writes is measured while it writes; it ends early where the mirror
//! would take more than its declaration allows, and where the disk is short and this mirror grows most.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tarn_crds::repo::RepoId;
use tokio::{sync::Mutex, time::sleep};

use super::{
    disk::size,
    room::{Cut, Room, WriteKind},
};

/// How often the files are measured: this soon after the start, each time twice as late, …
const FIRST: Duration = Duration::from_millis(50);
/// … up to this.
const EVERY: Duration = Duration::from_millis(500);

/// What one mirror's work may write.
#[derive(Clone)]
pub struct Quota {
    room: Arc<Room>,
    id: RepoId,
    /// The most bytes that the mirror may take.
    max: Option<u64>,
}

/// Where work writes.
pub enum Writes {
    /// Into directories of its own, from which a rename puts it in place.
    Aside(Vec<PathBuf>),
    /// Into the mirror at this path. Whoever holds the lock rewrites the mirror's packs, which takes as much again for a
    /// while.
    Into(PathBuf, Arc<Mutex<()>>),
    /// Into the mirror at this path, whose packs it rewrites.
    Rewrites(PathBuf),
}

/// Why work was ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// The mirror would take more than it may.
    #[error(
        "the mirror takes more than the {max} bytes of spec.limits.maxBytes: it is not fetched further; raise the limit, or \
         mirror fewer refs"
    )]
    Limit {
        /// The limit.
        max: u64,
    },
    /// The disk is short.
    #[error(
        "the disk is full, or its budget, and this mirror was growing most: ended after {grown} bytes, so that the other mirrors stay; \
         grow the volume, or mirror less"
    )]
    Disk {
        /// Bytes that were written, and are removed again.
        grown: u64,
        /// Whether other mirrors are to make way for another attempt.
        pleads: bool,
    },
}

impl Quota {
    /// For the mirror `id`, which may take `max` bytes.
    pub fn new(room: Arc<Room>, id: RepoId, max: Option<u64>) -> Self {
        Self { room, id, max }
    }

    /// The most bytes that the mirror may take.
    pub fn max(&self) -> Option<u64> {
        self.max
    }

    /// Does `work`, which writes to `writes`, for as long as it may grow the mirror. What it has written by then, the
    /// caller removes.
    ///
    /// # Errors
    /// Those of the work, and `ended` of why it was ended early.
    pub async fn hold<T, E>(
        &self,
        writes: Writes,
        work: impl Future<Output = Result<T, E>>,
        ended: impl FnOnce(QuotaError) -> E,
    ) -> Result<T, E> {
        let mut writing = self.room.write(self.id.clone(), writes.kind());
        let before = writes.size().await;
        let watched = async {
            let (mut grown, mut wait) = (0, FIRST);
            loop {
                let all = writes.size().await;
                // What leaves meanwhile hides what comes; the volume shows it.
                grown = all.saturating_sub(before).max(grown);
                writing.grown(grown);
                if let Some(max) = self.max.filter(|max| all > writes.allowed(*max)) {
                    return QuotaError::Limit { max };
                }
                tokio::select! {
                    () = sleep(wait) => wait = (wait * 2).min(EVERY),
                    cut = writing.cut() => {
                        return QuotaError::Disk { grown, pleads: cut == Cut::MayPlead };
                    }
                }
            }
        };
        let why = tokio::select! {
            done = work => match self.exceeded(&writes).await.filter(|_| done.is_ok()) {
                Some(why) => why,
                None => return done,
            },
            why = watched => why,
        };
        tracing::warn!(repo = %self.id, %why, "work that grows a mirror is ended");
        Err(ended(why))
    }

    /// Whether what is not in place yet, and was written faster than it could be measured, is too much.
    async fn exceeded(&self, writes: &Writes) -> Option<QuotaError> {
        let max = self.max.filter(|_| matches!(writes, Writes::Aside(_)))?;
        (writes.size().await > max).then_some(QuotaError::Limit { max })
    }
}

impl Writes {
    /// The bytes of what is written to.
    async fn size(&self) -> u64 {
        let dirs = match self {
            Self::Aside(dirs) => dirs.clone(),
            Self::Into(dir, _) | Self::Rewrites(dir) => vec![dir.clone()],
        };
        let sum = move || dirs.iter().map(|dir| size(dir)).sum();
        tokio::task::spawn_blocking(sum).await.unwrap_or(0)
    }

    fn kind(&self) -> WriteKind {
        match self {
            Self::Aside(_) => WriteKind::Staged,
            Self::Into(..) => WriteKind::InPlace,
            Self::Rewrites(_) => WriteKind::Rewrite,
        }
    }

    /// How many there may be where the mirror may take `max`.
    fn allowed(&self, max: u64) -> u64 {
        let twice = match self {
            Self::Aside(_) => false,
            Self::Into(_, packs) => packs.try_lock().is_err(),
            Self::Rewrites(_) => true,
        };
        if twice { max.saturating_mul(2) } else { max }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::identity, fs};

    use super::*;

    fn quota(max: Option<u64>) -> Quota {
        Quota::new(Arc::default(), RepoId::from_route("h/o/r").unwrap(), max)
    }

    /// Writes, and never ends.
    async fn grows(path: PathBuf, bytes: usize) -> Result<(), QuotaError> {
        fs::write(path, vec![0; bytes]).unwrap();
        std::future::pending().await
    }

    #[tokio::test]
    async fn work_that_exceeds_the_limit_is_ended_and_other_work_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let aside = || Writes::Aside(vec![dir.path().to_owned()]);
        let file = dir.path().join("pack");
        let ended = quota(Some(10)).hold(aside(), grows(file.clone(), 11), identity).await;
        assert_eq!(ended, Err(QuotaError::Limit { max: 10 }));
        let quick = async { Ok::<_, QuotaError>(fs::write(&file, [0; 11]).is_ok()) };
        let ended = quota(Some(10)).hold(aside(), quick, identity).await;
        assert_eq!(ended, Err(QuotaError::Limit { max: 10 }));
        // Else what is there may be measured before it is written over.
        fs::remove_file(&file).unwrap();
        let fits = async { Ok::<_, QuotaError>(fs::write(&file, [0; 10]).is_ok()) };
        assert_eq!(quota(Some(10)).hold(aside(), fits, identity).await, Ok(true));
        let rewrites = Writes::Rewrites(dir.path().to_owned());
        assert_eq!(rewrites.allowed(10), 20);
        let packs = Arc::new(Mutex::new(()));
        let into = Writes::Into(dir.path().to_owned(), packs.clone());
        assert_eq!(into.allowed(10), 10);
        let _rewriting = packs.try_lock();
        assert_eq!(into.allowed(10), 20);
    }

    #[tokio::test]
    async fn work_ends_when_the_disk_is_short_and_tells_how_far_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let quota = quota(None);
        let work = quota.hold(
            Writes::Aside(vec![dir.path().to_owned()]),
            grows(dir.path().join("pack"), 50),
            identity,
        );
        let cut = async {
            while quota.room.writing().first().is_none_or(|writer| writer.grown < 50) {
                sleep(Duration::from_millis(10)).await;
            }
            quota.room.cut(&quota.id, Cut::Final);
        };
        let (ended, ()) = tokio::join!(work, cut);
        assert_eq!(ended, Err(QuotaError::Disk { grown: 50, pleads: false }));
    }
}
