//! What the user declared of a mirror, checked.

use std::time::Duration;

use tarn_crds::{
    repo::UpstreamUrl,
    v1alpha1::{Access, OnUpstreamFailure, OnUpstreamRefusal, Prewarm, Refs},
};

use super::missing::MissingCredentials;
use crate::upstream::Credentials;

/// What the user declared of a mirror, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The GitMirror's name.
    pub name: String,
    /// The upstream.
    pub url: UpstreamUrl,
    /// Time between background looks.
    pub interval: Duration,
    /// How long one fetch or clone may take.
    pub timeout: Duration,
    /// Serve what is on the disk; ask the upstream nothing.
    pub suspend: bool,
    /// Which refs are mirrored.
    pub refs: Refs,
    /// Answers may rest on a look at most this old.
    pub max_staleness: Duration,
    /// How long one look may take.
    pub look_timeout: Duration,
    /// What to answer while the upstream does not.
    pub on_upstream_failure: OnUpstreamFailure,
    /// What to answer when the upstream refuses.
    pub on_upstream_refusal: OnUpstreamRefusal,
    /// Who may read, after the defaults.
    pub access: Access,
    /// Whether it is brought before anyone asks for it.
    pub prewarm: Prewarm,
    /// The Secret that it names.
    pub secret: Option<String>,
    /// What the upstream is asked with, or why it cannot be asked.
    pub credentials: Result<Credentials, MissingCredentials>,
    /// The most bytes that the mirror may take on the disk.
    pub max_bytes: Option<u64>,
    /// What is kept in the store.
    pub checkpoint: CheckpointSettings,
    /// What clients download instead of cloning.
    pub snapshot: SnapshotSettings,
}

/// What is kept in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSettings {
    /// The shortest time between two checkpoints.
    pub interval: Duration,
    /// How many are kept.
    pub keep: usize,
}

/// When a snapshot is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// None is built, found or served.
    pub suspend: bool,
    /// The shortest time between two.
    pub interval: Duration,
    /// One as old as this is replaced though `HEAD` did not move.
    pub max_age: Duration,
}
