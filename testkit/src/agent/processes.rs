//! Other processes, read from /proc.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process as it was when looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// One letter: `R`unning, `S`leeping, `Z`ombie …
    pub state: char,
    /// Its command line; empty for a zombie.
    pub command: Vec<String>,
}

impl Process {
    /// Ends it with SIGKILL, if it is still there.
    pub(super) fn kill(&self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn read(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, so fields are counted from its end.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = command.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned());
        let command = command.filter(|arg| !arg.is_empty()).collect();
        Some(Self { pid, parent, group, state, command })
    }
}

/// All processes whose chain of parents leads to this one.
pub(super) fn below(pid: u32) -> Vec<Process> {
    let mut of_parent: HashMap<u32, Vec<Process>> = HashMap::new();
    for process in all() {
        of_parent.entry(process.parent).or_default().push(process);
    }
    let (mut found, mut parents) = (Vec::new(), vec![pid]);
    while let Some(parent) = parents.pop() {
        let children = of_parent.remove(&parent).unwrap_or_default();
        parents.extend(children.iter().map(|child| child.pid));
        found.extend(children);
    }
    found
}

/// All living processes whose command line, environment or working directory names a path. The test's own
/// process is not among them.
pub(super) fn naming(path: &Path) -> Vec<Process> {
    let path = path.as_os_str().as_bytes();
    let names = |process: &Process| {
        let of = |what: &str| format!("/proc/{}/{what}", process.pid);
        let mut text = std::fs::read(of("cmdline")).unwrap_or_default();
        text.extend(std::fs::read(of("environ")).unwrap_or_default());
        if let Ok(directory) = std::fs::read_link(of("cwd")) {
            text.extend_from_slice(directory.as_os_str().as_bytes());
        }
        text.windows(path.len()).any(|window| window == path)
    };
    let own = std::process::id();
    all().into_iter().filter(|process| process.state != 'Z' && process.pid != own && names(process)).collect()
}

fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_found_below_its_parent() {
        let own = std::process::id();
        let parent = super::Process::read(own).unwrap().parent;
        assert!(super::below(parent).iter().any(|process| process.pid == own));
    }
}
