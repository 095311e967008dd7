//! What the agent's data may take of the disk, and where its secrets lie.

use std::path::PathBuf;

use clap::Args;
use tarn_crds::v1alpha1::{Budget, Quantity};

/// What the agent's data may take of the disk, and where its secrets lie.
#[derive(Clone, Debug, Args)]
pub struct DiskFlags {
    /// How much of the disk the agent's data may take: a share of the volume, or an amount such as 500Gi
    #[arg(
        long,
        value_name = "PERCENT|QUANTITY",
        env = "TARN_AGENT_DISK_BUDGET",
        hide_env_values = true,
        default_value = "80%"
    )]
    pub disk_budget: Budget,

    /// The most bytes of a mirror whose GitMirror sets no spec.limits.maxBytes, such as 20Gi; without it no limit but the
    /// disk's
    #[arg(long, value_name = "QUANTITY", env = "TARN_AGENT_MAX_MIRROR_BYTES", hide_env_values = true)]
    pub max_mirror_bytes: Option<Quantity>,

    /// Files and directories in a worktree above which no snapshot is built of it
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_SNAPSHOT_MAX_FILES",
        hide_env_values = true,
        default_value_t = 2_000_000
    )]
    pub snapshot_max_files: u32,

    /// Bytes in a worktree above which no snapshot is built of it; by default 20 times the mirror's packs, or 10Gi if that is
    /// more
    #[arg(long, value_name = "QUANTITY", env = "TARN_AGENT_SNAPSHOT_MAX_BYTES", hide_env_values = true)]
    pub snapshot_max_bytes: Option<Quantity>,

    /// Directory for the files with credentials that git reads, for this agent alone and emptied at the start: best one in
    /// memory. By default below $RUNTIME_DIRECTORY, as systemd sets it, and otherwise in the data directory
    #[arg(long, value_name = "DIR", env = "TARN_AGENT_CREDENTIALS_DIR", hide_env_values = true)]
    pub credentials_dir: Option<PathBuf>,
}

impl DiskFlags {
    /// Where files with credentials go; `None` for the data directory.
    pub fn credentials(&self) -> Option<PathBuf> {
        let runtime = || std::env::var_os("RUNTIME_DIRECTORY").filter(|dir| !dir.is_empty());
        self.credentials_dir.clone().or_else(|| Some(PathBuf::from(runtime()?).join("credentials")))
    }
}
