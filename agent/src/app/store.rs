//! The store and what depends on it: signatures, the audit log's batches, what it can do.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::{
    audit::{Audit, batches},
    backoff::retry_delay,
    checkpoint::Archive,
    config,
    generations::keyring::Keyring,
    metrics::Metrics,
    mirror::disk::Disk,
    popularity::Popularity,
    store,
    supervisor::Tasks,
};

/// The store, if there is one. It may be down: the agent starts and serves without.
pub(super) fn archive(
    flags: &config::StoreFlags,
    disk: &Disk,
    popularity: &Popularity,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> Result<Option<Arc<Archive>>, StartError> {
    let Some(location) = &flags.store else { return Ok(None) };
    let store = store::open(location, flags.s3())?;
    let keyring = match &flags.store_key {
        Some(path) => {
            let keyring = Keyring::open(path, metrics.store.untrusted.clone())?;
            tasks.spawn("store-key", keyring.clone().follow(path.clone()));
            keyring
        }
        None => {
            tracing::warn!(
                store = store.location(),
                "manifests in the store carry no signature: whoever can write to the store decides what agents restore and serve; see --store-key"
            );
            Keyring::default()
        }
    };
    // Tells agents apart that share a store, and one that comes back from another: a host has several data
    // directories, a volume may change hosts.
    let place = blake3::hash(disk.mark().as_encoded_bytes()).to_hex();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = format!("{host}-{}", place.get(..8).unwrap_or_default());
    Ok(Some(Arc::new(Archive::new(store, name, keyring, popularity.clone()))))
}

/// Finds out what the store can do, as soon as it answers.
pub(super) async fn probe(archive: Arc<Archive>, metrics: Metrics) {
    for attempt in 1.. {
        match archive.capabilities().await {
            Ok(found) => {
                let honoured = found.conditional_create;
                if !honoured {
                    tracing::warn!(
                        store = archive.store.location(),
                        "the store ignores conditions: agents take turns by a lease, which is best effort; use a store that honours If-None-Match"
                    );
                    metrics.store.unconditional.set(1);
                }
                tracing::info!(store = archive.store.location(), conditional_create = honoured, "store");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the store cannot be used; trying again");
                tokio::time::sleep(retry_delay(attempt, rand::random())).await;
            }
        }
    }
}

/// Where the audit log goes, and what stores it until all is `answered`.
pub(super) fn audit(
    config: &config::Serve,
    metrics: &Metrics,
    archive: Option<&Arc<Archive>>,
    answered: &CancellationToken,
    tasks: &mut Tasks,
) -> Audit {
    let Some(archive) = archive.filter(|_| config.audit_store) else { return Audit::default() };
    let (audit, inbox) = Audit::in_batches(metrics.audit.dropped.clone());
    let (store, agent) = (archive.store.clone(), archive.agent.clone());
    tasks.spawn("audit", batches::run(inbox, store, agent, metrics.clone(), answered.clone()));
    audit
}
