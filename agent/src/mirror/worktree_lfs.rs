//! Keeps an archive of the LFS objects that a mirror's worktree needs: made anew after each snapshot of another
//! commit, from the cache and, for what is not in it, from the upstream.
//!
//! A task beside the mirror's own, which it only watches. The archive is made where nobody waits for it, and is kept on
//! this disk only.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tarn_crds::{repo::RepoId, v1alpha1::conditions::Reason};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Services, Settings, View,
    disk::Disk,
    quota::{Quota, Writes},
    snapshots::{Doing, SnapshotView, Unready},
    upkeep::calm,
};
use crate::{
    backoff::retry_delay,
    blockfile::{BlockFile, BlockFileError, Digest, Reader, digest_file},
    files::blocking,
    git::{Git, GitError},
    lfs::{FetchError, LengthFrom, Lfs, tree},
    metrics::{Damaged, Metrics, Outcome},
    never::or_never,
    protocol::lfs::{MAX_OBJECTS, Object},
    queue::{Activity, Priority, Queue},
    snapshot::{archive, build::WorktreeRules, manifest::digest_of},
};

/// How archives are called, after their commit and digest.
const ENDING: &str = ".tar.zst";

/// Objects that are brought at once.
const AT_ONCE: usize = 4;

/// An archive of the LFS objects that a commit's worktree needs.
#[derive(Clone, Debug)]
pub struct LfsArchive {
    /// The commit.
    pub commit: String,
    /// When it was made.
    pub time: Timestamp,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of the digests of its blocks.
    pub digest: Digest,
    /// Its content.
    pub reader: Reader,
}

/// What there is.
#[derive(Clone, Debug)]
enum State {
    /// Nothing yet, and what is under way.
    Coming(String),
    /// None is needed, or none can be had.
    Never(&'static str),
    /// An archive.
    Held(Arc<LfsArchive>),
}

/// A handle on the archive. Cheap to clone.
#[derive(Clone)]
pub struct WorktreeLfs {
    state: watch::Receiver<State>,
}

impl WorktreeLfs {
    /// The archive; waits until there is one, but no longer than `patience`, nor where none is coming.
    ///
    /// # Errors
    /// There is none yet, or never.
    pub async fn open(&self, patience: Duration) -> Result<Arc<LfsArchive>, Unready> {
        let mut state = self.state.clone();
        let _ = timeout(patience, state.wait_for(|state| !matches!(state, State::Coming(_)))).await;
        let state = self.state.borrow().clone();
        match state {
            State::Held(held) => Ok(held),
            State::Never(why) => Err(Unready::Never(why)),
            State::Coming(what) => Err(Unready::Coming(what)),
        }
    }
}

/// Why an archive cannot be made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Object(#[from] Arc<FetchError>),
    #[error("cannot write the archive of LFS objects: {0}")]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Read(#[from] BlockFileError),
    #[error(
        "the LFS objects that HEAD names need {} MiB on the disk, and {} MiB are free",
        needed >> 20, free >> 20
    )]
    NoRoom { needed: u64, free: u64 },
}

impl Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Git(error) => error.kind().reason(),
            Self::Object(error) => error.reason(),
            Self::Disk(_) | Self::Read(_) | Self::NoRoom { .. } => Reason::DiskFull,
        }
    }
}

/// See the module.
pub(super) struct Keeper {
    git: Git,
    disk: Arc<Disk>,
    queue: Queue,
    metrics: Metrics,
    lfs: Lfs,
    repo: RepoId,
    rules: WorktreeRules,
    quota: Quota,
    snapshots: watch::Receiver<SnapshotView>,
    view: watch::Receiver<View>,
    settings: watch::Receiver<Arc<Settings>>,
    out: watch::Sender<State>,
}

impl Keeper {
    pub(super) fn new(
        services: &Services,
        repo: &RepoId,
        snapshots: watch::Receiver<SnapshotView>,
        view: watch::Receiver<View>,
        settings: watch::Receiver<Arc<Settings>>,
    ) -> (Self, WorktreeLfs) {
        let coming = State::Coming("the LFS objects are gathered after the snapshot".into());
        let (out, state) = watch::channel(coming);
        let keeper = Self {
            git: services.git.clone(),
            disk: services.disk.clone(),
            queue: services.queue.clone(),
            metrics: services.metrics.clone(),
            lfs: services.lfs.clone(),
            repo: repo.clone(),
            rules: services.worktrees,
            quota: Quota::new(services.room.clone(), repo.clone(), None),
            snapshots,
            view,
            settings,
            out,
        };
        (keeper, WorktreeLfs { state })
    }

    /// Runs until the mirror's task is gone.
    pub(super) async fn run(mut self) {
        let mut done = self.find().await;
        let mut failures = 0;
        loop {
            let suspended;
            let wanted = {
                let snapshots = self.snapshots.borrow_and_update();
                suspended = snapshots.doing == Doing::Suspended;
                if snapshots.known.is_none() && snapshots.doing == Doing::Nothing {
                    self.out.send_if_modified(|state| {
                        let waits = matches!(state, State::Coming(_));
                        if waits {
                            *state = State::Never("the repository has no commit to check out");
                        }
                        waits
                    });
                }
                snapshots.known.as_ref().map(|known| known.commit.clone())
            };
            if suspended && done.take().is_some() {
                self.let_go().await;
            }
            let Some(commit) = wanted.filter(|wanted| done.as_ref() != Some(wanted)) else {
                let held = match &*self.out.borrow() {
                    State::Held(held) => Some(held.reader.clone()),
                    _ => None,
                };
                tokio::select! {
                    changed = self.snapshots.changed() => if changed.is_err() { return },
                    error = or_never(held.as_ref().map(Reader::spoilt)) => {
                        tracing::warn!(%error, "an archive of LFS objects is damaged on this disk; it is made again");
                        self.metrics.integrity.damages.get_or_create(&Damaged::LFS).inc();
                        self.out.send_replace(State::Coming("the LFS objects are gathered again".into()));
                        done = None;
                    }
                }
                continue;
            };
            // A snapshot that comes from the store may be here before its commit.
            if self.view.wait_for(|view| view.stored.is_some()).await.is_err() {
                return;
            }
            let result = self.make(&commit).await;
            let outcome = Outcome::of(&result, Error::reason);
            self.metrics.lfs.snapshot_builds.get_or_create(&outcome).inc();
            match result {
                Ok(state) => {
                    (failures, done) = (0, Some(commit));
                    self.out.send_replace(state);
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, commit, "LFS objects cannot be gathered; it will be tried again");
                    self.out.send_if_modified(|state| {
                        let waits = matches!(state, State::Coming(_));
                        if waits {
                            *state = State::Coming(error.to_string());
                        }
                        waits
                    });
                    sleep(retry_delay(failures, rand::random())).await;
                }
            }
        }
    }

    /// Removes the archive. Whoever reads it goes on.
    async fn let_go(&self) {
        self.out.send_replace(State::Coming("the LFS objects are gathered after the snapshot".into()));
        let (disk, dir) = (self.disk.clone(), self.dir());
        if let Err(error) = blocking(move || disk.discard(&dir)).await {
            tracing::warn!(%error, "an archive of LFS objects that is not wanted cannot be removed");
        }
    }

    fn dir(&self) -> PathBuf {
        self.lfs.dir(&self.repo).join("snapshot")
    }

    /// Takes up the archive that an earlier process left; says of which commit it is.
    async fn find(&mut self) -> Option<String> {
        let dir = self.dir();
        let found = tokio::task::spawn_blocking(move || find(&dir)).await.ok()??;
        let (path, commit, time, content) = found;
        let held = hold(&path, commit.clone(), time, content).await;
        let held = held.inspect_err(|error| tracing::warn!(%error, "an archive of LFS objects is of no use"));
        self.out.send_replace(State::Held(held.ok()?));
        Some(commit)
    }

    async fn make(&self, commit: &str) -> Result<State, Error> {
        let work = self.disk.staging();
        let writes = Writes::Aside(vec![work.clone()]);
        let made = self.make_in(&work, commit);
        let made = self.quota.hold(writes, made, |why| io::Error::other(why).into()).await;
        self.disk.clear(work).await;
        made
    }

    async fn make_in(&self, work: &Path, commit: &str) -> Result<State, Error> {
        let time = Timestamp::now();
        fs::create_dir_all(work.join("tree"))?;
        let mirror = self.disk.mirror(&self.repo);
        let most = self.rules.most(self.view.borrow().bytes, u64::MAX);
        let Ok(objects) = tree::objects(&self.git, &mirror, commit, most).await? else {
            return Ok(State::Never("the worktree is too large to look for LFS objects in it"));
        };
        if objects.is_empty() {
            return Ok(State::Never("the worktree of HEAD needs no LFS objects"));
        }
        // For the archive; the objects themselves may be here already.
        let needed = objects.iter().fold(0_u64, |sum, object| sum.saturating_add(object.bytes));
        let volume = self.disk.volume()?;
        if needed > volume.total / 2 {
            return Ok(State::Never("the LFS objects that HEAD names are larger than the disk"));
        }
        if needed > volume.free {
            return Err(Error::NoRoom { needed, free: volume.free });
        }
        let objects: Vec<Object> = objects.into_iter().collect();
        let mut count = 0;
        for part in objects.chunks(MAX_OBJECTS) {
            count += self.gather(part, &work.join("tree/lfs/objects")).await?;
        }
        if count == 0 {
            return Ok(State::Never("the upstream has none of the LFS objects that HEAD needs"));
        }
        let _turn = self.queue.acquire(Activity::Snapshot, &self.repo, Priority::Background).await;
        calm(&self.queue).await;
        let (dir, name, work) = (self.dir(), commit.to_owned(), work.to_owned());
        let (path, content) = blocking(move || write(&work, &dir, &name)).await?;
        tracing::info!(commit, objects = count, bytes = content.0, "LFS objects gathered");
        Ok(State::Held(hold(&path, commit.to_owned(), time, content).await?))
    }

    /// Links `objects` into a directory, bringing those that are not here; returns how many there are. Those that the
    /// upstream has not, it leaves out: nobody can check them out.
    async fn gather(&self, objects: &[Object], into: &Path) -> Result<usize, Error> {
        let upstream = self.view.borrow().upstream.clone().filter(|_| !self.settings.borrow().suspend);
        let available = match self.lfs.available(&self.repo, upstream.as_deref(), objects).await {
            Err(error) if error.is_final() => return Ok(0),
            available => available.map_err(Arc::new)?,
        };
        let gathered = stream::iter(available).map(async |(object, outcome)| {
            let fetched = match outcome {
                Err(error) => Err(Arc::new(FetchError::Object(error))),
                Ok(()) => self.lfs.read(&self.repo, upstream.clone(), object, LengthFrom::Pointer).await,
            };
            let fetched = match fetched {
                Ok(reading) => reading.whole().await.map(|()| reading),
                Err(error) => Err(error),
            };
            let reading = match fetched {
                Err(error) if error.is_final() => {
                    tracing::warn!(oid = %object.oid, %error, "an LFS object that HEAD needs is left out");
                    return Ok(0);
                }
                fetched => fetched?,
            };
            let to = into.join(object.oid.path());
            blocking(move || reading.link(&to)).await?;
            Ok::<_, Error>(1)
        });
        gathered.buffer_unordered(AT_ONCE).try_fold(0, async |sum, one| Ok(sum + one)).await
    }
}

/// What an archive holds, by its blocks.
type Content = (u64, Vec<Digest>);

/// Packs what was gathered, and puts it in place of older archives.
fn write(work: &Path, dir: &Path, commit: &str) -> io::Result<(PathBuf, Content)> {
    let staged = work.join("archive");
    let mut out = fs::File::create_new(&staged)?;
    // Equal objects make equal archives.
    archive::write(&work.join("tree"), &|_| 0, &mut out, &AtomicBool::new(false))?;
    let content = digest_file(&staged)?;
    let path = dir.join(format!("{commit}-{}{ENDING}", digest_of(&content.1)));
    fs::create_dir_all(dir)?;
    fs::rename(&staged, &path)?;
    for entry in fs::read_dir(dir)? {
        let other = entry?.path();
        if other != path {
            fs::remove_file(other)?;
        }
    }
    Ok((path, content))
}

/// The whole archive in `dir`, if there is one: with the commit in its name, and when it was made.
fn find(dir: &Path) -> Option<(PathBuf, String, Timestamp, Content)> {
    fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let (path, name) = (entry.path(), entry.file_name());
        let (commit, digest) = name.to_str()?.strip_suffix(ENDING)?.split_once('-')?;
        let time = Timestamp::try_from(entry.metadata().ok()?.modified().ok()?).ok()?;
        let content = digest_file(&path).ok()?;
        let whole = digest_of(&content.1).to_string() == digest;
        whole.then(|| (path.clone(), commit.to_owned(), time, content))
    })
}

async fn hold(
    path: &Path,
    commit: String,
    time: Timestamp,
    (bytes, blocks): Content,
) -> Result<Arc<LfsArchive>, BlockFileError> {
    let digest = digest_of(&blocks);
    let reader = BlockFile::whole(path, bytes, blocks).await?;
    Ok(Arc::new(LfsArchive { commit, time, bytes, digest, reader }))
}
