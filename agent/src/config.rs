//! Flags and their environment twins.

mod access;
mod disk;
mod limits;
mod peering;
mod pod;
mod ports;
mod prewarm;
mod store;
mod upstreams;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::telemetry::LogFormat;

pub use access::AccessFlags;
pub use disk::DiskFlags;
pub use limits::LimitFlags;
pub use peering::PeerFlags;
pub use pod::Pod;
pub use ports::PortFlags;
pub use prewarm::PrewarmFlags;
pub use store::{GcArgs, RmArgs, StoreArgs, StoreCommand, StoreFlags, VerifyArgs};
pub use upstreams::UpstreamFlags;

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

    /// Keep the audit log in the store as well, in compressed batches below audit/
    #[arg(long, env = "TARN_AGENT_AUDIT_STORE", hide_env_values = true, requires = "store")]
    pub audit_store: bool,

    /// The other agents.
    #[command(flatten)]
    pub peering: PeerFlags,

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

    /// What callers are judged by.
    #[command(flatten)]
    pub access: AccessFlags,

    /// What clients may cost.
    #[command(flatten)]
    pub limits: LimitFlags,

    /// Which mirrors are brought before anyone asks.
    #[command(flatten)]
    pub prewarm: PrewarmFlags,

    /// What the disk has to give.
    #[command(flatten)]
    pub disk: DiskFlags,

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

    /// Which upstreams are asked.
    #[command(flatten)]
    pub upstreams: UpstreamFlags,

    /// Where clients and probes connect.
    #[command(flatten)]
    pub ports: PortFlags,

    /// Let debuggers and core dumps see the agent's memory, credentials and all
    #[arg(long, env = "TARN_AGENT_DEBUGGABLE", hide_env_values = true)]
    pub debuggable: bool,

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
