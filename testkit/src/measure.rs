//! Servers as processes of their own, and what they cost: CPU of the whole process tree, peak memory of the
//! server itself, memory of its children, and the CPU of this process, the client.

mod once;
mod proc;
mod sampler;
mod tree;

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::{Instant, sleep, timeout};

use self::sampler::Sampler;
use self::tree::Tree;
use crate::process::Group;

pub use self::once::{Cost, once};
pub use self::tree::Accounting;

/// A server that says nothing for so long has failed to start.
const START: Duration = Duration::from_secs(60);
/// How long a server may take to end when asked to.
const STOP: Duration = Duration::from_secs(10);
/// After the last answer, children may still be ending; a server may also have work of its own under way.
const SETTLE: Duration = Duration::from_secs(2);

/// A server in an account of its own. Dropping it kills it and what it started.
#[derive(Debug)]
pub struct Server {
    child: tokio::process::Child,
    pid: u32,
    // Declared in this order: the group is killed before the account is closed.
    group: Group,
    tree: Arc<Tree>,
}

/// What a server and its client used during some work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// CPU of the server and everything it started.
    pub cpu: Duration,
    /// The part of it used by the server process itself, without its children (in steps of 10 ms).
    pub own_cpu: Duration,
    /// The server process's peak of resident memory, in bytes.
    pub peak_rss: u64,
    /// The peak of all its children's proportional share of memory, in bytes; files they map included.
    pub children_pss: u64,
    /// The peak of the part of it that is not mapped from files.
    pub children_anonymous: u64,
    /// The most children at one time.
    pub children: usize,
    /// CPU of this process, without what measuring cost.
    pub client_cpu: Duration,
    /// From the start of the work to its end.
    pub wall: Duration,
}

/// How long a server must do next to nothing before it is at rest, …
const REST: Duration = Duration::from_secs(3);
/// … which is at most this part of a processor.
const NEXT_TO_NOTHING: u32 = 20;

/// The peak of a process's resident memory so far, in bytes.
pub fn peak_rss(pid: u32) -> Result<u64> {
    proc::peak(pid)
}

/// CPU of all processes that this one has started and waited for, their children included.
pub fn reaped_cpu() -> Result<Duration> {
    Ok(proc::ticks(proc::stat(std::process::id())?.waited_for))
}

impl Server {
    /// Starts a server and waits for the line on its standard output that begins with `ready`; gives the line.
    /// Its standard error goes to a file.
    pub async fn start<S: AsRef<OsStr>>(
        name: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
        ready: &str,
        log: &Path,
    ) -> Result<(Self, String)> {
        let tree = Arc::new(Tree::open(name));
        let mut command = tokio::process::Command::from(tree.command(program, args));
        let errors = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let pid = child.id().with_context(|| format!("{name} ended at once"))?;
        let group = Group::of(&child);
        let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        let server = Self { child, pid, group, tree };
        let line = timeout(START, async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with(ready) {
                    return Ok(line);
                }
            }
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("{name} ended before it said {ready:?}: {}", said.trim_end())
        });
        let line = line.await.with_context(|| format!("{name} did not say {ready:?} in {START:?}"))??;
        // A pipe that nobody reads would block a server that goes on talking.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok((server, line))
    }

    /// The server process itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How its CPU is counted.
    pub fn accounting(&self) -> Accounting {
        self.tree.accounting
    }

    /// Does some work and says what it cost the server and this process, children that are still ending included.
    pub async fn measure<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, Usage)> {
        self.measure_settling(SETTLE, work).await
    }

    /// As [`Server::measure`], but gives children this long to end; with zero, the account closes with the work.
    pub async fn measure_settling<T>(
        &self,
        settle: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<(T, Usage)> {
        proc::forget_peak(self.pid)?;
        let (tree, pid) = (Arc::clone(&self.tree), self.pid);
        let sampler = Sampler::start(move || {
            let members = tree.members(pid).unwrap_or_default();
            members.into_iter().filter(|&member| member != pid).collect()
        });
        let (cpu, own, client) = (self.tree.cpu(pid)?, self.own_cpu()?, client_cpu());
        let start = Instant::now();
        let done = work.await;
        let (wall, client) = (start.elapsed(), client_cpu().saturating_sub(client));
        let seen = sampler.stop();
        let done = done?;
        self.idle(settle).await?;
        let usage = Usage {
            cpu: self.tree.cpu(pid)?.saturating_sub(cpu),
            own_cpu: self.own_cpu()?.saturating_sub(own),
            peak_rss: proc::peak(pid)?,
            children_pss: seen.peak.all,
            children_anonymous: seen.peak.anonymous,
            children: seen.most,
            client_cpu: client.saturating_sub(seen.cost),
            wall,
        };
        Ok((done, usage))
    }

    /// Waits until the server has no children, but not longer than `limit`: it may keep some for other reasons.
    pub async fn idle(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.tree.members(self.pid)?.len() > 1 && start.elapsed() < limit {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Waits until the server has done next to nothing for [`REST`], neither itself nor by children; fails after `limit`.
    /// What it does on its own account, such as a snapshot of a new mirror, is no part of what a client costs.
    pub async fn rest(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let before = self.tree.cpu(self.pid)?;
            sleep(REST).await;
            let used = self.tree.cpu(self.pid)?.saturating_sub(before);
            if used <= REST / NEXT_TO_NOTHING && self.tree.members(self.pid)?.len() <= 1 {
                return Ok(());
            }
            ensure!(start.elapsed() < limit, "the server still worked after {limit:?}");
        }
    }

    /// Waits until the server has had no children for as long as `calm`; fails after `limit`.
    pub async fn calm(&self, calm: Duration, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let mut since = start;
        while since.elapsed() < calm {
            if self.tree.members(self.pid)?.len() > 1 {
                since = Instant::now();
            }
            ensure!(start.elapsed() < limit, "the server still had children after {limit:?}");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends the server, asking first.
    pub async fn stop(mut self) -> Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        kill_process(pid, Signal::TERM).context("end a server")?;
        if timeout(STOP, self.child.wait()).await.is_ok() {
            self.group.forget();
        }
        Ok(())
    }

    fn own_cpu(&self) -> Result<Duration> {
        Ok(proc::ticks(proc::stat(self.pid)?.own))
    }
}

/// CPU of this process so far.
fn client_cpu() -> Duration {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(cpu.tv_sec.unsigned_abs(), u32::try_from(cpu.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn children_and_their_children_are_counted_and_end_with_the_server() {
        let script = "echo ready; (while :; do :; done) & (sh -c 'while :; do :; done') & wait";
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let server = Server::start("test", "/bin/sh", ["-c", script], "ready", &log);
        let (server, line) = server.await.unwrap();
        assert_eq!(line, "ready");
        let wait = async {
            sleep(Duration::from_millis(600)).await;
            Ok(7)
        };
        let (seven, usage) = server.measure(wait).await.unwrap();
        assert_eq!(seven, 7);
        assert!(usage.cpu > Duration::from_millis(100), "{usage:?}");
        assert!(usage.own_cpu < Duration::from_millis(50), "{usage:?}");
        assert!(usage.children >= 2 && usage.children_pss > 0, "{usage:?}");
        assert!(usage.peak_rss > 100_000, "{usage:?}");
        let members = server.tree.members(server.pid).unwrap();
        assert!(members.len() >= 3, "{members:?}");
        drop(server);
        crate::eventually::eventually(Duration::from_secs(5), "all to be gone", async || {
            let left = members.iter().filter(|pid| proc::peak(**pid).is_ok()).count();
            anyhow::ensure!(left == 0, "{left} are left");
            anyhow::Ok(())
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let server = Server::start("test2", "/bin/sh", ["-c", "echo why >&2; exit 3"], "ready", &log);
        let failure = server.await.unwrap_err().to_string();
        assert!(failure.contains("ended before") && failure.contains("why"), "{failure}");
    }
}
