//! Snapshots that lie: git takes the times in their index, and the names in their pack's index, for the truth. Verified,
//! none of it passes.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tarn_testkit::git::Repo;

use crate::scene::Scene;

/// Serves a snapshot that `spoil` has changed.
async fn serve_spoilt(scene: &Scene, spoil: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<()> {
    let built = scene.build_snapshot().await?;
    spoil(&built).await?;
    scene.serve(&built, &scene.tip("main").await?).await
}

/// Gives a file another content, of the same length and time: git sees no difference.
fn rewrite(path: &Path, content: &str) -> Result<()> {
    let meta = fs::metadata(path)?;
    ensure!(meta.len() == content.len() as u64, "another length");
    fs::write(path, content)?;
    Ok(File::options().write(true).open(path)?.set_modified(meta.modified()?)?)
}

/// The snapshot is refused with these words, and git clones instead.
async fn expect_refused(scene: &Scene, words: &[&str]) -> Result<()> {
    let (report, clone) = scene.clone_somehow("refused", &["--verify"]).await?;
    let reason = report["fallback_reasons"][0].as_str().context("no reason")?;
    ensure!(report["how"] == "git-through-tarn", "{report}");
    ensure!(words.iter().all(|word| reason.contains(word)), "{words:?} is not in: {reason}");
    scene.expect_clone(&clone).await?;
    Ok(fs::remove_dir_all(clone.path())?)
}

#[tokio::test]
async fn a_changed_file_of_the_same_length_and_time_is_refused_by_its_name() -> Result<()> {
    let scene = Scene::small().await?;
    serve_spoilt(&scene, async |built| rewrite(&built.join("README"), "jello\n")).await?;
    // What verifying is for: the file is wrong, and git sees nothing.
    let (_, trusting) = scene.clone("trusting", &["--no-verify"]).await?;
    ensure!(fs::read_to_string(trusting.path().join("README"))? == "jello\n", "it is not the snapshot's");
    ensure!(trusting.git(&["status", "--porcelain"]).await?.is_empty(), "git sees it");
    expect_refused(&scene, &["refused", "\"README\"", "not as its commit has it"]).await?;
    let alone = scene.tarn(&["--verify", "--no-fallback", &scene.url(), "alone"]).await?;
    ensure!(alone.status.code() == Some(1) && alone.stderr.contains("README"), "{}", alone.stderr);
    ensure!(!scene.work().join("alone").exists(), "something was left");
    Ok(())
}

#[tokio::test]
async fn a_sound_snapshot_is_verified_and_becomes_a_clean_clone() -> Result<()> {
    let scene = Scene::small().await?;
    let newer = scene.origin.commit("main", &[("README", "newer\n")]).await?;
    let (report, clone) = scene.clone("a", &["--verify"]).await?;
    assert_eq!(report["commit"], newer.as_str());
    assert!(report["seconds"]["verify"].as_f64().unwrap() > 0.0, "{report}");
    scene.expect_clone(&clone).await?;
    let (report, _) = scene.clone("b", &[]).await?;
    assert_eq!(report["seconds"]["verify"], 0.0, "this machine is trusted: {report}");
    Ok(())
}

#[tokio::test]
async fn files_that_the_commit_has_not_or_has_otherwise_are_refused() -> Result<()> {
    let scene = Scene::small().await?;
    serve_spoilt(&scene, async |built| Ok(fs::write(built.join("GNUmakefile"), "all: ; touch x\n")?)).await?;
    expect_refused(&scene, &["its commit has no", "GNUmakefile"]).await?;
    serve_spoilt(&scene, async |built| {
        fs::write(built.join(".gitignore"), "*\n")?;
        Ok(fs::write(built.join("src/ignored"), "x")?)
    })
    .await?;
    expect_refused(&scene, &["its commit has no"]).await?;
    serve_spoilt(&scene, async |built| {
        Ok(fs::set_permissions(built.join("README"), fs::Permissions::from_mode(0o755))?)
    })
    .await?;
    expect_refused(&scene, &["\"README\""]).await?;
    serve_spoilt(&scene, async |built| {
        fs::remove_file(built.join("README"))?;
        Ok(symlink("src/lib.rs", built.join("README"))?)
    })
    .await?;
    expect_refused(&scene, &["\"README\""]).await?;
    serve_spoilt(&scene, async |built| Ok(fs::remove_file(built.join("src/lib.rs"))?)).await?;
    expect_refused(&scene, &["\"src/lib.rs\""]).await?;
    Ok(())
}

#[tokio::test]
async fn attributes_and_bits_of_the_index_hide_nothing() -> Result<()> {
    let scene = Scene::without_snapshot(async |origin| {
        let attributes = "*.txt ident\n";
        origin.commit("main", &[(".gitattributes", attributes), ("a.txt", "text\n"), ("b", "b\n")]).await?;
        Ok(())
    })
    .await?;
    // The index says that nobody need look at the file.
    serve_spoilt(&scene, async |built| {
        let repo = Repo::open(scene.git.clone(), built);
        repo.git(&["update-index", "--assume-unchanged", "b"]).await?;
        rewrite(&built.join("b"), "B\n")
    })
    .await?;
    expect_refused(&scene, &["\"b\""]).await?;
    // And with the file away, that it need not be there.
    serve_spoilt(&scene, async |built| {
        let repo = Repo::open(scene.git.clone(), built);
        repo.git(&["update-index", "--skip-worktree", "b"]).await?;
        Ok(fs::remove_file(built.join("b"))?)
    })
    .await?;
    expect_refused(&scene, &["\"b\""]).await?;
    Ok(())
}

#[tokio::test]
async fn files_in_the_directory_of_a_submodule_are_refused() -> Result<()> {
    let scene = Scene::without_snapshot(async |origin| {
        let script = format!(
            "commit refs/heads/main\ncommitter C <c@example.com> 1700000000 +0000\ndata 0\n\
             M 160000 {} sub\nM 100644 inline README\ndata 6\nhello\n\n",
            "1".repeat(40)
        );
        origin.fast_import(script.as_bytes()).await?;
        Ok(())
    })
    .await?;
    let head = scene.tip("main").await?;
    let build = async || -> Result<PathBuf> {
        let built = tempfile::tempdir_in(scene.dir.path())?.keep();
        let clone = scene.git.clone_repo(&scene.origin.file_url(), &built, &["--template="]).await?;
        clone.git(&["update-index", "--refresh"]).await?;
        fs::remove_dir_all(built.join(".git/logs"))?;
        Ok(built)
    };
    scene.serve(&build().await?, &head).await?;
    scene.clone("sound", &["--verify"]).await?;
    let built = build().await?;
    fs::write(built.join("sub/Makefile"), "all:\n")?;
    scene.serve(&built, &head).await?;
    expect_refused(&scene, &["its commit has no", "sub"]).await
}

#[tokio::test]
async fn objects_under_other_names_are_refused() -> Result<()> {
    let scene = Scene::small().await?;
    // The index of the pack leads from the name of one blob to the content of another.
    serve_spoilt(&scene, async |built| {
        let repo = Repo::open(scene.git.clone(), built);
        let (one, other) = (repo.rev_parse("HEAD:README").await?, repo.rev_parse("HEAD:src/lib.rs").await?);
        let index = fs::read_dir(built.join(".git/objects/pack"))?.flatten().map(|entry| entry.path());
        let index = index.into_iter().find(|path| path.extension().is_some_and(|end| end == "idx"));
        let index = index.context("an index")?;
        let mut bytes = fs::read(&index)?;
        let count = u32::from_be_bytes(bytes[8 + 255 * 4..8 + 256 * 4].try_into()?) as usize;
        let names = 8 + 1024;
        let offsets = names + count * 24;
        let at = |name: &str| {
            let bin: Vec<u8> =
                (0..20).map(|i| u8::from_str_radix(&name[2 * i..2 * i + 2], 16).unwrap()).collect();
            (0..count)
                .find(|i| bytes[names + i * 20..names + i * 20 + 20] == bin[..])
                .map(|i| offsets + i * 4)
        };
        let (one, other) = (at(&one).context("one")?, at(&other).context("other")?);
        for byte in 0..4 {
            bytes.swap(one + byte, other + byte);
        }
        fs::set_permissions(&index, fs::Permissions::from_mode(0o644))?;
        fs::write(&index, bytes)?;
        ensure!(repo.git(&["cat-file", "-p", "HEAD:README"]).await?.contains("main"), "git sees it");
        Ok(())
    })
    .await?;
    expect_refused(&scene, &["its objects are not what their names say"]).await?;
    // An object of its own, under the name of another.
    serve_spoilt(&scene, async |built| {
        let place = built.join(".git/objects/aa");
        fs::create_dir(&place)?;
        Ok(fs::write(place.join("a".repeat(38)), "x")?)
    })
    .await?;
    expect_refused(&scene, &[".git/objects/aa"]).await?;
    Ok(())
}

#[tokio::test]
async fn refs_that_no_clone_has_are_refused_verified_or_not() -> Result<()> {
    let scene = Scene::small().await?;
    for name in ["refs/heads/release", "refs/replace/1111111111111111111111111111111111111111"] {
        serve_spoilt(&scene, async |built| {
            let repo = Repo::open(scene.git.clone(), built);
            repo.git(&["update-ref", name, "HEAD"]).await.map(drop)
        })
        .await?;
        let (report, clone) = scene.clone_somehow("a", &[]).await?;
        let reason = report["fallback_reasons"][0].as_str().context("no reason")?;
        ensure!(reason.contains(name), "{reason}");
        fs::remove_dir_all(clone.path())?;
    }
    Ok(())
}
