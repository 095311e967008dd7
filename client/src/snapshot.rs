//! The fast way: the snapshot, and then what happened since it was made.
//!
//! While the archive is downloaded and unpacked, Tarn is asked what HEAD stands for and is told what else will be
//! wanted. Then the bundle brings the default branch (it is the same for everyone, so it costs Tarn nothing), and an
//! ordinary fetch brings whatever else moved: the clone is as fresh as `git clone` would have made it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use crate::archive::{self, ArchiveError};
use crate::checkout::{self, CheckoutError, Head, Wanted};
use crate::cli::CommitId;
use crate::download::{DownloadError, Snapshot};
use crate::git::{Git, GitError};
use crate::http::{Http, HttpError, save};
use crate::screen::Screen;
use crate::server::Repository;
use crate::staging::{Staging, StagingError};
use crate::verify::{self, VerifyError};

/// Attempts at requests that are short.
const ATTEMPTS: u32 = 3;

/// The longest answer to `ensure-refs`, which names what was asked for.
const LONGEST: usize = 64 * 1024;

/// Why there is no clone from a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The archive could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// It could not be unpacked.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Another request failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// What was asked for could not be checked out.
    #[error(transparent)]
    Checkout(#[from] CheckoutError),
    /// The directory failed.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The archive holds another commit than the server said.
    #[error("the snapshot does not hold the commit that the server named")]
    OtherCommit,
    /// The archive's index names files elsewhere.
    #[error("the snapshot is refused: its index names {0:?}")]
    Index(String),
    /// The archive has refs that no clone has.
    #[error("the snapshot is refused: it has a ref {0:?}")]
    Ref(String),
    /// It was verified, and is not what it should be.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The upstream lacks what was asked for.
    #[error("through Tarn there is no {0}")]
    Missing(String),
}

impl SnapshotError {
    /// Whether there was no room on the disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Archive(error) => error.is_disk_full(),
            Self::Verify(error) => error.is_disk_full(),
            Self::Git(error) | Self::Checkout(CheckoutError::Git(error)) => error.is_disk_full(),
            Self::Http(HttpError::File { source, .. }) => source.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// A clone from a snapshot.
#[derive(Debug)]
pub struct Done {
    /// What is checked out.
    pub head: Head,
    /// Bytes of the archive and the bundle.
    pub bytes: u64,
    /// From the first request to the archive's last byte.
    pub download: Duration,
    /// From the first byte to the last file.
    pub extract: Duration,
    /// Hashing objects and files.
    pub verify: Duration,
    /// What happened since the snapshot.
    pub delta: Duration,
    /// What was asked for besides.
    pub checkout: Duration,
}

/// What a clone from a snapshot needs.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// HTTP.
    pub http: &'a Http,
    /// Git.
    pub git: &'a Git,
    /// The repository in Tarn.
    pub repository: &'a Repository,
    /// Where the clone grows.
    pub staging: &'a Staging,
    /// What it is to be called as a remote.
    pub origin: &'a str,
    /// What is to be checked out.
    pub wanted: &'a Wanted,
    /// Connections.
    pub jobs: usize,
    /// Whether nothing of the archive is believed.
    pub verify: bool,
    /// Progress.
    pub screen: &'a Screen,
}

impl Attempt<'_> {
    /// Makes the clone, starting over once if the snapshot is replaced meanwhile.
    ///
    /// # Errors
    /// Any step failed; the staging directory holds a part then.
    pub async fn run(&self) -> Result<Done, SnapshotError> {
        match self.once().await {
            Err(SnapshotError::Download(DownloadError::Replaced)) => {
                self.staging.clear()?;
                self.once().await
            }
            done => done,
        }
    }

    async fn once(&self) -> Result<Done, SnapshotError> {
        let dir = self.staging.clone_dir();
        let (unpacked, upstream, ()) =
            tokio::try_join!(self.unpack(&dir), self.upstream_head(), self.ensure())?;
        let (total, download, extract) = unpacked;

        let (started, mut verify) = (Instant::now(), Duration::ZERO);
        if self.verify {
            self.screen.step("verifying the snapshot");
            verify::verify(self.git, &dir).await?;
            verify = started.elapsed();
        }

        self.screen.step("what happened since the snapshot");
        let started = Instant::now();
        let shown = checkout::head(self.git, &dir).await?;
        let bundle = match &shown.commit {
            Some(base) if shown.commit != upstream.commit => self.bundle(&dir, base).await,
            _ => 0,
        };
        self.fetch(&dir).await?;
        if let Some(branch) = &upstream.branch {
            let target = format!("refs/remotes/origin/{branch}");
            self.git.within(&dir).args(["symbolic-ref", "refs/remotes/origin/HEAD", &target]).run().await?;
        }
        let delta = started.elapsed();

        let started = Instant::now();
        let url = self.repository.git_url();
        let repository =
            checkout::Repository { git: self.git, dir: &dir, url, upstream: &upstream, shown: Some(shown) };
        let head = repository.check_out(self.wanted).await?;
        forget_fetch(&dir);
        let (bytes, checkout) = (total + bundle, started.elapsed());
        Ok(Done { head, bytes, download, extract, verify, delta, checkout })
    }

    /// Downloads and unpacks at the same time. Gives back the archive's size and the two durations.
    async fn unpack(&self, dir: &Path) -> Result<(u64, Duration, Duration), SnapshotError> {
        self.screen.step("waiting for the snapshot");
        let started = Instant::now();
        let snapshot = Snapshot::open(self.http, self.repository.snapshot()).await?;
        let commit: Option<CommitId> = snapshot.commit.as_deref().and_then(|text| text.parse().ok());
        self.prepare(dir, commit.as_ref().map_or("sha1", CommitId::object_format)).await?;
        let total = snapshot.total;
        self.screen.download(total);
        let extracting = Instant::now();
        let (work, body) = snapshot.start(self.http, self.jobs, self.screen);
        let (busy, root) = (self.staging.busy(), dir.to_owned());
        let unpacking = tokio::task::spawn_blocking(move || {
            let _busy = busy.hold();
            archive::unpack(body, total, &root)
        });
        let downloading = async { (work.await, started.elapsed()) };
        let ((downloaded, download), unpacked) = tokio::join!(downloading, unpacking);
        let unpacked = unpacked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        match (downloaded, unpacked) {
            (Ok(()), Ok(_)) => {}
            // The reader left for a reason of its own.
            (Ok(()) | Err(DownloadError::Abandoned), Err(error)) => return Err(error.into()),
            (Err(error), _) => return Err(error.into()),
        }
        let extract = extracting.elapsed();
        let Head { commit: held, branch } = checkout::head(self.git, dir).await?;
        let said = commit.as_ref().map(CommitId::as_str);
        if held.is_none() || (said.is_some() && held.as_deref() != said) {
            return Err(SnapshotError::OtherCommit);
        }
        let refs = self.git.within(dir).args(["for-each-ref", "--format=%(refname)"]);
        if let Some(name) = refs.find_unfit(b'\n', |name| is_of_clone(name, branch.as_deref())).await? {
            return Err(SnapshotError::Ref(String::from_utf8_lossy(&name).chars().take(200).collect()));
        }
        let listed = self.git.within(dir).args(["ls-files", "-z", "--cached"]);
        match listed.find_unfit(0, archive::is_in_worktree).await? {
            None => Ok((total, download, extract)),
            Some(path) => {
                Err(SnapshotError::Index(String::from_utf8_lossy(&path).chars().take(200).collect()))
            }
        }
    }

    /// Makes the repository that the archive's files go into: configuration and templates are the user's own.
    async fn prepare(&self, dir: &Path, format: &str) -> Result<(), SnapshotError> {
        let format = format!("--object-format={format}");
        let init = self.git.anywhere().args(["init", "--quiet", &format, "--"]);
        init.args([dir]).run().await?;
        for (key, value) in [
            ("remote.origin.url", self.origin),
            ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
            // The index was written where the snapshot was made: of a file's state, only its size and time travel.
            ("core.checkStat", "minimal"),
        ] {
            self.git.within(dir).args(["config", key, value]).run().await?;
        }
        // The archive brings its own.
        let head = dir.join(".git/HEAD");
        std::fs::remove_file(&head)
            .map_err(|source| ArchiveError::Disk { name: head.display().to_string(), source })?;
        Ok(())
    }

    /// What the upstream's HEAD stands for, as Tarn shows it.
    async fn upstream_head(&self) -> Result<Head, SnapshotError> {
        let args = ["ls-remote", "--symref", self.repository.git_url(), "HEAD"];
        let text = self.git.anywhere().args(args).unattended().run().await?;
        Ok(parse_head(&text))
    }

    /// Asks Tarn to have what is wanted; it brings it while the archive is downloaded.
    async fn ensure(&self) -> Result<(), SnapshotError> {
        if !self.wanted.is_special() {
            return Ok(());
        }
        let names = self.wanted.names();
        let commits: Vec<&str> = self.wanted.commit().map(CommitId::as_str).into_iter().collect();
        let refs = names.iter().map(|name| (name.as_str(), "")).collect();
        let body = serde_json::to_string(&Ensure { refs, commits }).expect("a list of names is JSON");
        let doing = "ensure-refs";
        let url = self.repository.ensure_refs();
        let asked = self.http.persist(doing, ATTEMPTS, |client| {
            client.post(&url).header("Content-Type", "application/json").body(body.clone())
        });
        // Not asked for in time, it is fetched later; git says then what is wrong.
        let Ok(mut answer) = asked.await else { return Ok(()) };
        let mut bytes = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|source| crate::http::transport(doing, source))?
        {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LONGEST {
                return Err(HttpError::Answer { doing, what: "an answer that is too long" }.into());
            }
        }
        let wrong = |_| HttpError::Answer { doing, what: "an answer that cannot be read" };
        let ensured: Ensured = serde_json::from_slice(&bytes).map_err(wrong)?;
        if let Some(commit) = ensured.missing_commits.first() {
            return Err(SnapshotError::Missing(format!("commit {commit}")));
        }
        if !names.is_empty() && ensured.refs.is_empty() {
            return Err(SnapshotError::Missing(names.join(" or ")));
        }
        Ok(())
    }

    /// Brings the default branch by bundle; gives back its size. Where that fails, the fetch brings it.
    async fn bundle(&self, dir: &Path, base: &str) -> u64 {
        let url = self.repository.bundle(base);
        let answer = match self.http.persist("bundle", ATTEMPTS, |client| client.get(&url)).await {
            Ok(answer) if answer.status() == StatusCode::OK => answer,
            _ => return 0,
        };
        let path = self.staging.file("bundle");
        let Ok(bytes) = save("bundle", answer, &path).await else { return 0 };
        let fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head"];
        let all = "+refs/heads/*:refs/remotes/origin/*";
        let fetched = self.git.within(dir).args(fetch).args([path.as_os_str(), all.as_ref()]).run().await;
        // Removed with the staging directory if not now.
        let _ = std::fs::remove_file(&path);
        if fetched.is_ok() { bytes } else { 0 }
    }

    /// Brings all branches and tags to where they are now.
    async fn fetch(&self, dir: &Path) -> Result<(), SnapshotError> {
        let fetch = ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head"];
        let refs = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        let command = self.git.within(dir).args(fetch).args([self.repository.git_url()]).args(refs);
        command.unattended().run().await?;
        Ok(())
    }
}

/// Whether a new clone has a ref of this name: `branch` is what it has checked out. Others may stand in for objects, or for
/// branches that are checked out later.
fn is_of_clone(name: &[u8], branch: Option<&str>) -> bool {
    // Git calls it heads/main where there is a tag main as well.
    let checked_out = |name| branch.is_some_and(|branch| branch.as_bytes() == name);
    let own = name.strip_prefix(b"refs/heads/").is_some_and(checked_out)
        || name.strip_prefix(b"refs/").is_some_and(|name| name.starts_with(b"heads/") && checked_out(name));
    own || name.starts_with(b"refs/remotes/origin/") || name.starts_with(b"refs/tags/")
}

/// Removes what git noted of a fetch: it names Tarn.
pub fn forget_fetch(dir: &Path) {
    // Mostly there is none.
    let _ = std::fs::remove_file(dir.join(".git/FETCH_HEAD"));
}

/// The request to `ensure-refs`.
#[derive(Debug, Serialize)]
struct Ensure<'a> {
    refs: BTreeMap<&'a str, &'a str>,
    commits: Vec<&'a str>,
}

/// Its answer.
#[derive(Debug, Deserialize)]
struct Ensured {
    refs: BTreeMap<String, String>,
    missing_commits: Vec<String>,
}

/// Reads `git ls-remote --symref URL HEAD`.
fn parse_head(text: &str) -> Head {
    let mut head = Head { commit: None, branch: None };
    for line in text.lines() {
        let Some((value, "HEAD")) = line.split_once('\t') else { continue };
        match value.strip_prefix("ref: ") {
            Some(name) => head.branch = name.strip_prefix("refs/heads/").map(str::to_owned),
            None => head.commit = Some(value.to_owned()),
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_are_those_that_a_clone_has() {
        for name in ["refs/heads/main", "refs/remotes/origin/x", "refs/tags/v1"] {
            assert!(is_of_clone(name.as_bytes(), Some("main")), "{name}");
        }
        assert!(is_of_clone(b"refs/heads/main", Some("heads/main")));
        for name in ["refs/heads/release", "refs/replace/1", "refs/remotes/other/x", "refs/notes/x"] {
            assert!(!is_of_clone(name.as_bytes(), Some("main")), "{name}");
        }
        assert!(!is_of_clone(b"refs/heads/main", None));
    }

    #[test]
    fn head_is_a_branch_or_a_commit() {
        let (branch, commit) = (Some("a/b".to_owned()), Some("12ab".to_owned()));
        assert_eq!(
            parse_head("ref: refs/heads/a/b\tHEAD\n12ab\tHEAD\n"),
            Head { commit: commit.clone(), branch }
        );
        assert_eq!(parse_head("12ab\tHEAD"), Head { commit, branch: None });
        assert_eq!(parse_head(""), Head { commit: None, branch: None });
    }
}
