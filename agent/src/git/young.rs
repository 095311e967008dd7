//! Commits that reach nearly all that a repository holds. What one commit reaches is counted; those that descend from it reach
//! no less.

use std::{path::Path, time::Duration};

use bstr::ByteSlice;

use super::{
    Git, GitError, Oid, layer,
    pack::{number, revisions},
};

/// How long a walk may take; beyond that nothing is known.
const LIMIT: Duration = Duration::from_secs(60);

/// The most commits that are known: 33 bytes each.
const MOST: usize = 1 << 16;

/// How many percent of the default branch's commits are left out to find one that reaches enough: the first that does.
const LEFT_OUT: [u64; 4] = [30, 20, 10, 3];

/// A commit, and how many objects it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Which.
    pub commit: Oid,
    /// How many.
    pub objects: u64,
}

/// An old commit that `head` descends from and that reaches `least` objects, in the repository `dir`; `None` if none was found.
///
/// # Errors
/// What git says.
pub async fn floor(git: &Git, dir: &Path, head: Oid, least: u64) -> Result<Option<Floor>, GitError> {
    let walk = || git.command("rev-list").git_dir(dir).arg("--first-parent");
    let all = number(&walk().args(["--count", &head.to_hex()]).run(LIMIT).await?.stdout).unwrap_or(0_u64);
    for percent in LEFT_OUT {
        let skip = format!("--skip={}", all * percent / 100);
        let found = walk().args(["--max-count=1", &skip, &head.to_hex()]).run(LIMIT).await?.stdout;
        let Some(commit) = Oid::from_hex(found.trim_ascii_end()) else { continue };
        if let Some(objects) = layer::count(git, dir, &[commit]).await?.filter(|count| *count >= least) {
            return Ok(Some(Floor { commit, objects }));
        }
    }
    Ok(None)
}

/// The commits that `tips` reach and that reach `from`, sorted; of very many the newest.
///
/// # Errors
/// What git says.
pub async fn young(git: &Git, dir: &Path, from: Oid, tips: &[Oid]) -> Result<Vec<Oid>, GitError> {
    let most = format!("--max-count={MOST}");
    let list = git.command("rev-list").git_dir(dir).args(["--ancestry-path", &most, "--stdin"]);
    let listed = list.input(revisions(tips, &[from])).run(LIMIT).await?.stdout;
    let mut oids: Vec<Oid> = listed.split_str("\n").filter_map(Oid::from_hex).chain([from]).collect();
    oids.sort_unstable();
    Ok(oids)
}
