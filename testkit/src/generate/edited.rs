//! A small repository of text files that are edited over and over, for tests of what lies between two states of it: a thin
//! pack of a push holds thousands of deltas against objects from before the push.
//!
//! Unlike the benchmarks' repository, this one is made in seconds, and two pushes touch most files: git stores the
//! youngest version of a file as a delta of the version that the receiver has, and older ones as deltas of the youngest. So
//! it is the number of files that makes the number of deltas across the seam, not the number of commits.

use std::fmt::Write as _;

use super::random::Random;

/// Directories, …
const DIRECTORIES: usize = 40;
/// … files in each, …
const FILES: usize = 60;
/// … and lines of a file: about 3 kB.
const LINES: usize = 80;
/// Commits before the first push: two pushes add less than a quarter of their objects.
const BASE: usize = 4_200;
/// Commits of a push.
const PUSH: usize = 120;
/// Files that a commit of a push changes.
const CHANGED: usize = 10;
/// A merge comes after so many commits, and so does whatever else is rare.
const RARELY: usize = 30;

/// The history so far: what its next part is written from.
#[derive(Debug)]
pub struct Edited {
    random: Random,
    words: Vec<String>,
    /// The text of each file on `main`.
    files: Vec<Vec<String>>,
    /// What some files were long ago: pushes bring these back, as reverts do.
    former: Vec<(usize, Vec<String>)>,
    /// Commits so far; also seconds after the first.
    commits: usize,
    /// Pushes so far.
    pushes: usize,
    /// The file that a push changes next: pushes go through all of them in turn.
    next: usize,
}

impl Edited {
    /// Begins; equal beginnings give equal histories.
    #[must_use]
    pub fn new() -> Self {
        let mut random = Random::new(42);
        let words = (0..600).map(|_| word(&mut random)).collect();
        let mut new =
            Self { random, words, files: Vec::new(), former: Vec::new(), commits: 0, pushes: 0, next: 0 };
        new.files = (0..DIRECTORIES * FILES).map(|_| (0..LINES).map(|_| new.line()).collect()).collect();
        new
    }

    /// The history before the first push, for `git fast-import` into a repository without a branch `main`: 4,200 commits
    /// with merges, and annotated tags.
    pub fn base(&mut self) -> String {
        let mut script = String::new();
        self.commit(&mut script, "main", None, &(0..self.files.len()).collect::<Vec<_>>());
        for number in 1..BASE {
            let file = self.random.below(self.files.len());
            if number % RARELY == 0 {
                self.former.push((file, self.text(file).to_vec()));
                self.merged(&mut script, file);
            } else {
                self.edit(file);
                self.commit(&mut script, "main", None, &[file]);
            }
            if number % 500 == 0 {
                self.tag(&mut script, &format!("v0.{}", number / 500));
            }
        }
        script
    }

    /// The next push: 120 commits that change half of the files, with merges, files that become what they were long ago, an
    /// annotated tag, and a branch without a common ancestor.
    pub fn push(&mut self) -> String {
        self.pushes += 1;
        let mut script = String::from("reset refs/heads/main\nfrom refs/heads/main^0\n\n");
        for number in 1..PUSH {
            let mut changed: Vec<usize> = Vec::with_capacity(CHANGED);
            for _ in 0..CHANGED {
                changed.push(self.next % self.files.len());
                self.next += 1;
            }
            for &file in &changed {
                self.edit(file);
            }
            if number % RARELY == 0
                && let Some((file, text)) = self.former.pop()
            {
                if let Some(place) = self.files.get_mut(file) {
                    *place = text;
                }
                changed.push(file);
            }
            self.commit(&mut script, "main", None, &changed);
            if number % RARELY == RARELY / 2 {
                let file = self.random.below(self.files.len());
                self.merged(&mut script, file);
            }
        }
        let pushes = self.pushes;
        self.tag(&mut script, &format!("v1.{pushes}"));
        let _ = write!(script, "reset refs/heads/orphan-{pushes}\n\n");
        self.edit(0);
        self.commit(&mut script, &format!("orphan-{pushes}"), None, &[0]);
        script
    }

    /// A change of a file on a branch `topic`, while `main` goes on, and its merge.
    fn merged(&mut self, script: &mut String, file: usize) {
        let _ = write!(script, "reset refs/heads/topic\nfrom refs/heads/main\n\n");
        self.edit(file);
        self.commit(script, "topic", None, &[file]);
        let other = (file + 1) % self.files.len();
        self.edit(other);
        self.commit(script, "main", None, &[other]);
        // fast-import takes both parents and no content from them but the first's.
        self.commit(script, "main", Some("topic"), &[file]);
    }

    fn commit(&mut self, script: &mut String, branch: &str, merge: Option<&str>, changed: &[usize]) {
        self.commits += 1;
        let date = 1_700_000_000 + self.commits * 60;
        let message = format!("commit {} on {branch}", self.commits);
        let _ =
            writeln!(script, "commit refs/heads/{branch}\ncommitter Ed Itor <ed@example.com> {date} +0000");
        let _ = writeln!(script, "data {}\n{message}", message.len());
        if let Some(merge) = merge {
            let _ = writeln!(script, "merge refs/heads/{merge}");
        }
        for &file in changed {
            let text = self.text(file).concat();
            let (directory, name) = (file / FILES, file % FILES);
            let _ =
                writeln!(script, "M 100644 inline part-{directory}/text-{name}\ndata {}\n{text}", text.len());
        }
        script.push('\n');
    }

    fn tag(&self, script: &mut String, name: &str) {
        let date = 1_700_000_000 + self.commits * 60;
        let _ = writeln!(
            script,
            "tag {name}\nfrom refs/heads/main\ntagger Ed Itor <ed@example.com> {date} +0000"
        );
        let _ = writeln!(script, "data {}\n{name}", name.len());
    }

    /// Replaces one line of a file.
    fn edit(&mut self, file: usize) {
        let (line, at) = (self.line(), self.random.below(LINES));
        if let Some(place) = self.files.get_mut(file).and_then(|lines| lines.get_mut(at)) {
            *place = line;
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        for _ in 0..6 {
            line.push_str(self.random.pick::<String>(&self.words));
            line.push(' ');
        }
        line.push('\n');
        line
    }

    fn text(&self, file: usize) -> &[String] {
        self.files.get(file).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Default for Edited {
    fn default() -> Self {
        Self::new()
    }
}

fn word(random: &mut Random) -> String {
    let syllables = random.between(1, 3);
    (0..syllables)
        .map(|_| *random.pick(&["ba", "dor", "fi", "kel", "mo", "nur", "pes", "ra", "ti", "vo"]))
        .collect()
}

#[cfg(test)]
mod tests {
    use flate2::bufread::ZlibDecoder;

    use super::*;
    use crate::git::{Git, Repo};

    /// Objects in a pack, and those that are deltas of objects outside of it, where deltas of inside name an offset.
    fn deltas_across(pack: &[u8]) -> (u32, u32) {
        let count = u32::from_be_bytes(pack[8..12].try_into().unwrap());
        let (mut at, mut across) = (12, 0);
        for _ in 0..count {
            let kind = (pack[at] >> 4) & 7;
            while pack[at] & 0x80 != 0 {
                at += 1;
            }
            at += 1;
            if kind == 7 {
                across += 1;
                at += 20;
            } else if kind == 6 {
                while pack[at] & 0x80 != 0 {
                    at += 1;
                }
                at += 1;
            }
            let mut inflate = ZlibDecoder::new(&pack[at..]);
            std::io::copy(&mut inflate, &mut std::io::sink()).unwrap();
            at += usize::try_from(inflate.total_in()).unwrap();
        }
        assert_eq!(at + 20, pack.len());
        (count, across)
    }

    #[tokio::test]
    async fn a_push_has_thousands_of_deltas_against_what_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.git");
        let repo = Repo::init_bare(&path).await.unwrap();
        let mut edited = Edited::new();
        repo.fast_import(edited.base().as_bytes()).await.unwrap();
        let base = repo.rev_parse("main").await.unwrap();
        for _ in 0..2 {
            repo.fast_import(edited.push().as_bytes()).await.unwrap();
        }
        repo.fsck().await.unwrap();
        let commits: u32 = repo.git(&["rev-list", "--count", "--all"]).await.unwrap().parse().unwrap();
        assert!((4_300..5_000).contains(&commits), "{commits}");
        assert_ne!(repo.git(&["rev-list", "--merges", "--count", "main"]).await.unwrap(), "0");
        let args = ["-C", path.to_str().unwrap(), "pack-objects", "--revs", "--thin", "--delta-base-offset"];
        let args = args.into_iter().chain(["--stdout", "--quiet"]);
        let wanted = format!("main\n^{base}\n");
        let pack = Git::new().unwrap().run_with(args, wanted.as_bytes()).await.unwrap().stdout;
        let (objects, across) = deltas_across(&pack);
        assert!(across > 2_000, "{across} of {objects} in {} bytes", pack.len());
    }

    #[test]
    fn histories_repeat() {
        let script = || {
            let mut edited = Edited::new();
            (edited.base(), edited.push())
        };
        assert!(script() == script());
    }
}
