//! What callers are judged by.

use std::path::PathBuf;

use clap::Args;
use tarn_crds::repo::UpstreamList;

/// What callers are judged by.
#[derive(Clone, Debug, Args)]
pub struct AccessFlags {
    /// Whom a caller's Kubernetes token must be for; may be repeated, one of them is enough [default:
    /// CACHE.NAMESPACE.tarn.dev]
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

    /// Upstream that gets callers' credentials which do not say for which upstream they are, such as github.com, github.com/org/*
    /// or http://git.corp; may be repeated. Without it, the user name must say so: USER@HOST
    #[arg(
        long = "unbound-credentials-to",
        value_name = "HOST",
        env = "TARN_AGENT_UNBOUND_CREDENTIALS_TO",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub unbound_credentials_to: Vec<String>,

    /// File with the tokens that open /status and orders on the admin port to others than the agent's own machine or pod; as
    /// that of --tokens
    #[arg(long, value_name = "FILE", env = "TARN_AGENT_ADMIN_TOKENS", hide_env_values = true)]
    pub admin_tokens: Option<PathBuf>,

    /// Name all mirrors in /metrics to whoever asks, not only those that everybody may have: where a network policy limits
    /// who reaches the admin port
    #[arg(long, env = "TARN_AGENT_OPEN_METRICS", hide_env_values = true)]
    pub open_metrics: bool,

    /// File with what this agent proves itself with to its peers, where not everybody may have a mirror: in a cluster a
    /// token of its service account for the audience peers.tarn.dev, elsewhere a secret that all of them share
    #[arg(long, value_name = "FILE", env = "TARN_AGENT_PEER_TOKEN", hide_env_values = true)]
    pub peer_token: Option<PathBuf>,

    /// Secrets of webhooks, a line each, so that a new one can be brought in beside the old one; read for each request.
    /// Without it no webhook is heard
    #[arg(long, value_name = "FILE", env = "TARN_AGENT_WEBHOOK_SECRET_FILE", hide_env_values = true)]
    pub webhook_secret_file: Option<PathBuf>,
}

impl AccessFlags {
    /// The audiences of which a caller's token must name one, at a pod of this GitCache.
    pub fn audiences(&self, namespace: &str, cache: &str) -> Vec<String> {
        let own = || vec![tarn_crds::audience(namespace, cache)];
        Some(self.audiences.clone()).filter(|named| !named.is_empty()).unwrap_or_else(own)
    }

    /// The upstreams that get credentials which do not say for whom they are.
    ///
    /// # Errors
    /// Which of them is none.
    pub fn unbound(&self) -> Result<UpstreamList, String> {
        let list = UpstreamList::parse(&self.unbound_credentials_to.join(","));
        match list.invalid() {
            [] => Ok(list),
            [invalid, ..] => Err(format!("--unbound-credentials-to: {invalid}")),
        }
    }
}
