//! Which LFS objects a commit's worktree needs: the pointers in its tree.

use std::{collections::BTreeSet, path::Path, time::Duration};

use bstr::ByteSlice;

use crate::{
    git::{
        Git, GitError, Oid,
        extent::{self, Excess, Most},
        stderr::FailureKind,
    },
    protocol::lfs::{MAX_POINTER, MIN_POINTER, Object, parse_pointer},
};

/// Blobs read at once: 4 MB of them at most.
const BATCH: usize = 4096;

/// So many small blobs on a cold disk take seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// The LFS objects that `commit` of the repository at `dir` names; why they are not looked for where its tree is larger than
/// `most`.
///
/// # Errors
/// The repository has no such commit, or the disk fails.
pub async fn objects(
    git: &Git,
    dir: &Path,
    commit: &str,
    most: Most,
) -> Result<Result<BTreeSet<Object>, Excess>, GitError> {
    let unnamed = || GitError::Failed {
        verb: "cat-file".into(),
        kind: FailureKind::Other,
        message: format!("{commit} names no commit"),
    };
    let commit = Oid::from_hex(commit.as_bytes()).ok_or_else(unnamed)?;
    let lengths = MIN_POINTER..=MAX_POINTER;
    let candidates = match extent::measure(git, dir, commit, most, Some(lengths)).await? {
        Ok(found) => found.blobs.into_iter().collect::<Vec<_>>(),
        Err(excess) => return Ok(Err(excess)),
    };
    let mut found = BTreeSet::new();
    for names in candidates.chunks(BATCH) {
        let names: String = names.iter().map(|name| format!("{name}\n")).collect();
        let read = git.command("cat-file").git_dir(dir).args(["--batch"]).input(names.into_bytes());
        found.extend(pointers(&read.run(LIMIT).await?.stdout));
    }
    Ok(Ok(found))
}

/// The objects that the blobs in the output of `git cat-file --batch` point to.
fn pointers(mut output: &[u8]) -> Vec<Object> {
    let mut found = Vec::new();
    // <name> SP blob SP <size> LF <content> LF
    while let Some((head, rest)) = output.split_once_str("\n") {
        let size = head.rsplit_str(" ").next().and_then(|size| size.to_str().ok()?.parse::<usize>().ok());
        // A name that git does not know has no content.
        let Some(content) = size.and_then(|size| rest.get(..size)) else {
            output = rest;
            continue;
        };
        found.extend(parse_pointer(content));
        output = rest.get(content.len() + 1..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_output_is_read_to_its_end(bytes in "([0-9a-f]{0,4}( blob)? [0-9]{0,3}\\n?){0,9}") {
            pointers(bytes.as_bytes());
        }
    }

    #[test]
    fn pointers_are_found_among_other_blobs() {
        let name = "a".repeat(64);
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize 9\n");
        let output = format!(
            "1111 blob 4\nabc\n\n2222 missing\n3333 blob {}\n{pointer}\n4444 blob 0\n\n",
            pointer.len()
        );
        let found = pointers(output.as_bytes());
        assert_eq!(found, [parse_pointer(pointer.as_bytes()).unwrap()]);
        assert_eq!(pointers(b""), []);
    }
}
