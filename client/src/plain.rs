//! The ordinary way: `git clone`, from Tarn or from the upstream, for whenever the snapshot cannot be used.

use std::path::Path;

use crate::checkout::{self, CheckoutError, Head, Repository, Wanted};
use crate::git::Git;
use crate::snapshot::forget_fetch;

/// Clones `url` into the empty directory `dir`, checks out what is wanted, and calls the remote `origin`.
///
/// # Errors
/// Git failed, or what is wanted is not there.
pub async fn clone(
    git: &Git,
    url: &str,
    origin: &str,
    dir: &Path,
    wanted: &Wanted,
) -> Result<Head, CheckoutError> {
    let mut clone = git.anywhere().args(["clone"]).progress().args(["--origin", "origin"]);
    if wanted.is_special() {
        clone = clone.args(["--no-checkout"]);
    }
    if url != origin {
        // Tarn needs no password; the upstream's is not for it.
        clone = clone.unattended();
    }
    clone.args(["--".as_ref(), url.as_ref(), dir.as_os_str()]).run().await?;
    let mut head = checkout::head(git, dir).await?;
    if wanted.is_special() {
        head = Repository { git, dir, url, upstream: &head, shown: None }.check_out(wanted).await?;
        forget_fetch(dir);
    }
    if url != origin {
        git.within(dir).args(["config", "remote.origin.url", origin]).run().await?;
    }
    Ok(head)
}
