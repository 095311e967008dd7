//! Flags and their environment twins.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};

/// Runs the pods of GitCaches, and sums up the status of GitMirrors.
#[derive(Clone, Debug, Parser)]
#[command(name = "tarn-operator", version, about)]
pub struct Config {
    /// Image of the agents of GitCaches that name none
    #[arg(long, value_name = "IMAGE", env = "TARN_OPERATOR_AGENT_IMAGE", hide_env_values = true)]
    pub agent_image: String,

    /// Namespaces to look after; all of them without it
    #[arg(
        long = "namespace",
        value_name = "NAME",
        env = "TARN_OPERATOR_NAMESPACE",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub namespaces: Vec<String>,

    /// ClusterRoleBinding in which to name the GitCaches' agents, so that they may ask whose a caller's token is; without
    /// it, mirrors with access RBAC turn everybody away
    #[arg(long, value_name = "NAME", env = "TARN_OPERATOR_TOKEN_REVIEWERS", hide_env_values = true)]
    pub token_reviewers: Option<String>,

    /// Work only while holding a Lease, so that several operators may run
    #[arg(long, env = "TARN_OPERATOR_LEADER_ELECT", hide_env_values = true)]
    pub leader_elect: bool,

    /// Where probes and metrics are served
    #[arg(
        long,
        value_name = "ADDR",
        env = "TARN_OPERATOR_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:8082"
    )]
    pub listen: SocketAddr,

    /// What to log: a level, or a list such as info,tarn_operator=debug
    #[arg(
        long,
        value_name = "FILTER",
        env = "TARN_OPERATOR_LOG",
        hide_env_values = true,
        default_value = "info"
    )]
    pub log: String,

    /// How log lines look
    #[arg(
        long,
        value_name = "FORMAT",
        env = "TARN_OPERATOR_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_has_an_environment_twin() {
        let cli = Config::command();
        cli.clone().debug_assert();
        for flag in cli.get_arguments().filter(|flag| !["help", "version"].contains(&flag.get_id().as_str()))
        {
            let long = flag.get_long().unwrap().to_ascii_uppercase().replace('-', "_");
            assert_eq!(flag.get_env().unwrap().to_str(), Some(format!("TARN_OPERATOR_{long}").as_str()));
        }
    }
}
