//! Packs of a repository on the disk: how far a client is behind, the seed for shallow clones, repacking.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    base,
    command::{Command, Git, GitError},
    index::files,
    object::Oid,
    refs::RefSet,
};

/// Clients at most this many commits behind get a thin pack without bitmaps: smaller and as cheap
/// (10 merges behind, 105 kB against 558 kB; 200 behind, bitmaps win by 0.11 s against 1.63 s).
const NEAR: usize = 100;

/// Local work on packs; a repack of gigabytes on a slow disk takes minutes.
pub(super) const PACK_LIMIT: Duration = Duration::from_secs(3600);

/// With more objects than this no bitmaps are made. They take some 700 bytes of memory for each while they are made (263 MB
/// for git's own repository), which the whole pod would be killed for.
const MAX_BITMAPPED: u64 = 10_000_000;

/// Whether `wants` are at most [`NEAR`] commits ahead of `haves`. Haves that are not there count nothing.
pub async fn is_near(git: &Git, dir: &Path, wants: &[Oid], haves: &[Oid]) -> bool {
    let command = git.command("rev-list").git_dir(dir).args(["--count", "--ignore-missing", "--stdin"]);
    let counted = command
        .arg(format!("--max-count={}", NEAR + 1))
        .input(revisions(wants, haves))
        .run(Duration::from_secs(10))
        .await;
    counted.ok().and_then(|out| number(&out.stdout)).is_some_and(|count: usize| count <= NEAR)
}

/// Makes, in the new directory `view`, a repository that has the commit `tip` without history in a pack of
/// its own and borrows everything else from the repository `dir`.
///
/// A shallow clone of it, or of a commit soon after, reuses the deltas of that pack: 0.07 s of CPU
/// instead of 2.8 s. `old`, an earlier such view, makes the making as cheap. The mirror itself never sees
/// the pack, so it cannot harm full clones or be lost in a repack (docs/decisions/0005). It is the base of `view`, and
/// holds the commit's tree, not the commit: a client that gets it with another commit would have one without parents.
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
    // A listing of a large tree takes tens of megabytes: it goes through a file.
    let listing = view.join("objects/listing");
    let (written, read) =
        (fs::File::create(&listing).map_err(io_error)?, fs::File::open(&listing).map_err(io_error)?);
    list.input(format!("{tip}^{{tree}}\n").into_bytes()).output_to(written).run(PACK_LIMIT).await?;
    let tree = first_oid(&listing, tip).map_err(io_error)?;
    fs::remove_file(&listing).map_err(io_error)?;
    let mut pack = git.command("pack-objects").git_dir(old.unwrap_or(dir));
    if old.is_some() {
        pack = pack.config("core.multiPackIndex=false");
    }
    pack.config("pack.threads=1")
        .args(["--quiet", "--delta-base-offset"])
        .arg(view.join("objects/pack/pack"))
        .input_from(read)
        .run(PACK_LIMIT)
        .await?;
    let Some(pack) = files(view, "pack").map_err(io_error)?.pop() else { return Ok(()) };
    let name = pack.file_name().unwrap_or_default().to_string_lossy();
    base::note(view, &name, [tree]).map_err(io_error)
}

/// The object that a listing begins with; its name is as long as `like`.
fn first_oid(listing: &Path, like: Oid) -> io::Result<Oid> {
    let mut hex = vec![0; like.to_hex().len()];
    io::Read::read_exact(&mut fs::File::open(listing)?, &mut hex)?;
    Oid::from_hex(&hex)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the listing names no object"))
}

/// A repository without objects of its own. Refs are read through a link, for the tags a client may want
/// with the commit.
fn borrow(dir: &Path, view: &Path) -> io::Result<()> {
    let objects = fs::canonicalize(dir.join("objects"))?;
    frame(dir, view)?;
    let mut alternates = objects.into_os_string().into_encoded_bytes();
    alternates.push(b'\n');
    fs::write(view.join("objects/info/alternates"), alternates)?;
    fs::copy(dir.join("HEAD"), view.join("HEAD"))?;
    symlink(fs::canonicalize(dir.join("packed-refs"))?, view.join("packed-refs"))
}

/// What makes `view` a repository like `dir`, but for objects and refs.
fn frame(dir: &Path, view: &Path) -> io::Result<()> {
    for part in ["objects/pack", "objects/info", "refs"] {
        fs::create_dir_all(view.join(part))?;
    }
    fs::copy(dir.join("config"), view.join("config")).map(drop)
}

/// How many packs the repository `dir` has.
pub fn count(dir: &Path) -> usize {
    files(dir, "pack").map_or(0, |packs| packs.len())
}

/// Moves the temporary packs that ended children have left in the repository `dir` into the directory `to`. None may be
/// writing.
///
/// # Errors
/// A file cannot be moved.
pub fn move_temporary(dir: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir.join("objects/pack"))? {
        let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
        // pack-write.c, index-pack.c: tmp_pack_*, tmp_idx_*, tmp_rev_*; builtin/repack.c: .tmp-<pid>-pack-*.
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"tmp_") || bytes.starts_with(b".tmp-") {
            fs::rename(path, to.join(name))?;
        }
    }
    Ok(())
}

/// Whether the repository `dir` has bitmaps, of one pack or of many.
pub fn has_bitmaps(dir: &Path) -> bool {
    files(dir, "bitmap").is_ok_and(|bitmaps| !bitmaps.is_empty())
}

/// Rolls small packs up so that each is at least twice as large as all smaller ones together, and writes a multi-pack index with bitmaps and the commit-graph: what makes full clones, and the reckoning of near
/// haves, cheap. No object is dropped, reachable or not. Children that read the old packs go on. The
/// bitmaps take a few hundred bytes of memory per object while they are made.
///
/// # Errors
/// What git says.
pub async fn put_in_order(git: &Git, dir: &Path) -> Result<(), GitError> {
    repack(git, dir, &["--geometric=2"]).await
}

/// Makes all that the refs reach one pack, and all else another; indexes both as [`put_in_order`] does.
///
/// # Errors
/// What git says.
pub async fn unite(git: &Git, dir: &Path) -> Result<(), GitError> {
    // A fetch that runs beside this keeps its pack; what that repeats is not to be missing here.
    repack(git, dir, &["--cruft", "--pack-kept-objects"]).await
}

async fn repack(git: &Git, dir: &Path, how: &[&str]) -> Result<(), GitError> {
    if count(dir) == 0 {
        return Ok(());
    }
    let io_error = |source| GitError::Io { verb: "repack".into(), source };
    let indices = files(dir, "idx").map_err(io_error)?;
    let all: u64 = indices.iter().map(|index| objects(index)).sum::<io::Result<u64>>().map_err(io_error)?;
    let bitmaps = if all <= MAX_BITMAPPED { Some("--write-bitmap-index") } else { None };
    if bitmaps.is_none() {
        tracing::info!(objects = all, "no bitmaps are made: they would take too much memory");
    }
    let repack = frugal(git, "repack", dir);
    repack.args(how).args(["-d", "--quiet", "--write-midx"]).args(bitmaps).run(PACK_LIMIT).await?;
    let graph = git.command("commit-graph").git_dir(dir);
    graph.args(["write", "--reachable", "--no-progress"]).run(PACK_LIMIT).await?;
    Ok(())
}

/// Links the packs of the repository `dir` into a new one at `view`, which has these `refs`: a state that no
/// later fetch or repack changes. No repack may run meanwhile; a fetch may.
///
/// # Errors
/// A file cannot be linked or written; what was made so far is left in `view`.
pub fn pin(dir: &Path, view: &Path, refs: &RefSet) -> io::Result<()> {
    frame(dir, view)?;
    link(dir, view)?;
    refs.write(view).map_err(io::Error::other)
}

/// Links the packs of the repository `dir` into the repository `view`. No repack may run meanwhile; a fetch may.
///
/// # Errors
/// A file cannot be linked.
pub fn link(dir: &Path, view: &Path) -> io::Result<()> {
    // Git writes the index last: where it is, the pack is whole.
    for index in files(dir, "idx")? {
        for extension in ["pack", "rev", "idx"] {
            let file = index.with_extension(extension);
            let Some(name) = file.file_name() else { continue };
            match fs::hard_link(&file, view.join("objects/pack").join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && extension == "rev" => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// Packs, as `into`-*name*`.pack` and `.idx`, everything that `tips` reach and `without` do not. Returns the
/// files' common name and the number of objects; `None` where there are none.
///
/// # Errors
/// What git says: above all, that an object is missing.
pub async fn pack_since(
    git: &Git,
    dir: &Path,
    into: &Path,
    tips: &[Oid],
    without: &[Oid],
) -> Result<Option<(PathBuf, u64)>, GitError> {
    let io_error = |source| GitError::Io { verb: "pack-objects".into(), source };
    let pack = frugal(git, "pack-objects", dir);
    let output = pack
        .args(["--revs", "--quiet", "--delta-base-offset"])
        .arg(into)
        .input(revisions(tips, without))
        .run(PACK_LIMIT)
        .await?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut path = into.as_os_str().to_owned();
    path.push(format!("-{name}.pack"));
    let path = PathBuf::from(path);
    let objects = objects(&path.with_extension("idx")).map_err(io_error)?;
    Ok((objects > 0).then_some((path, objects)))
}

/// Makes all that the refs of the repository `dir` reach one pack with bitmaps. Returns it and the number of its
/// objects; `None` where there are none.
///
/// # Errors
/// What git says: above all, that an object is missing.
pub async fn pack_whole(git: &Git, dir: &Path) -> Result<Option<(PathBuf, u64)>, GitError> {
    let io_error = |source| GitError::Io { verb: "repack".into(), source };
    let repack = frugal(git, "repack", dir);
    repack.args(["-a", "-d", "-b", "--quiet"]).run(PACK_LIMIT).await?;
    let Some(path) = files(dir, "pack").map_err(io_error)?.pop() else { return Ok(None) };
    let objects = objects(&path.with_extension("idx")).map_err(io_error)?;
    Ok((objects > 0).then_some((path, objects)))
}

/// Makes sure that the repository `dir` has everything that `tips` reach and `without` do not.
///
/// # Errors
/// An object is missing, or git cannot be asked.
pub async fn check_closure(git: &Git, dir: &Path, tips: &[Oid], without: &[Oid]) -> Result<(), GitError> {
    let list = git.command("rev-list").git_dir(dir).args(["--objects", "--quiet", "--stdin"]);
    list.input(revisions(tips, without)).run(PACK_LIMIT).await?;
    Ok(())
}

/// Has git check every object of the repository `dir`.
///
/// # Errors
/// What is wrong with one.
pub async fn fsck(git: &Git, dir: &Path) -> Result<(), GitError> {
    git.command("fsck")
        .git_dir(dir)
        .args(["--full", "--no-dangling", "--no-progress"])
        .run(PACK_LIMIT)
        .await?;
    Ok(())
}

/// A command that packs beside those who serve: one thread, and little memory for the search for deltas.
pub(super) fn frugal(git: &Git, verb: &'static str, dir: &Path) -> Command {
    git.command(verb).git_dir(dir).config("pack.threads=1").config("pack.windowMemory=64m")
}

/// The number that `rev-list --count` says.
pub(super) fn number<N: std::str::FromStr>(said: &[u8]) -> Option<N> {
    str::from_utf8(said).ok()?.trim().parse().ok()
}

pub(super) fn revisions(tips: &[Oid], without: &[Oid]) -> Vec<u8> {
    let mut input: String = tips.iter().map(|oid| format!("{oid}\n")).collect();
    input.extend(without.iter().map(|oid| format!("^{oid}\n")));
    input.into_bytes()
}

/// How many objects a pack has, by its index (gitformat-pack(5), version 2): the last entry of the table that
/// follows 8 bytes of header counts all.
fn objects(index: &Path) -> io::Result<u64> {
    let mut count = [0; 4];
    let mut file = fs::File::open(index)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(8 + 255 * 4))?;
    io::Read::read_exact(&mut file, &mut count)?;
    Ok(u32::from_be_bytes(count).into())
}
