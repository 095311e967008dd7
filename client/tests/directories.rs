//! Where the clone goes: never over something, never half.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Repo;
use tarn_testkit::process::{Group, command, run};
use tarn_testkit::proxy::{HttpFault, Select, When};

use crate::scene::{Scene, names};

const PATIENCE: Duration = Duration::from_secs(30);

/// `git tarn clone` that hangs in the middle of the download, half of its files written.
async fn hanging(scene: &Scene, dir: &str) -> Result<(tokio::process::Child, Group)> {
    let select = || Select { method: None, path: Some("snapshot.tar.zst".into()) };
    scene.proxy.add(select(), When::Nth(2), HttpFault::Delay(Duration::from_secs(600)));
    let url = scene.url();
    let mut command = tokio::process::Command::from(scene.command(&[&url, dir])?);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let group = Group::of(&child);
    let objects =
        |root: &Path| names(&root.join("clone/.git/objects/pack")).is_ok_and(|packs| !packs.is_empty());
    eventually(PATIENCE, "half a clone", async || {
        let mut homes = vec![scene.work()];
        homes.extend(fs::read_dir(scene.work())?.flatten().map(|entry| entry.path()));
        let mut stagings = homes.iter().filter_map(|home| names(home).ok().map(|names| (home, names)));
        let found = stagings.any(|(home, names)| {
            names.iter().any(|name| name.contains("tarn-") && objects(&home.join(name)))
        });
        let asked = scene.proxy.seen().iter().filter(|seen| seen.range.is_some()).count();
        ensure!(found && asked >= 2, "a pack: {found}, requests: {asked}");
        anyhow::Ok(())
    })
    .await?;
    Ok((child, group))
}

#[tokio::test]
async fn a_directory_with_content_is_never_touched() -> Result<()> {
    let scene = Scene::small().await?;
    let url = scene.url();
    fs::create_dir(scene.work().join("a"))?;
    fs::write(scene.work().join("a/mine"), "mine")?;
    fs::write(scene.work().join("file"), "mine")?;
    for dir in ["a", "file"] {
        let output = scene.tarn(&[&url, dir]).await?;
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stderr.contains("already exists and is not an empty directory"), "{}", output.stderr);
    }
    assert_eq!(names(&scene.work().join("a"))?, ["mine"]);
    assert_eq!(scene.left()?, ["a", "file"]);
    assert!(scene.proxy.seen().is_empty(), "Tarn was asked for nothing");
    Ok(())
}

#[tokio::test]
async fn an_empty_directory_is_filled_and_stays_the_same_directory() -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let scene = Scene::small().await?;
    let dir = scene.work().join("a");
    fs::create_dir(&dir)?;
    let inode = fs::metadata(&dir)?.ino();
    let (_, clone) = scene.clone("a", &[]).await?;
    assert_eq!(fs::metadata(&dir)?.ino(), inode);
    scene.expect_clone(&clone).await?;
    // As in a job whose working directory is the place for the clone.
    let url = scene.url();
    let mut here = scene.command(&[&url, "."])?;
    let cwd = scene.dir.path().join("here");
    fs::create_dir(&cwd)?;
    here.current_dir(&cwd);
    let output = run(here, b"", PATIENCE).await?;
    assert!(output.status.success(), "{}", output.stderr);
    scene.expect_clone(&Repo::open(scene.git.clone(), &cwd)).await
}

#[tokio::test]
async fn a_full_disk_ends_the_clone_and_leaves_nothing() -> Result<()> {
    let scene = Scene::large().await?;
    let disk = tempfile::tempdir()?;
    let mut mount = command("mount");
    mount.args(["-t", "tmpfs", "-o", "size=12m", "tarn-test"]).arg(disk.path());
    if !run(mount, b"", PATIENCE).await?.status.success() {
        println!("skipped: this user may not mount a small disk");
        return Ok(());
    }
    let url = scene.url();
    let mut clone = scene.command(&[&url, "a"])?;
    clone.current_dir(disk.path());
    let output = run(clone, b"", PATIENCE).await;
    let left = names(disk.path());
    let mut umount = command("umount");
    umount.arg("--lazy").arg(disk.path());
    run(umount, b"", PATIENCE).await?;
    let output = output?;
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.contains("the disk is full"), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "no fallback: {}", output.stderr);
    assert!(left?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_signal_ends_the_clone_and_leaves_nothing() -> Result<()> {
    for signal in [Signal::INT, Signal::TERM] {
        let scene = Scene::large().await?;
        let (child, group) = hanging(&scene, "a").await?;
        let pid = Pid::from_raw(i32::try_from(child.id().context("it has ended")?)?).context("no pid")?;
        kill_process(pid, signal)?;
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
        group.forget();
        assert_eq!(output.status.code(), Some(130));
        assert!(scene.left()?.is_empty(), "{:?}", scene.left()?);
    }
    Ok(())
}

#[tokio::test]
async fn after_a_sigkill_there_is_no_clone_and_the_next_run_cleans_up() -> Result<()> {
    for there in [false, true] {
        let scene = Scene::large().await?;
        let dir = scene.work().join("a");
        if there {
            fs::create_dir(&dir)?;
        }
        let (mut child, _group) = hanging(&scene, "a").await?;
        child.kill().await?;
        assert_eq!(dir.exists(), there);
        assert!(!dir.join(".git").exists());
        let (_, clone) = scene.clone("a", &[]).await?;
        scene.expect_clone(&clone).await?;
        assert_eq!(scene.left()?, ["a"]);
        assert_eq!(names(&dir)?, [".git", "README", "noise"].map(str::to_owned).to_vec());
    }
    Ok(())
}

#[tokio::test]
async fn two_clones_at_once_into_one_place_give_one_clone() -> Result<()> {
    let scene = Scene::small().await?;
    let url = scene.url();
    let args = [url.as_str(), "a"];
    let (first, second) = tokio::join!(scene.tarn(&args), scene.tarn(&args));
    let mut codes = [first?.status.code(), second?.status.code()];
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(2)]);
    scene.expect_clone(&Repo::open(scene.git.clone(), scene.work().join("a"))).await?;
    assert_eq!(scene.left()?, ["a"]);
    Ok(())
}
