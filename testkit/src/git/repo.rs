//! A repository of a test: made fast, changed fast, read with git itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Git, Refs, text};
use crate::process::Output;

/// The hash that names a repository's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectFormat {
    /// Git's usual 40-digit names.
    Sha1,
    /// The newer 64-digit names.
    Sha256,
}

/// Noise neither compresses nor makes deltas: trying costs most of the time that [`Repo::grow`] and a clone take.
const CONFIG: &str = "[core]\n\tcompression = 0\n\tbigFileThreshold = 256k\n";

/// A repository on disk with the client that works on it.
#[derive(Debug, Clone)]
pub struct Repo {
    git: Git,
    dir: PathBuf,
}

impl Repo {
    /// Creates an empty bare repository whose HEAD stands for the unborn branch `main`.
    pub async fn init_bare(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::init(dir, ObjectFormat::Sha1).await
    }

    /// Creates an empty bare repository with this object format.
    pub async fn init(dir: impl Into<PathBuf>, format: ObjectFormat) -> Result<Self> {
        let (git, dir) = (Git::new()?, dir.into());
        let format = match format {
            ObjectFormat::Sha1 => "--object-format=sha1",
            ObjectFormat::Sha256 => "--object-format=sha256",
        };
        git.run(["init", "--quiet", "--bare", "--initial-branch=main", format, text(&dir)]).await?;
        let mut config = std::fs::File::options().append(true).open(dir.join("config"))?;
        config.write_all(CONFIG.as_bytes())?;
        Ok(Self { git, dir })
    }

    /// Creates an empty bare repository with one commit of one file on `main`.
    pub async fn seeded(dir: impl Into<PathBuf>) -> Result<Self> {
        let repo = Self::init_bare(dir).await?;
        repo.commit("main", &[("README", "hello\n")]).await?;
        Ok(repo)
    }

    /// Takes an existing repository, bare or not.
    pub fn open(git: Git, dir: impl Into<PathBuf>) -> Self {
        Self { git, dir: dir.into() }
    }

    /// Where it lies: the bare repository, or the worktree.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where git keeps its own files: the same, or `.git` below the worktree.
    pub fn git_dir(&self) -> PathBuf {
        let inner = self.dir.join(".git");
        if inner.exists() { inner } else { self.dir.clone() }
    }

    /// The `file://` URL of the repository.
    pub fn file_url(&self) -> String {
        super::file_url(&self.dir)
    }

    /// Runs git in the repository and gives its output back as text.
    pub async fn git(&self, args: &[&str]) -> Result<String> {
        Ok(self.git.run(self.with_dir(args)).await?.text())
    }

    /// As [`Repo::git`], with bytes on standard input.
    pub async fn git_with(&self, args: &[&str], stdin: &[u8]) -> Result<String> {
        Ok(self.git.run_with(self.with_dir(args), stdin).await?.text())
    }

    /// Runs git in the repository, however it ends.
    pub async fn attempt(&self, args: &[&str]) -> Result<Output> {
        self.git.attempt(self.with_dir(args)).await
    }

    /// Adds a commit with these files to a branch (made when missing) and gives the commit's id back.
    ///
    /// Files of earlier commits stay. The same files on the same parent give the same id.
    pub async fn commit(&self, branch: &str, files: &[(&str, &str)]) -> Result<String> {
        let parent =
            self.attempt(&["rev-parse", "--verify", "--quiet", &format!("refs/heads/{branch}")]).await?;
        let parent = parent.status.success().then(|| parent.text());
        let message = files.iter().map(|(path, _)| *path).collect::<Vec<_>>().join(" ");
        let mut script = Vec::new();
        write_commit(&mut script, branch, parent.as_deref(), &message)?;
        for (path, content) in files {
            write_file(&mut script, path, content.as_bytes())?;
        }
        script.extend_from_slice(b"\nget-mark :1\n");
        self.fast_import(&script).await
    }

    /// Adds `commits` commits to a branch, each with one new file of `bytes` bytes that do not compress, so
    /// that a clone takes about as many bytes as asked for. The same seed gives the same commits.
    pub async fn grow(&self, branch: &str, commits: u32, bytes: usize, seed: u64) -> Result<String> {
        let parent =
            self.attempt(&["rev-parse", "--verify", "--quiet", &format!("refs/heads/{branch}")]).await?;
        let mut parent = parent.status.success().then(|| parent.text());
        let mut state = seed;
        let (mut script, mut noise) = (Vec::new(), vec![0; bytes]);
        for number in 0..commits {
            fill_with_noise(&mut noise, &mut state);
            write_commit(&mut script, branch, parent.take().as_deref(), &format!("grow {seed}/{number}"))?;
            write_file(&mut script, &format!("noise/{seed}/{number}"), &noise)?;
        }
        script.extend_from_slice(b"\nget-mark :1\n");
        self.fast_import(&script).await
    }

    /// Feeds a script to `git fast-import` and gives back what it printed.
    pub async fn fast_import(&self, script: &[u8]) -> Result<String> {
        self.git_with(&["fast-import", "--quiet", "--force"], script).await
    }

    /// Points a ref (full name) at an object.
    pub async fn set_ref(&self, name: &str, oid: &str) -> Result<()> {
        self.git(&["update-ref", name, oid]).await.map(drop)
    }

    /// Deletes a ref (full name).
    pub async fn delete_ref(&self, name: &str) -> Result<()> {
        self.git(&["update-ref", "-d", name]).await.map(drop)
    }

    /// Makes or moves a light tag.
    pub async fn tag(&self, name: &str, oid: &str) -> Result<()> {
        self.git(&["tag", "--force", name, oid]).await.map(drop)
    }

    /// Makes or moves an annotated tag and gives the id of the tag object back.
    pub async fn annotated_tag(&self, name: &str, oid: &str) -> Result<String> {
        self.git(&["tag", "--force", "--annotate", "--message", name, name, oid]).await?;
        self.git(&["rev-parse", &format!("refs/tags/{name}")]).await
    }

    /// Lets HEAD stand for a branch (full ref name), born or not.
    pub async fn set_head(&self, name: &str) -> Result<()> {
        self.git(&["symbolic-ref", "HEAD", name]).await.map(drop)
    }

    /// Points HEAD at a commit itself.
    pub async fn detach_head(&self, oid: &str) -> Result<()> {
        self.git(&["update-ref", "--no-deref", "HEAD", oid]).await.map(drop)
    }

    /// The object a revision stands for.
    pub async fn rev_parse(&self, revision: &str) -> Result<String> {
        self.git(&["rev-parse", "--verify", revision]).await
    }

    /// All refs as a client sees them: HEAD, full names, and what annotated tags point at.
    pub async fn refs(&self) -> Result<Refs> {
        self.git.ls_remote(text(&self.dir)).await
    }

    /// Checks every object, which must be there and sound.
    pub async fn fsck(&self) -> Result<()> {
        self.git(&["fsck", "--full", "--no-progress", "--no-dangling"]).await.map(drop)
    }

    /// Moves many refs in one instant: `packed-refs` is replaced by rename, so that whoever reads the refs of
    /// this repository sees all of them moved or none. An id of zeros deletes. Faster than git for many refs.
    ///
    /// HEAD is read apart from the other refs: in one answer, the branch it stands for may differ from the
    /// HEAD line. Where that matters, move other branches than HEAD's.
    pub async fn move_refs_atomically(&self, moves: &[(String, String)]) -> Result<()> {
        // Loose refs would hide the packed ones. Packing changes no value.
        self.git(&["pack-refs", "--all", "--prune"]).await?;
        let listed = self.git(&["for-each-ref", "--format=%(refname) %(objectname) %(*objectname)"]).await?;
        let mut refs = BTreeMap::new();
        for line in listed.lines() {
            let mut words = line.split(' ');
            let (name, oid) =
                (words.next().unwrap_or_default(), words.next().context("a ref without an id")?);
            let peeled = words.next().filter(|peeled| !peeled.is_empty());
            refs.insert(name.to_owned(), (oid.to_owned(), peeled.map(str::to_owned)));
        }
        let mut asked = String::new();
        for (_, oid) in moves {
            writeln!(asked, "{oid}^{{}}")?;
        }
        let peeled = self.git_with(&["cat-file", "--batch-check=%(objectname)"], asked.as_bytes()).await?;
        for ((name, oid), peeled) in moves.iter().zip(peeled.lines()) {
            if oid.bytes().all(|digit| digit == b'0') {
                refs.remove(name);
                continue;
            }
            ensure!(!peeled.ends_with(" missing"), "{name} cannot move to {oid}, which is not here");
            let peeled = (peeled != oid).then(|| peeled.to_owned());
            refs.insert(name.clone(), (oid.clone(), peeled));
        }
        let mut content = String::from("# pack-refs with: peeled fully-peeled sorted \n");
        for (name, (oid, peeled)) in &refs {
            writeln!(content, "{oid} {name}")?;
            if let Some(peeled) = peeled {
                writeln!(content, "^{peeled}")?;
            }
        }
        self.replace_packed_refs(&content)
    }

    /// Replaces `packed-refs` by rename, without a process: as fast as a file is written. The text is one that
    /// [`Repo::move_refs_atomically`] left, with other ids; no loose refs may lie over it.
    pub fn replace_packed_refs(&self, content: &str) -> Result<()> {
        // Git's own lock file: a push at the same time waits or fails, and is never lost.
        let (lock, packed) = (self.git_dir().join("packed-refs.lock"), self.git_dir().join("packed-refs"));
        let mut file = std::fs::File::create_new(&lock).context("lock packed-refs")?;
        file.write_all(content.as_bytes())?;
        std::fs::rename(&lock, &packed).context("replace packed-refs")
    }

    /// Pushes refspecs to a URL or remote.
    pub async fn push(&self, remote: &str, refspecs: &[&str]) -> Result<()> {
        let mut args = vec!["push", "--quiet", remote];
        args.extend_from_slice(refspecs);
        self.git(&args).await.map(drop)
    }

    /// Runs `git fetch` with further options, remotes and refspecs.
    pub async fn fetch(&self, args: &[&str]) -> Result<()> {
        let mut all = vec!["fetch", "--quiet"];
        all.extend_from_slice(args);
        self.git(&all).await.map(drop)
    }

    fn with_dir<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["-C", text(&self.dir)];
        all.extend_from_slice(args);
        all
    }
}

/// Fills with bytes that do not compress (splitmix64: fast in debug builds too).
fn fill_with_noise(noise: &mut [u8], state: &mut u64) {
    for bytes in noise.chunks_mut(8) {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        for (byte, random) in bytes.iter_mut().zip(mixed.to_le_bytes()) {
            *byte = random;
        }
    }
}

/// Writes the head of a fast-import commit, as mark 1.
fn write_commit(script: &mut Vec<u8>, branch: &str, parent: Option<&str>, message: &str) -> Result<()> {
    write!(script, "commit refs/heads/{branch}\nmark :1\n")?;
    writeln!(script, "committer Carl Committer <carl@example.com> 1700000000 +0000")?;
    writeln!(script, "data {}\n{message}", message.len())?;
    if let Some(parent) = parent {
        writeln!(script, "from {parent}")?;
    }
    Ok(())
}

/// Writes one file of a fast-import commit.
fn write_file(script: &mut Vec<u8>, path: &str, content: &[u8]) -> Result<()> {
    write!(script, "M 100644 inline {path}\ndata {}\n", content.len())?;
    script.extend_from_slice(content);
    script.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commits_branches_and_tags_are_there_and_sound() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::seeded(dir.path().join("a.git")).await.unwrap();
        let first = repo.rev_parse("main").await.unwrap();
        let second = repo.commit("main", &[("dir/file", "text")]).await.unwrap();
        repo.grow("big", 3, 1000, 7).await.unwrap();
        repo.tag("light", &first).await.unwrap();
        let tag = repo.annotated_tag("v1", &second).await.unwrap();
        let refs = repo.refs().await.unwrap();
        assert_eq!(refs["HEAD"], second);
        assert_eq!(refs["refs/tags/v1"], tag);
        assert_eq!(refs["refs/tags/v1^{}"], second);
        assert_eq!(repo.git(&["rev-list", "--count", "big"]).await.unwrap(), "3");
        assert_eq!(repo.git(&["ls-tree", "-r", "--name-only", "main"]).await.unwrap(), "README\ndir/file");
        repo.fsck().await.unwrap();
    }

    #[tokio::test]
    async fn many_refs_move_in_one_instant_and_git_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::init(dir.path().join("a.git"), ObjectFormat::Sha256).await.unwrap();
        let one = repo.commit("main", &[("f", "1")]).await.unwrap();
        let two = repo.commit("main", &[("f", "2")]).await.unwrap();
        let tag = repo.annotated_tag("v1", &two).await.unwrap();
        let mut moves: Vec<_> = (0..300).map(|n| (format!("refs/heads/b{n}"), one.clone())).collect();
        moves.push(("refs/tags/copy".into(), tag.clone()));
        repo.move_refs_atomically(&moves).await.unwrap();
        repo.move_refs_atomically(&[("refs/heads/b7".into(), "0".repeat(64))]).await.unwrap();
        let refs = repo.refs().await.unwrap();
        assert_eq!(refs["refs/heads/b299"], one);
        assert_eq!(refs["refs/tags/copy^{}"], two);
        assert!(!refs.contains_key("refs/heads/b7"));
        repo.fsck().await.unwrap();
    }
}
