//! Sums up the status of a GitMirror: observe, remove what departed pods said, conditions and fields, write what differs;
//! and keeps one that is being deleted until its objects are gone from the store, where they are to go.

pub mod observe;

pub mod conditions;
pub mod summary;

pub mod departed;
pub mod cleanup;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Resource, ResourceExt, runtime::controller::Action};
use serde_json::json;
use tarn_crds::v1alpha1::{GitMirror, GitMirrorStatus};

use crate::{
    context::Context,
    error::Error,
    events,
    ssa::{self, MANAGER},
};

use observe::observe;

/// What a person must put right may be put right in an object that is not watched.
const WHILE_STALLED: Duration = Duration::from_secs(30);
/// Removing an entry that is there again, or one whose pod the watch does not know yet, is tried again.
const WHILE_DEPARTED: Duration = Duration::from_secs(5);
/// In case an event was lost.
const RESYNC: Duration = Duration::from_secs(10 * 60);

/// Brings the status of `mirror` up to date.
///
/// # Errors
/// The API server; a conflict if the mirror changed since it was read.
pub async fn reconcile(mirror: Arc<GitMirror>, context: Arc<Context>) -> Result<Action, Error> {
    if let Some(since) = &mirror.metadata.deletion_timestamp {
        return cleanup::leave(&mirror, since.0, &context).await;
    }
    let now = (context.now)();
    let mirror = cleanup::guard(mirror.as_ref().clone(), &context).await?;
    let observed = observe(&mirror, &context, now).await?;
    let mirror = departed::remove(mirror, &observed.departed, &context).await?;
    let status = summary::status(&mirror, &observed, now);
    write(&mirror, &status, &context).await?;
    Ok(Action::requeue(if !observed.departed.is_empty() {
        WHILE_DEPARTED
    } else if observed.stalled.is_some() {
        WHILE_STALLED
    } else {
        spread(&mirror, now)
    }))
}

/// Writes the operator's part if it differs, and tells of transitions.
async fn write(mirror: &GitMirror, status: &GitMirrorStatus, context: &Context) -> Result<(), Error> {
    let previous = mirror.status.clone().unwrap_or_default();
    if summary::same(status, &previous) {
        return Ok(());
    }
    let body = json!({
        "apiVersion": GitMirror::api_version(&()),
        "kind": GitMirror::kind(&()),
        "metadata": {
            "name": mirror.name_any(),
            "resourceVersion": mirror.resource_version(),
        },
        "status": status,
    });
    ssa::apply_status(&context.client, mirror, &body, MANAGER).await?;
    let transitions = events::transitions(&previous.conditions, &status.conditions);
    context.events.tell(mirror, &transitions).await;
    Ok(())
}

/// When to look again without a reason; thousands of mirrors do not all do so at once.
fn spread(mirror: &GitMirror, now: Timestamp) -> Duration {
    let seed = format!("{}{}", mirror.name_any(), now.as_second());
    let byte = blake3::hash(seed.as_bytes()).as_bytes().first().copied().unwrap_or(0);
    RESYNC + Duration::from_secs(u64::from(byte))
}
