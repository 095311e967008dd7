//! Bundles: what a branch has gained since some commit, as one file that `git fetch` takes.

use std::{ffi::OsStr, fs::File, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use bstr::BStr;

use super::{Git, GitError, Oid};

/// A bundle of years of history takes minutes.
const LIMIT: Duration = Duration::from_secs(1800);

/// How a commit that a client has stands to the branch it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The repository has no such commit.
    Unknown,
    /// It has all that the branch has.
    UpToDate,
    /// The branch has more.
    Behind,
}

/// How `base` stands to `tip`, both of the repository `dir`.
///
/// # Errors
/// Git fails.
pub async fn relation(git: &Git, dir: &Path, base: Oid, tip: Oid) -> Result<Base, GitError> {
    let command = |verb| git.command(verb).git_dir(dir);
    let check = command("cat-file").args(["--batch-check=%(objecttype)"]);
    let kind = check.input(format!("{base}\n").into_bytes()).run(LIMIT).await?.stdout;
    if kind.trim_ascii() != b"commit" {
        return Ok(Base::Unknown);
    }
    let list = command("rev-list").args(["--max-count=1", "--stdin"]);
    let ahead = list.input(format!("{tip}\n^{base}\n").into_bytes()).run(LIMIT).await?.stdout;
    Ok(if ahead.trim_ascii().is_empty() { Base::UpToDate } else { Base::Behind })
}

/// Writes what `branch`, by its full name, has and `base` has not into `file`, which is empty. With bitmaps the
/// deltas against the base would be lost.
///
/// # Errors
/// Git fails; `file` then holds part of a bundle, or nothing.
pub async fn create(git: &Git, dir: &Path, branch: &BStr, base: Oid, file: File) -> Result<(), GitError> {
    let command = git.command("bundle").git_dir(dir).config("pack.useBitmaps=false").config("pack.threads=1");
    let command = command.args(["create", "--quiet", "-"]).arg(OsStr::from_bytes(branch));
    command.arg(format!("^{base}")).output_to(file).run(LIMIT).await?;
    Ok(())
}
