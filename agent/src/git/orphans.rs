//! Ends what a killed agent left running, before its files are cleaned up.
//!
//! Every child and all it starts carry the data directory's mark in their environment. Only processes
//! with that mark are ended, by a pidfd taken before the mark is read, so that a reused process id can
//! never be hit (docs/decisions/0002).

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

use bstr::ByteSlice;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::command::MARK;

/// How long killed processes may take to vanish; they hold no locks that matter after that.
const GRACE: Duration = Duration::from_secs(5);

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
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
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
