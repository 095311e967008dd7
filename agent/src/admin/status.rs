//! `/status`: everything the agent knows of its mirrors, for people and scripts.

use jiff::Timestamp;
use serde::Serialize;
use tarn_crds::v1alpha1::Phase;

use crate::{
    fleet::Fleet,
    git::Head,
    mirror::{Mirror, View},
};

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    version: &'static str,
    mirrors: Vec<MirrorStatus>,
    rejected: Vec<Rejected>,
}

/// One declared mirror.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    name: String,
    repo: String,
    url: String,
    phase: Phase,
    head: Option<HeadStatus>,
    refs_digest: Option<String>,
    ref_count: usize,
    last_look_time: Option<Timestamp>,
    last_fetch_time: Option<Timestamp>,
    bytes: u64,
    /// Why it waits or fails; empty while all is well.
    message: String,
    progress: Option<String>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Serialize)]
struct HeadStatus {
    #[serde(rename = "ref")]
    name: Option<String>,
    sha: Option<String>,
}

/// A condition as Kubernetes shows it, without times.
#[derive(Debug, Serialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

#[derive(Debug, Serialize)]
struct Rejected {
    file: String,
    document: usize,
    field: String,
    reason: String,
}

/// The status of all mirrors now.
pub fn of(fleet: &Fleet) -> Status {
    let refused = fleet.refused();
    let mut mirrors: Vec<_> = fleet.mirrors().iter().map(mirror).collect();
    mirrors.extend(refused.stalled.into_iter().map(|stalled| MirrorStatus {
        name: stalled.name,
        repo: stalled.repo.to_string(),
        url: stalled.url.to_string(),
        phase: Phase::Absent,
        head: None,
        refs_digest: None,
        ref_count: 0,
        last_look_time: None,
        last_fetch_time: None,
        bytes: 0,
        message: stalled.message.clone(),
        progress: None,
        conditions: vec![
            Condition {
                kind: "Ready",
                status: "False",
                reason: stalled.reason,
                message: stalled.message.clone(),
            },
            Condition { kind: "Stalled", status: "True", reason: stalled.reason, message: stalled.message },
        ],
    }));
    let rejected = refused.rejected.into_iter().map(|refused| Rejected {
        file: refused.file,
        document: refused.document,
        field: refused.field,
        reason: refused.reason,
    });
    Status { version: env!("CARGO_PKG_VERSION"), mirrors, rejected: rejected.collect() }
}

fn mirror(mirror: &Mirror) -> MirrorStatus {
    let (view, settings) = (mirror.view(), mirror.settings());
    let stored = view.stored.as_ref();
    let message = view.trouble.as_ref().map(|trouble| format!("{}: {}", trouble.reason, trouble.message));
    MirrorStatus {
        name: settings.name.clone(),
        repo: mirror.id().to_string(),
        url: settings.url.to_string(),
        phase: view.phase,
        head: stored.map(|stored| HeadStatus {
            name: match stored.refs.head() {
                Head::Symbolic(name) => Some(name.to_string()),
                Head::Detached(_) | Head::Missing => None,
            },
            sha: stored.refs.head_oid().map(|oid| oid.to_hex()),
        }),
        refs_digest: stored.map(|stored| stored.digest.clone()),
        ref_count: stored.map_or(0, |stored| stored.refs.refs().len()),
        last_look_time: view.last_look,
        last_fetch_time: view.last_fetch,
        bytes: view.bytes,
        message: message.unwrap_or_default(),
        progress: mirror.progress(),
        conditions: conditions(&view),
    }
}

fn conditions(view: &View) -> Vec<Condition> {
    let ready = view.stored.is_some() && !matches!(view.phase, Phase::CatchingUp);
    let reason = match (&view.trouble, ready) {
        (_, true) => "Mirrored",
        (Some(trouble), false) => trouble.reason,
        (None, false) => "Progressing",
    };
    let message = view.trouble.as_ref().map(|trouble| trouble.message.clone()).unwrap_or_default();
    let of =
        |kind, reason, message: &str| Condition { kind, status: "True", reason, message: message.to_owned() };
    let mut conditions =
        vec![Condition { status: if ready { "True" } else { "False" }, ..of("Ready", reason, &message) }];
    if !ready || view.phase == Phase::Fetching {
        conditions.push(of("Reconciling", "Progressing", &message));
    }
    if let Some(trouble) = &view.trouble {
        conditions.push(of("FetchFailed", trouble.reason, &trouble.message));
        if view.stored.is_some() && view.upstream_failing {
            conditions.push(of(
                "Stale",
                trouble.reason,
                "the upstream cannot be asked whether the refs are current",
            ));
        }
    }
    conditions
}
