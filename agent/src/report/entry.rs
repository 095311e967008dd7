//! What an entry says of a mirror. Pure but for reading what the mirror last published.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tarn_crds::v1alpha1::{
    CheckpointStatus, Phase, Replica, ReplicaFinding, SnapshotStatus,
    conditions::{ConditionType, Reason},
};

use crate::{
    config::Pod,
    fleet::declarations::Rejected,
    git::Head,
    mirror::{Mirror, Settings, findings::findings},
};

/// The longest message, in bytes, as the schema has it in characters.
const MAX_MESSAGE: usize = 512;

/// The longest name of a ref that the schema admits.
const MAX_REF: usize = 1024;

/// The entry of a mirror that runs.
pub(super) fn running(pod: &Pod, mirror: &Mirror, settings: &Settings) -> Replica {
    let (view, snapshots) = (mirror.view(), mirror.snapshots().view());
    let found = findings(&view, snapshots.trouble.as_ref(), settings.on_upstream_refusal);
    let stored = view.stored.as_ref();
    // A fetch takes less time than telling of it would; what it brought is told.
    let phase = if view.phase == Phase::Fetching { Phase::Ready } else { view.phase };
    let message = match found.first() {
        Some(finding) => Some(finding.note.message.clone()),
        None if settings.suspend => Some("suspended; served as it is".to_owned()),
        None => None,
    };
    Replica {
        phase: Some(phase),
        head: stored.and_then(|stored| stored.refs.head_oid()).map(|oid| oid.to_hex()),
        head_ref: stored.and_then(|stored| match stored.refs.head() {
            Head::Symbolic(name) => Some(name.to_string()).filter(|name| name.len() <= MAX_REF),
            Head::Detached(_) | Head::Missing => None,
        }),
        ref_count: stored.and_then(|stored| i64::try_from(stored.refs.refs().len()).ok()),
        refs_digest: stored.map(|stored| stored.digest.clone()),
        last_check_time: view.last_look.map(seconds),
        last_fetch_time: view.last_fetch.map(seconds),
        checkpoint_time: view.checkpoint.as_ref().map(|newest| seconds(newest.time)),
        snapshot_time: snapshots.known.as_ref().map(|known| seconds(known.time)),
        checkpoint: view.checkpoint.as_ref().map(|newest| CheckpointStatus {
            generation: number(newest.generation.0),
            time: seconds(newest.time),
            bytes: number(newest.bytes),
        }),
        // 0 stands for one that is in no store yet.
        snapshot: snapshots.known.as_ref().filter(|known| known.generation.0 > 0).map(|known| {
            SnapshotStatus {
                commit: known.commit.clone(),
                time: seconds(known.time),
                bytes: number(known.bytes),
                digest: known.digest.to_string(),
            }
        }),
        bytes: stored.and_then(|_| i64::try_from(view.bytes).ok()),
        findings: found
            .iter()
            .map(|finding| of(finding.wrong.condition(), finding.note.reason))
            .take(4)
            .collect(),
        message: message.map(shortened),
        ..empty(pod)
    }
}

/// What is told of a mirror, with why it cannot be set up as it is declared now.
pub(super) fn stalled(entry: Replica, reason: Reason, message: String) -> Replica {
    let mut findings = entry.findings;
    findings.insert(0, of(ConditionType::Stalled, reason));
    findings.truncate(4);
    Replica {
        phase: entry.phase.or(Some(Phase::Absent)),
        findings,
        message: Some(shortened(message)),
        ..entry
    }
}

/// What is told of a mirror, with why its newest declaration cannot be followed.
pub(super) fn rejected(entry: Replica, rejected: &Rejected) -> Replica {
    let Rejected { file: _, document: _, field, reason } = rejected;
    let (code, place) = match field.as_str() {
        "spec.url" => (Reason::InvalidUrl, field.as_str()),
        "spec.access" => (Reason::AccessUnsupported, field.as_str()),
        "" => (Reason::InvalidSpec, "the GitMirror"),
        _ => (Reason::InvalidSpec, field.as_str()),
    };
    stalled(entry, code, format!("{place} {reason}"))
}

/// The entry of a mirror that is being deleted, once its objects are gone from the store.
pub(super) fn removed(pod: &Pod) -> Replica {
    Replica { phase: Some(Phase::Absent), store_removed: Some(true), ..empty(pod) }
}

/// An entry that says only whose it is.
pub(super) fn empty(pod: &Pod) -> Replica {
    Replica::new(pod.name.clone(), pod.uid.clone())
}

fn of(condition: ConditionType, reason: Reason) -> ReplicaFinding {
    ReplicaFinding { type_: condition.as_str().to_owned(), reason: reason.as_str().to_owned() }
}

/// As the API counts.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// As the API keeps it, so that what is read back equals what was written.
fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// Cuts a message at a character's edge.
fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE - '…'.len_utf8()));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod { name: "c-0".into(), namespace: "n".into(), uid: "u".into() }
    }

    #[test]
    fn a_declaration_that_cannot_be_followed_is_told_beside_what_runs() {
        let running = Replica { phase: Some(Phase::Ready), head: Some("f".repeat(40)), ..empty(&pod()) };
        let wrong = Rejected {
            file: "GitMirror/a".into(),
            document: 1,
            field: "spec.url".into(),
            reason: "is odd".into(),
        };
        let entry = rejected(running.clone(), &wrong);
        assert_eq!((entry.phase, &entry.head), (running.phase, &running.head));
        assert_eq!(entry.findings, [of(ConditionType::Stalled, Reason::InvalidUrl)]);
        assert_eq!(entry.message.as_deref(), Some("spec.url is odd"));
        assert_eq!(rejected(empty(&pod()), &wrong).phase, Some(Phase::Absent));
    }

    #[test]
    fn messages_and_times_are_as_the_api_keeps_them() {
        let entry = stalled(empty(&pod()), Reason::SecretNotFound, "ü".repeat(400));
        let message = entry.message.unwrap();
        assert!(message.len() <= MAX_MESSAGE && message.ends_with('…'));
        let time = seconds("2026-01-01T00:00:00.987Z".parse().unwrap());
        let read: Time = serde_json::from_value(serde_json::to_value(&time).unwrap()).unwrap();
        assert_eq!(read, time);
    }
}
