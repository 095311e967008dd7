//! What one command costs from its start to its end, everything it starts included.

use std::ffi::OsStr;
use std::fs::File;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout};

use super::reaped_cpu;
use super::sampler::Sampler;
use super::tree::{Accounting, Tree};
use crate::process::Group;

/// What a command used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// CPU of the command and everything it started.
    pub cpu: Duration,
    /// From its start to its end.
    pub wall: Duration,
    /// The peak of their memory that is not mapped from files, in bytes, as far as it was seen (every 0.1 s).
    pub anonymous: u64,
    /// Bytes that it wrote to its standard output.
    pub written: u64,
}

/// Runs a command to its end, which must be a success. `prepare` sets what the command needs besides its arguments, and
/// `output` is its standard output.
///
/// # Errors
/// It cannot be started, fails, or is not done after `limit`.
pub async fn once<S: AsRef<OsStr>>(
    name: &str,
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
    prepare: impl FnOnce(&mut std::process::Command),
    stdin: &[u8],
    output: File,
    limit: Duration,
) -> Result<Cost> {
    let tree = Arc::new(Tree::open(name));
    let mut command = tree.command(program, args);
    prepare(&mut command);
    let written = output.try_clone()?;
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped()).kill_on_drop(true);
    let (reaped, start) = (reaped_cpu()?, Instant::now());
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    let pid = child.id().with_context(|| format!("{name} ended at once"))?;
    let group = Group::of(&child);
    let members = Arc::clone(&tree);
    let sampler = Sampler::start(move || members.members(pid).unwrap_or_default());
    let mut input = child.stdin.take().context("no standard input")?;
    let feed = async {
        // A command that ends without reading its input is judged by its exit status.
        let _ = input.write_all(stdin).await;
        drop(input);
    };
    let work = async { tokio::join!(feed, child.wait_with_output()).1 };
    let done = timeout(limit, work).await;
    let (wall, seen) = (start.elapsed(), sampler.stop());
    let done = done.with_context(|| format!("{name} is not done after {limit:?}"))??;
    group.forget();
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{name} ended with {}: {}", done.status, said.trim_end());
    let cpu = match tree.accounting {
        Accounting::Proc => reaped_cpu()?.saturating_sub(reaped),
        Accounting::CgroupV1 | Accounting::CgroupV2 => tree.cpu(pid)?,
    };
    Ok(Cost { cpu, wall, anonymous: seen.peak.anonymous, written: written.metadata()?.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn children_count_and_failures_are_told() {
        let run = async |script: &str| {
            let file = tempfile::tempfile().unwrap();
            let args = ["-c", script];
            once("once", "/bin/sh", args, |_| {}, b"five\n", file, Duration::from_secs(60)).await
        };
        let busy = "cat; sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done'";
        let cost = run(busy).await.unwrap();
        assert!(cost.cpu > Duration::from_millis(50), "{cost:?}");
        assert_eq!(cost.written, 5);
        let failure = run("echo why >&2; exit 3").await.unwrap_err().to_string();
        assert!(failure.contains("why"), "{failure}");
    }
}
