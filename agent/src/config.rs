//! Flags and their environment twins.

mod limits;
mod pod;
mod prewarm;
mod store;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};
use tarn_crds::v1alpha1::Budget;

use crate::telemetry::LogFormat;

pub use limits::LimitFlags;
pub use pod::Pod;
pub use prewarm::PrewarmFlags;
pub use store::{GcArgs, RmArgs, StoreArgs, StoreCommand, StoreFlags, VerifyArgs};

/// Mirrors git repositories and serves them over smart HTTP.
#[derive(Debug, Parser)]
#[command(name = "tarn-agent", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mirror and serve until told to stop
    Serve(Box<Serve>),
    /// Look into a store
    #[command(subcommand)]
    Store(StoreCommand),
}

/// Flags of `tarn-agent serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Directory with GitMirror manifests (*.yaml, *.yml, *.json; several documents a file); watched for changes
    #[arg(long, value_name = "DIR", env = "TARN_AGENT_MANIFESTS", hide_env_values = true)]
    pub manifests: Option<PathBuf>,

    /// Repository to mirror, as if a manifest with nothing but this URL existed; may be repeated
    #[arg(
        long = "mirror",
        value_name = "URL",
        env = "TARN_AGENT_MIRROR",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub mirrors: Vec<String>,

    /// Mirror the GitMirrors of the pod's namespace, and report on them
    #[arg(
        long,
        env = "TARN_AGENT_IN_CLUSTER",
        hide_env_values = true,
        requires = "cache",
        conflicts_with_all = ["manifests", "mirrors"]
    )]
    pub in_cluster: bool,

    /// The GitCache whose GitMirrors are meant
    #[arg(
        long,
        value_name = "NAME",
        env = "TARN_AGENT_CACHE",
        hide_env_values = true,
        requires = "in_cluster",
        value_parser = object_name
    )]
    pub cache: Option<String>,

    /// Directory for the mirrors; one agent at a time
    #[arg(long, value_name = "DIR", env = "TARN_AGENT_DATA", hide_env_values = true)]
    pub data: PathBuf,

    /// Which store.
    #[command(flatten)]
    pub store: StoreFlags,

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

    /// Seconds within which every mirror's files are compared with their checksums once; 0 to compare only those of
    /// mirrors that are in use, or on which git has failed
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TARN_AGENT_SCRUB_INTERVAL",
        hide_env_values = true,
        default_value_t = 604_800
    )]
    pub scrub_interval: u32,

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

    /// Secrets of webhooks, a line each, so that a new one can be brought in beside the old one; read for each request.
    /// Without it no webhook is heard
    #[arg(long, value_name = "FILE", env = "TARN_AGENT_WEBHOOK_SECRET_FILE", hide_env_values = true)]
    pub webhook_secret_file: Option<PathBuf>,

    /// Whom a caller's Kubernetes token must be for; may be repeated, one of them is enough [default: tarn]
    #[arg(
        long = "audience",
        value_name = "NAME",
        env = "TARN_AGENT_AUDIENCE",
        hide_env_values = true,
        value_delimiter = ',',
        requires = "in_cluster"
    )]
    pub audiences: Vec<String>,

    /// File with the callers of mirrors whose access is Authenticated: a name, a blank and a token in each line; read
    /// again when it changes
    #[arg(long, value_name = "FILE", env = "TARN_AGENT_TOKENS", hide_env_values = true)]
    pub tokens: Option<PathBuf>,

    /// File with what this agent proves itself with to its peers, where not everybody may have a mirror: in a cluster a
    /// token of its service account for the audience peers.tarn.dev, elsewhere a secret that all of them share
    #[arg(long, value_name = "FILE", env = "TARN_AGENT_PEER_TOKEN", hide_env_values = true)]
    pub peer_token: Option<PathBuf>,

    /// What clients may cost.
    #[command(flatten)]
    pub limits: LimitFlags,

    /// Which mirrors are brought before anyone asks.
    #[command(flatten)]
    pub prewarm: PrewarmFlags,

    /// How much of the disk the agent's data may take: a share of the volume, or an amount such as 500Gi
    #[arg(
        long,
        value_name = "PERCENT|QUANTITY",
        env = "TARN_AGENT_DISK_BUDGET",
        hide_env_values = true,
        default_value = "80%"
    )]
    pub disk_budget: Budget,

    /// Percent of one processor's time for packs that are made before anyone asks, when refs have moved; 0: none are
    #[arg(
        long,
        value_name = "PERCENT",
        env = "TARN_AGENT_PACK_AHEAD",
        hide_env_values = true,
        default_value_t = 10,
        value_parser = clap::value_parser!(u8).range(..=100)
    )]
    pub pack_ahead: u8,

    /// Looks and fetches under way at one upstream host
    #[arg(
        long,
        value_name = "N",
        env = "TARN_AGENT_UPSTREAM_CONNECTIONS",
        hide_env_values = true,
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub upstream_connections: u16,

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

    /// Admit file:// upstreams: whoever may write manifests can then read any repository this user can
    #[arg(long, env = "TARN_AGENT_ALLOW_FILE_UPSTREAMS", hide_env_values = true)]
    pub allow_file_upstreams: bool,

    /// What to log: a level, or a list such as info,tarn_agent::mirror=debug
    #[arg(
        long,
        value_name = "FILTER",
        env = "TARN_AGENT_LOG",
        hide_env_values = true,
        default_value = "info"
    )]
    pub log: String,

    /// How log lines look
    #[arg(
        long,
        value_name = "FORMAT",
        env = "TARN_AGENT_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// The audience of callers' tokens where none is named.
const AUDIENCE: &str = "tarn";

impl Serve {
    /// The audiences of which a caller's token must name one.
    pub fn audiences(&self) -> Vec<String> {
        let none = self.audiences.is_empty();
        if none { vec![AUDIENCE.to_owned()] } else { self.audiences.clone() }
    }
}

/// A name fit for a field selector: letters, digits, dashes and dots, as objects are named.
fn object_name(name: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(fits) {
        return Err("must be the name of a GitCache: lower-case letters, digits, dashes, dots".into());
    }
    Ok(name.to_owned())
}

/// Variables that begin like a flag's twin but belong to none, so that a misspelt one is not ignored.
///
/// Kubernetes itself sets such variables for a Service called `tarn-agent`; those do not count.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let cli = Cli::command();
    let known: Vec<&str> = cli
        .get_subcommands()
        .flat_map(|command| std::iter::once(command).chain(command.get_subcommands()))
        .flat_map(clap::Command::get_arguments)
        .filter_map(|flag| flag.get_env()?.to_str())
        .collect();
    let unknown = |name: &String| {
        name.strip_prefix("TARN_AGENT_").is_some_and(|rest| {
            let service_link = rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_");
            !service_link && !known.contains(&name.as_str())
        })
    };
    names.into_iter().filter(unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_variables_are_found_and_service_links_are_not() {
        let names = [
            "TARN_AGENT_LISTNE",
            "TARN_AGENT_LISTEN",
            "TARN_AGENT_PORT_80_TCP",
            "TARN_AGENT_SERVICE_HOST",
            "PATH",
        ];
        assert_eq!(unknown_variables(names.map(String::from)), ["TARN_AGENT_LISTNE"]);
    }

    #[test]
    fn a_cluster_excludes_files_and_wants_a_cache() {
        let parse = |flags: &[&str]| {
            let all = ["tarn-agent", "serve", "--data", "d"].iter().chain(flags);
            Cli::try_parse_from(all).map(|_| ()).map_err(|error| error.to_string())
        };
        parse(&["--in-cluster", "--cache", "default"]).unwrap();
        for wrong in [
            &["--in-cluster"][..],
            &["--cache", "default"],
            &["--in-cluster", "--cache", "a,b=c"],
            &["--in-cluster", "--cache", "c", "--manifests", "m"],
            &["--in-cluster", "--cache", "c", "--mirror", "https://h/o/r"],
            &["--in-cluster", "--cache", "c", "--peer", "http://h:1"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_flag_has_an_environment_twin() {
        let cli = Cli::command();
        let serve = cli.find_subcommand("serve").unwrap();
        for flag in serve.get_arguments().filter(|a| !["help", "version"].contains(&a.get_id().as_str())) {
            let long = flag.get_long().unwrap().to_ascii_uppercase().replace('-', "_");
            assert_eq!(flag.get_env().unwrap().to_str(), Some(format!("TARN_AGENT_{long}").as_str()));
        }
    }
}
