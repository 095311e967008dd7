//! Disks that are full, and mirrors that are damaged.

use std::path::Path;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::process::{command, run};
use tarn_testkit::upstream::Upstream;

use super::{files, mirror_dir};
use crate::scene::{Scene, agent, condition, message};

/// A small file system of its own, unmounted when dropped.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None where this user may not mount.
    #[expect(clippy::print_stdout, reason = "the test runner shows why nothing was tested")]
    pub(crate) async fn mount(size: &str) -> Result<Option<Self>> {
        let disk = Self(tempfile::tempdir()?);
        let options = format!("size={size}");
        if disk.call("mount", &["-t", "tmpfs", "-o", &options, "tarn-test"]).await? {
            return Ok(Some(disk));
        }
        println!("skipped: this user may not mount a small disk");
        Ok(None)
    }

    pub(crate) async fn grow(&self, size: &str) -> Result<()> {
        let options = format!("remount,size={size}");
        ensure!(self.call("mount", &["-o", &options]).await?, "remount");
        Ok(())
    }

    async fn call(&self, program: &str, args: &[&str]) -> Result<bool> {
        let mut mount = command(program);
        mount.args(args).arg(self.0.path());
        Ok(run(mount, b"", std::time::Duration::from_secs(10)).await?.status.success())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = command("umount");
        umount.arg("--lazy").arg(self.0.path());
        // Never mounted, or gone with the machine.
        let _ = umount.stderr(std::process::Stdio::null()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_room_is_enough_to_go_on() -> Result<()> {
    let Some(disk) = SmallDisk::mount("8m").await? else {
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("small.git").await?;
    upstream.seed("large.git").await?.grow("main", 4, 4_000_000, 1).await?;
    let (small, large) = (repo_id(&upstream.url("small.git")), repo_id(&upstream.url("large.git")));
    let yaml = [
        manifest("small", &upstream.url("small.git"), &[]),
        manifest("large", &upstream.url("large.git"), &[]),
    ]
    .join("---\n");
    let agent = agent().data(disk.path().join("data")).start_with(&[("all.yaml", &yaml)]).await?;
    let status = agent
        .wait_status(&large, "the full disk", |status| {
            let message = message(status).to_lowercase();
            message.contains("space") || message.contains("disk is full")
        })
        .await?;
    assert!(!condition(&status, "Ready"), "{status}");
    agent.wait_phase(&small, "Ready").await?;
    let git = Git::new()?;
    git.clone_repo(&agent.git_url(&small)?, &dir.path().join("clone"), &[]).await?.fsck().await?;
    disk.grow("200m").await?;
    agent.wait_phase(&large, "Ready").await?;
    git.clone_repo(&agent.git_url(&large)?, &dir.path().join("large"), &[]).await?.fsck().await
}

#[tokio::test]
async fn a_mirror_without_its_objects_is_cloned_anew() -> Result<()> {
    let mut scene = Scene::ready().await?;
    scene.agent.stop().await?;
    let objects = mirror_dir(&scene.agent)?.join("objects");
    for file in files(&objects)? {
        std::fs::remove_file(file)?;
    }
    scene.agent.start_again().await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.expect_upstream_refs().await?;
    scene.clone("clone", &["--mirror"]).await?.fsck().await
}

#[tokio::test]
async fn a_mirror_whose_refs_are_garbage_is_healed() -> Result<()> {
    for (file, content) in [("packed-refs", "\0\0\0\0"), ("HEAD", ""), ("config", "[core")] {
        let mut scene = Scene::ready().await?;
        scene.agent.stop().await?;
        std::fs::write(mirror_dir(&scene.agent)?.join(file), content)?;
        scene.agent.start_again().await?;
        scene.agent.wait_phase(&scene.repo(), "Ready").await?;
        scene.expect_upstream_refs().await?;
        scene.clone("clone", &["--mirror"]).await?.fsck().await?;
    }
    Ok(())
}
