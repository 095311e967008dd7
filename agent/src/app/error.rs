//! Why the agent cannot start, or go on.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    access::{peers::PeersError, tokens::TokensError},
    fleet::cluster::ClusterError,
    generations::keyring::KeyringError,
    git::GitError,
    mirror::disk::DiskError,
    serve::ServeError,
    store::StoreError,
    supervisor::Ended,
    tls::TlsError,
};

/// Why the agent cannot start, or go on. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Git.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The store's location makes no sense, or its directory cannot be used.
    #[error("--store: {0}")]
    Store(#[from] StoreError),
    /// The cache's keys.
    #[error("--store-key: {0}")]
    StoreKey(#[from] KeyringError),
    /// The callers' tokens.
    #[error("--tokens: {0}")]
    Tokens(#[from] TokensError),
    /// The tokens of the admin port.
    #[error("--admin-tokens: {0}")]
    AdminTokens(TokensError),
    /// The certificate.
    #[error("--tls-cert, --tls-key: {0}")]
    Tls(#[from] TlsError),
    /// What the agent proves itself with.
    #[error("--peer-token: {0}")]
    PeerToken(#[from] PeersError),
    /// `--mirror` or `--peer` values; all that are wrong.
    #[error("{0}")]
    Flags(String),
    /// The client for other agents.
    #[error("cannot set up the client for other agents: {0}")]
    Client(#[from] reqwest::Error),
    /// The manifests directory.
    #[error("cannot read {path}: {source}; --manifests must name a directory that this user may read")]
    Manifests {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The downward API.
    #[error("--in-cluster: not set: {0}; the pod's downward API sets them")]
    Pod(String),
    /// The API server.
    #[error("--in-cluster: {0}")]
    Cluster(#[from] ClusterError),
    /// A port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A task of its own has ended, while it ran.
    #[error(transparent)]
    Task(#[from] Ended),
    /// Signals cannot be handled, or standard output is closed.
    #[error(transparent)]
    Io(#[from] io::Error),
}
