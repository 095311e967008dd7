//! Exit codes: the whole list.

use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The clone is there.
    Done = 0,
    /// No way led to a clone; nothing was left behind.
    Failed = 1,
    /// The command cannot be carried out as it was given: a wrong flag, no server named, a directory in the way.
    Usage = 2,
    /// Ended by Ctrl-C or SIGTERM; nothing was left behind.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
