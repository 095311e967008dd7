//! What happens to a generated repository afterwards: copies of it, and pushes to them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::git::Repo;

/// A push of so many commits to `main`, for [`Repo::fast_import`]: each changes a line of one to three files. Pushes of
/// different numbers change different files.
///
/// # Errors
/// The repository cannot be read, or is empty.
pub async fn edits(repo: &Repo, push: usize, commits: usize) -> Result<String> {
    let tree = repo.git(&["ls-tree", "-r", "HEAD"]).await?;
    let paths: Vec<&str> = tree
        .lines()
        .filter(|line| line.starts_with("100644 "))
        .filter_map(|line| Some(line.split_once('\t')?.1))
        .collect();
    ensure!(!paths.is_empty(), "HEAD holds no files");
    let mut script = String::new();
    let mut changes = 0;
    for commit in 0..commits {
        let date = 1_900_000_000 + push * commits + commit;
        let message = format!("push {push}, commit {commit}");
        writeln!(script, "commit refs/heads/main\ncommitter Bench <bench@example.com> {date} +0000")?;
        writeln!(script, "data {}\n{message}", message.len())?;
        if commit == 0 {
            writeln!(script, "from refs/heads/main^0")?;
        }
        for _ in 0..=commit % 3 {
            changes += 1;
            // A prime step goes through all directories, and seldom meets a file twice.
            let path = paths.get((push * 97 + changes * 1_009) % paths.len()).context("no such file")?;
            let old = repo.git(&["cat-file", "blob", &format!("HEAD:{path}")]).await?;
            let mut lines: Vec<&str> = old.lines().collect();
            lines.insert(lines.len() / 2, &message);
            let new = lines.join("\n") + "\n";
            write!(script, "M 100644 inline {path}\ndata {}\n{new}\n", new.len())?;
        }
    }
    Ok(script)
}

/// Copies a bare repository; packs, which never change, are linked.
///
/// # Errors
/// The disk; above all, that both places are not on one.
pub fn linked_copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            linked_copy(&source, &target)?;
        } else if source.components().any(|part| part.as_os_str() == "objects") {
            fs::hard_link(&source, &target).with_context(|| format!("link {}", source.display()))?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    Ok(())
}
