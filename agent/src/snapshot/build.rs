//! Building a snapshot: packs by hard links, the worktree by git, times such that `git status` reads no file.
//!
//! Git takes a file for unchanged when its length and time are those in the index, and the index is younger. So
//! all files get one time, the index is made anew and gets a later one, and the archive keeps both. Of what differs
//! from machine to machine (inode, owner, ctime) the clone's configuration takes no notice.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bstr::ByteSlice;
use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tokio::sync::Mutex;

use super::{
    SnapshotError,
    archive::{self, Unwanted},
    manifest::Snapshot,
};
use crate::{
    blockfile::digest_file,
    files::blocking,
    generations::Writer,
    git::{
        Git, Head, ObjectFormat, Oid, Ref, RefSet, checksum,
        command::Command,
        extent::{self, Excess, Most},
        pack,
    },
};

/// A checkout of gigabytes on a slow disk takes minutes.
const LIMIT: Duration = Duration::from_secs(3600);

/// The most files and directories that a worktree has: the largest that people check out whole have half a million.
const MAX_FILES: u64 = 2_000_000;

/// The most bytes that a worktree has: so many times those of the packs, which text shrinks to a tenth of its size in, …
const MAX_SWELL: u64 = 20;
/// … or this, if that is more.
const MAX_BYTES: u64 = 10 << 30;

/// How much older than now files are at least, and how much younger than they the index is: more than the two
/// seconds within which git mistrusts equal times, on file systems with coarse clocks too.
const APART: i64 = 60;

/// How large a worktree may be for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorktreeRules {
    /// Files and directories.
    pub files: u64,
    /// Bytes, where that does not depend on the packs.
    pub bytes: Option<u64>,
}

impl Default for WorktreeRules {
    fn default() -> Self {
        Self { files: MAX_FILES, bytes: None }
    }
}

impl WorktreeRules {
    /// What the worktree of a mirror may have whose data take `packed` bytes, on a disk with so many free inodes.
    pub fn most(self, packed: u64, inodes: u64) -> Most {
        let bytes = self.bytes.unwrap_or_else(|| packed.saturating_mul(MAX_SWELL).max(MAX_BYTES));
        Most { files: self.files.min(inodes / 2), bytes }
    }
}

/// What to build a snapshot of, and with what.
pub struct Build {
    /// The installed git.
    pub git: Git,
    /// The mirror.
    pub dir: PathBuf,
    /// A directory to work in, on the mirror's file system; nothing is there yet, and the caller removes it.
    pub work: PathBuf,
    /// The state to show; all its objects are in the mirror.
    pub refs: Arc<RefSet>,
    /// Held while the mirror's packs are linked, and by whoever repacks.
    pub packs: Arc<Mutex<()>>,
    /// What the mirror takes on the disk.
    pub bytes: u64,
    /// How large the worktree may be.
    pub rules: WorktreeRules,
    /// What `origin` is to be: the upstream.
    pub url: String,
    /// This agent's name.
    pub agent: String,
    /// Now.
    pub time: Timestamp,
}

impl Build {
    /// Builds the archive, in `work`; returns where it is and what it is. `None` where `HEAD` leads to no commit.
    /// A dropped future leaves files in `work`, and a thread that ends soon.
    ///
    /// # Errors
    /// Git fails, or the disk.
    pub async fn run(self) -> Result<Option<(PathBuf, Snapshot)>, SnapshotError> {
        let Some(commit) = self.refs.head_oid() else { return Ok(None) };
        self.check_room(commit).await?;
        let (tree, archive) = (self.work.join("tree"), self.work.join("archive"));
        let dot_git = tree.join(".git");
        self.link(&dot_git).await?;
        self.check_files(dot_git.clone()).await?;
        let command =
            |verb: &'static str| self.git.command(verb).git_dir(&dot_git).env("GIT_WORK_TREE", &tree);
        command("read-tree").args(["--reset", "-u", "HEAD"]).run(LIMIT).await?;
        let time = commit_time(command("log"), commit).await?;
        let time = time.min(Timestamp::now().as_second() - APART).max(0);
        let (worktree, index) = (tree.clone(), dot_git.join("index"));
        blocking(move || {
            fs::remove_file(index)?;
            touch(&worktree, time)
        })
        .await?;
        command("read-tree").args(["HEAD"]).run(LIMIT).await?;
        command("update-index").args(["-q", "--refresh"]).run(LIMIT).await?;
        let unwanted = Arc::new(AtomicBool::new(false));
        let _given_up = SetOnDrop(unwanted.clone());
        let (written, source) = (archive.clone(), tree);
        let blocks = blocking(move || {
            let index = Path::new(".git/index");
            let times = |name: &Path| if name == index { time + APART } else { time };
            let mut out = fs::File::create_new(&written)?;
            archive::write(&source, &times, &mut out, &unwanted)?;
            digest_file(&written)
        })
        .await
        .map_err(|error| if Unwanted::is(&error) { SnapshotError::GivenUp } else { error.into() })?;
        let branch = match self.refs.head() {
            Head::Symbolic(name) => Some(name.to_string()),
            Head::Detached(_) | Head::Missing => None,
        };
        let writer = Writer::new(&self.agent);
        Ok(Some((archive, Snapshot::new(commit, branch, self.time, writer, blocks))))
    }

    /// Whether the disk has room for the archive, which is about as large as the packs, and for the worktree, which is
    /// counted for that: a mirror that cannot fetch because its snapshot fills the disk would be worse off than without,
    /// and a few kB of trees can name more files than any disk has.
    async fn check_room(&self, commit: Oid) -> Result<(), SnapshotError> {
        let dir = self.dir.clone();
        let stat = blocking(move || rustix::fs::statvfs(&dir).map_err(io::Error::from)).await?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let enough =
            |needed| if free < needed { Err(SnapshotError::NoRoom { needed, free }) } else { Ok(()) };
        enough(self.bytes.saturating_mul(2))?;
        // Not every file system counts them.
        let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        let most = self.rules.most(self.bytes, inodes);
        let too_large = |excess: Excess| SnapshotError::WorktreeTooLarge { commit: commit.to_hex(), excess };
        let found = extent::measure(&self.git, &self.dir, commit, most, None).await?.map_err(too_large)?;
        // A twentieth stays free, so that nothing else has to leave for it.
        let spare = stat.f_blocks.saturating_mul(stat.f_frsize) / 20;
        enough(found.extent.bytes.saturating_add(self.bytes).saturating_add(spare))
    }

    /// Whether the files that were linked are as git wrote them: they go into the archive as they are, and no client
    /// computes the names of the objects in them as it does in a clone.
    async fn check_files(&self, dot_git: PathBuf) -> Result<(), SnapshotError> {
        let format = self.refs.format();
        match blocking(move || checksum::first_altered(&dot_git, format)).await? {
            Some(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Err(SnapshotError::Mirror(name))
            }
            None => Ok(()),
        }
    }

    /// Makes the repository: configuration, refs as `git clone` leaves them, packs.
    async fn link(&self, dot_git: &Path) -> Result<(), SnapshotError> {
        let config = config(&self.url, &self.refs);
        let (dir, to, refs) = (self.dir.clone(), dot_git.to_owned(), cloned(&self.refs));
        let origin_head = match self.refs.head() {
            Head::Symbolic(name) => name.strip_prefix(b"refs/heads/").map(<[u8]>::to_vec),
            Head::Detached(_) | Head::Missing => None,
        };
        let _packs = self.packs.lock().await;
        blocking(move || {
            for part in ["objects/info", "objects/pack", "refs/heads", "refs/tags", "refs/remotes/origin"] {
                fs::create_dir_all(to.join(part))?;
            }
            fs::write(to.join("config"), config)?;
            if let Some(branch) = origin_head {
                let text = [b"ref: refs/remotes/origin/".as_slice(), &branch, b"\n"].concat();
                fs::write(to.join("refs/remotes/origin/HEAD"), text)?;
            }
            refs.write(&to).map_err(io::Error::other)?;
            pack::link(&dir, &to)
        })
        .await?;
        Ok(())
    }
}

/// The refs that `git clone` makes of the upstream's: its branches below `refs/remotes/origin/`, its tags, and the
/// branch that is checked out.
fn cloned(refs: &RefSet) -> RefSet {
    let current = match refs.head() {
        Head::Symbolic(name) => Some(name),
        Head::Detached(_) | Head::Missing => None,
    };
    let mut own = Vec::new();
    for r in refs.refs() {
        if let Some(branch) = r.name.strip_prefix(b"refs/heads/") {
            let name = [b"refs/remotes/origin/".as_slice(), branch].concat().into();
            own.push(Ref { name, ..r.clone() });
        }
        if r.name.starts_with(b"refs/tags/") || Some(&r.name) == current {
            own.push(r.clone());
        }
    }
    RefSet::new(refs.format(), refs.head().clone(), own)
}

/// The clone's `config`: what `git clone` writes, and what makes the index good on every machine.
fn config(url: &str, refs: &RefSet) -> Vec<u8> {
    let (version, extensions) = match refs.format() {
        ObjectFormat::Sha1 => (0, ""),
        ObjectFormat::Sha256 => (1, "[extensions]\n\tobjectformat = sha256\n"),
    };
    let mut text = format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\
         \tlogallrefupdates = true\n\tcheckStat = minimal\n\ttrustctime = false\n{extensions}\
         [remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n",
        quoted(url.as_bytes()).to_str_lossy()
    )
    .into_bytes();
    if let Head::Symbolic(name) = refs.head()
        && let Some(branch) = name.strip_prefix(b"refs/heads/")
    {
        let (branch, name) = (quoted(branch), quoted(name));
        let parts: [&[u8]; 5] = [b"[branch ", &branch, b"]\n\tremote = origin\n\tmerge = ", &name, b"\n"];
        text.extend(parts.concat());
    }
    text
}

/// A value or a subsection in git's configuration (git-config(1), Syntax). Neither URLs nor names of refs hold
/// control characters.
fn quoted(text: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
    out
}

async fn commit_time(command: Command, commit: Oid) -> Result<i64, SnapshotError> {
    // Not `show`, which compares the whole tree with the parent's, even where it is to print none of it.
    let shown = command.args(["-1", "--format=%ct"]).arg(commit.to_hex()).run(LIMIT).await?;
    // A commit may claim any time; one that makes no sense counts as the oldest.
    Ok(shown.stdout.to_str_lossy().trim().parse().unwrap_or(0))
}

/// Gives all files below `dir` this time, but for the repository's: links themselves, not what they name.
fn touch(dir: &Path, time: i64) -> io::Result<()> {
    let time_spec = Timespec { tv_sec: time, tv_nsec: 0 };
    let times = Timestamps { last_access: time_spec, last_modification: time_spec };
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            utimensat(CWD, entry.path(), &times, AtFlags::SYMLINK_NOFOLLOW)?;
        } else if entry.file_name().as_bytes() != b".git" {
            touch(&entry.path(), time)?;
        }
    }
    Ok(())
}

/// Tells the thread that archives to stop when nobody waits for it any more.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(digit: u8) -> Oid {
        Oid::from_hex(&[digit; 40]).unwrap()
    }

    fn upstream() -> RefSet {
        let named = |name: &str, digit| Ref { name: name.into(), oid: oid(digit), peeled: None };
        let refs = vec![
            named("refs/heads/main", b'1'),
            named("refs/heads/topic/x", b'2'),
            named("refs/tags/v1", b'3'),
            named("refs/notes/commits", b'4'),
        ];
        RefSet::new(ObjectFormat::Sha1, Head::Symbolic("refs/heads/main".into()), refs)
    }

    #[test]
    fn refs_are_those_of_a_clone() {
        let own = cloned(&upstream());
        let names: Vec<_> = own.refs().iter().map(|r| r.name.to_string()).collect();
        let expected =
            ["refs/heads/main", "refs/remotes/origin/main", "refs/remotes/origin/topic/x", "refs/tags/v1"];
        assert_eq!(names, expected);
        assert_eq!(own.head(), upstream().head());
    }

    #[test]
    fn the_configuration_names_the_upstream_and_nothing_of_ours() {
        let text = String::from_utf8(config("https://h/o/a\"b.git", &upstream())).unwrap();
        assert!(text.contains("\turl = \"https://h/o/a\\\"b.git\"\n"), "{text}");
        assert!(text.ends_with("[branch \"main\"]\n\tremote = origin\n\tmerge = \"refs/heads/main\"\n"));
        assert!(text.contains("checkStat = minimal") && !text.contains("extensions"));
        let sha256 = RefSet::empty(ObjectFormat::Sha256);
        assert!(String::from_utf8(config("x", &sha256)).unwrap().contains("objectformat = sha256"));
    }
}
