//! A repository made from a seed: the same objects every time, as much work for git as a large real one.
//!
//! Benchmarks need a repository on which `git upload-pack` is dear: hundreds of megabytes of pack, long delta
//! chains, and a tip worktree whose blobs are mostly stored as deltas of other versions (a depth-1 clone must
//! then search and compress anew). So this writes what a project of ten years looks like: thousands of text
//! files that are edited far more often than added, some catalogues and binaries, merges, branches and tags.
//! Everything streams through `git fast-import`; memory holds the current worktree, never the history.
//! Only object ids are promised to repeat: packs depend on git's version and its threads.

mod ballast;
mod edited;
mod edits;
mod history;
mod random;
mod stream;
mod text;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::git::Git;
pub use edited::Edited;
pub use edits::{edits, linked_copy};

/// Changes whenever the same profile and seed give other objects, so that caches start anew.
pub const VERSION: u32 = 1;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Names the profile in caches and reports.
    pub name: &'static str,
    /// Objects to reach; history goes on until they are there.
    pub objects: u64,
    /// Branches and tags together, HEAD's branch included.
    pub refs: u32,
    /// Files of the worktree at the tip, about.
    pub files: u32,
    /// Decides everything else.
    pub seed: u64,
    /// Besides, so many MiB of history that no compression makes less.
    pub ballast: u32,
}

impl Profile {
    /// The benchmarks' repository: a little larger than git/git (419,403 objects, 318 MB packed, 1,016 refs), so
    /// that git pays for it what it pays there.
    pub const FULL: Self =
        Self { name: "full", objects: 500_000, refs: 1_016, files: 6_000, seed: 1, ballast: 0 };

    /// A few seconds' worth, for tests of the harness itself. Too small to compare servers with.
    pub const SMALL: Self = Self { name: "small", objects: 6_000, refs: 40, files: 250, seed: 1, ballast: 0 };

    /// The benchmarks' repository with 5 GB more below its youngest 500 commits.
    pub const HUGE: Self = Self { name: "huge", ballast: 5_000, ..Self::FULL };

    /// Finds a profile by name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::FULL, Self::SMALL, Self::HUGE].into_iter().find(|profile| profile.name == name)
    }

    /// Tells repositories of different content apart, as a file name.
    pub fn key(&self) -> String {
        let Self { name, objects, refs, files, seed, ballast } = self;
        let ballast = if *ballast > 0 { format!("-{ballast}MiB") } else { String::new() };
        format!("{name}-{objects}-{refs}-{files}{ballast}-seed{seed}-v{VERSION}")
    }
}

/// The repository of the profile `full` that `make large` and `make bench` generate and keep.
///
/// # Errors
/// There is none yet.
pub fn kept() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    let profile = Profile::named("full").context("the profile")?;
    let repository = cache.join("tarn/bench").join(profile.key()).join("repo.git");
    ensure!(
        repository.exists(),
        "there is no repository in {} yet: run `make large` first",
        repository.display()
    );
    Ok(repository)
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Commits of all branches.
    pub commits: u64,
    /// Objects of all kinds.
    pub objects: u64,
    /// Files of the worktree at the tip.
    pub files: u64,
    /// Bytes of that worktree.
    pub worktree_bytes: u64,
    /// The commit HEAD stands for.
    pub head: String,
}

/// Writes a bare repository to `dir`, which must not exist: one pack with a bitmap, refs packed.
///
/// A failure leaves a partial directory behind; the caller stages and renames.
pub fn generate(dir: &Path, profile: &Profile) -> Result<Generated> {
    ensure!(!dir.exists(), "{} exists already", dir.display());
    let git = Git::new()?;
    run(git.command(["init", "--quiet", "--bare", "--template=", "--initial-branch=main"]).arg(dir))?;

    // Level 1: these bytes are compressed again, because `-F` makes the repack below ignore them.
    let totals =
        import(&git, dir, "core.compression=1", |stdin| history::write(stream::Stream::new(stdin), profile))?;
    let heavy = profile.ballast > 0;
    let more = if heavy {
        let seed = profile.seed;
        import(&git, dir, "core.compression=0", |stdin| ballast::write(stdin, profile.ballast, seed))?
    } else {
        0
    };

    run(git.command(["pack-refs", "--all", "--prune"]).current_dir(dir))?;
    // Compressing what no compression makes less takes as long as anything else does.
    let settings: &[&str] =
        if heavy { &["-c", "core.bigFileThreshold=1m", "-c", "pack.compression=1"] } else { &[] };
    let repack = ["repack", "-adbF", "--quiet", "--window-memory=256m"];
    run(git.command(settings.iter().copied().chain(repack)).current_dir(dir))?;
    let head = output(git.command(["rev-parse", "HEAD"]).current_dir(dir))?;
    Ok(Generated {
        commits: totals.commits + u64::from(more),
        objects: packed(&output(git.command(["count-objects", "-v"]).current_dir(dir))?)?,
        files: totals.files + u64::from(heavy),
        worktree_bytes: totals.worktree_bytes,
        head,
    })
}

/// Feeds `git fast-import`. Depth 0: blobs arrive one after another from unrelated files, and a delta between those would
/// be kept by a repack.
fn import<T>(
    git: &Git,
    dir: &Path,
    setting: &str,
    feed: impl FnOnce(std::process::ChildStdin) -> Result<T>,
) -> Result<T> {
    let mut import = git.command(["-c", setting, "fast-import", "--quiet", "--depth=0"]);
    import.current_dir(dir).stdin(Stdio::piped());
    let mut import = import.spawn().context("start git fast-import")?;
    let stdin = import.stdin.take().context("fast-import has no standard input")?;
    let fed = feed(stdin);
    let status = import.wait().context("wait for git fast-import")?;
    let fed = fed.with_context(|| format!("feed git fast-import, which ended with {status}"))?;
    ensure!(status.success(), "git fast-import ended with {status}");
    Ok(fed)
}

/// Reads the number of packed objects from `git count-objects -v`.
fn packed(counts: &str) -> Result<u64> {
    let line = counts.lines().find_map(|line| line.strip_prefix("in-pack: "));
    line.context("git count-objects names no packed objects")?.parse().context("read git count-objects")
}

/// Runs a command to its end, which must be a success.
fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command and gives its output back without the final newline.
fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} ended with {}: {}", done.status, stderr.trim_end());
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: Profile = Profile { objects: 1_500, refs: 12, files: 60, ..Profile::SMALL };

    #[test]
    fn the_same_seed_makes_the_same_commits_and_another_seed_others() {
        let dir = tempfile::tempdir().unwrap();
        let first = generate(&dir.path().join("first.git"), &TINY).unwrap();
        let again = generate(&dir.path().join("again.git"), &TINY).unwrap();
        let other = generate(&dir.path().join("other.git"), &Profile { seed: 2, ..TINY }).unwrap();
        assert_eq!(first, again);
        // Whoever changes this changes VERSION: caches would keep the old repository.
        assert_eq!(first.head, "2f199e31078c49ae4b544c637b47cccbc1a619d1");
        assert_ne!(first.head, other.head);
    }

    #[test]
    fn ballast_is_below_the_youngest_commits_and_in_no_worktree() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo.git");
        let made = generate(&repo, &Profile { ballast: 33, ..TINY }).unwrap();
        let git = Git::new().unwrap();
        let ask = |args: &[&str]| output(git.command(args).current_dir(&repo)).unwrap();
        ask(&["fsck", "--strict"]);
        assert_eq!(ask(&["rev-list", "--all", "--count"]), made.commits.to_string());
        assert_eq!(ask(&["rev-list", "--all", "--objects"]).lines().count() as u64, made.objects);
        assert_eq!(ask(&["ls-tree", "-r", "--name-only", "HEAD"]).lines().count() as u64, made.files);
        let below = ask(&["rev-list", "--objects", "HEAD~499"]);
        assert_eq!(below.lines().filter(|line| line.contains(" ballast/")).count(), 2, "{below}");
        assert_eq!(ask(&["for-each-ref"]).lines().count(), 12);
    }

    #[test]
    fn what_is_asked_for_is_there_and_sound() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo.git");
        let made = generate(&repo, &TINY).unwrap();
        let git = Git::new().unwrap();
        let ask = |args: &[&str]| output(git.command(args).current_dir(&repo)).unwrap();
        ask(&["fsck", "--strict"]);
        assert_eq!(ask(&["for-each-ref"]).lines().count(), 12);
        assert_eq!(ask(&["rev-list", "--all", "--count"]), made.commits.to_string());
        assert_eq!(ask(&["rev-list", "--all", "--objects"]).lines().count() as u64, made.objects);
        assert_eq!(ask(&["ls-tree", "-r", "--name-only", "HEAD"]).lines().count() as u64, made.files);
        assert!(made.objects >= TINY.objects);
        let types = ask(&["for-each-ref", "--format=%(objecttype)", "refs/tags"]);
        assert!(types.contains("tag") && types.contains("commit"), "annotated and light tags: {types}");
        assert!(ask(&["rev-list", "--merges", "--count", "HEAD"]) != "0");
        let files = std::fs::read_dir(repo.join("objects/pack")).unwrap();
        let names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let count = |suffix| names.iter().filter(|name| name.ends_with(suffix)).count();
        assert_eq!((count(".pack"), count(".bitmap")), (1, 1), "{names:?}");
    }
}
