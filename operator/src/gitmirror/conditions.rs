//! From what pods say of a mirror to the facts that its conditions rest on: a pure function.

use tarn_crds::{
    summarize::{Facts, Finding, Note, Pods, Wrong},
    v1alpha1::{Access, GitMirror, Phase, conditions::Reason},
};

use super::observe::{Entry, Observed};

/// What there is to know of the mirror.
pub fn facts(mirror: &GitMirror, observed: &Observed) -> Facts {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let ready = observed.entries.iter().filter(|entry| serves(entry, mirror.spec.suspend)).count();
    let told = || observed.entries.iter().find_map(stalled_by_pod);
    let resting = observed.entries.iter().filter(|entry| rests(entry)).count();
    // A pod that need not have it is not waited for.
    let desired = observed.desired.min(observed.pods - i32::try_from(resting).unwrap_or(0)).max(0);
    Facts {
        generation: mirror.metadata.generation.unwrap_or(0),
        suspended: mirror.spec.suspend,
        on_demand: resting > 0 && observed.entries.iter().all(|entry| entry.silent || rests(entry)),
        pods: Pods { ready: number(ready), desired: u32::try_from(desired).unwrap_or(0), enough: 1 },
        stalled: observed.stalled.clone().or_else(told),
        progress: if ready == 0 { progress(&observed.entries) } else { None },
        findings: findings(&observed.entries),
        insecure: observed.plaintext.then(|| insecure(mirror)).flatten(),
    }
}

/// Callers of a mirror that is not for everybody prove themselves with a token, and its cache has no TLS.
fn insecure(mirror: &GitMirror) -> Option<Note> {
    let access = mirror.spec.effective_access();
    let cache = &mirror.spec.cache_ref.name;
    let message = format!(
        "access is {}, and the GitCache {cache} serves without TLS: callers' tokens travel unencrypted; set spec.tls.secretRef of the GitCache",
        access.as_str()
    );
    (access != Access::Anonymous).then(|| Note::new(Reason::NoTls, message))
}

/// Whether the pod answers from its own disk. A suspended mirror is served as it is, once its data is there.
pub fn serves(entry: &Entry, suspended: bool) -> bool {
    let replica = &entry.replica;
    let ready = replica.phase.is_some_and(Phase::is_ready);
    !entry.silent && (ready || (suspended && replica.head.is_some()))
}

/// Whether the pod has nothing of it, and waits to be asked.
fn rests(entry: &Entry) -> bool {
    !entry.silent && entry.replica.phase == Some(Phase::OnDemand)
}

/// What the pod that is furthest is doing, while none serves.
fn progress(entries: &[Entry]) -> Option<Note> {
    let doing =
        |phase: Phase| entries.iter().any(|entry| !entry.silent && entry.replica.phase == Some(phase));
    let steps = [
        (Phase::CatchingUp, Reason::CatchingUp, "data is on disk; its first look and fetch are under way"),
        (Phase::Restoring, Reason::Restoring, "a checkpoint is being restored from the store"),
        (Phase::Cloning, Reason::Cloning, "the first clone from the upstream is under way"),
    ];
    let step = steps.into_iter().find(|(phase, ..)| doing(*phase));
    step.map(|(_, reason, message)| Note::new(reason, message))
}

/// What pods report, and pods that have stopped reporting while clients reach them: nobody knows how fresh their
/// answers are.
fn findings(entries: &[Entry]) -> Vec<Finding> {
    let mut found = Vec::new();
    for wrong in Wrong::ALL {
        let kind = wrong.condition().as_str();
        let told = entries.iter().filter(|entry| !entry.silent).find_map(|entry| {
            let told = entry.replica.findings.iter().find(|told| told.type_ == kind)?;
            Some((reason(&told.reason)?, entry))
        });
        let note = told.map(|(reason, entry)| {
            let message = entry.replica.message.as_deref().unwrap_or("it gives no details");
            Note::new(reason, format!("{}: {message}", entry.replica.pod))
        });
        let silent = || {
            let lost = |entry: &&Entry| entry.silent && entry.reachable && entry.replica.head.is_some();
            let lost: Vec<&str> =
                entries.iter().filter(lost).map(|entry| entry.replica.pod.as_str()).collect();
            let message = format!(
                "{} serves and has stopped reporting; see whether it reaches the API server",
                lost.join(", ")
            );
            (!lost.is_empty()).then(|| Note::new(Reason::PodsSilent, message))
        };
        let note = note.or_else(|| if wrong == Wrong::Stale { silent() } else { None });
        found.extend(note.map(|note| Finding { wrong, note }));
    }
    found
}

/// A pod's word that it cannot go on before a person acts.
fn stalled_by_pod(entry: &Entry) -> Option<Note> {
    let told = entry.replica.findings.iter().find(|told| told.type_ == "Stalled")?;
    let message = entry.replica.message.as_deref().unwrap_or("it gives no details");
    let reason = reason(&told.reason)?;
    (!entry.silent).then(|| Note::new(reason, format!("{}: {message}", entry.replica.pod)))
}

/// The reason of that name; a newer agent's is unknown.
fn reason(name: &str) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == name)
}

#[cfg(test)]
mod tests {
    use tarn_crds::{
        summarize::summarize,
        v1alpha1::{GitMirrorSpec, Replica, ReplicaFinding, SecretRef},
    };

    use super::*;

    fn entry(pod: &str, phase: Phase) -> Entry {
        let mut replica = Replica::new(pod, "u");
        replica.phase = Some(phase);
        replica.head = phase.is_ready().then(|| "aa".to_owned());
        Entry { replica, reachable: true, silent: false }
    }

    fn observed(entries: Vec<Entry>) -> Observed {
        Observed {
            stalled: None,
            desired: 2,
            pods: 2,
            entries,
            departed: Vec::new(),
            requested: None,
            plaintext: false,
        }
    }

    /// The conditions in short, such as `Ready=False/Cloning`.
    fn conditions(entries: Vec<Entry>, suspend: bool) -> String {
        let mut spec = GitMirrorSpec::for_url("https://h/o/r");
        spec.suspend = suspend;
        let mirror = GitMirror::new("m", spec);
        let observed = observed(entries);
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
        let conditions = summarize(&facts(&mirror, &observed), &[], &now);
        let short = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            format!("{}={}/{}", c.type_, c.status, c.reason)
        };
        conditions.iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn phases_and_findings_become_conditions() {
        let failing = |mut entry: Entry, type_: &str, reason: &str| {
            entry.replica.findings.push(ReplicaFinding { type_: type_.into(), reason: reason.into() });
            entry
        };
        let silent = |mut entry: Entry| {
            entry.silent = true;
            entry
        };
        let ready = || entry("c-0", Phase::Ready);
        for (entries, expected) in [
            (vec![], "Ready=False/WaitingForPods Reconciling=True/WaitingForPods"),
            (vec![entry("c-0", Phase::Cloning)], "Ready=False/Cloning Reconciling=True/Cloning"),
            (vec![ready()], "Ready=True/Serving Reconciling=True/WaitingForPods"),
            (vec![ready(), entry("c-1", Phase::Fetching)], "Ready=True/Serving"),
            (vec![ready(), entry("c-1", Phase::OnDemand)], "Ready=True/Serving"),
            (vec![entry("c-0", Phase::OnDemand), entry("c-1", Phase::OnDemand)], "Ready=True/OnDemand"),
            (
                vec![entry("c-0", Phase::OnDemand), entry("c-1", Phase::Cloning)],
                "Ready=False/Cloning Reconciling=True/Cloning",
            ),
            (
                vec![ready(), failing(entry("c-1", Phase::Ready), "Stale", "UpstreamTimeout")],
                "Ready=False/UpstreamTimeout Reconciling=True/Retrying Stale=True/UpstreamTimeout",
            ),
            (
                vec![failing(
                    failing(ready(), "Withheld", "UpstreamRefuses"),
                    "Stale",
                    "AuthenticationFailed",
                )],
                "Ready=False/UpstreamRefuses Reconciling=True/Retrying Withheld=True/UpstreamRefuses \
                 Stale=True/AuthenticationFailed",
            ),
            (
                vec![ready(), failing(entry("c-1", Phase::Ready), "StoreFailed", "StoreDenied")],
                "Ready=True/Serving Reconciling=True/Retrying StoreFailed=True/StoreDenied",
            ),
            (
                vec![ready(), failing(entry("c-1", Phase::Restoring), "Damaged", "MirrorDamaged")],
                "Ready=True/Serving Reconciling=True/Retrying Damaged=True/MirrorDamaged",
            ),
            (
                vec![failing(entry("c-0", Phase::Backoff), "Damaged", "DiskFailing")],
                "Ready=False/DiskFailing Reconciling=True/Retrying Damaged=True/DiskFailing",
            ),
            (
                vec![failing(ready(), "Stalled", "SecretInvalid")],
                "Ready=False/SecretInvalid Stalled=True/SecretInvalid",
            ),
            (
                vec![ready(), silent(entry("c-1", Phase::Ready))],
                "Ready=False/PodsSilent Reconciling=True/Retrying Stale=True/PodsSilent",
            ),
            (
                vec![failing(ready(), "Stale", "FromTheFuture")],
                "Ready=True/Serving Reconciling=True/WaitingForPods",
            ),
        ] {
            assert_eq!(conditions(entries.clone(), false), expected, "{entries:?}");
        }
        let mut kept = entry("c-0", Phase::CatchingUp);
        kept.replica.head = Some("aa".into());
        assert_eq!(conditions(vec![kept], true), "Ready=True/Suspended");
    }

    #[test]
    fn tokens_without_tls_are_told_and_take_nothing_down() {
        let told = |access: Option<Access>, secret: bool, plaintext: bool| {
            let mut spec = GitMirrorSpec::for_url("https://h/o/r");
            spec.access = access;
            spec.secret_ref = secret.then(|| SecretRef { name: "s".into() });
            let around = Observed {
                plaintext,
                ..observed(vec![entry("c-0", Phase::Ready), entry("c-1", Phase::Ready)])
            };
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
            let conditions = summarize(&facts(&GitMirror::new("m", spec), &around), &[], &now);
            assert!(conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"), "{conditions:?}");
            assert!(
                conditions.iter().all(|c| c.type_ != "Reconciling" && c.type_ != "Stalled"),
                "{conditions:?}"
            );
            conditions.into_iter().find(|c| c.type_ == "InsecureTransport").map(|c| c.message)
        };
        for (access, secret) in [
            (Some(Access::Rbac), false),
            (None, true),
            (Some(Access::Authenticated), false),
            (Some(Access::Upstream), false),
        ] {
            let message = told(access, secret, true).unwrap_or_default();
            assert!(message.contains("set spec.tls.secretRef"), "{access:?}: {message}");
            assert_eq!(told(access, secret, false), None, "{access:?}");
        }
        for (access, secret) in [(None, false), (Some(Access::Anonymous), true)] {
            assert_eq!(told(access, secret, true), None, "{access:?}");
        }
    }

    #[test]
    fn a_silent_pod_that_nobody_reaches_is_only_missing() {
        let mut gone = entry("c-1", Phase::Ready);
        (gone.silent, gone.reachable) = (true, false);
        let found = conditions(vec![entry("c-0", Phase::Ready), gone], false);
        assert_eq!(found, "Ready=True/Serving Reconciling=True/WaitingForPods");
    }
}
