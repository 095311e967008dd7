//! The one place of the test kit that starts processes: bounded in time, output captured, killed as a group.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;

/// What a finished process left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text for messages and assertions.
    pub stderr: String,
}

impl Output {
    /// Standard output as text without the final newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }
}

/// Prepares a process in a process group of its own, so that ending it ends its children too.
#[expect(clippy::disallowed_methods, reason = "test tooling starts its own processes, here only")]
pub fn command(program: impl AsRef<OsStr>) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.process_group(0);
    command
}

/// Runs a prepared process to its end: feeds `stdin`, captures both outputs, kills the group after `timeout`.
pub async fn run(command: std::process::Command, stdin: &[u8], timeout: Duration) -> Result<Output> {
    let what = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {what}"))?;
    let group = Group::of(&child);
    let input = child.stdin.take();
    let feed = async move {
        if let Some(mut input) = input {
            // A process that ends without reading its input is judged by its exit status, not by this.
            let _ = input.write_all(stdin).await;
        }
    };
    let work = async { tokio::join!(feed, child.wait_with_output()).1 };
    let Ok(output) = tokio::time::timeout(timeout, work).await else {
        drop(group);
        bail!("{what} did not end within {timeout:?}");
    };
    let output = output.with_context(|| format!("wait for {what}"))?;
    group.forget();
    Ok(Output {
        status: output.status,
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A process group that is killed when this value goes away.
#[derive(Debug)]
pub struct Group(Option<Pid>);

impl Group {
    /// The group of a child that [`command`] prepared. Its leader must not have been waited for yet.
    pub fn of(child: &tokio::process::Child) -> Self {
        Self::of_pid(child.id().unwrap_or_default())
    }

    /// The group led by this pid; pid 0 stands for none.
    pub fn of_pid(pid: u32) -> Self {
        Self(i32::try_from(pid).ok().and_then(Pid::from_raw))
    }

    /// Lets the group live on (its leader has been waited for, and its number may be another's soon).
    pub fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself meanwhile.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_hangs_is_ended_with_its_children() {
        let mut sh = command("sh");
        sh.args(["-c", "sleep 77.77 & wait"]);
        let failure = run(sh, b"", Duration::from_millis(200)).await.unwrap_err().to_string();
        assert!(failure.contains("did not end"), "{failure}");
        crate::eventually::eventually(Duration::from_secs(5), "the sleep to be gone", async || {
            let mut ps = command("ps");
            ps.args(["-eo", "args"]);
            let seen = run(ps, b"", Duration::from_secs(5)).await?.text();
            anyhow::ensure!(!seen.lines().any(|line| line == "sleep 77.77"), "still there");
            anyhow::Ok(())
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn input_output_and_status_come_back() {
        let mut sh = command("sh");
        sh.args(["-c", "cat; echo bad >&2; exit 3"]);
        let output = run(sh, b"hello\n", Duration::from_secs(5)).await.unwrap();
        assert_eq!((output.status.code(), output.text().as_str()), (Some(3), "hello"));
        assert_eq!(output.stderr, "bad\n");
    }
}
