//! `/status`: everything the agent knows of its mirrors, for people and scripts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self as k8s, Time};
use serde::Serialize;
use tarn_crds::{
    summarize::{Facts, Note, Pods, summarize},
    v1alpha1::{Phase, conditions::Reason},
};

use super::Admin;
use crate::{
    checkpoint::Archive,
    fleet::{budget::Usage, declarations::Stalled, prewarm::Progress},
    git::Head,
    mirror::{Mirror, Settings, Trouble, View, findings::findings},
    peers::Peers,
    popularity::day::Uses,
};

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    version: &'static str,
    store: Option<StoreStatus>,
    prewarm: PrewarmStatus,
    disk: DiskStatus,
    mirrors: Vec<MirrorStatus>,
    rejected: Vec<Rejected>,
}

/// How full the disk is, in bytes; all 0 for the first instant.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskStatus {
    /// What the agent's data may take.
    budget: u64,
    /// What they take.
    used: u64,
    /// What is free on their volume, whoever uses the rest.
    free: u64,
    /// The size of their volume.
    total: u64,
}

/// The mirrors that are brought before anyone asks for them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PrewarmStatus {
    /// How many they are.
    total: usize,
    /// How many of them are here and up to date.
    warmed: usize,
    /// How many are being brought.
    under_way: usize,
    /// How many could not be brought, or not in time; they are tried on.
    failed: usize,
}

/// The store, and what it turned out to be able to do.
#[derive(Clone)]
pub struct Probed {
    /// The store.
    pub archive: Arc<Archive>,
    /// The other agents that share it.
    pub peers: Peers,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StoreStatus {
    location: String,
    /// Null until the store has answered; where it is false, agents take turns by a lease.
    conditional_create: Option<bool>,
    /// What keeps publishers apart: `ConditionalCreate`, or `Lease`, which is best effort.
    publishing_by: Option<&'static str>,
    /// Whether manifests carry a signature, and those without are refused.
    signed: bool,
    /// What the others know this agent by.
    agent: String,
    /// The living agents that share it, this one included; empty until they are known.
    agents: Vec<String>,
}

/// One declared mirror.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    name: String,
    repo: String,
    url: String,
    /// Who may read it, the default worked out.
    access: Option<&'static str>,
    phase: Phase,
    head: Option<HeadStatus>,
    refs_digest: Option<String>,
    ref_count: usize,
    last_look_time: Option<Timestamp>,
    last_fetch_time: Option<Timestamp>,
    bytes: u64,
    checkpoint: Option<CheckpointStatus>,
    snapshot: Option<SnapshotStatus>,
    /// The agent whose turn it is to publish checkpoints; null until the others are known.
    publisher: Option<String>,
    /// How often it was asked for within two weeks, as far as the store says; null without a store.
    uses: Option<Uses>,
    /// Why it waits or fails; empty while all is well.
    message: String,
    progress: Option<String>,
    conditions: Vec<Condition>,
}

/// The newest checkpoint that the agent knows of.
#[derive(Debug, Serialize)]
struct CheckpointStatus {
    generation: u64,
    time: Timestamp,
    bytes: u64,
}

/// The snapshot that clients get.
#[derive(Debug, Serialize)]
struct SnapshotStatus {
    /// 0 while it is in no store.
    generation: u64,
    commit: String,
    time: Timestamp,
    bytes: u64,
    digest: String,
    /// How much of it is on this disk; the rest is in the store.
    local: u64,
    /// Why its content is believed: `built`, `signed`, `compared`; `not yet`, or `unknown`, where nobody knows.
    checked: &'static str,
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
    kind: String,
    status: String,
    reason: String,
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
pub fn of(admin: &Admin) -> Status {
    let Admin { fleet, warmer, budget, store, metrics: _, open_metrics: _, administrators: _, stopping: _ } =
        admin;
    let store = store.as_ref();
    let refused = fleet.refused();
    let stalls: BTreeMap<&str, &Stalled> =
        refused.stalled.iter().map(|stalled| (stalled.name.as_str(), stalled)).collect();
    let running = fleet.mirrors();
    let names: BTreeSet<String> = running.iter().map(|mirror| mirror.settings().name.clone()).collect();
    let idle = refused.stalled.iter().filter(|stalled| !names.contains(&stalled.name));
    let running =
        running.iter().map(|found| mirror(found, stalls.get(found.settings().name.as_str()).copied(), store));
    let mirrors = running.chain(idle.cloned().map(stalled)).collect();
    let rejected = refused.rejected.iter().cloned().map(|refused| Rejected {
        file: refused.file,
        document: refused.document,
        field: refused.field,
        reason: refused.reason,
    });
    let store = store.map(|store| StoreStatus {
        location: store.archive.store.location(),
        conditional_create: store.archive.capable().map(|found| found.conditional_create),
        publishing_by: store.archive.capable().map(|found| match found.conditional_create {
            true => "ConditionalCreate",
            false => "Lease",
        }),
        signed: store.archive.keyring.signs(),
        agent: store.peers.name().to_owned(),
        agents: store.peers.living().to_vec(),
    });
    let Progress { total, warmed, under_way, failed } = warmer.progress();
    let Usage { budget, used, volume } = budget.usage();
    let disk = DiskStatus { budget, used, free: volume.free, total: volume.total };
    let prewarm = PrewarmStatus { total, warmed, under_way, failed };
    Status { version: env!("CARGO_PKG_VERSION"), store, prewarm, disk, mirrors, rejected: rejected.collect() }
}

fn mirror(mirror: &Mirror, stalled: Option<&Stalled>, store: Option<&Probed>) -> MirrorStatus {
    let (view, settings) = (mirror.view(), mirror.settings());
    let stored = view.stored.as_ref();
    let snapshots = mirror.snapshots().view();
    let withheld = view.withheld(settings.on_upstream_refusal);
    let trouble = withheld
        .as_ref()
        .or(view.trouble())
        .map(|trouble| format!("{}: {}", trouble.reason, trouble.message));
    let message = stalled.map(|stalled| stalled.message.clone()).or(trouble);
    MirrorStatus {
        name: settings.name.clone(),
        repo: mirror.id().to_string(),
        url: settings.url.to_string(),
        access: Some(settings.access.as_str()),
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
        checkpoint: view.checkpoint.as_ref().map(|newest| CheckpointStatus {
            generation: newest.generation.0,
            time: newest.time,
            bytes: newest.bytes,
        }),
        snapshot: snapshots.known.as_ref().map(|known| SnapshotStatus {
            generation: known.generation.0,
            commit: known.commit.clone(),
            time: known.time,
            bytes: known.bytes,
            digest: known.digest.to_string(),
            local: snapshots.progress().map_or(0, |progress| progress.verified),
            checked: snapshots.checked.as_str(),
        }),
        publisher: store.and_then(|store| store.peers.owner(mirror.id())),
        uses: store.map(|store| store.archive.popularity.of(mirror.id())),
        message: message.unwrap_or_default(),
        progress: mirror.progress(),
        conditions: conditions(&Facts {
            stalled: stalled.map(note),
            ..facts(&view, snapshots.trouble.as_ref(), &settings)
        }),
    }
}

fn note(stalled: &Stalled) -> Note {
    Note::new(stalled.reason, stalled.message.clone())
}

fn stalled(stalled: Stalled) -> MirrorStatus {
    let facts = Facts { stalled: Some(note(&stalled)), ..no_facts() };
    MirrorStatus {
        name: stalled.name,
        repo: stalled.repo.to_string(),
        url: stalled.url.to_string(),
        access: None,
        phase: Phase::Absent,
        head: None,
        refs_digest: None,
        ref_count: 0,
        last_look_time: None,
        last_fetch_time: None,
        bytes: 0,
        checkpoint: None,
        snapshot: None,
        publisher: None,
        uses: None,
        message: stalled.message,
        progress: None,
        conditions: conditions(&facts),
    }
}

/// What the conditions of a mirror on one agent rest on: the same function makes them as in a cluster.
fn facts(view: &View, snapshot: Option<&Trouble>, settings: &Settings) -> Facts {
    let suspended = settings.suspend;
    let progress = match view.phase {
        Phase::Absent | Phase::Cloning if view.trouble().is_none() => {
            Some(Note::new(Reason::Cloning, "the first clone from the upstream is under way"))
        }
        Phase::Restoring => {
            Some(Note::new(Reason::Restoring, "a checkpoint is being restored from the store"))
        }
        Phase::CatchingUp if view.trouble().is_none() => {
            Some(Note::new(Reason::CatchingUp, "the first look and fetch since the start are under way"))
        }
        _ => None,
    };
    let findings = findings(view, snapshot, settings.on_upstream_refusal);
    let on_demand = view.phase == Phase::OnDemand;
    let ready = u32::from(view.phase.is_ready() || (suspended && view.stored.is_some()));
    Facts { suspended, on_demand, pods: Pods { ready, ..no_facts().pods }, progress, findings, ..no_facts() }
}

fn no_facts() -> Facts {
    Facts {
        generation: 0,
        suspended: false,
        on_demand: false,
        pods: Pods { ready: 0, desired: 1, enough: 1 },
        stalled: None,
        progress: None,
        findings: Vec::new(),
        insecure: None,
    }
}

fn conditions(facts: &Facts) -> Vec<Condition> {
    let conditions = summarize(facts, &[], &Time(Timestamp::now()));
    let condition = |c: k8s::Condition| Condition {
        kind: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
    };
    conditions.into_iter().map(condition).collect()
}
