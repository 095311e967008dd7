//! Packs of a repository on the disk: how far a client is behind, the seed for shallow clones, repacking.

use std::{fs, io, os::unix::fs::symlink, path::Path, time::Duration};

use super::{
    command::{Git, GitError},
    object::Oid,
};

/// Clients at most this many commits behind get a thin pack without bitmaps: smaller and as cheap
/// (10 merges behind, 105 kB against 558 kB; 200 behind, bitmaps win by 0.11 s against 1.63 s).
const NEAR: usize = 100;

/// Local work on packs; a repack of gigabytes on a slow disk takes minutes.
const PACK_LIMIT: Duration = Duration::from_secs(3600);

/// Whether `wants` are at most [`NEAR`] commits ahead of `haves`. Haves that are not there count nothing.
pub async fn is_near(git: &Git, dir: &Path, wants: &[Oid], haves: &[Oid]) -> bool {
    let mut input: String = wants.iter().map(|oid| format!("{oid}\n")).collect();
    input.extend(haves.iter().map(|oid| format!("^{oid}\n")));
    let command = git.command("rev-list").git_dir(dir).args(["--count", "--ignore-missing", "--stdin"]);
    let counted = command
        .arg(format!("--max-count={}", NEAR + 1))
        .input(input.into_bytes())
        .run(Duration::from_secs(10))
        .await;
    let count = counted.ok().and_then(|out| String::from_utf8(out.stdout).ok()?.trim().parse::<usize>().ok());
    count.is_some_and(|count| count <= NEAR)
}

/// Makes, in the new directory `view`, a repository that has the commit `tip` without history in a pack of
/// its own and borrows everything else from the repository `dir`.
///
/// A depth-1 clone of it, or of a commit soon after, reuses the deltas of that pack: 0.07 s of CPU
/// instead of 2.8 s. `old`, an earlier such view, makes the making as cheap. The mirror itself never sees
/// the pack, so it cannot harm full clones or be lost in a repack (docs/decisions/0005).
///
/// # Errors
/// Git fails, or files cannot be written; what was made so far is left in `view`.
pub async fn make_seed(
    git: &Git,
    dir: &Path,
    view: &Path,
    old: Option<&Path>,
    tip: Oid,
) -> Result<(), GitError> {
    let io_error = |source| GitError::Io { verb: "pack-objects".into(), source };
    borrow(dir, view).map_err(io_error)?;
    let list = git.command("rev-list").git_dir(dir).args(["--objects", "--no-walk", "--stdin"]);
    let objects = list.input(format!("{tip}\n").into_bytes()).run(PACK_LIMIT).await?.stdout;
    let mut pack = git.command("pack-objects").git_dir(old.unwrap_or(dir));
    if old.is_some() {
        pack = pack.config("core.multiPackIndex=false");
    }
    pack.config("pack.threads=1")
        .args(["--quiet", "--delta-base-offset"])
        .arg(view.join("objects/pack/pack"))
        .input(objects)
        .run(PACK_LIMIT)
        .await?;
    Ok(())
}

/// A repository without objects of its own. Refs are read through a link, for the tags a client may want
/// with the commit.
fn borrow(dir: &Path, view: &Path) -> io::Result<()> {
    let objects = fs::canonicalize(dir.join("objects"))?;
    fs::create_dir_all(view.join("objects/pack"))?;
    fs::create_dir_all(view.join("objects/info"))?;
    fs::create_dir_all(view.join("refs"))?;
    let mut alternates = objects.into_os_string().into_encoded_bytes();
    alternates.push(b'\n');
    fs::write(view.join("objects/info/alternates"), alternates)?;
    fs::copy(dir.join("config"), view.join("config"))?;
    fs::copy(dir.join("HEAD"), view.join("HEAD"))?;
    symlink(fs::canonicalize(dir.join("packed-refs"))?, view.join("packed-refs"))
}

/// How many packs the repository `dir` has.
pub fn count(dir: &Path) -> usize {
    let entries = fs::read_dir(dir.join("objects/pack"));
    entries.map_or(0, |entries| {
        entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "pack")).count()
    })
}

/// Rolls small packs up so that each is at least twice as large as all smaller ones together, and writes
/// a multi-pack index with bitmaps and the commit-graph: what makes full clones, and the reckoning of near
/// haves, cheap. No object is dropped, reachable or not. Children that read the old packs go on. The
/// bitmaps take a few hundred bytes of memory per object while they are made.
///
/// # Errors
/// What git says.
pub async fn put_in_order(git: &Git, dir: &Path) -> Result<(), GitError> {
    if count(dir) == 0 {
        return Ok(());
    }
    let repack = git.command("repack").git_dir(dir).config("pack.threads=1").config("pack.windowMemory=64m");
    repack
        .args(["--geometric=2", "-d", "--quiet", "--write-midx", "--write-bitmap-index"])
        .run(PACK_LIMIT)
        .await?;
    let graph = git.command("commit-graph").git_dir(dir);
    graph.args(["write", "--reachable", "--no-progress"]).run(PACK_LIMIT).await?;
    Ok(())
}
