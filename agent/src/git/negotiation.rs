//! What a git client says that it has.

use std::{fmt::Write as _, path::Path, time::Duration};

use super::{Git, GitError, Oid};

/// The newest commits that `tips` reach and that are no ancestors of any in `common`, at most `most`; read in the
/// repository `dir`.
///
/// # Errors
/// Git fails.
pub async fn newest(
    git: &Git,
    dir: &Path,
    tips: &[Oid],
    common: &[Oid],
    most: usize,
) -> Result<Vec<Oid>, GitError> {
    let mut revisions = String::new();
    for tip in tips {
        let _ = writeln!(revisions, "{tip}");
    }
    for oid in common {
        // Its parents: the commit itself is one of the tips.
        let _ = writeln!(revisions, "^{oid}^@");
    }
    let list = git.command("rev-list").git_dir(dir).args(["--ignore-missing", "--stdin"]);
    let listed = list.arg(format!("--max-count={most}")).input(revisions.into_bytes());
    let listed = listed.run(Duration::from_secs(10)).await?.stdout;
    Ok(listed.split(|byte| *byte == b'\n').filter_map(Oid::from_hex).collect())
}
