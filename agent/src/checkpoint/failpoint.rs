//! Steps of publishing and restoring at which a test kills the agent.
//!
//! Only in debug builds: there the step named by the variable `TARN_FAILPOINT` ends the process by SIGKILL, as
//! a node's end would. A test goes through [`FailPoint::ALL`] and fails where the agent lives on.

/// The steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// Nothing has been done yet.
    PublishBegins,
    /// The packs are pinned.
    PublishPinned,
    /// The new pack is made.
    PublishPacked,
    /// One file of it is in the store.
    PublishFirstFile,
    /// The pack and the refs are in the store.
    PublishUploaded,
    /// The manifest is in the store; nobody has been told.
    PublishCreated,
    /// Nothing has been done yet.
    RestoreBegins,
    /// The manifest and the refs are read.
    RestoreManifest,
    /// Some of the packs are on the disk.
    RestoreFirstFile,
    /// All packs are on the disk.
    RestoreDownloaded,
    /// They have been checked; the refs are not written.
    RestoreChecked,
    /// The restored mirror is whole, in staging.
    RestoreStaged,
    /// It is in place.
    RestorePlaced,
}

impl FailPoint {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::PublishBegins,
        Self::PublishPinned,
        Self::PublishPacked,
        Self::PublishFirstFile,
        Self::PublishUploaded,
        Self::PublishCreated,
        Self::RestoreBegins,
        Self::RestoreManifest,
        Self::RestoreFirstFile,
        Self::RestoreDownloaded,
        Self::RestoreChecked,
        Self::RestoreStaged,
        Self::RestorePlaced,
    ];

    /// The variable that names the step to die at.
    pub const VARIABLE: &str = "TARN_FAILPOINT";

    /// What the variable calls it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Says that this step is reached; does nothing in release builds.
    pub fn reached(self) {
        #[cfg(debug_assertions)]
        if std::env::var_os(Self::VARIABLE).is_some_and(|name| name == *self.name()) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
