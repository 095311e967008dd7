//! What a repository has beyond a base, as a thin pack on it: deltas may rest on the base's objects, so that finding them
//! costs as much as what is new, and not as much as what there is.

use std::{collections::HashSet, fs, io, path::Path, sync::Arc, time::Duration};

use bstr::ByteSlice;

use super::{
    Git, GitError, ObjectFormat, Oid, RefSet,
    base::{self, Base},
    index::PackIndex,
    pack::{PACK_LIMIT, frugal, number, revisions},
};
use crate::files::blocking;

/// How long a listing, a count or a thin pack may take; beyond that git had better make the answer.
const LIMIT: Duration = Duration::from_secs(120);

/// Names that are looked up at once: for each lot the whole index may be read. 33 bytes each.
const AT_ONCE: usize = 1 << 20;

/// Notes the largest pack of the repository `dir` as its base if it holds all that `refs` reach, and nothing else. Whoever sent or
/// made it may have known other refs, and a pack that a fetch has brought rests on others. Dear without bitmaps.
///
/// # Errors
/// What git says, and the disk's.
pub async fn note_base(git: &Git, dir: &Path, refs: &RefSet) -> Result<(), GitError> {
    let (tips, at, format): (Vec<Oid>, _, _) = (refs.tips().collect(), dir.to_owned(), refs.format());
    let Some(name) = blocking(move || base::candidate(&at)).await.map_err(listing)? else { return Ok(()) };
    let index = index_of(dir, &name, format).await?;
    if is_as_large(git, dir, &index, &tips).await? && holds_all(git, dir, index, &tips).await? {
        note(dir, name, tips).await?;
    }
    Ok(())
}

/// The same for the pack `name`, which is known to hold all that `tips` reach: only what it may hold besides is looked for.
///
/// # Errors
/// As there.
pub async fn note_closed(git: &Git, dir: &Path, name: String, tips: Vec<Oid>) -> Result<(), GitError> {
    let Some(format) = tips.first().map(Oid::format) else { return Ok(()) };
    let index = index_of(dir, &name, format).await?;
    if is_as_large(git, dir, &index, &tips).await? {
        note(dir, name, tips).await?;
    }
    Ok(())
}

async fn note(dir: &Path, name: String, tips: Vec<Oid>) -> Result<(), GitError> {
    let dir = dir.to_owned();
    blocking(move || base::note(&dir, &name, tips)).await.map_err(listing)
}

fn listing(source: io::Error) -> GitError {
    GitError::Io { verb: "rev-list".into(), source }
}

async fn index_of(dir: &Path, name: &str, format: ObjectFormat) -> Result<Arc<PackIndex>, GitError> {
    let path = dir.join("objects/pack").join(name).with_extension("idx");
    blocking(move || PackIndex::open(&path, format)).await.map(Arc::new).map_err(listing)
}

/// Whether the pack holds `tips`, and as many objects as these reach.
async fn is_as_large(git: &Git, dir: &Path, index: &Arc<PackIndex>, tips: &[Oid]) -> Result<bool, GitError> {
    let (held, asked) = (index.clone(), tips.to_vec());
    let lacking = blocking(move || held.lacks(&asked)).await.map_err(listing)?;
    let all = lacking.is_empty() && !tips.is_empty();
    Ok(all && count(git, dir, tips).await? == Some(index.count().into()))
}

/// Whether the pack holds each object that `tips` reach, and as many as these are: then it holds no others.
async fn holds_all(git: &Git, dir: &Path, index: Arc<PackIndex>, tips: &[Oid]) -> Result<bool, GitError> {
    let path = dir.join("tarn-listing");
    // It takes hundreds of megabytes for ten million objects, and has no name while it is used.
    let create = move || {
        let written = fs::File::create(&path)?;
        let read = fs::File::open(&path)?;
        fs::remove_file(&path)?;
        Ok((written, read))
    };
    let (written, read) = blocking(create).await.map_err(listing)?;
    let list = git.command("rev-list").git_dir(dir);
    let list = list.args(["--objects", "--no-object-names", "--use-bitmap-index", "--stdin"]);
    list.input(revisions(tips, &[])).output_to(written).run(PACK_LIMIT).await?;
    blocking(move || all_in(&index, io::BufReader::new(read))).await.map_err(listing)
}

fn all_in(index: &PackIndex, listed: impl io::BufRead) -> io::Result<bool> {
    let (mut lines, mut seen) = (listed.lines(), 0_u64);
    loop {
        let oids = lines
            .by_ref()
            .take(AT_ONCE)
            .map(|line| Oid::from_hex(line?.as_bytes()).ok_or_else(|| io::ErrorKind::InvalidData.into()));
        let oids = oids.collect::<io::Result<Vec<Oid>>>()?;
        if oids.is_empty() {
            return Ok(seen == u64::from(index.count()));
        }
        if !index.lacks(&oids)?.is_empty() {
            return Ok(false);
        }
        seen += oids.len() as u64;
    }
}

/// What a base lacks.
#[derive(Clone, Debug, Default)]
pub struct Lacking {
    /// The objects' names, sorted, each once.
    pub oids: Vec<Oid>,
    /// The objects, and where deltas may find their bases: as `pack-objects` reads them.
    input: Vec<u8>,
}

/// Lists what `tips` reach in the repository `dir` and `base` does not hold. The walk marks what the edge of the base reaches and nothing older, so that it names objects again which an older commit brought; in a
/// pack with its base these would stand twice.
///
/// # Errors
/// What git says: above all, that an object is missing.
pub async fn lacking(git: &Git, dir: &Path, base: &Arc<Base>, tips: &[Oid]) -> Result<Lacking, GitError> {
    let list = git.command("rev-list").git_dir(dir).args(["--objects-edge", "--stdin"]);
    let listed = list.input(revisions(tips, &base.tips)).run(LIMIT).await?.stdout;
    sift(listed, base.clone()).await
}

/// As [`lacking`], of the commit `tip` and its tree alone; the tips of `base` are trees.
///
/// # Errors
/// As there.
pub async fn lacking_of_tree(git: &Git, dir: &Path, base: &Arc<Base>, tip: Oid) -> Result<Lacking, GitError> {
    let list = git.command("rev-list").git_dir(dir).args(["--objects", "--stdin"]);
    let mut trees = format!("{tip}^{{tree}}\n");
    let mut all = format!("{tip}\n");
    for tree in &base.tips {
        trees.extend(["^", &tree.to_hex(), "\n"]);
        all.extend(["-", &tree.to_hex(), "\n"]);
    }
    let listed = list.input(trees.into_bytes()).run(LIMIT).await?.stdout;
    sift([all.as_bytes(), &listed].concat(), base.clone()).await
}

/// Keeps of a listing what `base` lacks, and the edges.
async fn sift(listed: Vec<u8>, base: Arc<Base>) -> Result<Lacking, GitError> {
    let sifted = blocking(move || sift_now(&listed, &base)).await;
    sifted.map_err(|source| GitError::Io { verb: "rev-list".into(), source })
}

fn sift_now(listed: &[u8], base: &Base) -> io::Result<Lacking> {
    // A line is an object and its path, or an edge: a minus and a commit.
    let object = |line: &[u8]| Oid::from_hex(line.split_once_str(" ").map_or(line, |(oid, _)| oid));
    let named: Vec<Oid> = listed.split_str("\n").filter_map(object).collect();
    let mut oids = base.index.lacks(&named)?;
    oids.sort_unstable();
    oids.dedup();
    if oids.is_empty() {
        return Ok(Lacking::default());
    }
    let mut left: HashSet<Oid> = oids.iter().copied().collect();
    let mut input = Vec::new();
    for line in listed.split_str("\n") {
        let wanted = object(line).map_or(line.starts_with(b"-"), |oid| left.remove(&oid));
        if wanted {
            input.extend_from_slice(line);
            input.push(b'\n');
        }
    }
    Ok(Lacking { oids, input })
}

/// Writes the objects into `file`, as a thin pack.
///
/// # Errors
/// What git says; the file then holds part of a pack.
pub async fn pack(git: &Git, dir: &Path, lacking: Lacking, file: fs::File) -> Result<(), GitError> {
    let pack = frugal(git, "pack-objects", dir).args(["--stdout", "--quiet", "--delta-base-offset"]);
    pack.input(lacking.input).output_to(file).run(LIMIT).await.map(drop)
}

/// Whether `tips` reach all that `former` reach, in the repository `dir`: nothing has been taken away since.
///
/// # Errors
/// What git says.
pub async fn reach(git: &Git, dir: &Path, former: &[Oid], tips: &HashSet<Oid>) -> Result<bool, GitError> {
    let gone: Vec<Oid> = former.iter().filter(|tip| !tips.contains(tip)).copied().collect();
    if gone.is_empty() {
        return Ok(true);
    }
    let tips: Vec<Oid> = tips.iter().copied().collect();
    let list = git.command("rev-list").git_dir(dir).args(["--count", "--objects", "--stdin"]);
    Ok(number(&list.input(revisions(&gone, &tips)).run(LIMIT).await?.stdout) == Some(0))
}

/// The parents of the commit `oid`; `None` if it is no commit.
///
/// # Errors
/// What git says: that the object is missing, say.
pub async fn parents(git: &Git, dir: &Path, oid: Oid) -> Result<Option<Vec<Oid>>, GitError> {
    let list = git.command("rev-list").git_dir(dir).args(["--no-walk", "--parents", "--stdin"]);
    let listed = list.input(revisions(&[oid], &[])).run(LIMIT).await?.stdout;
    // Of a tag it names the commit that the tag leads to.
    let mut oids = listed.trim_ascii_end().split_str(" ").map_while(Oid::from_hex);
    Ok(if oids.next() == Some(oid) { Some(oids.collect()) } else { None })
}

/// How many objects the tree of the commit `tip` reaches.
///
/// # Errors
/// What git says.
pub async fn count_tree(git: &Git, dir: &Path, tip: Oid) -> Result<Option<u64>, GitError> {
    let count = git.command("rev-list").git_dir(dir).args(["--objects", "--no-object-names", "--stdin"]);
    let listed = count.input(format!("{tip}^{{tree}}\n").into_bytes()).run(LIMIT).await?.stdout;
    Ok(u64::try_from(listed.lines().count()).ok())
}

/// How many objects `wants` reach in the repository `dir`; quick where there are bitmaps.
///
/// # Errors
/// What git says.
pub async fn count(git: &Git, dir: &Path, wants: &[Oid]) -> Result<Option<u64>, GitError> {
    let count = git.command("rev-list").git_dir(dir);
    let count = count.args(["--count", "--objects", "--use-bitmap-index", "--stdin"]);
    Ok(number(&count.input(revisions(wants, &[])).run(LIMIT).await?.stdout))
}
