//! How large a worktree would be, by walking its trees: with counters, and no further than it may go. A repository of
//! a few kB can name billions of files.

use std::time::Duration;

use bstr::ByteSlice;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use crate::git::{
    GitError,
    command::{Command, failure, read_stderr},
};

/// A tree of two million files on a cold disk takes minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// What a file takes at least on usual file systems.
const BLOCK: u64 = 4096;

/// Mode, kind, name and size of an entry take less; what follows is its path.
const HEAD: usize = 128;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measured {
    /// It is within both bounds.
    Fits,
    /// It has more entries.
    TooManyFiles,
    /// It takes more bytes: at least these.
    TooManyBytes(u64),
}

/// Reads what `ls_tree`, a `git ls-tree -r -t -z --long`, prints, and ends it where the worktree has more than `files`
/// entries or takes more than `bytes` bytes.
///
/// # Errors
/// Git fails, or takes too long.
pub(super) async fn measure(ls_tree: Command, files: u64, bytes: u64) -> Result<Measured, GitError> {
    let verb = "ls-tree";
    let io_error = |source| GitError::Io { verb: verb.into(), source };
    let mut child = ls_tree.spawn()?;
    let (stdout, stderr) = (child.inner.stdout.take(), child.inner.stderr.take());
    let measure = async {
        let mut counters = Counters::default();
        let Some(stdout) = stdout else { return Ok(Measured::Fits) };
        let measured = counters.read(stdout, files, bytes).await.map_err(io_error)?;
        if measured != Measured::Fits {
            // Dropped, it ends.
            return Ok(measured);
        }
        let said = read_stderr(stderr, None).await;
        let status = child.inner.wait().await.map_err(io_error)?;
        if status.success() { Ok(measured) } else { Err(failure(verb, status, &said)) }
    };
    let timed_out = |_| GitError::TimedOut { verb: verb.into(), limit: LIMIT };
    timeout(LIMIT, measure).await.map_err(timed_out)?
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Counters {
    files: u64,
    bytes: u64,
    /// The beginning of an entry.
    head: Vec<u8>,
}

impl Counters {
    async fn read(
        &mut self,
        mut from: impl AsyncRead + Unpin,
        files: u64,
        bytes: u64,
    ) -> std::io::Result<Measured> {
        let mut chunk = vec![0; 64 << 10];
        while let count @ 1.. = from.read(&mut chunk).await? {
            let mut rest = chunk.get(..count).unwrap_or_default();
            while let Some((end, after)) = rest.split_once_str("\0") {
                self.take(end);
                self.entry();
                rest = after;
            }
            self.take(rest);
            if self.files > files {
                return Ok(Measured::TooManyFiles);
            }
            if self.bytes > bytes {
                return Ok(Measured::TooManyBytes(self.bytes));
            }
        }
        Ok(Measured::Fits)
    }

    /// Takes as much of an entry as matters.
    fn take(&mut self, part: &[u8]) {
        let room = HEAD.saturating_sub(self.head.len()).min(part.len());
        self.head.extend_from_slice(part.get(..room).unwrap_or_default());
    }

    /// Counts `<mode> SP <kind> SP <name> SP <size, padded> TAB <path>`; directories have `-` for a size.
    fn entry(&mut self) {
        let head = self.head.split(|byte| *byte == b'\t').next().unwrap_or_default();
        let size = head.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        let size: u64 = str::from_utf8(size).ok().and_then(|size| size.parse().ok()).unwrap_or(0);
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size.next_multiple_of(BLOCK).max(BLOCK));
        self.head.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn measured(listing: &str, files: u64, bytes: u64) -> Measured {
        Counters::default().read(listing.replace('|', "\0").as_bytes(), files, bytes).await.unwrap()
    }

    #[tokio::test]
    async fn files_and_bytes_are_counted_and_no_further_than_they_may_go() {
        let listing = format!(
            "040000 tree {0}       -\td|100644 blob {0}    5000\td/{1}|160000 commit {0}       -\ts|",
            "1".repeat(40),
            "long ".repeat(100)
        );
        assert_eq!(measured(&listing, 3, 4 * BLOCK).await, Measured::Fits);
        assert_eq!(measured(&listing, 2, 4 * BLOCK).await, Measured::TooManyFiles);
        assert_eq!(measured(&listing, 3, 4 * BLOCK - 1).await, Measured::TooManyBytes(4 * BLOCK));
        assert_eq!(measured("", 0, 0).await, Measured::Fits);
    }
}
