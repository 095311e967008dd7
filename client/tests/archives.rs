//! Snapshots that are hostile: none of them writes outside the clone or makes git run a command.

use std::fs;

use anyhow::Result;
use tar::{Builder, EntryType, Header};
use tarn_testkit::git::Repo;

use crate::scene::Scene;

/// One entry with a name that the library itself would refuse to write.
fn append(
    tar: &mut Builder<Vec<u8>>,
    name: &str,
    kind: EntryType,
    target: &str,
    content: &[u8],
) -> Result<()> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o4755);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    Ok(tar.append(&header, content)?)
}

/// A name, what it is, the target of a link, the content of a file.
type Entry<'a> = (&'a str, EntryType, &'a str, &'a [u8]);

/// The scene's snapshot with these entries before its own.
async fn serve_with(scene: &Scene, entries: &[Entry<'_>]) -> Result<()> {
    let built = scene.build_snapshot().await?;
    let mut tar = Builder::new(Vec::new());
    for (name, kind, target, content) in entries {
        append(&mut tar, name, *kind, target, content)?;
    }
    tar.follow_symlinks(false);
    tar.append_dir_all(".", &built)?;
    scene.serve_tar(&tar.into_inner()?, &scene.tip("main").await?)
}

#[tokio::test]
async fn a_hostile_snapshot_is_refused_and_git_clones_instead() -> Result<()> {
    let scene = Scene::small().await?;
    let (file, link) = (EntryType::Regular, EntryType::Symlink);
    let outside = scene.dir.path().join("outside");
    let absolute = outside.to_str().unwrap();
    let cases: &[(&str, &[Entry<'_>])] = &[
        ("absolute", &[(absolute, file, "", b"x")]),
        ("..", &[("../../../outside", file, "", b"x")]),
        ("cannot write", &[("up", link, "../../..", b""), ("up/outside", file, "", b"x")]),
        ("hard link", &[("hard", EntryType::Link, "/etc/passwd", b"")]),
        ("device", &[("device", EntryType::Char, "", b"")]),
        ("link within .git", &[(".git/objects", link, "..", b"")]),
        ("second .git", &[(".GIT/config", file, "", b"x")]),
        ("other repositories", &[(".git/objects/info/alternates", file, "", b"/\n")]),
    ];
    for (says, entries) in cases {
        serve_with(&scene, entries).await?;
        let (report, clone) = scene.clone_somehow("a", &[]).await?;
        assert_eq!(report["how"], "git-through-tarn", "{says}: {report}");
        let reason = report["fallback_reasons"][0].as_str().unwrap();
        assert!(reason.contains(says), "{says}: {reason}");
        scene.expect_clone(&clone).await?;
        assert!(!outside.exists(), "{says}");
        fs::remove_dir_all(clone.path())?;
    }
    Ok(())
}

#[tokio::test]
async fn configuration_and_hooks_of_a_snapshot_never_take_effect() -> Result<()> {
    let scene = Scene::small().await?;
    let built = scene.build_snapshot().await?;
    let ran = scene.dir.path().join("ran");
    let script = format!("#!/bin/sh\ntouch {}\n", ran.display());
    let touch = format!("touch {}", ran.display());
    let config = format!(
        "[core]\n\trepositoryformatversion = 0\n\tfsmonitor = {touch}\n\tsshCommand = {touch}\n\thooksPath = .git/hooks\n\
         [filter \"x\"]\n\tsmudge = {touch}\n\tclean = {touch}\n[alias]\n\tst = !{touch}\n\
         [url \"http://evil/\"]\n\tinsteadOf = http://\n"
    );
    fs::write(built.join(".git/config"), &config)?;
    fs::write(built.join(".git/config.worktree"), &config)?;
    fs::create_dir_all(built.join(".git/hooks"))?;
    fs::create_dir_all(built.join(".git/info"))?;
    fs::write(built.join(".git/info/attributes"), "* filter=x\n")?;
    for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
        let path = built.join(".git/hooks").join(hook);
        fs::write(&path, &script)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    scene.serve(&built, &scene.tip("main").await?).await?;
    scene.origin.commit("main", &[("README", "newer\n")]).await?;
    let (_, clone) = scene.clone("a", &[]).await?;
    scene.expect_clone(&clone).await?;
    clone.git(&["checkout", "--quiet", "-b", "other"]).await?;
    assert!(!ran.exists());
    let config = fs::read_to_string(clone.git_dir().join("config"))?;
    assert!(!config.contains("touch") && !config.contains("filter"), "{config}");
    Ok(())
}

#[tokio::test]
async fn a_snapshot_whose_index_names_files_elsewhere_is_refused() -> Result<()> {
    let scene = Scene::small().await?;
    let built = scene.build_snapshot().await?;
    let repo = Repo::open(scene.git.clone(), &built);
    let blob = repo.rev_parse("HEAD:README").await?;
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("100644,{blob},zz/outside")]).await?;
    // Git itself writes no such index, but reads it.
    let index = built.join(".git/index");
    let mut bytes = fs::read(&index)?;
    let at = bytes.windows(10).position(|window| window == b"zz/outside").unwrap();
    bytes[at..at + 2].copy_from_slice(b"..");
    fs::write(&index, bytes)?;
    scene.serve(&built, &scene.tip("main").await?).await?;
    scene.origin.commit("main", &[("README", "newer\n")]).await?;
    let (report, clone) = scene.clone_somehow("a", &[]).await?;
    let reason = report["fallback_reasons"][0].as_str().unwrap();
    assert!(reason.contains("its index names \"../outside\""), "{reason}");
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn a_snapshot_without_a_repository_leaves_the_one_around_it_alone() -> Result<()> {
    let scene = Scene::small().await?;
    let built = scene.build_snapshot().await?;
    fs::remove_file(built.join(".git/HEAD"))?;
    scene.serve(&built, "").await?;
    // The clone is made within a repository of its user's.
    scene.git.run(["init", "--quiet", scene.work().to_str().unwrap()]).await?;
    let around = Repo::open(scene.git.clone(), scene.work());
    around.git(&["commit", "--quiet", "--allow-empty", "--message", "mine"]).await?;
    let before = (around.refs().await?, fs::read_to_string(around.git_dir().join("config"))?);
    let (report, clone) = scene.clone_somehow("a", &[]).await?;
    assert_eq!(report["how"], "git-through-tarn");
    scene.expect_clone(&clone).await?;
    assert_eq!((around.refs().await?, fs::read_to_string(around.git_dir().join("config"))?), before);
    Ok(())
}

#[tokio::test]
async fn a_snapshot_of_another_commit_than_named_is_refused() -> Result<()> {
    let scene = Scene::small().await?;
    let built = scene.build_snapshot().await?;
    scene.serve(&built, &scene.origin.rev_parse("refs/heads/main~1").await?).await?;
    let (report, _) = scene.clone_somehow("a", &[]).await?;
    assert_eq!(report["how"], "git-through-tarn");
    Ok(())
}

#[tokio::test]
async fn a_size_that_is_a_lie_fills_no_disk() -> Result<()> {
    let scene = Scene::small().await?;
    let mut header = Header::new_gnu();
    header.set_path("huge")?;
    header.set_mode(0o644);
    header.set_mtime(1);
    header.set_size(1 << 62);
    header.set_cksum();
    scene.serve_tar(&[header.as_bytes(), &[0; 4096][..]].concat(), &scene.tip("main").await?)?;
    let (report, clone) = scene.clone_somehow("a", &[]).await?;
    assert!(report["fallback_reasons"][0].as_str().unwrap().contains("damaged"), "{report}");
    scene.expect_clone(&clone).await
}
