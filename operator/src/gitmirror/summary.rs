//! From what pods say of a mirror to the fields of its status: a pure function.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tarn_crds::{
    summarize::summarize,
    v1alpha1::{GitMirror, GitMirrorStatus, Head, Phase, Replica, conditions::Reason},
};

use super::{
    conditions::{facts, serves},
    observe::Observed,
};

/// Times alone are not worth a write for each pod that brings one: a change smaller than this waits for company.
const COALESCE: Duration = Duration::from_secs(60);

/// Characters of a commit that people read.
const SHORT: usize = 12;

/// The status, without the pods' entries.
pub fn status(mirror: &GitMirror, observed: &Observed, now: Timestamp) -> GitMirrorStatus {
    let old = mirror.status.clone().unwrap_or_default();
    let ready = observed.entries.iter().filter(|entry| serves(entry, mirror.spec.suspend)).count();
    let ready = i32::try_from(ready).unwrap_or(i32::MAX);
    let living = || observed.entries.iter().filter(|entry| !entry.silent).map(|entry| &entry.replica);
    // Who has looked last knows best; only what is on a disk counts.
    let with_data = living().filter(|replica| replica.head.is_some() || replica.refs_digest.is_some());
    let lead = with_data.max_by_key(|replica| {
        let looked = replica.last_check_time.as_ref().map(|time| time.0);
        (replica.phase.is_some_and(Phase::is_ready), looked, std::cmp::Reverse(&replica.pod))
    });
    let head = lead.map(|lead| Head { ref_: lead.head_ref.clone(), sha: lead.head.clone() });
    let newest = |time: fn(&Replica) -> Option<&Time>, old: &Option<Time>| {
        living().filter_map(time).cloned().chain(old.clone()).max_by_key(|time| time.0)
    };
    let checkpoint = living().filter_map(|replica| replica.checkpoint.as_ref()).chain(&old.checkpoint);
    let snapshot = living().filter_map(|replica| replica.snapshot.as_ref()).chain(&old.snapshot);
    let access = mirror.spec.effective_access();
    let mut conditions = summarize(&facts(mirror, observed), &old.conditions, &Time(now));
    let serving = |condition: &&mut Condition| condition.reason == Reason::Serving.as_str();
    for ready in conditions.iter_mut().filter(serving) {
        // To whom: the default depends on another field, and is worth being read.
        ready.message.push_str(&format!("; access {}", access.as_str()));
    }
    let status = GitMirrorStatus {
        observed_generation: mirror.metadata.generation,
        conditions,
        revision: head.as_ref().and_then(revision),
        access: Some(access),
        head,
        pods: Some(format!("{ready}/{}", observed.desired)),
        size: lead.and_then(|lead| lead.bytes).and_then(|bytes| u64::try_from(bytes).ok()).map(size),
        ref_count: lead.and_then(|lead| lead.ref_count),
        refs_digest: lead.and_then(|lead| lead.refs_digest.clone()),
        last_check_time: newest(|replica| replica.last_check_time.as_ref(), &old.last_check_time),
        last_fetch_time: newest(|replica| replica.last_fetch_time.as_ref(), &old.last_fetch_time),
        checkpoint: checkpoint.max_by_key(|checkpoint| checkpoint.generation).cloned(),
        snapshot: snapshot.max_by_key(|snapshot| snapshot.time.0).cloned(),
        replicas: Vec::new(),
        ready_replicas: Some(ready),
        desired_replicas: Some(observed.desired),
        last_handled_requested_at: handled(observed).or_else(|| old.last_handled_requested_at.clone()),
    };
    coalesced(status, &old)
}

/// The request that all living pods have acted on.
fn handled(observed: &Observed) -> Option<String> {
    let requested = observed.requested.as_ref()?;
    let mut living = observed.entries.iter().filter(|entry| !entry.silent).peekable();
    living.peek()?;
    living
        .all(|entry| entry.replica.last_handled_requested_at.as_ref() == Some(requested))
        .then(|| requested.clone())
}

/// The old times, if nothing but times moved, and those only a little.
fn coalesced(status: GitMirrorStatus, old: &GitMirrorStatus) -> GitMirrorStatus {
    let moved = |old: Option<&Time>, new: Option<&Time>| match (old, new) {
        (Some(old), Some(new)) => new.0.duration_since(old.0).unsigned_abs() >= COALESCE,
        (old, new) => old.is_some() != new.is_some(),
    };
    let kept = GitMirrorStatus {
        last_check_time: old.last_check_time.clone(),
        last_fetch_time: old.last_fetch_time.clone(),
        ..status.clone()
    };
    let much = moved(old.last_check_time.as_ref(), status.last_check_time.as_ref())
        || moved(old.last_fetch_time.as_ref(), status.last_fetch_time.as_ref());
    if !much && same(&kept, old) { kept } else { status }
}

/// Whether the operator's part of two statuses is equal; the API server may keep conditions in another order.
pub fn same(status: &GitMirrorStatus, other: &GitMirrorStatus) -> bool {
    let ours = |status: &GitMirrorStatus| {
        let mut ours = GitMirrorStatus { replicas: Vec::new(), ..status.clone() };
        ours.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        ours
    };
    ours(status) == ours(other)
}

fn revision(head: &Head) -> Option<String> {
    let sha = head.sha.as_deref()?;
    let short = sha.get(..SHORT).unwrap_or(sha);
    let branch = head.ref_.as_deref().map(|name| name.strip_prefix("refs/heads/").unwrap_or(name));
    let revision = branch.map_or_else(|| short.to_owned(), |branch| format!("{branch}@{short}"));
    // The column is narrow, and so is the field.
    (revision.len() <= 320).then_some(revision).or_else(|| Some(short.to_owned()))
}

/// An amount of bytes for people: `1.2 GiB`.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for next in units.into_iter().skip(1) {
        if amount < 1023.95 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    format!("{amount:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_revisions_are_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_288_490_189, "1.2 GiB"),
            (1 << 20, "1.0 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        let head = |ref_: Option<&str>| Head {
            ref_: ref_.map(str::to_owned),
            sha: Some("99f1ac04c1d2aaaaaaaa".into()),
        };
        assert_eq!(revision(&head(Some("refs/heads/main"))).unwrap(), "main@99f1ac04c1d2");
        assert_eq!(revision(&head(None)).unwrap(), "99f1ac04c1d2");
    }
}
