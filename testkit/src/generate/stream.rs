//! The fast-import stream: blobs, commits, tags and refs, numbered by marks.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::process::ChildStdin;

use anyhow::Result;

/// What fast-import calls an object of this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u32);

/// A change of one path in a commit.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// The path has this content.
    Write(String, Mark),
    /// The path is gone.
    Delete(String),
}

impl Change {
    fn path(&self) -> &str {
        match self {
            Self::Write(path, _) | Self::Delete(path) => path,
        }
    }
}

/// Who and when.
#[derive(Debug, Clone)]
pub(super) struct Signature {
    /// `Name <address>`.
    pub(super) who: String,
    /// Seconds since 1970.
    pub(super) when: u64,
}

/// Where a commit goes and what it comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The ref that moves.
    pub(super) on: &'a str,
    /// The first parent; none for the first commit.
    pub(super) from: Option<Mark>,
    /// The second parent of a merge.
    pub(super) merge: Option<Mark>,
}

/// Writes the stream and counts the objects in it.
#[derive(Debug)]
pub(super) struct Stream {
    out: BufWriter<ChildStdin>,
    marks: u32,
    objects: u64,
    commits: u64,
}

impl Stream {
    /// Starts a stream.
    pub(super) fn new(stdin: ChildStdin) -> Self {
        Self { out: BufWriter::with_capacity(1 << 20, stdin), marks: 0, objects: 0, commits: 0 }
    }

    /// Objects written so far, trees included: at least so many.
    pub(super) fn objects(&self) -> u64 {
        self.objects
    }

    /// Commits written so far.
    pub(super) fn commits(&self) -> u64 {
        self.commits
    }

    /// Writes a blob.
    pub(super) fn blob(&mut self, content: &[u8]) -> Result<Mark> {
        let mark = self.mark();
        writeln!(self.out, "blob\nmark :{}", mark.0)?;
        self.data(content)?;
        self.objects += 1;
        Ok(mark)
    }

    /// Writes a commit.
    pub(super) fn commit(
        &mut self,
        place: Place<'_>,
        by: &Signature,
        message: &str,
        changes: &[Change],
    ) -> Result<Mark> {
        let mark = self.mark();
        writeln!(self.out, "commit {}\nmark :{}", place.on, mark.0)?;
        writeln!(self.out, "author {0} {1} +0000\ncommitter {0} {1} +0000", by.who, by.when)?;
        self.data(message.as_bytes())?;
        if let Some(Mark(from)) = place.from {
            writeln!(self.out, "from :{from}")?;
        }
        if let Some(Mark(merge)) = place.merge {
            writeln!(self.out, "merge :{merge}")?;
        }
        for change in changes {
            match change {
                Change::Write(path, Mark(blob)) => writeln!(self.out, "M 100644 :{blob} {path}")?,
                Change::Delete(path) => writeln!(self.out, "D {path}")?,
            }
        }
        self.commits += 1;
        // The trees of a merge are often those of the topic: counting none keeps this a lower bound.
        self.objects += 1 + if place.merge.is_some() { 0 } else { trees(changes) };
        Ok(mark)
    }

    /// Writes an annotated tag.
    pub(super) fn tag(&mut self, name: &str, from: Mark, by: &Signature, message: &str) -> Result<()> {
        writeln!(self.out, "tag {name}\nfrom :{}\ntagger {} {} +0000", from.0, by.who, by.when)?;
        self.data(message.as_bytes())?;
        self.objects += 1;
        Ok(())
    }

    /// Points a ref at a commit, or removes it.
    pub(super) fn point(&mut self, name: &str, at: Option<Mark>) -> Result<()> {
        match at {
            Some(Mark(mark)) => writeln!(self.out, "reset {name}\nfrom :{mark}\n")?,
            None => writeln!(self.out, "reset {name}\nfrom {}\n", "0".repeat(40))?,
        }
        Ok(())
    }

    /// Ends the stream.
    pub(super) fn finish(mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }

    fn mark(&mut self) -> Mark {
        self.marks += 1;
        Mark(self.marks)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        writeln!(self.out, "data {}", bytes.len())?;
        self.out.write_all(bytes)?;
        Ok(self.out.write_all(b"\n")?)
    }
}

/// How many trees a commit with these changes adds: every directory above a changed path, once.
fn trees(changes: &[Change]) -> u64 {
    let directories: BTreeSet<&str> = changes
        .iter()
        .flat_map(|change| {
            let path = change.path();
            path.match_indices('/').map(move |(at, _)| path.split_at(at).0)
        })
        .collect();
    1 + directories.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_directory_above_a_change_is_one_tree() {
        let change = |path: &str| Change::Write(path.to_owned(), Mark(1));
        assert_eq!(trees(&[change("readme")]), 1);
        assert_eq!(trees(&[change("a/b/c"), change("a/b/d"), change("a/e")]), 3);
    }
}
