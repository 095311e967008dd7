//! Clients of other makes: each clones a fresh mirror, clones again after pushes, and fetches one commit. Then git compares
//! what they have with the upstream. `make clients` brings them, and runs these tests: `scripts/clients`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::generate::Edited;
use tarn_testkit::git::{Git, Repo, isolate};
use tarn_testkit::process::{command, run};

use crate::scene::Scene;

/// Java starts slowly, dulwich resolves deltas slowly, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// How a client asks for all objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// By protocol version 2, as git does: its answers are composed of the mirror's base.
    V2,
    /// By an older protocol, or in other words: git answers.
    Otherwise,
}

/// What a client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Able {
    /// A bare mirror, and one commit by its id.
    Whole,
    /// A clone with a remote's branches, and no commit by its id.
    BranchesOfARemote,
}

/// The program of a client, where `scripts/clients` puts it.
fn program(name: &str) -> Result<PathBuf> {
    let cache = || {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
        Some(std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?.join("tarn/clients/bin"))
    };
    let directory = std::env::var_os("TARN_TEST_CLIENTS").map(PathBuf::from).or_else(cache);
    let program = directory.context("there is no home directory")?.join(name);
    ensure!(program.is_file(), "{} is missing: run scripts/clients", program.display());
    Ok(program)
}

/// A mirror of a repository whose pushes are deltas against what was there before.
async fn scene(edited: &mut Edited) -> Result<Scene> {
    let base = edited.base();
    let scene = Scene::prepared(&[], async |_, origin: &Repo| {
        origin.fast_import(base.as_bytes()).await?;
        origin.git(&["repack", "-adq"]).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(scene)
}

/// Pushes twice: the second time with a tag of a tag, a light tag, and a branch that goes back.
async fn push(scene: &Scene, edited: &mut Edited) -> Result<()> {
    let origin = &scene.origin;
    origin.fast_import(edited.push().as_bytes()).await?;
    scene.expect_upstream_refs().await?;
    origin.fast_import(edited.push().as_bytes()).await?;
    origin.annotated_tag("outer", "v1.1").await?;
    origin.tag("light", "main~7").await?;
    let back = origin.rev_parse("main~50").await?;
    origin.set_ref("refs/heads/back", &back).await?;
    scene.expect_upstream_refs().await.map(drop)
}

/// Runs a client, which must succeed.
async fn client(name: &str, git: &Git, args: &[&str]) -> Result<()> {
    let home = tempfile::tempdir()?;
    let mut client = command(program(name)?);
    isolate(&mut client, home.path());
    client.args(args).current_dir(home.path());
    let done = run(client, b"", PATIENCE).await?;
    let version = git.run(["version"]).await?.text();
    ensure!(done.status.success(), "{name} {}: {} ({version}): {}", args.join(" "), done.status, done.stderr);
    Ok(())
}

/// Objects that these commits and tags need, and they themselves.
async fn objects(repo: &Repo, tips: &[&str]) -> Result<BTreeSet<String>> {
    let mut args = vec!["rev-list", "--objects"];
    args.extend_from_slice(tips);
    let listed = repo.git(&args).await?;
    Ok(listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// Refs by their names at the upstream.
async fn refs(repo: &Repo) -> Result<BTreeSet<String>> {
    let listed = repo.git(&["for-each-ref", "--format=%(objectname) %(refname)"]).await?;
    let lines: Vec<&str> = listed.lines().filter(|line| !line.ends_with("/HEAD")).collect();
    let own = |line: &str| line.contains(" refs/remotes/origin/");
    let remote = lines.iter().any(|line| own(line));
    let kept = lines.into_iter().filter(|line| !remote || own(line) || line.contains(" refs/tags/"));
    Ok(kept.map(|line| line.replace(" refs/remotes/origin/", " refs/heads/")).collect())
}

/// A clone has the upstream's refs and objects, each of them sound.
async fn expect_clone(scene: &Scene, place: &Path) -> Result<()> {
    let clone = Repo::open(scene.git.clone(), place);
    clone.git(&["fsck", "--strict", "--full", "--no-dangling", "--no-progress"]).await?;
    let (cloned, wanted) = (refs(&clone).await?, refs(&scene.origin).await?);
    let differ: Vec<_> = cloned.symmetric_difference(&wanted).take(8).collect();
    ensure!(differ.is_empty(), "refs differ: {differ:?}");
    let (cloned, wanted) = (objects(&clone, &["--all"]).await?, objects(&scene.origin, &["--all"]).await?);
    ensure!(cloned == wanted, "{} objects, not {}", cloned.len(), wanted.len());
    Ok(())
}

/// So many answers were composed of the mirror's base, if the client's can be.
async fn expect_composed(scene: &Scene, speaks: Speaks, count: u64) -> Result<()> {
    let composed: u64 = scene.agent.metric("tarn_packs_composed_total{base=\"history\"}").await?;
    let wanted = if speaks == Speaks::V2 { count } else { 0 };
    ensure!(composed == wanted, "{composed} answers were composed, not {wanted}");
    Ok(())
}

/// One client, from the fresh mirror to the single commit.
async fn gets_what_the_upstream_has(name: &str, speaks: Speaks, can: Able) -> Result<()> {
    let mut edited = Edited::new();
    let scene = scene(&mut edited).await?;
    let url = scene.url()?;
    let place = |what: &str| scene.place(what).to_string_lossy().into_owned();

    let fresh = place("fresh");
    client(name, &scene.git, &["clone", &url, &fresh]).await?;
    expect_clone(&scene, Path::new(&fresh)).await.context("a clone of the fresh mirror")?;
    expect_composed(&scene, speaks, 1).await?;

    push(&scene, &mut edited).await?;
    let pushed = place("pushed");
    client(name, &scene.git, &["clone", &url, &pushed]).await?;
    expect_clone(&scene, Path::new(&pushed)).await.context("a clone after pushes")?;
    expect_composed(&scene, speaks, 2).await?;

    if can == Able::BranchesOfARemote {
        return Ok(());
    }
    // No ref names it, and it is younger than the base.
    let commit = scene.origin.rev_parse("main~150").await?;
    let pinned = place("pinned");
    client(name, &scene.git, &["pin", &url, &pinned, &commit]).await?;
    let clone = Repo::open(scene.git.clone(), &pinned);
    clone.git(&["fsck", "--strict", "--full", "--no-dangling", "--no-progress"]).await?;
    ensure!(clone.rev_parse("refs/heads/pinned").await? == commit);
    let (has, needs) = (objects(&clone, &[&commit]).await?, objects(&scene.origin, &[&commit]).await?);
    ensure!(has == needs, "{} objects of {commit}, not {}", has.len(), needs.len());
    expect_composed(&scene, speaks, 3).await
}

#[tokio::test]
#[ignore = "needs scripts/clients: make clients"]
async fn git_that_checks_every_object_gets_what_the_upstream_has() -> Result<()> {
    gets_what_the_upstream_has("git", Speaks::V2, Able::Whole).await
}

#[tokio::test]
#[ignore = "needs scripts/clients: make clients"]
async fn the_newest_git_that_checks_every_object_gets_what_the_upstream_has() -> Result<()> {
    gets_what_the_upstream_has("newest-git", Speaks::V2, Able::Whole).await
}

#[tokio::test]
#[ignore = "needs scripts/clients: make clients"]
async fn go_git_gets_what_the_upstream_has() -> Result<()> {
    gets_what_the_upstream_has("go-git", Speaks::Otherwise, Able::Whole).await
}

#[tokio::test]
#[ignore = "needs scripts/clients: make clients"]
async fn jgit_gets_what_the_upstream_has() -> Result<()> {
    gets_what_the_upstream_has("jgit", Speaks::V2, Able::Whole).await
}

#[tokio::test]
#[ignore = "needs scripts/clients: make clients"]
async fn libgit2_gets_what_the_upstream_has() -> Result<()> {
    gets_what_the_upstream_has("libgit2", Speaks::Otherwise, Able::Whole).await
}

#[tokio::test]
#[ignore = "needs scripts/clients: make clients"]
async fn dulwich_gets_what_the_upstream_has() -> Result<()> {
    gets_what_the_upstream_has("dulwich", Speaks::Otherwise, Able::Whole).await
}

#[tokio::test]
#[ignore = "needs scripts/clients: make clients"]
async fn isomorphic_git_gets_what_the_upstream_has() -> Result<()> {
    gets_what_the_upstream_has("isomorphic-git", Speaks::Otherwise, Able::BranchesOfARemote).await
}
