//! What clients may cost.

use clap::Args;

/// What clients may cost.
#[derive(Clone, Copy, Debug, Args)]
pub struct LimitFlags {
    /// Connections to the git port at once
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_MAX_CONNECTIONS",
        hide_env_values = true,
        default_value_t = 4096,
        value_parser = positive
    )]
    pub max_connections: usize,

    /// Connections at once from one address; behind a proxy all clients have the same
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_MAX_CONNECTIONS_PER_CLIENT",
        hide_env_values = true,
        default_value_t = 1024,
        value_parser = positive
    )]
    pub max_connections_per_client: usize,

    /// Requests under way at once
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_MAX_REQUESTS",
        hide_env_values = true,
        default_value_t = 2048,
        value_parser = positive
    )]
    pub max_requests: usize,

    /// Requests under way at once from one address
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_MAX_REQUESTS_PER_CLIENT",
        hide_env_values = true,
        default_value_t = 512,
        value_parser = positive
    )]
    pub max_requests_per_client: usize,

    /// Bytes of answers a second to all clients; without it as many as there can be
    #[arg(long, value_name = "BYTES", env = "TARN_AGENT_MAX_RATE", hide_env_values = true)]
    pub max_rate: Option<u64>,

    /// Bytes of answers a second to one address
    #[arg(long, value_name = "BYTES", env = "TARN_AGENT_MAX_RATE_PER_CLIENT", hide_env_values = true)]
    pub max_rate_per_client: Option<u64>,

    /// Seconds that a client may be silent before a request is there, and take nothing of an answer
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TARN_AGENT_CLIENT_TIMEOUT",
        hide_env_values = true,
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub client_timeout: u16,
}

/// A number of which there is at least one.
fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "must be a number from 1 on".into())
}
