//! An upstream, an agent that mirrors it, snapshots of it, and `git tarn clone`: what every test starts with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use tarn_testkit::agent::{Agent, Builder, repo_id};
use tarn_testkit::git::{Git, Repo, isolate};
use tarn_testkit::process::{Output, command, run};
use tarn_testkit::proxy::HttpFaultProxy;
use tarn_testkit::upstream::Upstream;

use crate::front::{Front, Snapshot};

/// Longer than any clone of a test takes, waits for retries included.
const PATIENCE: Duration = Duration::from_secs(120);

/// One upstream repository with a snapshot, served by Tarn behind a proxy that makes trouble where it is told to.
pub(crate) struct Scene {
    pub(crate) origin: Repo,
    pub(crate) upstream: Upstream,
    pub(crate) agent: Agent,
    pub(crate) front: Front,
    pub(crate) proxy: HttpFaultProxy,
    pub(crate) git: Git,
    pub(crate) dir: tempfile::TempDir,
}

impl Scene {
    /// A small repository with a snapshot of its newest commit.
    pub(crate) async fn small() -> Result<Self> {
        let scene = Self::without_snapshot(async |origin| {
            origin.commit("main", &[("README", "hello\n"), ("src/lib.rs", "fn main() {}\n")]).await?;
            let tip = origin.commit("main", &[("src/deep/er/file", "content\n")]).await?;
            origin.set_ref("refs/heads/side", &tip).await?;
            origin.tag("v1", &tip).await?;
            Ok(())
        })
        .await?;
        scene.take_snapshot().await?;
        Ok(scene)
    }

    /// A repository whose snapshot has three ranges.
    pub(crate) async fn large() -> Result<Self> {
        let scene = Self::without_snapshot(async |origin| {
            origin.grow("main", 3, 3_000_000, 1).await?;
            Ok(())
        })
        .await?;
        scene.take_snapshot().await?;
        Ok(scene)
    }

    /// The upstream is prepared by `prepare` before the agent starts.
    pub(crate) async fn without_snapshot(prepare: impl AsyncFnOnce(&Repo) -> Result<()>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        fs::create_dir(&root)?;
        fs::create_dir(dir.path().join("work"))?;
        let upstream = Upstream::start(&root)?;
        let origin = upstream.seed("a.git").await?;
        prepare(&origin).await?;
        let binary = Path::new(env!("CARGO_BIN_EXE_git-tarn")).with_file_name("tarn-agent");
        let named = std::env::var_os("TARN_TESTKIT_AGENT").is_some();
        ensure!(named || binary.exists(), "these tests need the agent: cargo build -p tarn-agent");
        let agent = Builder::new(binary).mirror(&upstream.url("a.git")).start().await?;
        agent.wait_ready(&[&repo_id(&upstream.url("a.git"))]).await?;
        let front = Front::start(agent.git_address()?, origin.path())?;
        let proxy = HttpFaultProxy::start(front.address())?;
        Ok(Self { origin, upstream, agent, front, proxy, git: Git::new()?, dir })
    }

    pub(crate) fn url(&self) -> String {
        self.upstream.url("a.git")
    }

    /// Where clones are made; nothing else is there.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// What is in the work directory, sorted.
    pub(crate) fn left(&self) -> Result<Vec<String>> {
        names(&self.work())
    }

    /// Makes a snapshot of the upstream as it is now, as git.md's recipe says, and serves it.
    pub(crate) async fn take_snapshot(&self) -> Result<()> {
        let built = self.build_snapshot().await?;
        self.serve(&built, &self.origin.rev_parse("HEAD").await?).await
    }

    /// Makes the directory that a snapshot is packed from.
    pub(crate) async fn build_snapshot(&self) -> Result<PathBuf> {
        let built = tempfile::tempdir_in(self.dir.path())?.keep();
        let clone =
            self.git.clone_repo(&self.origin.file_url(), &built, &["--template=", "--no-checkout"]).await?;
        clone.git(&["config", "core.checkStat", "minimal"]).await?;
        clone.git(&["config", "core.trustctime", "false"]).await?;
        clone.git(&["config", "remote.origin.url", &self.url()]).await?;
        clone.git(&["checkout", "--quiet", "main"]).await?;
        let minute_ago = SystemTime::now() - Duration::from_secs(60);
        for file in clone.git(&["ls-files"]).await?.lines() {
            let path = built.join(file);
            if !path.is_symlink() {
                File::options().write(true).open(path)?.set_modified(minute_ago)?;
            }
        }
        clone.git(&["read-tree", "HEAD"]).await?;
        clone.git(&["update-index", "--refresh"]).await?;
        let index = File::options().write(true).open(built.join(".git/index"))?;
        index.set_modified(minute_ago + Duration::from_secs(5))?;
        fs::remove_dir_all(built.join(".git/logs"))?;
        Ok(built)
    }

    /// Packs a directory and serves it.
    pub(crate) async fn serve(&self, built: &Path, commit: &str) -> Result<()> {
        let mut tar = command("tar");
        tar.arg("-C").arg(built).args(["--format=posix", "--sort=name", "-cf", "-", "."]);
        let packed = run(tar, b"", PATIENCE).await?;
        ensure!(packed.status.success(), "tar: {}", packed.stderr);
        self.serve_tar(&packed.stdout, commit)
    }

    /// Compresses a tar, in two frames, and serves it.
    pub(crate) fn serve_tar(&self, tar: &[u8], commit: &str) -> Result<()> {
        let (first, second) = tar.split_at(tar.len() / 2);
        let archive = [zstd::encode_all(first, 1)?, zstd::encode_all(second, 1)?].concat();
        let etag =
            format!("\"{}-{:x}\"", archive.len(), archive.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        let snapshot = Snapshot { archive: Bytes::from(archive), commit: commit.to_owned(), etag };
        self.front.change(|served| served.snapshot = Some(snapshot));
        Ok(())
    }

    /// Prepares `git-tarn clone` with these arguments in the work directory.
    pub(crate) fn command(&self, args: &[&str]) -> Result<std::process::Command> {
        let home = self.dir.path().join("home");
        fs::create_dir_all(&home)?;
        let mut tarn = command(env!("CARGO_BIN_EXE_git-tarn"));
        isolate(&mut tarn, &home);
        tarn.env("TARN_URL", self.proxy.url()).current_dir(self.work()).arg("clone").args(args);
        Ok(tarn)
    }

    /// Runs it.
    pub(crate) async fn tarn(&self, args: &[&str]) -> Result<Output> {
        run(self.command(args)?, b"", PATIENCE).await
    }

    /// Clones into `work/name`, which must succeed by way of the snapshot; gives back the report and the clone.
    pub(crate) async fn clone(&self, name: &str, args: &[&str]) -> Result<(Value, Repo)> {
        let (report, clone) = self.clone_somehow(name, args).await?;
        ensure!(report["how"] == "snapshot", "{report}");
        Ok((report, clone))
    }

    /// As [`Scene::clone`], whichever way it goes.
    pub(crate) async fn clone_somehow(&self, name: &str, args: &[&str]) -> Result<(Value, Repo)> {
        let url = self.url();
        let all: Vec<&str> = [&["--json", &url, name], args].concat();
        let output = self.tarn(&all).await?;
        ensure!(output.status.success(), "{}: {}", output.status, output.stderr);
        let report = serde_json::from_slice(&output.stdout).context("the report is not JSON")?;
        Ok((report, Repo::open(self.git.clone(), self.work().join(name))))
    }

    /// The commit that a branch of the upstream stands at.
    pub(crate) async fn tip(&self, branch: &str) -> Result<String> {
        self.origin.rev_parse(&format!("refs/heads/{branch}")).await
    }

    /// What holds for every clone: whole, clean, with the upstream's branches and tags, and nothing of Tarn in it.
    pub(crate) async fn expect_clone(&self, clone: &Repo) -> Result<()> {
        clone.fsck().await?;
        ensure!(clone.git(&["status", "--porcelain"]).await?.is_empty(), "the worktree is not clean");
        let config = fs::read_to_string(clone.git_dir().join("config"))?;
        for word in ["insteadOf", "tarn", &self.proxy.address().to_string()] {
            ensure!(!config.to_lowercase().contains(&word.to_lowercase()), "{word} in {config}");
        }
        ensure!(clone.git(&["config", "remote.origin.url"]).await? == self.url(), "{config}");
        ensure!(!clone.git_dir().join("FETCH_HEAD").exists(), "FETCH_HEAD names Tarn");
        let theirs = self.git.clone_repo(&self.url(), &tempfile::tempdir()?.keep(), &[]).await?;
        for namespace in ["refs/remotes", "refs/tags"] {
            let list = ["for-each-ref", "--format=%(refname) %(objectname) %(symref)", namespace];
            let (ours, expected) = (clone.git(&list).await?, theirs.git(&list).await?);
            ensure!(ours == expected, "refs:\n{ours}\nby git clone:\n{expected}");
        }
        fs::remove_dir_all(theirs.path())?;
        // The upstream answers under the name that the clone has for it.
        clone.git(&["fetch", "--quiet"]).await?;
        fs::remove_file(clone.git_dir().join("FETCH_HEAD"))?;
        Ok(())
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = entries.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
