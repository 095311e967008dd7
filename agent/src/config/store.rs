//! Which store, and what is looked for in it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::store::{S3Options, StoreLocation};

/// Which store, and how to reach it.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreFlags {
    /// Where checkpoints are kept, so that a new pod restores its mirrors instead of cloning them
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX", env = "TARN_AGENT_STORE", hide_env_values = true)]
    pub store: Option<StoreLocation>,

    /// S3 server other than Amazon's
    #[arg(long, value_name = "URL", env = "TARN_AGENT_S3_ENDPOINT", hide_env_values = true)]
    pub s3_endpoint: Option<String>,

    /// Region of the bucket; by default what the environment or the profile says
    #[arg(long, value_name = "REGION", env = "TARN_AGENT_S3_REGION", hide_env_values = true)]
    pub s3_region: Option<String>,

    /// Put the bucket into the path, not into the host name, as most servers other than Amazon's want it
    #[arg(long, env = "TARN_AGENT_S3_PATH_STYLE", hide_env_values = true)]
    pub s3_path_style: bool,

    /// File with the keys of the cache, one a line: the first signs what is published, and only what one of them has
    /// signed is restored or served; read again when it changes
    #[arg(long, value_name = "FILE", env = "TARN_AGENT_STORE_KEY", hide_env_values = true)]
    pub store_key: Option<PathBuf>,
}

impl StoreFlags {
    /// What the flags say of S3.
    pub fn s3(&self) -> S3Options {
        S3Options {
            endpoint: self.s3_endpoint.clone(),
            region: self.s3_region.clone(),
            path_style: self.s3_path_style,
        }
    }
}

/// Looks into a store, without an agent.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// List mirrors and their checkpoints
    Ls(StoreArgs),
    /// Restore each mirror's newest checkpoint into a temporary directory and check every object
    Verify(VerifyArgs),
    /// Remove checkpoints that newer ones have replaced, and what nobody names any more
    Gc(GcArgs),
    /// Remove everything of one mirror; one that is still declared is published anew
    Rm(RmArgs),
}

/// Flags of every `tarn-agent store` command.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The store.
    #[command(flatten)]
    pub flags: StoreFlags,

    /// Only this mirror, as `ls` names it; all without it
    #[arg(value_name = "HOST/PATH")]
    pub mirror: Option<String>,

    /// Print JSON, for scripts
    #[arg(long, env = "TARN_AGENT_JSON", hide_env_values = true)]
    pub json: bool,
}

/// Flags of `tarn-agent store verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Which store and mirror.
    #[command(flatten)]
    pub store: StoreArgs,

    /// All checkpoints, not only the newest
    #[arg(long, env = "TARN_AGENT_ALL", hide_env_values = true)]
    pub all: bool,
}

/// Flags of `tarn-agent store gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Which store and mirror.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Only say what would be removed
    #[arg(long, env = "TARN_AGENT_DRY_RUN", hide_env_values = true)]
    pub dry_run: bool,

    /// How many checkpoints of each mirror to keep
    #[arg(long, value_name = "N", env = "TARN_AGENT_KEEP", hide_env_values = true, default_value_t = 3)]
    pub keep: u16,

    /// Keep what is younger than so many hours: another agent may be restoring or publishing it
    #[arg(
        long,
        value_name = "HOURS",
        env = "TARN_AGENT_GRACE_HOURS",
        hide_env_values = true,
        default_value_t = 24
    )]
    pub grace_hours: u32,
}

/// Flags of `tarn-agent store rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The store.
    #[command(flatten)]
    pub flags: StoreFlags,

    /// The mirror, as `ls` names it
    #[arg(value_name = "HOST/PATH")]
    pub mirror: String,
}
