//! The one place where parts are put together: configuration in, running operator out.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use kube_lease_manager::{LeaseCreateMode, LeaseManagerBuilder, LeaseManagerError};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin::{self, Metrics},
    config::Config,
    controllers,
    ssa::MANAGER,
};

/// The Lease by which operators take turns.
const LEASE: &str = "tarn-operator";
/// Seconds that a Lease holds, and seconds before its end by which it is renewed.
const HOLDS: (u64, u64) = (15, 5);
/// How long the Lease may take to be given back.
const RELEASE: Duration = Duration::from_secs(5);

/// Why the operator cannot start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no cluster to talk to.
    #[error("cannot tell which cluster to talk to: {0}")]
    Cluster(#[from] kube::Error),
    /// The election.
    #[error("cannot take part in the election of a leader: {0}")]
    Election(#[from] LeaseManagerError),
    /// The port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Signals cannot be handled.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs until a signal says otherwise.
///
/// # Errors
/// It cannot start, or cannot take part in the election.
pub async fn run(config: Config) -> Result<(), RunError> {
    let stopping = on_signal()?;
    let metrics = Metrics::new();
    let address = config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    let port = axum::serve(listener, admin::router(metrics.clone()));
    let _port = AbortOnDropHandle::new(tokio::spawn(async move { port.await }));
    let client = Client::try_default().await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %address, "started");
    if !config.leader_elect {
        work(&client, &config, &metrics, &stopping).await;
        return Ok(());
    }
    let pod = std::env::var("POD_NAME").ok();
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let (duration, grace) = HOLDS;
    create_lease(&client).await?;
    let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
        .with_namespace(client.default_namespace())
        .with_identity(pod.unwrap_or_else(host))
        .with_duration(duration)
        .with_grace(grace)
        .with_create_mode(LeaseCreateMode::UseExistent)
        .build()
        .await?;
    let (mut leading, election) = manager.watch().await;
    while !stopping.is_cancelled() {
        let elected = stopping.run_until_cancelled(leading.wait_for(|leading| *leading)).await;
        // Otherwise it is time to stop, or the election has ended by itself, which the end of this function tells.
        if !matches!(elected, Some(Ok(_))) {
            break;
        }
        drop(elected);
        let term = stopping.child_token();
        let work = work(&client, &config, &metrics, &term);
        tokio::select! {
            () = work => {}
            _ = leading.wait_for(|leading| !*leading) => {
                tracing::warn!("another operator leads now");
                term.cancel();
            }
        }
    }
    // Giving it back lets the next one begin at once.
    drop(leading);
    match timeout(RELEASE, election).await {
        Ok(Ok(done)) => done.map(drop).map_err(RunError::from),
        Ok(Err(error)) => Err(io::Error::other(error).into()),
        Err(_) => Ok(()),
    }
}

/// Makes sure that there is a Lease. By server-side apply, which names it: so the right to create it is bound to its name.
async fn create_lease(client: &Client) -> Result<(), kube::Error> {
    let leases = Api::<Lease>::default_namespaced(client.clone());
    let body = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}});
    leases.patch(LEASE, &PatchParams::apply(MANAGER), &Patch::Apply(body)).await.map(drop)
}

async fn work(client: &Client, config: &Config, metrics: &Metrics, stopping: &CancellationToken) {
    tracing::info!(namespaces = ?config.namespaces, "working");
    metrics.leader.set(1);
    let scopes = match config.namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let run = |scope| {
        let (client, image) = (client.clone(), config.agent_image.clone());
        let reviewers = config.token_reviewers.clone();
        Box::pin(controllers::run(client, scope, image, reviewers, metrics.clone(), stopping.clone()))
    };
    join_all(scopes.into_iter().map(run)).await;
    metrics.leader.set(0);
}

/// A token that is cancelled at the first SIGTERM or SIGINT.
fn on_signal() -> io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping");
        cancelled.cancel();
    });
    Ok(token)
}
