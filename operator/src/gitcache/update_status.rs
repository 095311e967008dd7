//! From what was applied to the GitCache's status: a pure function, and the write of what differs.

use jiff::Timestamp;
use k8s_openapi::{api::apps::v1::StatefulSet, apimachinery::pkg::apis::meta::v1::Time};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tarn_crds::{
    summarize::{Facts, Note, Pods, summarize},
    v1alpha1::{Access, GitCache, GitCacheStatus, Phase, conditions::Reason},
};

use super::{build::selector_text, dereference::Referenced};
use crate::{
    context::Context,
    error::Error,
    events,
    ssa::{self, MANAGER},
};

/// How far the GitCache has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Its objects are as they should be, and so is the StatefulSet; pods may be being replaced.
    Applied {
        /// The StatefulSet as the API server has it.
        stateful_set: Box<StatefulSet>,
        /// Whether pods remain to be replaced, and from which ordinal on they may.
        replacing: Option<i32>,
    },
    /// The StatefulSet is being made anew because this field of it changed.
    Recreating(&'static str),
    /// Only a person can help.
    Stalled(Note),
}

/// The status that speaks of all this.
pub fn status(cache: &GitCache, around: &Referenced, progress: &Progress, now: Timestamp) -> GitCacheStatus {
    let set = match progress {
        Progress::Applied { stateful_set, .. } => Some(stateful_set.as_ref()),
        Progress::Recreating(_) | Progress::Stalled(_) => around.stateful_set.as_ref(),
    };
    let counted = set.and_then(|set| set.status.as_ref());
    let replicas = counted.map_or(0, |status| status.replicas);
    let ready = counted.and_then(|status| status.ready_replicas).unwrap_or(0);
    let desired = cache.spec.replicas;
    let number = |count: i32| u32::try_from(count).unwrap_or(0);
    let facts = Facts {
        generation: cache.metadata.generation.unwrap_or(0),
        suspended: false,
        on_demand: false,
        pods: Pods { ready: number(ready), desired: number(desired), enough: number(desired) },
        stalled: match progress {
            Progress::Stalled(note) => Some(note.clone()),
            Progress::Applied { .. } | Progress::Recreating(_) => None,
        },
        progress: under_way(progress, around),
        findings: Vec::new(),
        insecure: insecure(cache, around),
    };
    let previous = cache.status.clone().unwrap_or_default();
    GitCacheStatus {
        observed_generation: cache.metadata.generation,
        conditions: summarize(&facts, &previous.conditions, &Time(now)),
        replicas: Some(replicas),
        ready_replicas: Some(ready),
        pods: Some(format!("{ready}/{desired}")),
        selector: Some(selector_text(&cache.name_any())),
        mirrors: i32::try_from(around.mirrors.len()).ok(),
        warm: Some(warm(around)),
        // Others' to write.
        store_capabilities: None,
    }
}

/// Mirrors whose callers prove themselves with tokens, if those travel unencrypted.
fn insecure(cache: &GitCache, around: &Referenced) -> Option<Note> {
    if cache.spec.tls.is_some() {
        return None;
    }
    let guarded = around.mirrors.iter().filter(|mirror| mirror.spec.effective_access() != Access::Anonymous);
    let mut names: Vec<String> = guarded.map(|mirror| mirror.name_any()).collect();
    names.sort_unstable();
    let first = names.first()?;
    let others = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
    let message = format!(
        "tokens of the callers of {first}{others} travel unencrypted: set spec.tls.secretRef, or let a mesh encrypt"
    );
    Some(Note::new(Reason::NoTls, message))
}

/// GitMirrors that a pod has ready, of those that pods have or are to have.
fn warm(around: &Referenced) -> String {
    let (mut warm, mut wanted) = (0_usize, 0_usize);
    for mirror in &around.mirrors {
        let entries = mirror.status.iter().flat_map(|status| &status.replicas);
        let phases: Vec<Phase> = entries
            .filter(|entry| {
                around.pods.iter().any(|pod| pod.name_any() == entry.pod && pod.uid() == entry.pod_uid)
            })
            .filter_map(|entry| entry.phase)
            .collect();
        warm += usize::from(phases.iter().any(|phase| phase.is_ready()));
        wanted += usize::from(phases.is_empty() || phases.iter().any(|phase| *phase != Phase::OnDemand));
    }
    format!("{warm}/{wanted}")
}

fn under_way(progress: &Progress, around: &Referenced) -> Option<Note> {
    let message = match progress {
        Progress::Applied { replacing: Some(partition), .. } => format!(
            "pods are replaced one after another, from the last; those before {partition} wait until it has its mirrors"
        ),
        Progress::Recreating(field) => {
            format!("{field} of the StatefulSet cannot change in place: it is made anew, and its pods stay")
        }
        Progress::Applied { replacing: None, .. } if !around.silent.is_empty() => {
            let silent: Vec<&str> = around.silent.iter().map(String::as_str).collect();
            let message = format!("pods that stopped reporting: {}", silent.join(", "));
            return Some(Note::new(Reason::PodsSilent, message));
        }
        Progress::Applied { replacing: None, .. } | Progress::Stalled(_) => return None,
    };
    Some(Note::new(Reason::RollingOut, message))
}

/// Writes the status if it differs from the one that was read, and tells of transitions.
///
/// # Errors
/// The API server; a conflict if the GitCache changed since it was read.
pub async fn update(cache: &GitCache, status: GitCacheStatus, context: &Context) -> Result<(), Error> {
    let previous = cache.status.clone().unwrap_or_default();
    if ours(&status) == ours(&previous) {
        return Ok(());
    }
    let body = json!({
        "apiVersion": GitCache::api_version(&()),
        "kind": GitCache::kind(&()),
        "metadata": {
            "name": cache.name_any(),
            "resourceVersion": cache.resource_version(),
        },
        "status": status,
    });
    ssa::apply_status(&context.client, cache, &body, MANAGER).await?;
    let transitions = events::transitions(&previous.conditions, &status.conditions);
    context.events.tell(cache, &transitions).await;
    Ok(())
}

/// The operator's part; the API server may keep conditions in another order.
fn ours(status: &GitCacheStatus) -> GitCacheStatus {
    let mut ours = GitCacheStatus { store_capabilities: None, ..status.clone() };
    ours.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    ours
}
