//! Processes that nobody waits for: what a killed agent left running, and what a killed child leaves.
//!
//! Every child and all it starts carry the data directory's mark in their environment. Only processes
//! with that mark are ended, by a pidfd taken before the mark is read, so that a reused process id can
//! never be hit (docs/decisions/0002).
//!
//! A child that is killed with its group leaves children of its own, whose parent is the agent then: it has asked for that, or
//! it is the first process of its container. Those that have ended are waited for here, and no others: the status of a child
//! that the agent has started belongs to whoever started it (docs/decisions/0016).

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

use bstr::ByteSlice;
use parking_lot::Mutex;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, set_child_subreaper, waitpid,
};
use tokio::{
    process,
    signal::unix::{SignalKind, signal},
};

use crate::files::blocking;

/// The variable by which children of one data directory are recognised.
pub const MARK: &str = "TARN_CHILD_OF";

/// How long killed processes may take to vanish; they hold no locks that matter after that.
const GRACE: Duration = Duration::from_secs(5);

/// Between two times that ended children are looked for: many end at once.
const PAUSE: Duration = Duration::from_millis(250);

/// The children that the agent has started and may not have waited for. Locked while a child is started, so that none is
/// looked at before it is in here.
static OWN: Mutex<BTreeSet<Own>> = Mutex::new(BTreeSet::new());

/// A child that the agent has started. An id may come again: it is told by when it began, too, in the system's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Own {
    pid: i32,
    began: u64,
}

impl Own {
    /// Its id, which is that of its process group as well.
    pub(super) fn group(self) -> Option<Pid> {
        Pid::from_raw(self.pid)
    }

    /// It has been waited for.
    pub(super) fn ended(self) {
        OWN.lock().remove(&self);
    }
}

/// Starts a child, and leaves it to the caller to wait for it.
pub(super) fn start(command: &mut process::Command) -> io::Result<(process::Child, Option<Own>)> {
    let mut own = OWN.lock();
    let child = command.spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let started = pid.map(|pid| {
        let began = Process::read(pid).map_or(0, |process| process.own.began);
        Own { pid: pid.as_raw_nonzero().get(), began }
    });
    own.extend(started);
    Ok((child, started))
}

/// From now on, processes whose parents end are the agent's children.
///
/// # Errors
/// The system does not know of that.
pub fn adopt() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Waits for adopted children that have ended, for ever.
///
/// # Errors
/// Signals cannot be handled.
pub async fn reap() -> io::Result<()> {
    let mut children = signal(SignalKind::child())?;
    loop {
        match blocking(reap_ended).await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "adopted children have ended"),
            Err(error) => tracing::warn!(%error, "ended children cannot be looked for"),
        }
        children.recv().await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for the ended children that the agent has not started, and says how many there were.
fn reap_ended() -> io::Result<usize> {
    let (mut own, parent) = (OWN.lock(), getpid());
    let (mut left, mut reaped) = (BTreeSet::new(), 0);
    for entry in fs::read_dir("/proc")? {
        let Some(process) = pid_of(&entry?).and_then(Process::read).filter(|p| p.parent == Some(parent))
        else {
            continue;
        };
        if own.contains(&process.own) {
            left.insert(process.own);
        } else if process.has_ended && waitpid(process.own.group(), WaitOptions::NOHANG).is_ok() {
            reaped += 1;
        }
    }
    // The others have been waited for.
    *own = left;
    Ok(reaped)
}

/// What the system tells of a process.
struct Process {
    own: Own,
    parent: Option<Pid>,
    has_ended: bool,
}

impl Process {
    /// Reads proc_pid_stat(5); `None` where the process is gone.
    fn read(pid: Pid) -> Option<Self> {
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // The name in parentheses may hold anything, so fields are counted from its end: the state is the third.
        let (_, rest) = stat.rsplit_once_str(")")?;
        let mut fields = rest.to_str().ok()?.split_ascii_whitespace();
        let has_ended = fields.next()? == "Z";
        let parent = Pid::from_raw(fields.next()?.parse().ok()?);
        let began = fields.nth(17)?.parse().ok()?;
        Some(Self { own: Own { pid: pid.as_raw_nonzero().get(), began }, parent, has_ended })
    }
}

fn pid_of(entry: &fs::DirEntry) -> Option<Pid> {
    entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
}

/// Kills all processes that carry `mark` and waits until they are gone. Returns how many there were.
/// Call it only while holding the data directory's lock: then nobody's children are alive on purpose.
///
/// # Errors
/// `/proc` cannot be read, or processes outlive SIGKILL.
pub fn end(mark: &OsStr) -> io::Result<usize> {
    let deadline = Instant::now() + GRACE;
    let mut ended = 0;
    loop {
        let found = kill_marked(mark)?;
        if found == 0 {
            return Ok(ended);
        }
        ended = ended.max(found);
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "processes of the previous run do not end"));
        }
        #[expect(clippy::disallowed_methods, reason = "runs once, before the runtime serves anything")]
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill_marked(mark: &OsStr) -> io::Result<usize> {
    let mut expected = format!("{MARK}=").into_bytes();
    expected.extend_from_slice(mark.as_bytes());
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = pid_of(&entry) else { continue };
        // Processes come and go, and others' are not ours to read: neither is an error.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        if environment.split_str("\0").any(|variable| variable == expected) {
            found += 1;
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }
    Ok(found)
}
