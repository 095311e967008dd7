//! The repository under test: made once, then kept in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tarn_testkit::generate::{Generated, Profile, generate};
use tarn_testkit::git::Git;
use tempfile::TempDir;

/// Begins the names of repositories under way.
const MAKING: &str = "making-";
/// Begins the names of directories of runs under way.
const RUN: &str = "run-";

/// A generated repository.
#[derive(Debug)]
pub(crate) struct Repository {
    /// The bare repository.
    pub(crate) dir: PathBuf,
    /// What is in it.
    pub(crate) facts: Facts,
}

/// What a report says about the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(crate) struct Facts {
    /// The profile's name and numbers.
    pub(crate) profile: String,
    pub(crate) refs: u32,
    pub(crate) commits: u64,
    pub(crate) objects: u64,
    pub(crate) files: u64,
    pub(crate) worktree_bytes: u64,
    pub(crate) pack_bytes: u64,
    pub(crate) head: String,
}

impl Repository {
    /// Commits before HEAD's on its branch, youngest first.
    pub(crate) async fn ancestors(&self, count: usize) -> Result<Vec<String>> {
        let git = Git::new()?.with_config("safe.directory", "*");
        let dir = self.dir.as_os_str();
        let count = format!("--max-count={count}");
        let args = ["-C".as_ref(), dir, "rev-list".as_ref(), "--first-parent".as_ref(), "--skip=1".as_ref()];
        let args = args.into_iter().chain([count.as_ref(), "HEAD".as_ref()]);
        Ok(git.run(args).await?.text().lines().map(ToOwned::to_owned).collect())
    }
}

/// Where repositories and results are kept. One run at a time has it: two would spoil each other's figures.
#[derive(Debug)]
pub(crate) struct Cache {
    /// The directory.
    pub(crate) dir: PathBuf,
    _lock: File,
}

impl Cache {
    /// Takes the cache and removes what killed runs left there.
    pub(crate) fn open() -> Result<Self> {
        let xdg = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache");
        let dir = xdg.unwrap_or_else(home).join("tarn/bench");
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let lock =
            File::create(dir.join("lock")).with_context(|| format!("create {}/lock", dir.display()))?;
        lock.try_lock().with_context(|| format!("another benchmark runs in {}", dir.display()))?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(MAKING) || name.starts_with(RUN) {
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(Self { dir, _lock: lock })
    }

    /// Finds a repository, or makes it; the final name appears only when it is whole.
    pub(crate) async fn repository(&self, profile: Profile) -> Result<Repository> {
        let home = self.dir.join(profile.key());
        if !home.exists() {
            crate::say(&format!(
                "generating the {} repository; this takes some minutes, once",
                profile.name
            ))?;
            let (cache, target) = (self.dir.clone(), home.clone());
            tokio::task::spawn_blocking(move || make(&cache, &target, &profile)).await??;
        }
        let facts = home.join("facts.json");
        let text = fs::read(&facts).with_context(|| format!("read {}", facts.display()))?;
        let facts = serde_json::from_slice(&text).with_context(|| format!("read {}", facts.display()))?;
        Ok(Repository { dir: home.join("repo.git"), facts })
    }

    /// A directory for this run, on the same disk as the repository.
    pub(crate) fn work_directory(&self) -> Result<TempDir> {
        tempfile::Builder::new().prefix(RUN).tempdir_in(&self.dir).context("make a directory to work in")
    }
}

/// Makes the repository beside its final place and renames it.
fn make(cache: &Path, home: &Path, profile: &Profile) -> Result<()> {
    let staging = tempfile::Builder::new().prefix(MAKING).tempdir_in(cache)?;
    let repo = staging.path().join("repo.git");
    let Generated { commits, objects, files, worktree_bytes, head } = generate(&repo, profile)?;
    let facts = Facts {
        profile: profile.key(),
        refs: profile.refs,
        commits,
        objects,
        files,
        worktree_bytes,
        pack_bytes: pack_bytes(&repo)?,
        head,
    };
    fs::write(staging.path().join("facts.json"), serde_json::to_vec_pretty(&facts)?)?;
    let staging = staging.keep();
    fs::rename(&staging, home).with_context(|| format!("rename to {}", home.display()))
}

/// Bytes of the one pack; a bitmap must be there, since the peers' figures rest on one.
fn pack_bytes(repo: &Path) -> Result<u64> {
    let (mut bytes, mut bitmap) = (0, false);
    for file in fs::read_dir(repo.join("objects/pack"))? {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        bitmap |= name.ends_with(".bitmap");
        if name.ends_with(".pack") {
            bytes += file.metadata()?.len();
        }
    }
    ensure!(bitmap, "git repack wrote no bitmap");
    Ok(bytes)
}
