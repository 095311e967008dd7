//! Which upstreams are asked, and how much at once.

use clap::Args;
use tarn_crds::allowed_hosts::AllowedHost;

/// Which upstreams are asked, and how much at once.
#[derive(Clone, Debug, Args)]
pub struct UpstreamFlags {
    /// Looks and fetches under way at one upstream host
    #[arg(
        long = "upstream-connections",
        value_name = "N",
        env = "TARN_AGENT_UPSTREAM_CONNECTIONS",
        hide_env_values = true,
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub connections: u16,

    /// Host that the agent may ask, and no other: github.com, git.corp.example:8443, *.corp.example, 10.0.0.0/8, or * for
    /// every host; may be repeated. Without it, the upstreams, and public addresses where an upstream sends a request on
    #[arg(
        long = "allow-upstream",
        value_name = "HOST",
        env = "TARN_AGENT_ALLOW_UPSTREAM",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub allowed: Vec<AllowedHost>,

    /// Admit file:// upstreams: whoever may write manifests can then read any repository this user can
    #[arg(long = "allow-file-upstreams", env = "TARN_AGENT_ALLOW_FILE_UPSTREAMS", hide_env_values = true)]
    pub allow_file: bool,
}
