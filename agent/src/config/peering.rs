//! The other agents.

use clap::Args;

/// The other agents.
#[derive(Clone, Debug, Args)]
pub struct PeerFlags {
    /// Another agent's git port, such as http://10.0.0.7:8080, asked for what is not here yet; may be repeated. In a
    /// cluster the agents find each other
    #[arg(
        long = "peer",
        value_name = "URL",
        env = "TARN_AGENT_PEER",
        hide_env_values = true,
        value_delimiter = ',',
        conflicts_with = "in_cluster"
    )]
    pub peers: Vec<String>,

    /// On how many of the agents each mirror is kept; the others hand requests on to those. Without it, on all
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_REPLICATION",
        hide_env_values = true,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub replication: Option<u16>,

    /// This agent's git port as the others' --peer flags name it; with --replication, outside a cluster
    #[arg(
        long,
        value_name = "URL",
        env = "TARN_AGENT_ADVERTISE",
        hide_env_values = true,
        conflicts_with = "in_cluster"
    )]
    pub advertise: Option<String>,

    /// Seconds between two signs of life to the other agents that share the store; the same for all of them
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TARN_AGENT_HEARTBEAT",
        hide_env_values = true,
        default_value_t = 30,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub heartbeat: u16,
}
