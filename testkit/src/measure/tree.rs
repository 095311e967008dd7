//! The CPU of a server and everything it starts.
//!
//! A cgroup of its own counts every process, also those that nobody waits for and those still running. Where
//! none can be made, `/proc` is summed up: processes that are there, and the ended children of each, which
//! loses those whose parent ignores SIGCHLD.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::proc;
use crate::process;

/// How long an emptied cgroup may take to be gone.
const REMOVAL: Duration = Duration::from_secs(5);

/// How CPU is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accounting {
    /// A cgroup of version 1, `cpuacct.usage`.
    CgroupV1,
    /// A cgroup of version 2, `cpu.stat`.
    CgroupV2,
    /// Processes and their ended children in `/proc`, as wait4 counts them.
    Proc,
}

impl Accounting {
    /// Says it in a report.
    pub fn describe(self) -> &'static str {
        match self {
            Self::CgroupV1 => "a cgroup per server (v1, cpuacct.usage)",
            Self::CgroupV2 => "a cgroup per server (v2, cpu.stat)",
            Self::Proc => "/proc (no cgroup could be made: children that nobody waits for are missing)",
        }
    }
}

/// The account of one server's process tree.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) accounting: Accounting,
    /// The cgroup; none with [`Accounting::Proc`].
    dir: Option<PathBuf>,
}

impl Tree {
    /// Opens an account; `name` tells it from others of this process.
    pub(super) fn open(name: &str) -> Self {
        let name = format!("tarn-bench-{}-{name}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for (accounting, parent) in hierarchies(&mounts, &own) {
            let dir = parent.join(&name);
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let tree = Self { accounting, dir: Some(dir) };
            // Being allowed to make it does not mean being allowed to enter it.
            let mut probe = tree.command("true", [""; 0]);
            let entered = probe.output().is_ok_and(|probe| probe.status.success());
            if entered && tree.cpu(0).is_ok() {
                return tree;
            }
        }
        Self { accounting: Accounting::Proc, dir: None }
    }

    /// Prepares a command that enters the account before it starts anything.
    pub(super) fn command<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let Some(dir) = &self.dir else {
            let mut command = process::command(program);
            command.args(args);
            return command;
        };
        let mut command = process::command("/bin/sh");
        command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]);
        command.arg(dir).arg(program).args(args);
        command
    }

    /// The CPU used so far by the tree whose first process is `root`.
    pub(super) fn cpu(&self, root: u32) -> Result<Duration> {
        let read = |file: &str| {
            let path = self.dir.as_deref().unwrap_or(Path::new("")).join(file);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        match self.accounting {
            Accounting::CgroupV1 => Ok(Duration::from_nanos(read("cpuacct.usage")?.trim().parse()?)),
            Accounting::CgroupV2 => {
                let text = read("cpu.stat")?;
                let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                Ok(Duration::from_micros(usage.context("cpu.stat names no usage")?.trim().parse()?))
            }
            Accounting::Proc => {
                let stats = self.members(root)?.into_iter().filter_map(|pid| proc::stat(pid).ok());
                Ok(proc::ticks(stats.map(|stat| stat.own + stat.waited_for).sum()))
            }
        }
    }

    /// The processes of the tree whose first process is `root`.
    pub(super) fn members(&self, root: u32) -> Result<Vec<u32>> {
        if let Some(dir) = &self.dir {
            let text = fs::read_to_string(dir.join("cgroup.procs")).context("read cgroup.procs")?;
            return Ok(text.lines().filter_map(|line| line.parse().ok()).collect());
        }
        let parents: Vec<(u32, u32)> =
            proc::all()?.into_iter().filter_map(|pid| Some((pid, proc::stat(pid).ok()?.parent))).collect();
        Ok(descendants(root, &parents))
    }
}

impl Drop for Tree {
    /// Ends what the server left behind and removes the cgroup.
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        let start = Instant::now();
        while fs::remove_dir(&dir).is_err() && start.elapsed() < REMOVAL {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::yield_now();
        }
    }
}

/// The directories below which this process may try to make a cgroup, the more exact kind first.
fn hierarchies(mounts: &str, own: &str) -> Vec<(Accounting, PathBuf)> {
    let place = |accounting| {
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, dir, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let fits = match accounting {
                Accounting::CgroupV1 => kind == "cgroup" && options.split(',').any(|word| word == "cpuacct"),
                Accounting::CgroupV2 => kind == "cgroup2",
                Accounting::Proc => false,
            };
            fits.then(|| PathBuf::from(dir))
        })?;
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let fits = match accounting {
                Accounting::CgroupV1 => controllers.split(',').any(|word| word == "cpuacct"),
                Accounting::CgroupV2 => controllers.is_empty(),
                Accounting::Proc => false,
            };
            fits.then_some(path)
        })?;
        Some((accounting, mount.join(path.trim_start_matches('/'))))
    };
    [Accounting::CgroupV1, Accounting::CgroupV2].into_iter().filter_map(place).collect()
}

/// `root` and all that descends from it, given each process and its parent.
fn descendants(root: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        found.extend(
            parents
                .iter()
                .filter(|(_, parent)| found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_in_both_versions() {
        let mounts = "cgroup /sys/fs/cgroup/cpuacct cgroup rw,relatime,cpuacct 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let own = "4:memory:/a\n2:cpu,cpuacct:/job/7\n0::/user.slice\n";
        let found = hierarchies(mounts, own);
        assert_eq!(found[0], (Accounting::CgroupV1, "/sys/fs/cgroup/cpuacct/job/7".into()));
        assert_eq!(found[1], (Accounting::CgroupV2, "/sys/fs/cgroup/unified/user.slice".into()));
        assert!(hierarchies("tmpfs / tmpfs rw 0 0\n", own).is_empty());
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let parents = [(9, 5), (5, 2), (3, 1), (2, 1), (7, 9), (4, 3)];
        assert_eq!(descendants(2, &parents), [2, 5, 7, 9]);
    }
}
