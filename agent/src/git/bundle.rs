//! Bundles: what a branch has gained since some commit, as one file that `git fetch` takes.

use std::{fs::File, io::Write, path::Path, time::Duration};

use bstr::BStr;

use super::{Git, GitError, ObjectFormat, Oid};
use crate::files::blocking;

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

/// Writes what `tip` has and `base` has not into `file`, which is empty; whoever takes the bundle finds `tip` as `branch`, a
/// full name. The branch itself may be elsewhere by now. With bitmaps the deltas against the base would be lost. Returns the
/// length.
///
/// # Errors
/// Git fails; `file` then holds part of a bundle, or nothing.
pub async fn create(
    git: &Git,
    dir: &Path,
    branch: &BStr,
    (base, tip): (Oid, Oid),
    format: ObjectFormat,
    mut file: File,
) -> Result<u64, GitError> {
    let io_error = |source| GitError::Io { verb: "pack-objects".into(), source };
    let head = head(branch, base, tip, format);
    let file = blocking(move || file.write_all(&head).map(|()| file)).await.map_err(io_error)?;
    let out = file.try_clone().map_err(io_error)?;
    let pack =
        git.command("pack-objects").git_dir(dir).config("pack.useBitmaps=false").config("pack.threads=1");
    let pack = pack.args(["--stdout", "--thin", "--delta-base-offset", "--revs", "--quiet"]).output_to(out);
    pack.input(format!("{tip}\n^{base}\n").into_bytes()).run(LIMIT).await?;
    file.metadata().map(|meta| meta.len()).map_err(io_error)
}

/// What comes before the pack (gitformat-bundle(5)).
fn head(branch: &BStr, base: Oid, tip: Oid, format: ObjectFormat) -> Vec<u8> {
    let version = match format {
        ObjectFormat::Sha1 => "# v2 git bundle\n",
        ObjectFormat::Sha256 => "# v3 git bundle\n@object-format=sha256\n",
    };
    let mut head = format!("{version}-{base}\n{tip} ").into_bytes();
    head.extend_from_slice(branch);
    head.extend_from_slice(b"\n\n");
    head
}
