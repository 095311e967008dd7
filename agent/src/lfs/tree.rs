//! Which LFS objects a commit's worktree needs: the pointers in its tree.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader},
    path::Path,
    time::Duration,
};

use bstr::ByteSlice;

use crate::{
    files::blocking,
    git::{Git, GitError},
    protocol::lfs::{MAX_POINTER, MIN_POINTER, Object, parse_pointer},
};

/// A tree of a million files on a cold disk takes minutes.
const LIMIT: Duration = Duration::from_secs(600);

/// Blobs read at once: 4 MB of them at most.
const BATCH: usize = 4096;

/// The LFS objects that `commit` of the repository at `dir` names. `list` is a file to work with; the caller removes it.
///
/// # Errors
/// The repository has no such commit, or the disk fails.
pub async fn objects(git: &Git, dir: &Path, commit: &str, list: &Path) -> Result<BTreeSet<Object>, GitError> {
    let failed = |source| GitError::Io { verb: "ls-tree".into(), source };
    let out = fs::File::create_new(list).map_err(failed)?;
    let tree = git.command("ls-tree").git_dir(dir).args(["-r", "-z", "--long", commit]);
    tree.output_to(out).run(LIMIT).await?;
    let from = list.to_owned();
    let listed = blocking(move || candidates(BufReader::new(fs::File::open(from)?)));
    let candidates = listed.await.map_err(failed)?;
    let mut found = BTreeSet::new();
    for names in candidates.chunks(BATCH) {
        let read = git.command("cat-file").git_dir(dir).args(["--batch"]).input(names.concat());
        found.extend(pointers(&read.run(LIMIT).await?.stdout));
    }
    Ok(found)
}

/// The names, each on a line, of those blobs in the output of `git ls-tree -r -z --long` that may be pointers.
fn candidates(tree: impl BufRead) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in tree.split(0) {
        let entry = entry?;
        // <mode> SP blob SP <name> SP <size, padded> TAB <path>
        let head = entry.split_str("\t").next().unwrap_or_default();
        let words: Vec<&[u8]> = head.fields_with(|c| c == ' ').collect();
        let [_, b"blob", name, size] = words.as_slice() else { continue };
        let size = size.to_str().ok().and_then(|size| size.parse::<u64>().ok());
        if size.is_some_and(|size| (MIN_POINTER..=MAX_POINTER).contains(&size)) {
            names.push([name, b"\n".as_slice()].concat());
        }
    }
    Ok(names)
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
            candidates(bytes.as_bytes()).unwrap();
        }
    }

    #[test]
    fn blobs_of_the_right_length_are_candidates() {
        let tree = b"100644 blob aaaa     130\tdir/a\tb\x00160000 commit bbbb       -\tsub\x00\
                     120000 blob cccc       7\tlink\x00100755 blob dddd    1024\tx y\x00100644 blob eeee    1025\tz\x00";
        assert_eq!(candidates(&tree[..]).unwrap(), [b"aaaa\n".to_vec(), b"dddd\n".to_vec()]);
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
