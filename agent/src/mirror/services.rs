//! What the mirrors of an agent share: tools, stores, and how much they may do at once.

use std::sync::{Arc, atomic::AtomicU64};

use tarn_crds::allowed_hosts::AllowedHosts;

use super::{cold::Cold, disk::Disk, integrity::Integrity, room::Room};
use crate::{
    checkpoint::Archive,
    git::Git,
    lfs::Lfs,
    metrics::Metrics,
    packs::Packs,
    peers::{Peers, placement::Placement},
    queue::Queue,
    snapshot::build::WorktreeRules,
};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    /// The installed git.
    pub git: Git,
    /// The namespace of the GitMirrors and their Secrets; empty outside clusters.
    pub namespace: String,
    /// The data directory.
    pub disk: Arc<Disk>,
    /// Metrics.
    pub metrics: Metrics,
    /// What is known of mirrors' files.
    pub integrity: Integrity,
    /// Where checkpoints go and come from, if anywhere.
    pub archive: Option<Arc<Archive>>,
    /// The other agents that share the store, if there is one.
    pub peers: Option<Peers>,
    /// The LFS objects of all mirrors.
    pub lfs: Lfs,
    /// Answers to requests for objects.
    pub packs: Packs,
    /// Who keeps which mirror, where not all agents keep all.
    pub placement: Option<Placement>,
    /// Whose turn it is: how much all mirrors may do at once.
    pub queue: Queue,
    /// Answers streamed from the store.
    pub cold: Arc<Cold>,
    /// Which hosts may be asked.
    pub allowed: Arc<AllowedHosts>,
    /// Whether the disk has room.
    pub room: Arc<Room>,
    /// How large worktrees may be for a snapshot.
    pub worktrees: WorktreeRules,
    /// Over how many milliseconds the first looks of mirrors found on the disk are spread.
    pub spread: Arc<AtomicU64>,
}
