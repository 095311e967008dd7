//! The brake of a rolling update: how far a StatefulSet may go in replacing its pods. Pure functions.
//!
//! A pod is ready to answer long before its mirrors are back on its disk, so Kubernetes alone would replace the last warm
//! pod while the first is still restoring. `partition` is the ordinal from which pods are replaced: it starts at the
//! last pod and is lowered by one when the pod it released is warm, or after [`PATIENCE`].

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tarn_crds::v1alpha1::{GitMirror, Phase};

/// How long a replaced pod may take to become warm before the next one is replaced all the same.
pub const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// A pod tells of a mirror as absent before its turn to be restored comes. For this long after its start that counts as
/// cold; later it means that the pod does not keep the mirror.
const SETTLING: Duration = Duration::from_secs(60);

/// The label in which the StatefulSet's controller notes a pod's revision.
const REVISION: &str = "controller-revision-hash";

/// What the decision rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// How many pods are wanted.
    pub replicas: i32,
    /// The partition as it is.
    pub partition: i32,
    /// Whether what is applied next changes the pods.
    pub changes: bool,
    /// The pods there are.
    pub pods: Vec<Member>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its place in the StatefulSet.
    pub ordinal: i32,
    /// Whether it runs the newest revision.
    pub updated: bool,
    /// Whether it has its mirrors.
    pub warm: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
}

/// The partition to apply.
pub fn partition(rollout: &Rollout, now: Timestamp) -> i32 {
    let last = (rollout.replicas - 1).max(0);
    if rollout.changes {
        return last;
    }
    let at = rollout.partition.clamp(0, last);
    let wanted = rollout.pods.iter().filter(|pod| pod.ordinal < rollout.replicas);
    if wanted.clone().all(|pod| pod.updated) && at == 0 {
        return 0;
    }
    // Every released pod counts, not only the last: an earlier one may have been replaced again.
    let mut released = wanted.filter(|pod| pod.ordinal >= at);
    let there = released.clone().any(|pod| pod.ordinal == at);
    let done = |pod: &Member| {
        let waited = || pod.created.is_some_and(|created| created + PATIENCE <= now);
        pod.updated && (pod.warm || waited())
    };
    if there && released.all(done) { (at - 1).max(0) } else { at }
}

/// Whether pods remain to be replaced.
pub fn under_way(rollout: &Rollout) -> bool {
    rollout.changes || rollout.partition > 0 || rollout.pods.iter().any(|pod| !pod.updated)
}

/// What there is to know of a pod. `revision` is the newest.
pub fn member(
    pod: &Pod,
    revision: &str,
    mirrors: &[impl AsRef<GitMirror>],
    now: Timestamp,
) -> Option<Member> {
    let name = pod.name_any();
    let ordinal = name.rsplit_once('-')?.1.parse().ok()?;
    let created = pod.creation_timestamp().map(|time| time.0);
    let settled = created.is_some_and(|created| created + SETTLING <= now);
    let uid = pod.uid();
    let cold = |mirror: &GitMirror| {
        let entries = mirror.status.iter().flat_map(|status| &status.replicas);
        let mut own = entries.filter(|entry| entry.pod == name);
        !mirror.spec.suspend
            && own.any(|entry| match entry.phase {
                // The pod before this one had it; this one has not said anything yet.
                Some(phase) if entry.pod_uid != uid => phase.is_ready(),
                // Nobody has asked this pod for it, and it is not among those brought before.
                Some(Phase::OnDemand) => false,
                Some(Phase::Absent) | None => !settled,
                Some(phase) => !phase.is_ready(),
            })
    };
    Some(Member {
        ordinal,
        updated: pod.labels().get(REVISION).is_some_and(|label| label == revision),
        warm: !mirrors.iter().any(|mirror| cold(mirror.as_ref())),
        created,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    /// Pods from ordinal 0: `o` old, `c` new and cold, `w` new and warm; all made at second 0.
    fn rollout(partition: i32, changes: bool, pods: &str) -> Rollout {
        let member = |(ordinal, kind)| Member {
            ordinal,
            updated: kind != 'o',
            warm: kind != 'c',
            created: Some(at(0)),
        };
        let replicas = i32::try_from(pods.len()).unwrap();
        let pods = (0..).zip(pods.chars()).filter(|(_, kind)| *kind != '-').map(member).collect();
        Rollout { replicas, partition, changes, pods }
    }

    #[test]
    fn the_partition_follows_warm_pods_down() {
        for (now, now_at, changes, pods, next) in [
            (0, 1, true, "www", 2),
            (2, 1, false, "ooo", 2),
            (2, 1, false, "oo-", 2),
            (2, 1, false, "ooc", 2),
            (2, 599, false, "ooc", 2),
            (2, 600, false, "ooc", 1),
            (2, 1, false, "oow", 1),
            (1, 1, false, "oow", 1),
            (1, 1, false, "owc", 1),
            (1, 1, false, "oww", 0),
            (0, 1, false, "oww", 0),
            (0, 1, false, "www", 0),
            (5, 1, false, "ow", 0),
            (0, 1, true, "", 0),
        ] {
            let rollout = rollout(now, changes, pods);
            assert_eq!(partition(&rollout, at(now_at)), next, "{rollout:?} at {now_at}");
        }
    }

    #[test]
    fn a_pod_is_warm_when_it_has_what_the_one_before_it_had() {
        use serde_json::json;
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "c-1", "uid": "new",
            "creationTimestamp": at(0).to_string(), "labels": {REVISION: "r2"}}}))
        .unwrap();
        let mirror = |uid: &str, phase: &str| -> GitMirror {
            serde_json::from_value(json!({"metadata": {"name": "m"}, "spec": {"url": "https://h/o/r"},
                "status": {"replicas": [{"pod": "c-1", "podUID": uid, "phase": phase}]}}))
            .unwrap()
        };
        for (uid, phase, seconds, warm) in [
            ("old", "Ready", 100, false),
            ("old", "Absent", 1, true),
            ("new", "Restoring", 100, false),
            ("new", "Absent", 59, false),
            ("new", "Absent", 60, true),
            ("new", "Fetching", 1, true),
        ] {
            let mirrors = [std::sync::Arc::new(mirror(uid, phase))];
            let member = member(&pod, "r2", &mirrors, at(seconds)).unwrap();
            assert_eq!((member.ordinal, member.updated, member.warm), (1, true, warm), "{uid} {phase}");
        }
    }
}
