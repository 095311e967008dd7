//! Where clients and probes connect.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

/// Where clients and probes connect.
#[derive(Clone, Debug, Args)]
pub struct PortFlags {
    /// Where git clients connect
    #[arg(
        long,
        value_name = "ADDR",
        env = "TARN_AGENT_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,

    /// File with the certificate (PEM, with those that lead to its authority) for git clients; without it they are served in
    /// the clear. Read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        env = "TARN_AGENT_TLS_CERT",
        hide_env_values = true,
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// File with the certificate's key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "TARN_AGENT_TLS_KEY",
        hide_env_values = true,
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Where probes, metrics and status are served
    #[arg(
        long,
        value_name = "ADDR",
        env = "TARN_AGENT_ADMIN_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:8081"
    )]
    pub admin_listen: SocketAddr,

    /// Seconds that answers under way may take to finish when the agent is told to stop; less than what follows until it is
    /// killed
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TARN_AGENT_DRAIN",
        hide_env_values = true,
        default_value_t = 25,
        value_parser = clap::value_parser!(u16).range(..=3600)
    )]
    pub drain: u16,
}
