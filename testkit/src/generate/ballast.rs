//! Bytes that no compression makes less, below the youngest commits of `main`: a repository of many GB without the hours that
//! a history of so many objects takes. No worktree has them, so shallow clones stay what they are.

use std::io::{BufWriter, Write};
use std::process::ChildStdin;

use anyhow::Result;

use super::random::{Random, mix};

/// Bytes of a file: git neither seeks deltas for such large ones nor holds them in memory.
const FILE: usize = 32 << 20;
/// Commits on top: as many as a storm takes its own from, so that each of them has the ballast below it.
pub(super) const COMMITS: u32 = 501;
/// 2030-01-01: younger than all history.
const DAY: u64 = 1_893_456_000;
/// No ref keeps it but by the merge.
const BRANCH: &str = "refs/heads/ballast";

/// Writes so many MiB on a branch, merges it into `main` without its files, and goes on with small commits. Tells how many commits
/// that were.
pub(super) fn write(stdin: ChildStdin, mebibytes: u32, seed: u64) -> Result<u32> {
    let mut out = BufWriter::with_capacity(1 << 20, stdin);
    let mut random = Random::new(mix(seed, 3));
    let files = u64::from(mebibytes).div_ceil(FILE as u64 >> 20);
    let mut noise = vec![0; FILE];
    for file in 0..files {
        for bytes in noise.chunks_exact_mut(8) {
            bytes.copy_from_slice(&random.bits().to_le_bytes());
        }
        commit(&mut out, BRANCH, DAY + file, "ballast")?;
        write!(out, "M 100644 inline ballast/{file}\ndata {FILE}\n")?;
        out.write_all(&noise)?;
        writeln!(out)?;
    }
    commit(&mut out, "refs/heads/main", DAY + files, "take the ballast in")?;
    writeln!(out, "from refs/heads/main^0\nmerge {BRANCH}\n")?;
    let mut notes = String::new();
    for number in 1..COMMITS {
        notes.push_str(&format!("note {number}: {:016x}\n", random.bits()));
        commit(&mut out, "refs/heads/main", DAY + files + u64::from(number), "a note")?;
        write!(out, "M 100644 inline NOTES\ndata {}\n{notes}\n", notes.len())?;
    }
    write!(out, "reset {BRANCH}\nfrom {}\n\n", "0".repeat(40))?;
    out.flush()?;
    Ok(u32::try_from(files)? + COMMITS)
}

fn commit(out: &mut impl Write, branch: &str, when: u64, message: &str) -> Result<()> {
    writeln!(out, "commit {branch}\ncommitter Bal Last <ballast@example.com> {when} +0000")?;
    Ok(writeln!(out, "data {}\n{message}", message.len())?)
}
