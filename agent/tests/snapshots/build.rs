//! What a snapshot holds, and when one is made.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Repo;

use super::{current, download, expect_clean, of_commit, path, stage};
use crate::checkpoints::{Kind, files};
use crate::p4_never_stuck::SmallDisk;
use crate::scene::agent as builder;

/// Commits a worktree with what makes checkouts hard, and pushes it upstream.
async fn push_hard_worktree(stage: &crate::checkpoints::Stage) -> Result<()> {
    let dir = stage.dir.path().join("author");
    let author = stage.git.clone_repo(&stage.upstream.url("a.git"), &dir, &[]).await?;
    let write = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        std::fs::write(path, content).map_err(anyhow::Error::from)
    };
    write("run.sh", b"#!/bin/sh\n")?;
    std::fs::set_permissions(dir.join("run.sh"), std::fs::Permissions::from_mode(0o755))?;
    write("deep/er/file with spaces and ü", b"x")?;
    write("windows.txt", b"one\r\ntwo\r\n")?;
    write(".gitattributes", b"*.txt text eol=crlf\n")?;
    write(".gitignore", b"*.o\n")?;
    write("empty", b"")?;
    for number in 0..50 {
        write(&format!("many/{number}"), format!("{number}").as_bytes())?;
    }
    symlink("run.sh", dir.join("link"))?;
    symlink("/nowhere/at/all", dir.join("dangling"))?;
    author.git(&["add", "-A"]).await?;
    author.git(&["commit", "-q", "-m", "hard"]).await?;
    author.push("origin", &["HEAD:refs/heads/main", "HEAD:refs/heads/topic/\"quoted\""]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extracted_snapshot_is_a_clean_clone_of_the_upstream() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    push_hard_worktree(&stage).await?;
    stage.origin.annotated_tag("v1", &stage.origin.rev_parse("main").await?).await?;
    stage.origin.set_ref("refs/notes/x", &stage.origin.rev_parse("main").await?).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let answer = download(&stage, &agent).await?;
    let clone = expect_clean(&stage, &answer.body, "clone").await?;
    let reference =
        stage.git.clone_repo(&stage.upstream.url("a.git"), &stage.dir.path().join("ref"), &[]).await?;
    for question in [
        ["for-each-ref", "--format=%(refname) %(objectname) %(symref)"].as_slice(),
        &["config", "--get-regexp", "^(remote|branch)\\."],
        &["ls-files", "-s"],
        &["symbolic-ref", "HEAD"],
        &["rev-parse", "--is-shallow-repository"],
    ] {
        let (ours, theirs) = (clone.git(question).await?, reference.git(question).await?);
        ensure!(ours == theirs, "{question:?}: {ours}\n--- a clone says:\n{theirs}");
    }
    ensure!(!clone.git_dir().join("objects/info/alternates").exists(), "it borrows objects");
    ensure!(!clone.git_dir().join("logs").exists(), "it has the logs of another machine");
    ensure!(
        clone.git(&["config", "--list", "--local"]).await?.contains("core.checkstat=minimal"),
        "checkStat"
    );
    let link = std::fs::read_link(clone.path().join("link"))?;
    ensure!(link == Path::new("run.sh"), "{}", link.display());
    // Fetch and push go where they would from a clone.
    clone.fetch(&[]).await
}

/// The files below `dir` that are opened while `work` runs.
async fn opened(dir: &Path, work: impl Future<Output = Result<String>>) -> Result<BTreeSet<String>> {
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let mut names = std::collections::BTreeMap::new();
    let mut directories = vec![dir.to_owned()];
    while let Some(directory) = directories.pop() {
        let name = directory.strip_prefix(dir)?.to_owned();
        names.insert(inotify::add_watch(&watch, &directory, WatchFlags::OPEN)?, name);
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.file_name() != ".git" {
                directories.push(entry.path());
            }
        }
    }
    work.await?;
    let (mut found, mut buffer) = (BTreeSet::new(), vec![std::mem::MaybeUninit::uninit(); 1 << 16]);
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    while let Ok(event) = events.next() {
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !event.events().contains(ReadFlags::ISDIR) && !name.is_empty() {
            let directory = names.get(&event.wd()).context("a watch")?;
            found.insert(directory.join(name).display().to_string());
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn git_status_opens_no_tracked_file_of_an_extracted_snapshot() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    push_hard_worktree(&stage).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let into = stage.dir.path().join("clone");
    super::extract(&download(&stage, &agent).await?.body, &into)?;
    let clone = Repo::open(stage.git.clone(), &into);
    let found = opened(&into, clone.git(&["status", "--porcelain"])).await?;
    let config: BTreeSet<String> = [".gitattributes", ".gitignore"].map(String::from).into();
    ensure!(found.is_subset(&config), "opened: {found:?}");
    // The watch sees what is opened: a file with another time is.
    std::fs::write(into.join("run.sh"), "#!/bin/sh\n")?;
    let found = opened(&into, clone.git(&["status", "--porcelain"])).await?;
    ensure!(found.contains("run.sh"), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_follows_head_once_the_interval_has_passed() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    let first = current(&stage, &agent).await?;
    stage.origin.commit("main", &[("next.txt", "next")]).await?;
    let second = current(&stage, &agent).await?;
    ensure!(second["snapshot"]["generation"] == 2, "{second}");
    let time = |status: &serde_json::Value| -> Result<jiff::Timestamp> {
        Ok(status["snapshot"]["time"].as_str().context("a time")?.parse()?)
    };
    let apart = time(&second)?.duration_since(time(&first)?);
    ensure!(apart.as_secs() >= 10, "made {apart} apart");
    let clone = expect_clean(&stage, &download(&stage, &agent).await?.body, "clone").await?;
    ensure!(clone.path().join("next.txt").exists(), "the old worktree");
    // Only one stays on the disk.
    let local = agent.data().join("snapshots");
    let archives = || -> Result<usize> {
        let id = tarn_crds::repo::RepoId::from_route(&stage.repo())?;
        Ok(files(&local.join(id.dir()), "zst")?.len())
    };
    ensure!(archives()? == 1, "{} archives", archives()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_while_head_stays_and_the_snapshot_is_young() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    // A branch that is not HEAD.
    let head = stage.origin.rev_parse("HEAD").await?;
    stage.origin.set_ref("refs/heads/other", &head).await?;
    agent.fetch_now(&stage.repo()).await?;
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    ensure!(of_commit(&stage, &agent, &head).await?["snapshot"]["generation"] == 1, "a second one was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_is_replaced_though_head_stays() -> Result<()> {
    let mut stage = stage(Kind::Directory).await?;
    stage.spec = vec!["interval: 10s", "snapshot: {interval: 10s, maxAge: 10s}"];
    let agent = stage.ready().await?;
    agent.wait_status(&stage.repo(), "a second one", |s| s["snapshot"]["generation"] == 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_is_made_of_a_mirror_whose_upstream_fails() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let mut agent = stage.ready().await?;
    let first = current(&stage, &agent).await?;
    agent.stop().await?;
    stage.origin.commit("main", &[("next.txt", "next")]).await?;
    stage
        .upstream
        .fault_on(tarn_testkit::upstream::Operation::Fetch, tarn_testkit::upstream::Fault::Status(500));
    let agent = stage.restored().await?;
    agent.wait_status(&stage.repo(), "trouble", |status| status["message"] != "").await?;
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    let status = agent.mirror_status(&stage.repo()).await?;
    ensure!(status["snapshot"]["digest"] == first["snapshot"]["digest"], "{status}");
    stage.upstream.mend();
    current(&stage, &agent).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_without_commits_has_no_snapshot_and_says_so() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    stage.origin.delete_ref("refs/heads/main").await?;
    let agent = stage.ready().await?;
    let answer = agent.get(&format!("{}?wait=20s", path(&stage))).await?;
    ensure!(answer.status == 404 && answer.text().starts_with("NoSnapshot"), "{}", answer.text());
    stage.origin.commit("main", &[("first.txt", "first")]).await?;
    current(&stage, &agent).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_head_is_checked_out_detached() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let head = stage.origin.rev_parse("main").await?;
    stage.origin.detach_head(&head).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let clone = expect_clean(&stage, &download(&stage, &agent).await?.body, "clone").await?;
    ensure!(clone.rev_parse("HEAD").await? == head, "another commit");
    ensure!(clone.attempt(&["symbolic-ref", "HEAD"]).await?.status.code() != Some(0), "HEAD is a branch");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_none_is_built_and_the_mirror_goes_on() -> Result<()> {
    let Some(disk) = SmallDisk::mount("40m").await? else {
        return Ok(());
    };
    let stage = stage(Kind::Directory).await?;
    stage.origin.grow("main", 4, 4_000_000, 1).await?;
    let agent = stage.start(stage.with_store(builder().data(disk.path().join("data")), None)).await?;
    agent.wait_phase(&stage.repo(), "Ready").await?;
    let full = |status: &serde_json::Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "StoreFailed" && c["reason"] == "DiskFull")
    };
    agent.wait_status(&stage.repo(), "the lack of room", full).await?;
    let answer = agent.get(&path(&stage)).await?;
    ensure!(answer.status == 503 && answer.text().contains("MiB are free"), "{}", answer.text());
    // Nothing of an attempt takes the room that fetches need.
    stage.origin.commit("main", &[("small.txt", "small")]).await?;
    stage.expect_clone(&agent, "clone").await?;
    disk.grow("400m").await?;
    current(&stage, &agent).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_bomb_has_no_snapshot_and_harms_nobody() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let origin = stage.origin.path().display().to_string();
    let make = async |verb: &[&str], input: String| -> Result<String> {
        let args = [&["-C", origin.as_str()], verb].concat();
        let made = stage.git.run_with(args, input.as_bytes()).await?;
        Ok(String::from_utf8(made.stdout)?.trim().to_owned())
    };
    let entries = |mode: &str, kind: &str, of: &str| {
        (0..10).map(|n| format!("{mode} {kind} {of}\t{kind}{n}\n")).collect::<String>()
    };
    let blob = make(&["hash-object", "-w", "--stdin"], "x".into()).await?;
    let mut tree = make(&["mktree"], entries("100644", "blob", &blob)).await?;
    // Ten million files.
    for _ in 0..6 {
        tree = make(&["mktree"], entries("040000", "tree", &tree)).await?;
    }
    let commit = make(&["commit-tree", "-m", "bomb", &tree], String::new()).await?;
    stage.origin.set_ref("refs/heads/main", &commit).await?;
    let agent = stage.ready().await?;
    eventually(Duration::from_secs(120), "the refusal", async || {
        let status = agent.mirror_status(&stage.repo()).await?;
        ensure!(status.to_string().contains("WorktreeTooLarge"), "{status}");
        Ok(())
    })
    .await?;
    let answer = agent.get(&path(&stage)).await?;
    ensure!(
        answer.status == 404 && answer.text().contains("too large"),
        "{} {}",
        answer.status,
        answer.text()
    );
    let status = agent.mirror_status(&stage.repo()).await?;
    ensure!(status.to_string().contains("11111110 files"), "each tree is counted once: {status}");
    // The mirror itself is well, and a later commit has a snapshot again.
    let bare = stage.dir.path().join("bare");
    stage.git.clone_repo(&agent.git_url(&stage.repo())?, &bare, &["--bare"]).await?;
    let empty = make(&["mktree"], format!("100644 blob {blob}\tonly\n")).await?;
    let mended = make(&["commit-tree", "-p", &commit, "-m", "mended", &empty], String::new()).await?;
    stage.origin.set_ref("refs/heads/main", &mended).await?;
    current(&stage, &agent).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_zeros_that_swells_beyond_the_limit_has_no_snapshot() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let zeros = "\0".repeat(40 << 20);
    stage.origin.commit("main", &[("zeros", &zeros)]).await?;
    let agent = stage.with_store(builder().arg("--snapshot-max-bytes").arg("20Mi"), None);
    let agent = stage.start(agent).await?;
    let too_large = |status: &serde_json::Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "StoreFailed" && c["reason"] == "WorktreeTooLarge")
    };
    let status = agent.wait_status(&stage.repo(), "the refusal", too_large).await?;
    ensure!(status["phase"] == "Ready", "{status}");
    let answer = agent.get(&path(&stage)).await?;
    ensure!(answer.status == 404 && answer.text().contains("too large"), "{}", answer.text());
    let staging = agent.data().join("staging");
    ensure!(std::fs::read_dir(staging)?.count() == 0, "nothing was checked out");
    // Without the file there is a snapshot again.
    let small = stage.origin.rev_parse("main^").await?;
    stage.origin.set_ref("refs/heads/main", &small).await?;
    current(&stage, &agent).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_no_disk_takes_have_no_snapshot() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let name = "d".repeat(200);
    let path: String = (0..20).map(|_| format!("{name}/")).collect();
    stage.origin.commit("main", &[(&format!("{path}file"), "deep")]).await?;
    let agent = stage.ready().await?;
    agent
        .wait_status(&stage.repo(), "the refusal", |status| status.to_string().contains("WorktreeTooLarge"))
        .await?;
    let bare = stage.dir.path().join("bare");
    stage.git.clone_repo(&agent.git_url(&stage.repo())?, &bare, &["--bare"]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_snapshots_are_neither_built_nor_found_nor_served() -> Result<()> {
    let mut stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let resumed = stage.spec.clone();
    stage.spec = vec!["interval: 10s", "snapshot: {suspend: true, interval: 10s, maxAge: 1h}"];
    agent.write_manifest("a.yaml", &stage.yaml())?;
    let base = stage.origin.rev_parse("main").await?;
    let repo = stage.repo();
    let refused = async |agent: &tarn_testkit::agent::Agent| {
        for rest in ["snapshot.tar.zst", "lfs-snapshot.tar.zst", &format!("snapshot.bundle?base={base}")] {
            let answer = agent.get(&format!("/git/{repo}/{rest}")).await?;
            ensure!(answer.status == 404, "{rest}: {} {}", answer.status, answer.text());
            ensure!(
                answer.text().starts_with("SnapshotSuspended: spec.snapshot.suspend "),
                "{}",
                answer.text()
            );
        }
        Ok(())
    };
    eventually(Duration::from_secs(20), "the refusal", async || refused(&agent).await).await?;
    let mine = agent.data().join("snapshots");
    eventually(Duration::from_secs(20), "the archive to go", async || {
        ensure!(
            crate::p4_never_stuck::files(&mine)?.is_empty(),
            "{:?}",
            crate::p4_never_stuck::files(&mine)?
        );
        Ok(())
    })
    .await?;
    let published = files(&super::objects(&stage), "json")?.len();
    stage.origin.commit("main", &[("new.txt", "new")]).await?;
    agent.fetch_now(&repo).await?;
    stage.expect_clone(&agent, "clone").await?;
    // Neither does an agent find what the store has.
    let other = stage.ready().await?;
    refused(&other).await?;
    for agent in [&agent, &other] {
        let status = agent.mirror_status(&repo).await?;
        ensure!(status["snapshot"].is_null() && status["phase"] == "Ready", "{status}");
    }
    ensure!(files(&super::objects(&stage), "json")?.len() == published, "none was built");
    drop(other);
    stage.spec = resumed;
    agent.write_manifest("a.yaml", &stage.yaml())?;
    current(&stage, &agent).await.map(drop)
}
