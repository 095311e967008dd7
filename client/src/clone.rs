//! `git tarn clone`: the ways to a clone in the order in which they are tried.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::checkout::{CheckoutError, Head, Wanted};
use crate::cli::CloneArgs;
use crate::credential::{self, CredentialError};
use crate::exit::Exit;
use crate::git::Git;
use crate::http::{Http, HttpError};
use crate::plain;
use crate::screen::Screen;
use crate::server::{Repository, Server, ServerError};
use crate::snapshot::{Attempt, Done, SnapshotError};
use crate::source::{Source, SourceError};
use crate::staging::{Staging, StagingError};
use crate::token::{Origin, Token, TokenError};

/// What came of it; printed by `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where the clone is.
    pub directory: PathBuf,
    /// The commit that is checked out; none in an empty repository.
    pub commit: Option<String>,
    /// The branch that is checked out; none if HEAD is detached.
    pub branch: Option<String>,
    /// Which way led to it.
    pub how: Way,
    /// Bytes of the snapshot and its bundle; what git itself downloads is not counted.
    pub bytes: u64,
    /// How long it took.
    pub seconds: Seconds,
    /// Why each earlier way failed, in the order in which they were tried.
    pub fallback_reasons: Vec<String>,
}

/// Where the clone came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From Tarn's snapshot.
    Snapshot,
    /// From Tarn by `git clone`.
    GitThroughTarn,
    /// From the upstream by `git clone`.
    Upstream,
}

/// Durations in seconds. Download and extraction overlap; they are 0 where there was no snapshot.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seconds {
    /// All of it.
    pub total: f64,
    /// From the first request to the snapshot's last byte.
    pub download: f64,
    /// From the snapshot's first byte to its last file.
    pub extract: f64,
    /// Hashing objects and files; 0 where the snapshot was trusted.
    pub verify: f64,
    /// Bringing what happened since.
    pub delta: f64,
    /// Checking out what was asked for.
    pub checkout: f64,
}

/// Why there is no clone.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The URL.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The directory.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The file with the password.
    #[error("cannot keep the password for git: {0}")]
    Login(std::io::Error),
    /// The token for Tarn.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// How git is to find it.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// HTTP does not start.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// No room; another way would need as much.
    #[error("{0}: the disk is full")]
    DiskFull(String),
    /// The last way, or the only one.
    #[error("{0}")]
    NoWay(String),
}

impl CloneError {
    /// How the program ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Source(_) | Self::Server(_) | Self::Staging(StagingError::Taken { .. }) => Exit::Usage,
            Self::Credential(error) => error.exit(),
            Self::Staging(StagingError::Io { .. })
            | Self::Login(_)
            | Self::Token(_)
            | Self::Http(_)
            | Self::DiskFull(_)
            | Self::NoWay(_) => Exit::Failed,
        }
    }
}

/// Clones. Dropped early, it leaves nothing behind.
///
/// # Errors
/// No way led to a clone, and nothing was left behind.
pub async fn run(args: &CloneArgs, screen: &Screen) -> Result<Report, CloneError> {
    let started = Instant::now();
    let source = Source::parse(args.url.expose())?;
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => source.directory()?,
    };
    let mut git = Git::default().on_terminal(screen.is_terminal());
    let server = Server::find(args.token.server.as_ref(), &git).await?;
    let mut token = None;
    if let Some(origin) = Origin::find(&args.token, &git, &server).await {
        token = Some(origin.token().await?);
        git = git.with_helper(server.scope(), credential::helper(&server, &origin)?);
    }
    let staging = Staging::make(&dir)?;
    if let Some(login) = source.login() {
        let path = staging.file("login");
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(login.expose().as_bytes())).map_err(CloneError::Login)?;
        git = git.with_login(login, &path);
    }
    let verify = args.verify || (server.is_exposed() && !args.no_verify);
    let (wanted, source) = (Wanted::new(args), &source);
    let job = Job { args, screen, git, token, source, wanted, staging: &staging, verify };
    let (way, done, fallback_reasons) = job.try_all(&server).await?;
    drop(job);
    let mut seconds = done.seconds;
    let directory = staging.publish()?;
    seconds.total = started.elapsed().as_secs_f64();
    let Head { commit, branch } = done.head;
    Ok(Report { directory, commit, branch, how: way, bytes: done.bytes, seconds, fallback_reasons })
}

/// A clone, as any way leaves it.
struct Made {
    head: Head,
    bytes: u64,
    seconds: Seconds,
}

/// Why one way failed.
struct Failure {
    reason: String,
    disk_full: bool,
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        Self { disk_full: error.is_disk_full(), reason: error.to_string() }
    }
}

impl From<CheckoutError> for Failure {
    fn from(error: CheckoutError) -> Self {
        let disk_full = matches!(&error, CheckoutError::Git(error) if error.is_disk_full());
        Self { disk_full, reason: error.to_string() }
    }
}

/// One clone that is being made.
struct Job<'a> {
    args: &'a CloneArgs,
    screen: &'a Screen,
    git: Git,
    token: Option<Token>,
    source: &'a Source,
    wanted: Wanted,
    staging: &'a Staging,
    /// Whether nothing of a snapshot is believed.
    verify: bool,
}

impl Job<'_> {
    /// Tries the ways one after another; says why each failed.
    async fn try_all(&self, server: &Server) -> Result<(Way, Made, Vec<String>), CloneError> {
        let repository = self.source.id().map(|id| server.repository(id));
        let (mut way, mut reasons) = (Way::Snapshot, Vec::new());
        loop {
            let made = match (way, &repository) {
                (Way::Upstream, _) => self.by_git(self.source.url()).await,
                (_, Err(error)) => Err(Failure {
                    reason: format!("Tarn has no such name: the URL {error}"),
                    disk_full: false,
                }),
                (Way::Snapshot, Ok(repository)) => self.by_snapshot(repository).await,
                (Way::GitThroughTarn, Ok(repository)) => self.by_git(repository.git_url()).await,
            };
            let Failure { reason, disk_full } = match made {
                Ok(made) => return Ok((way, made, reasons)),
                Err(failure) => failure,
            };
            if disk_full {
                return Err(CloneError::DiskFull(reason));
            }
            let (next, called) = match way {
                _ if self.args.no_fallback => return Err(CloneError::NoWay(reason)),
                Way::Snapshot if repository.is_ok() => (Way::GitThroughTarn, "through Tarn"),
                Way::Snapshot | Way::GitThroughTarn => (Way::Upstream, "from the upstream"),
                Way::Upstream => return Err(CloneError::NoWay(reason)),
            };
            self.screen.note(&format!("{reason}; falling back to git clone {called}"));
            reasons.push(reason);
            self.staging.clear()?;
            way = next;
        }
    }

    async fn by_snapshot(&self, repository: &Repository) -> Result<Made, Failure> {
        let jobs = usize::from(self.args.jobs);
        let http = Http::new(jobs, self.token.as_ref()).map_err(SnapshotError::from)?;
        let attempt = Attempt {
            http: &http,
            git: &self.git,
            repository,
            staging: self.staging,
            origin: self.source.url(),
            wanted: &self.wanted,
            jobs,
            verify: self.verify,
            screen: self.screen,
        };
        let Done { head, bytes, download, extract, verify, delta, checkout } = attempt.run().await?;
        let seconds = Seconds {
            total: 0.0,
            download: download.as_secs_f64(),
            extract: extract.as_secs_f64(),
            verify: verify.as_secs_f64(),
            delta: delta.as_secs_f64(),
            checkout: checkout.as_secs_f64(),
        };
        Ok(Made { head, bytes, seconds })
    }

    async fn by_git(&self, url: &str) -> Result<Made, Failure> {
        self.screen.give_way();
        let dir: &Path = &self.staging.clone_dir();
        let head = plain::clone(&self.git, url, self.source.url(), dir, &self.wanted).await?;
        Ok(Made { head, bytes: 0, seconds: Seconds::default() })
    }
}
