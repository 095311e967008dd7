//! Examines a mirror's files: whether they are as git and the agent wrote them.
//!
//! *Invariant:* only what the files themselves show condemns a mirror: a checksum that is wrong twice, refs that are not
//! those that the agent wrote, an object that git does not find. A child that was killed, a lack of memory or of
//! descriptors, or a time that ran out say nothing of the disk.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tarn_crds::v1alpha1::Phase;
use tokio::time::{sleep, timeout};

use super::{Mirror, Stored, damage::is_disks};
use crate::{
    files::blocking,
    git::{Git, ObjectFormat, Oid, RefSet, checksum, pack, remote, stderr::FailureKind},
    metrics::Metrics,
};

/// Bytes read between two pauses.
const SLICE: u64 = 4 * 1024 * 1024;

/// A file that the disk cannot read is read again after this: twice is no accident. What it reads wrong is read again at
/// once.
const AGAIN: Duration = Duration::from_secs(2);

/// How often the refs are compared while fetches write them, and the time between.
const TRIES: u32 = 5;

/// How long git may walk the history in search of a missing object.
const WALK: Duration = Duration::from_secs(600);

/// What an examination shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every file is as it was written.
    Whole,
    /// A file is not, for this reason.
    Damaged(String),
    /// The disk cannot read a file: which, and what it says.
    Failing(String),
    /// The mirror left the disk meanwhile, or something else than the disk failed.
    Unknown(String),
}

/// How an examination is done.
#[derive(Clone)]
pub struct Examiner {
    /// The installed git.
    pub git: Git,
    /// For the bytes read.
    pub metrics: Metrics,
    /// The most bytes to read a second; `None` while somebody waits for the verdict.
    pub pace: Option<u64>,
    /// Look for missing objects, too: a walk through all history.
    pub thorough: bool,
}

impl Examiner {
    /// Examines the files of `mirror`. A dropped future leaves nothing behind.
    pub async fn examine(&self, mirror: &Mirror) -> Verdict {
        match self.try_examine(mirror).await {
            Ok(()) => Verdict::Whole,
            Err(verdict) => verdict,
        }
    }

    async fn try_examine(&self, mirror: &Mirror) -> Result<(), Verdict> {
        let stored = stored(mirror)?;
        let format = stored.refs.format();
        compare_refs(mirror).await?;
        let dir = mirror.dir().to_owned();
        let files = blocking(move || checksum::files(&dir)).await;
        for path in files.map_err(|error| local(mirror.dir(), &error))? {
            self.check(&path, format).await?;
        }
        if self.thorough {
            self.walk(mirror.dir(), &stored.refs).await?;
        }
        Ok(())
    }

    /// Compares the file at `path` with its checksum, twice if it is wrong: the second time as fast as the disk reads, for
    /// clients that meet damage wait for the verdict.
    async fn check(&self, path: &Path, format: ObjectFormat) -> Result<(), Verdict> {
        let first = match self.sum(path, format, self.pace).await {
            Ok(true) => return Ok(()),
            Err(error) if !is_disks(&error) => return gone_or(path, &error),
            first => first,
        };
        if first.is_err() {
            sleep(AGAIN).await;
        }
        match (first, self.sum(path, format, None).await) {
            (_, Ok(true)) => {
                tracing::warn!(file = %path.display(), "a file was read wrong once, and right the second time");
                Ok(())
            }
            (_, Ok(false)) => Err(Verdict::Damaged(format!("{} does not match its checksum", shown(path)))),
            (Err(_), Err(error)) if is_disks(&error) => {
                Err(Verdict::Failing(format!("the disk cannot read {}: {error}", shown(path))))
            }
            (_, Err(error)) => gone_or(path, &error),
        }
    }

    async fn sum(&self, path: &Path, format: ObjectFormat, pace: Option<u64>) -> io::Result<bool> {
        let path = path.to_owned();
        let mut summing = blocking(move || checksum::Summing::open(&path, format)).await?;
        loop {
            let (read, intact);
            (summing, read, intact) = blocking(move || {
                let before = summing.left();
                let intact = summing.read(SLICE)?;
                let read = before.saturating_sub(summing.left());
                Ok((summing, read, intact))
            })
            .await?;
            self.metrics.integrity.examined_bytes.inc_by(read);
            if let Some(intact) = intact {
                return Ok(intact);
            }
            if let Some(pace) = pace {
                sleep(Duration::from_millis(read.saturating_mul(1000) / pace.max(1))).await;
            }
        }
    }

    /// Has git look for every object that the refs reach.
    async fn walk(&self, dir: &Path, refs: &RefSet) -> Result<(), Verdict> {
        let tips: Vec<Oid> = refs.tips().collect();
        let walk = async {
            // A child that lacks descriptors or memory misses what is there: only what is missed twice is missing.
            let first = pack::check_closure(&self.git, dir, &tips, &[]).await;
            if first.is_ok() { first } else { pack::check_closure(&self.git, dir, &tips, &[]).await }
        };
        match timeout(WALK, walk).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == FailureKind::Damaged => {
                Err(Verdict::Damaged(error.to_string()))
            }
            Ok(Err(error)) => Err(Verdict::Unknown(error.to_string())),
            Err(_) => Err(Verdict::Unknown("git did not walk the history in time".into())),
        }
    }
}

fn stored(mirror: &Mirror) -> Result<Arc<Stored>, Verdict> {
    mirror.view().stored.ok_or_else(|| Verdict::Unknown("the mirror has left the disk".into()))
}

/// Whether `HEAD`, `packed-refs` and `config` on the disk are what the agent wrote there. A fetch writes refs before the
/// mirror shows them, so only those of a mirror at rest are compared.
async fn compare_refs(mirror: &Mirror) -> Result<(), Verdict> {
    for _ in 0..TRIES {
        let before = stored(mirror)?;
        let rests = mirror.phase() == Phase::Ready || mirror.settings().suspend;
        let (dir, refs) = (mirror.dir().to_owned(), before.refs.clone());
        let found = blocking(move || differing(&dir, &refs)).await;
        let after = stored(mirror)?;
        let rests = rests && Arc::ptr_eq(&before, &after) && mirror.phase() != Phase::Fetching;
        match found {
            Ok(None) => return Ok(()),
            Ok(Some(path)) if rests => {
                return Err(Verdict::Damaged(format!("{} is not what was written there", shown(&path))));
            }
            Err(error) if rests && error.kind() == io::ErrorKind::NotFound => {
                return Err(Verdict::Damaged("its refs or its configuration are gone".into()));
            }
            Err(error) if rests => return Err(local(mirror.dir(), &error)),
            Ok(Some(_)) | Err(_) => sleep(AGAIN / 2).await,
        }
    }
    // What a fetch writes at its end replaces them in any case.
    Ok(())
}

/// The file of the repository `dir` that is not as the agent wrote it for `refs`.
fn differing(dir: &Path, refs: &RefSet) -> io::Result<Option<PathBuf>> {
    let expected = [
        ("HEAD", refs.to_head()),
        ("packed-refs", refs.to_packed_refs()),
        ("config", remote::config(refs.format()).into()),
    ];
    for (name, content) in expected {
        let path = dir.join(name);
        if std::fs::read(&path)? != content {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// A file that went meanwhile is no trouble: a repack removes what it has packed anew.
fn gone_or(path: &Path, error: &io::Error) -> Result<(), Verdict> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(local(path, error)) }
}

fn local(path: &Path, error: &io::Error) -> Verdict {
    Verdict::Unknown(format!("cannot read {}: {error}", shown(path)))
}

/// The file's own name: where the mirror is, the log says.
fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_wrong_checksum_is_a_verdict_as_soon_as_it_is_read_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (home, path) = (dir.path().join("home"), dir.path().join("a.pack"));
        std::fs::create_dir(&home).unwrap();
        std::fs::write(&path, [7; 4096]).unwrap();
        let git = Git::detect(&home, dir.path().as_os_str(), false).await.unwrap();
        let metrics = Metrics::new();
        let examiner = Examiner { git, metrics: metrics.clone(), pace: None, thorough: false };
        let began = Instant::now();
        let verdict = examiner.check(&path, ObjectFormat::Sha1).await;
        assert!(matches!(verdict, Err(Verdict::Damaged(_))), "{verdict:?}");
        assert_eq!(metrics.integrity.examined_bytes.get(), 2 * (4096 - 20), "it was not read twice");
        assert!(began.elapsed() < AGAIN, "clients wait for nothing");
    }
}
