//! Lets agents ask the cluster whose a caller's token is.
//!
//! A review of a token belongs to no namespace, so no Role can grant it. The chart makes one ClusterRole that grants
//! nothing else, and one ClusterRoleBinding of it, without subjects; the operator names in that one the ServiceAccounts of
//! the GitCaches there are, and no others. It may touch no other binding.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Subject};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::reflector::Store,
};
use serde_json::json;
use tarn_crds::{agent_account, v1alpha1::GitCache};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{error::Error, ssa::MANAGER};

/// How often the GitCaches there are are looked over; it costs no request.
const LOOK_OVER: Duration = Duration::from_secs(1);
/// What others change is put right this often, and what failed tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// A ServiceAccount: its namespace and its name.
pub type Account = (String, String);

/// Keeps the binding called `name` what the GitCaches of `scope` (all namespaces without one) make of it, for ever.
pub async fn follow(client: &Client, name: Option<&str>, scope: Option<&str>, caches: &Store<GitCache>) {
    let Some(name) = name else { return std::future::pending().await };
    if caches.wait_until_ready().await.is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(LOOK_OVER);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut done: Option<(BTreeSet<Account>, Instant)> = None;
    loop {
        ticks.tick().await;
        let wanted = wanted(caches);
        if done.as_ref().is_some_and(|(bound, when)| *bound == wanted && when.elapsed() < AGAIN) {
            continue;
        }
        match bind(client, name, scope, &wanted).await {
            Ok(()) => {}
            Err(Error::Conflict { .. }) => continue,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(binding = name, %error, source, "agents cannot be let ask whose tokens are; trying again");
            }
        }
        done = Some((wanted, Instant::now()));
    }
}

/// The ServiceAccounts of all GitCaches.
fn wanted(caches: &Store<GitCache>) -> BTreeSet<Account> {
    let account = |cache: &GitCache| Some((cache.namespace()?, agent_account(&cache.name_any())));
    caches.state().iter().filter_map(|cache| account(cache)).collect()
}

/// Names these accounts in the binding called `name`; those of other namespaces than `scope` stay as they are.
///
/// # Errors
/// The API server; it changed meanwhile.
pub async fn bind(
    client: &Client,
    name: &str,
    scope: Option<&str>,
    wanted: &BTreeSet<Account>,
) -> Result<(), Error> {
    let api = Api::<ClusterRoleBinding>::all(client.clone());
    let what = || format!("ClusterRoleBinding {name}");
    let live = api.get(name).await.map_err(|error| Error::api("read", what(), error))?;
    let there: Vec<Account> = live.subjects.iter().flatten().filter_map(account).collect();
    let others = there.iter().filter(|(namespace, _)| scope.is_some_and(|scope| scope != namespace));
    let all: BTreeSet<&Account> = others.chain(wanted).collect();
    let complete = there.len() == live.subjects.as_ref().map_or(0, Vec::len);
    if complete && there.iter().eq(all.iter().copied()) {
        return Ok(());
    }
    let subjects: Vec<Subject> = all
        .into_iter()
        .map(|(namespace, name)| Subject {
            kind: "ServiceAccount".into(),
            name: name.clone(),
            namespace: Some(namespace.clone()),
            api_group: None,
        })
        .collect();
    // A merge replaces the list; the resourceVersion keeps two operators, or two scopes, from undoing each other's.
    let body = json!({"metadata": {"resourceVersion": live.resource_version()}, "subjects": subjects});
    let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let patched = api.patch(name, &parameters, &Patch::Merge(&body)).await;
    patched.map_err(|error| Error::api("patch", what(), error))?;
    tracing::info!(binding = name, accounts = subjects.len(), "these agents may ask whose tokens are");
    Ok(())
}

fn account(subject: &Subject) -> Option<Account> {
    (subject.kind == "ServiceAccount").then(|| subject.namespace.clone().zip(Some(subject.name.clone())))?
}
