//! One publisher at a time on a store that ignores conditions: a lease, written beside the checkpoints.
//!
//! Best effort, and no more can be had there: whoever wants to publish writes its name, waits until any other's
//! write must have arrived, and reads back whose name stands. The name is read once more right before the manifest
//! is created. A writer that hangs between those two for longer than another one takes to settle still overwrites.
//!
//! ```text
//! <repository>/lease.json      who publishes; void a minute after it was written, by the store's clock
//! ```

use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{CheckpointError, manifest::Writer};
use crate::store::{PutMode, SharedStore, StoreError, clock::store_clock};

/// How long a lease stands after it was written: a killed holder's keeps the others waiting for so long.
const TERM: Duration = Duration::from_secs(60);

/// How often the holder writes it anew: it may miss once.
const RENEW: Duration = Duration::from_secs(20);

/// How long writes of others may be under way still: a put of a few bytes that takes longer is retried.
const SETTLE: Duration = Duration::from_secs(2);

/// How long to wait for another holder, before the publication is put off.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lease is two short texts.
const MAX_LEASE: u64 = 4096;

/// A lease that this agent holds, or believes to.
#[derive(Clone, Debug)]
pub struct Lease {
    store: SharedStore,
    key: String,
    own: Note,
}

/// What stands in the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    holder: Writer,
}

impl Lease {
    /// Waits until nobody else holds the lease at `key`, and takes it. A dropped future leaves one that ends by
    /// itself.
    ///
    /// # Errors
    /// The store's; [`CheckpointError::Leased`] where another agent holds it for long.
    pub async fn take(store: SharedStore, key: String, agent: &str) -> Result<Self, CheckpointError> {
        let nonce = format!("{:032x}", rand::random::<u128>());
        let lease = Self { store, key, own: Note { holder: Writer { agent: agent.to_owned(), nonce } } };
        let began = Instant::now();
        loop {
            let holder = lease.holder().await?;
            if holder.is_none() {
                lease.write().await?;
            }
            sleep(SETTLE).await;
            match (holder, lease.read().await?) {
                (None, Some(found)) if found == lease.own => return Ok(lease),
                (holder, found) if began.elapsed() > PATIENCE => {
                    let holder = holder.or(found).map(|note| note.holder.agent);
                    return Err(CheckpointError::Leased(holder.unwrap_or_default()));
                }
                _ => {}
            }
        }
    }

    /// Makes sure that nobody has taken it away.
    ///
    /// # Errors
    /// Somebody has, or the store cannot say.
    pub async fn confirm(&self) -> Result<(), CheckpointError> {
        match self.read().await? {
            Some(found) if found == self.own => Ok(()),
            found => Err(CheckpointError::Leased(found.map(|note| note.holder.agent).unwrap_or_default())),
        }
    }

    /// Writes it anew, again and again; ends only with an error.
    pub async fn keep(&self) -> CheckpointError {
        loop {
            sleep(RENEW).await;
            let kept = async {
                self.confirm().await?;
                self.write().await
            };
            if let Err(error) = kept.await {
                return error;
            }
        }
    }

    /// Gives it back. Where that fails, it ends by itself.
    pub async fn release(self) {
        let released = async {
            self.confirm().await?;
            Ok::<_, CheckpointError>(self.store.delete(&self.key).await?)
        };
        if let Err(error) = released.await {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }

    /// Who else holds it now.
    async fn holder(&self) -> Result<Option<Note>, CheckpointError> {
        let Some(found) = self.read().await? else { return Ok(None) };
        let written = match self.store.head(&self.key).await {
            Ok((meta, _)) => meta.modified,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let age = store_clock(&*self.store).await?.duration_since(written);
        let stands = age < SignedDuration::try_from(TERM).unwrap_or(SignedDuration::MAX);
        Ok((stands && found != self.own).then_some(found))
    }

    async fn read(&self) -> Result<Option<Note>, CheckpointError> {
        match self.store.get(&self.key, MAX_LEASE).await {
            // What nobody can read binds nobody.
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn write(&self) -> Result<(), CheckpointError> {
        let text = serde_json::to_vec(&self.own).expect("a lease holds only strings");
        Ok(self.store.put(&self.key, Bytes::from(text), PutMode::Overwrite).await?)
    }
}
