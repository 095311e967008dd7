//! Runs the pods of a GitCache: dereference, validate, build, apply, update status.

pub mod dereference;
pub mod validate;

pub mod build;
pub mod rollout;

pub mod apply;
pub mod update_status;

use std::{sync::Arc, time::Duration};

use kube::{ResourceExt, runtime::controller::Action};
use tarn_crds::{
    summarize::Note,
    v1alpha1::{GitCache, conditions::Reason},
};

use crate::{context::Context, error::Error};

use apply::Outcome;
use dereference::{Referenced, dereference};
use update_status::{Progress, update};
use validate::validate;

/// How soon to look again while pods are replaced: what they report is no trigger, because of its number.
const WHILE_REPLACING: Duration = Duration::from_secs(5);
/// A StatefulSet that is deleted with its pods left goes within a moment.
const WHILE_RECREATING: Duration = Duration::from_secs(1);
/// What changes without an event, such as drift of what others changed, is put right this often.
const RESYNC: Duration = Duration::from_secs(10 * 60);
/// What a person must put right may be put right in an object that is not watched.
const WHILE_STALLED: Duration = Duration::from_secs(60);

/// Brings the cluster one step nearer to what `cache` says.
///
/// Any step may fail, or be the last before the process dies: the next reconciliation begins with what there is.
///
/// # Errors
/// The API server.
pub async fn reconcile(cache: Arc<GitCache>, context: Arc<Context>) -> Result<Action, Error> {
    if cache.metadata.deletion_timestamp.is_some() {
        // What belongs to it goes with it.
        return Ok(Action::await_change());
    }
    let now = (context.now)();
    let around = dereference(&cache, &context, now).await?;
    let progress = match Box::pin(advance(&cache, &around, &context)).await {
        Err(error) => match error.refusal() {
            Some(message) => Progress::Stalled(Note::new(Reason::InvalidSpec, message)),
            None => return Err(error),
        },
        Ok(progress) => progress,
    };
    let status = update_status::status(&cache, &around, &progress, now);
    update(&cache, status, &context).await?;
    Ok(Action::requeue(match progress {
        Progress::Recreating(_) => WHILE_RECREATING,
        Progress::Applied { replacing: Some(_), .. } => WHILE_REPLACING,
        Progress::Applied { replacing: None, .. } => RESYNC,
        Progress::Stalled(_) => WHILE_STALLED,
    }))
}

async fn advance(cache: &GitCache, around: &Referenced, context: &Context) -> Result<Progress, Error> {
    if let Some((secret, field)) = &around.missing_secret {
        let message = format!("there is no Secret {secret}, which {field} names: add it");
        return Ok(Progress::Stalled(Note::new(Reason::SecretNotFound, message)));
    }
    let mut valid = match validate(cache, around.secrets.clone(), &context.image)? {
        Ok(valid) => valid,
        Err(note) => return Ok(Progress::Stalled(note)),
    };
    let now = (context.now)();
    let wanted = build::build(&valid);
    let rollout = apply::rollout(&valid, &wanted.stateful_set, around, now);
    valid.partition = rollout::partition(&rollout, now);
    let live = around.stateful_set.clone();
    match Box::pin(apply::apply(&context.client, &valid, build::build(&valid), live)).await? {
        Outcome::Done(applied) => {
            let partition = valid.partition;
            let replacing = rollout::under_way(&rollout).then_some(partition);
            tracing::debug!(cache = cache.name_any(), partition, ?replacing, "applied");
            Ok(Progress::Applied { stateful_set: Box::new(applied.stateful_set), replacing })
        }
        Outcome::Recreating(field) => Ok(Progress::Recreating(field)),
    }
}
