//! The process's memory holds credentials. No core dump takes them to a disk, and no other process of the same user, git's
//! children among them, reads them or the environment by way of `/proc` or a debugger.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Closes the process's memory to others. Children inherit that they leave no core dumps; the rest ends for them when they
/// execute another program.
///
/// # Errors
/// The system refuses.
pub fn close_memory() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn memory_is_closed_to_dumps_and_debuggers() {
        close_memory().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    }
}
