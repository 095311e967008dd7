//! How much a commit's tree would be on a disk: counted, not listed.
//!
//! Each tree is read once, however often it occurs, and what is below it is counted once: a repository of a few kB can name
//! more files than any disk has. What is read, and kept in memory, is bounded by the limits themselves: a tree's entries
//! are files of the worktree at least once.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fmt::{Display, Write},
    io,
    ops::{Range, RangeInclusive},
    path::Path,
    time::Duration,
};

use bstr::ByteSlice;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{ChildStdin, ChildStdout},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    command::{Child, Git, GitError, failure, read_stderr},
    object::Oid,
    stderr::FailureKind,
};

/// Two million files on a cold disk take minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// What a file takes at least on usual file systems.
const BLOCK: u64 = 4096;

/// Objects asked for at once.
const AT_ONCE: usize = 4096;

/// Bytes of trees in memory at once, but for a larger single one, …
const TREES: u64 = 8 << 20;
/// … which is not read if it is larger than this: more than a million entries.
const TREE: u64 = 64 << 20;

/// No deeper: paths are bounded, and so are the stacks of those who walk the worktree.
const DEPTH: usize = 1024;

/// The longest path of a worktree: what comes before it on another machine must have room below `PATH_MAX`.
const PATH: u64 = 2048;

/// The longest name of a file (`NAME_MAX`).
const NAME: u64 = 255;

/// How much there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Files and directories.
    pub files: u64,
    /// Bytes, in whole blocks.
    pub bytes: u64,
}

/// What a tree is on a disk. Numbers that are too large to count are the largest there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Files and directories.
    pub files: u64,
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// The longest path.
    pub path: u64,
}

/// Why a tree is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// Too many files.
    #[error("it has {0} files and directories or more")]
    Files(u64),
    /// Too many bytes.
    #[error("its files have {0} bytes or more")]
    Bytes(u64),
    /// It cannot be counted in time.
    #[error("it takes more than {}s to count what is in it", LIMIT.as_secs())]
    Time,
    /// Too long a name or path, or too many directories in each other.
    #[error(
        "a path in it is longer than {PATH} bytes or deeper than {DEPTH} directories, or a name longer than {NAME} bytes"
    )]
    Path,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The whole tree.
    pub extent: Extent,
    /// Blobs whose lengths were asked for.
    pub blobs: BTreeSet<Oid>,
}

/// Counts what the tree of `commit` in the repository `dir` holds, and no further than `most`; notes blobs of a length in
/// `noted`.
///
/// # Errors
/// Git fails.
pub async fn measure(
    git: &Git,
    dir: &Path,
    commit: Oid,
    most: Most,
    noted: Option<RangeInclusive<u64>>,
) -> Result<Result<Found, Excess>, GitError> {
    let mut walk = Walk { objects: Objects::open(git, dir)?, most, noted, counted: Counted::default() };
    // Deltas of deltas make even the length of an object dear.
    let walked = timeout(LIMIT, walk.run(commit)).await.unwrap_or(Err(Stop::Excess(Excess::Time)));
    match walked {
        Ok(()) => Ok(walk.counted.sum(most).map(|extent| Found { extent, blobs: walk.counted.blobs })),
        Err(Stop::Excess(excess)) => Ok(Err(excess)),
        Err(Stop::Io(source)) => Err(walk.objects.failed(source).await),
        Err(Stop::Git(error)) => Err(error),
    }
}

/// Why a walk ends early.
enum Stop {
    Excess(Excess),
    Io(io::Error),
    Git(GitError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Walk {
    objects: Objects,
    most: Most,
    noted: Option<RangeInclusive<u64>>,
    counted: Counted,
}

impl Walk {
    async fn run(&mut self, commit: Oid) -> Result<(), Stop> {
        self.objects.ask("info", [format!("{commit}^{{tree}}")]).await?;
        let (root, _) = self.objects.head().await?;
        self.counted.index.insert(root, 0);
        self.counted.trees.push(Tree::default());
        let mut level = vec![(0, root)];
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for part in level.chunks(AT_ONCE) {
                self.read(part, &mut next).await?;
            }
            if next.is_empty() {
                return Ok(());
            }
            level = next;
        }
        Err(Stop::Excess(Excess::Path))
    }

    /// Reads trees, and notes those in them that have not been read in `next`.
    async fn read(&mut self, trees: &[(u32, Oid)], next: &mut Vec<(u32, Oid)>) -> Result<(), Stop> {
        self.objects.ask("info", trees.iter().map(|(_, oid)| oid)).await?;
        let mut sizes = Vec::with_capacity(trees.len());
        for _ in trees {
            let (_, size) = self.objects.head().await?;
            if size > TREE {
                return Err(Stop::Excess(Excess::Files(self.most.files)));
            }
            sizes.push(size);
        }
        let mut rest = trees.iter().zip(sizes).peekable();
        while rest.peek().is_some() {
            let (mut group, mut bytes) = (Vec::new(), 0);
            while let Some((tree, size)) = rest.next_if(|(_, size)| bytes == 0 || bytes + size <= TREES) {
                group.push(*tree);
                bytes += size;
            }
            self.objects.ask("contents", group.iter().map(|(_, oid)| oid)).await?;
            let mut blobs = Vec::new();
            for (number, oid) in group {
                let content = self.objects.content().await?;
                let lacks = || damaged(format!("the tree {oid} makes no sense"));
                let read = self.counted.take(number, &content, oid.format().bytes(), next, &mut blobs);
                read.ok_or_else(lacks)?.map_err(Stop::Excess)?;
                if self.counted.entries > self.most.files {
                    return Err(Stop::Excess(Excess::Files(self.counted.entries)));
                }
            }
            self.weigh(&blobs).await?;
        }
        Ok(())
    }

    /// Adds the lengths of `blobs` to the trees that hold them.
    async fn weigh(&mut self, blobs: &[(u32, Oid)]) -> Result<(), Stop> {
        for part in blobs.chunks(AT_ONCE) {
            self.objects.ask("info", part.iter().map(|(_, oid)| oid)).await?;
            for (number, oid) in part {
                let (_, size) = self.objects.head().await?;
                if self.noted.as_ref().is_some_and(|noted| noted.contains(&size)) {
                    self.counted.blobs.insert(*oid);
                }
                self.counted
                    .add(*number, size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX).max(BLOCK));
            }
            if self.counted.bytes > self.most.bytes {
                return Err(Stop::Excess(Excess::Bytes(self.counted.bytes)));
            }
        }
        Ok(())
    }
}

fn damaged(message: String) -> Stop {
    Stop::Git(GitError::Failed { verb: "cat-file".into(), kind: FailureKind::Damaged, message })
}

/// Each tree, once.
#[derive(Default)]
struct Counted {
    index: HashMap<Oid, u32>,
    trees: Vec<Tree>,
    /// Trees in trees: which, and how long their names are.
    below: Vec<(u32, u16)>,
    /// Of all trees.
    entries: u64,
    bytes: u64,
    blobs: BTreeSet<Oid>,
}

/// A tree without those below it.
#[derive(Default)]
struct Tree {
    own: Extent,
    /// Its part of what is below trees.
    below: Range<usize>,
}

impl Counted {
    fn add(&mut self, number: u32, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        if let Some(tree) = self.trees.get_mut(number as usize) {
            tree.own.bytes = tree.own.bytes.saturating_add(bytes);
        }
    }

    /// Takes in the content of a tree: `<mode> SP <name> NUL <id of so many bytes>`, again and again; `None` where it is none.
    fn take(
        &mut self,
        number: u32,
        mut content: &[u8],
        id: usize,
        next: &mut Vec<(u32, Oid)>,
        blobs: &mut Vec<(u32, Oid)>,
    ) -> Option<Result<(), Excess>> {
        let start = self.below.len();
        let (mut entries, mut longest) = (0, 0);
        while !content.is_empty() {
            let (mode, rest) = content.split_once_str(" ")?;
            let (name, rest) = rest.split_once_str("\0")?;
            let (oid, rest) = (Oid::from_bytes(rest.get(..id)?)?, rest.get(id..)?);
            content = rest;
            entries += 1;
            longest = name.len().max(longest);
            match mode {
                b"40000" => {
                    let known = u32::try_from(self.trees.len()).ok()?;
                    let below = match self.index.entry(oid) {
                        Entry::Occupied(found) => *found.get(),
                        Entry::Vacant(place) => {
                            next.push((*place.insert(known), oid));
                            self.trees.push(Tree::default());
                            known
                        }
                    };
                    self.below.push((below, u16::try_from(name.len()).unwrap_or(u16::MAX)));
                    self.add(number, BLOCK);
                }
                // A submodule is an empty directory.
                b"160000" => self.add(number, BLOCK),
                _ => blobs.push((number, oid)),
            }
        }
        self.entries += entries;
        let tree = self.trees.get_mut(number as usize)?;
        let path = u64::try_from(longest).unwrap_or(u64::MAX);
        (tree.own.files, tree.own.path, tree.below) = (entries, path, start..self.below.len());
        Some(if path > NAME { Err(Excess::Path) } else { Ok(()) })
    }

    /// The whole tree, if it is within `most`.
    fn sum(&self, most: Most) -> Result<Extent, Excess> {
        let mut sums: Vec<Option<Extent>> = vec![None; self.trees.len()];
        // Tree, and how many of those in it have been summed.
        let mut stack = vec![(0_u32, 0)];
        while let Some((number, at)) = stack.pop() {
            let Some(tree) = self.trees.get(number as usize) else { continue };
            let below = self.below.get(tree.below.clone()).unwrap_or_default();
            if let Some((child, _)) = below.get(at) {
                stack.push((number, at + 1));
                if sums.get(*child as usize).is_some_and(Option::is_none) {
                    stack.push((*child, 0));
                }
                if stack.len() > DEPTH {
                    return Err(Excess::Path);
                }
                continue;
            }
            let sum = below.iter().fold(tree.own, |sum, (child, name)| {
                let of = sums.get(*child as usize).copied().flatten().unwrap_or_default();
                Extent {
                    files: sum.files.saturating_add(of.files),
                    bytes: sum.bytes.saturating_add(of.bytes),
                    path: sum.path.max(of.path.saturating_add(u64::from(*name) + 1)),
                }
            });
            if let Some(place) = sums.get_mut(number as usize) {
                *place = Some(sum);
            }
        }
        let all = sums.first().copied().flatten().unwrap_or_default();
        if all.files > most.files {
            Err(Excess::Files(all.files))
        } else if all.bytes > most.bytes {
            Err(Excess::Bytes(all.bytes))
        } else if all.path > PATH {
            Err(Excess::Path)
        } else {
            Ok(all)
        }
    }
}

/// A child that tells of objects.
struct Objects {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    said: AbortOnDropHandle<String>,
}

impl Objects {
    fn open(git: &Git, dir: &Path) -> Result<Self, GitError> {
        let command = git.command("cat-file").git_dir(dir);
        let mut child = command
            .args(["--batch-command=%(objectname) %(objecttype) %(objectsize)", "--buffer"])
            .spawn()?;
        let pipes = (child.inner.stdin.take(), child.inner.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            let source = io::Error::other("the child has no pipes");
            return Err(GitError::Io { verb: "cat-file".into(), source });
        };
        let said = AbortOnDropHandle::new(tokio::spawn(read_stderr(child.inner.stderr.take(), None)));
        Ok(Self { child, input, output: BufReader::new(output), said })
    }

    /// Asks for objects, whose answers are to be read in the same order. The child reads all of it before it answers.
    async fn ask(&mut self, verb: &str, objects: impl IntoIterator<Item = impl Display>) -> io::Result<()> {
        let mut lines = String::new();
        for object in objects {
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "{verb} {object}");
        }
        lines.push_str("flush\n");
        self.input.write_all(lines.as_bytes()).await?;
        self.input.flush().await
    }

    /// The name and the length of the next object.
    async fn head(&mut self) -> Result<(Oid, u64), Stop> {
        let mut line = Vec::new();
        self.output.read_until(b'\n', &mut line).await?;
        if line.pop().is_none() {
            return Err(Stop::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        // <name> SP <type> SP <size>: cat-file prints no content without the type.
        let parsed = line.split_once_str(" ").and_then(|(name, rest)| {
            let (_, size) = rest.split_once_str(" ")?;
            Some((Oid::from_hex(name)?, size.to_str().ok()?.parse::<u64>().ok()?))
        });
        parsed.ok_or_else(|| damaged(String::from_utf8_lossy(&line).into_owned()))
    }

    async fn content(&mut self) -> Result<Vec<u8>, Stop> {
        let (_, size) = self.head().await?;
        // It was asked for its size before.
        let mut content = vec![0; usize::try_from(size.min(TREE)).unwrap_or(0)];
        self.output.read_exact(&mut content).await?;
        self.output.read_u8().await?;
        Ok(content)
    }

    /// Why a pipe of the child is closed.
    async fn failed(mut self, source: io::Error) -> GitError {
        drop((self.input, self.output));
        match self.child.inner.wait().await {
            Ok(status) if !status.success() => {
                failure("cat-file", status, &self.said.await.unwrap_or_default())
            }
            _ => GitError::Io { verb: "cat-file".into(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use proptest::prelude::*;

    use super::*;

    const ALL: Most = Most { files: 1000, bytes: 1 << 30 };

    fn id(number: u8) -> [u8; 20] {
        [number; 20]
    }

    /// A tree of these entries: mode, name, id.
    fn tree(entries: &[(&str, &str, u8)]) -> Vec<u8> {
        let entry = |(mode, name, number): &(&str, &str, u8)| {
            [mode.as_bytes(), b" ", name.as_bytes(), b"\0", &id(*number)].concat()
        };
        entries.iter().flat_map(entry).collect()
    }

    /// Takes in trees in this order; the first is the root, and the others are numbered as they are found.
    fn counted(trees: &[Vec<u8>]) -> Counted {
        let mut counted = Counted::default();
        counted.trees.push(Tree::default());
        for (number, content) in (0..).zip(trees) {
            let (mut next, mut blobs) = (Vec::new(), Vec::new());
            counted.take(number, content, 20, &mut next, &mut blobs).unwrap().unwrap();
            for (number, _) in blobs {
                counted.add(number, BLOCK);
            }
        }
        counted
    }

    #[test]
    fn equal_trees_are_counted_once_and_count_each_time() {
        // Ten trees of ten, twenty-five deep: more than 64 bits can count.
        let level = |below: u8| {
            let names: Vec<String> = (0..10).map(|n| format!("d{n}")).collect();
            tree(&names.iter().map(|name| ("40000", name.as_str(), below)).collect::<Vec<_>>())
        };
        let mut levels: Vec<_> = (1..=25).map(level).collect();
        levels.push(tree(&[("100644", "file", 99)]));
        let deep = counted(&levels);
        assert_eq!((deep.entries, deep.trees.len()), (251, 26));
        assert_eq!(deep.sum(ALL), Err(Excess::Files(u64::MAX)));
        let two = counted(&[level(1), tree(&[("100644", "file", 99), ("160000", "module", 98)])]);
        let expected = Extent { files: 30, bytes: 30 * BLOCK, path: 9 };
        assert_eq!(two.sum(ALL), Ok(expected));
        assert_eq!(two.sum(Most { files: 29, ..ALL }), Err(Excess::Files(30)));
        assert_eq!(two.sum(Most { bytes: 30 * BLOCK - 1, ..ALL }), Err(Excess::Bytes(30 * BLOCK)));
    }

    #[test]
    fn long_names_and_deep_paths_are_too_much() {
        let name = "n".repeat(200);
        let chain = |length: u8| {
            let mut trees: Vec<_> = (1..=length).map(|below| tree(&[("40000", &name, below)])).collect();
            trees.push(tree(&[("100644", "file", 99)]));
            counted(&trees).sum(ALL)
        };
        assert_eq!(chain(10).map(|extent| extent.path), Ok(10 * 201 + 4));
        assert_eq!(chain(11), Err(Excess::Path));
        let long = tree(&[("100644", &"n".repeat(256), 1)]);
        let mut counted = Counted { trees: vec![Tree::default()], ..Counted::default() };
        assert_eq!(counted.take(0, &long, 20, &mut vec![], &mut vec![]), Some(Err(Excess::Path)));
    }

    proptest! {
        #[test]
        fn any_content_is_read_to_its_end_or_refused(content in any::<Vec<u8>>()) {
            let mut counted = Counted { trees: vec![Tree::default()], ..Counted::default() };
            let _ = counted.take(0, &content, 20, &mut vec![], &mut vec![]);
        }
    }

    #[tokio::test]
    async fn a_commit_is_measured_as_git_would_check_it_out() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::detect(dir.path(), OsStr::new("test"), false).await.unwrap();
        let repo = dir.path().join("r");
        let run = async |verb: &str, args: &[&str], input: &str| {
            let command = git.command(verb).git_dir(&repo).args(args).input(input.as_bytes().to_vec());
            let output = command.run(LIMIT).await.unwrap();
            output.stdout.to_str().unwrap().trim().to_owned()
        };
        crate::git::remote::init(&git, &repo, crate::git::ObjectFormat::Sha1).await.unwrap();
        let blob = run("hash-object", &["-w", "--stdin"], &"x".repeat(5000)).await;
        let small = run("hash-object", &["-w", "--stdin"], "small").await;
        let inner = run("mktree", &[], &format!("100644 blob {blob}\ta b\n100644 blob {small}\tc\n")).await;
        let tree = run("mktree", &[], &format!("040000 tree {inner}\tx\n040000 tree {inner}\tyy\n")).await;
        let identity = ["-c", "user.name=x", "-c", "user.email=x@x"];
        let mut commit = git.command("commit-tree").git_dir(&repo);
        for setting in identity.chunks(2).filter_map(|pair| pair.last()) {
            commit = commit.config(setting);
        }
        let commit = commit.args(["-m", "x", &tree]).run(LIMIT).await.unwrap();
        let commit = Oid::from_hex(commit.stdout.trim_ascii_end()).unwrap();
        let found = measure(&git, &repo, commit, ALL, Some(1..=100)).await.unwrap().unwrap();
        assert_eq!(found.extent, Extent { files: 6, bytes: (2 + 2 * (2 + 1)) * BLOCK, path: 6 });
        assert_eq!(found.blobs, BTreeSet::from([Oid::from_hex(small.as_bytes()).unwrap()]));
        let few = measure(&git, &repo, commit, Most { files: 3, ..ALL }, None).await.unwrap();
        assert!(matches!(few, Err(Excess::Files(4..))), "{few:?}");
        let gone = Oid::from_hex(&[b'1'; 40]).unwrap();
        let error = measure(&git, &repo, gone, ALL, None).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Damaged, "{error}");
    }
}
