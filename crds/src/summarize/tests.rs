//! What each situation looks like, to people and to kstatus.

use super::*;

/// How kstatus reads an object, from its rules for kinds it does not know.
#[derive(Debug, PartialEq, Eq)]
enum Kstatus {
    Current,
    InProgress,
    Failed,
}

fn kstatus(generation: i64, observed: i64, conditions: &[Condition]) -> Kstatus {
    let status = |type_: &str| conditions.iter().find(|c| c.type_ == type_).map(|c| c.status.as_str());
    if observed != generation || status("Reconciling") == Some("True") {
        return Kstatus::InProgress;
    }
    if status("Stalled") == Some("True") {
        return Kstatus::Failed;
    }
    match status("Ready") {
        Some("True") | None => Kstatus::Current,
        _ => Kstatus::InProgress,
    }
}

fn time(second: i64) -> Time {
    serde_json::from_value(format!("2026-01-01T00:00:{second:02}Z").into()).unwrap()
}

fn facts(ready: u32, desired: u32) -> Facts {
    Facts {
        generation: 7,
        suspended: false,
        on_demand: false,
        pods: Pods { ready, desired, enough: 1 },
        stalled: None,
        progress: None,
        findings: vec![],
        insecure: None,
    }
}

fn note(reason: Reason) -> Note {
    Note::new(reason, "why")
}

fn finding(wrong: Wrong, reason: Reason) -> Finding {
    Finding { wrong, note: note(reason) }
}

/// `Ready=True/Serving Reconciling=True/Retrying …`
fn shape(conditions: &[Condition]) -> String {
    let one = |c: &Condition| format!("{}={}/{}", c.type_, c.status, c.reason);
    conditions.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_situation_has_its_conditions() {
    use Kstatus::{Current, Failed, InProgress};
    let with = |facts: Facts, change: fn(&mut Facts)| {
        let mut facts = facts;
        change(&mut facts);
        facts
    };
    for (what, facts, expected, kstatus_expected) in [
        ("healthy", facts(3, 3), "Ready=True/Serving", Current),
        ("a pod is missing", facts(2, 3), "Ready=True/Serving Reconciling=True/WaitingForPods", InProgress),
        ("no pod yet", facts(0, 3), "Ready=False/WaitingForPods Reconciling=True/WaitingForPods", InProgress),
        (
            "nobody has asked for it",
            with(facts(0, 2), |f| f.on_demand = true),
            "Ready=True/OnDemand",
            Current,
        ),
        ("none wanted", facts(0, 0), "Ready=False/NoPods", InProgress),
        (
            "first clone",
            with(facts(0, 1), |f| f.progress = Some(note(Reason::Cloning))),
            "Ready=False/Cloning Reconciling=True/Cloning",
            InProgress,
        ),
        (
            "one pod restores, another serves",
            with(facts(1, 2), |f| f.progress = Some(note(Reason::Restoring))),
            "Ready=True/Serving Reconciling=True/Restoring",
            InProgress,
        ),
        (
            "fetch fails",
            with(facts(3, 3), |f| f.findings = vec![finding(Wrong::FetchFailed, Reason::UpstreamTimeout)]),
            "Ready=False/UpstreamTimeout Reconciling=True/Retrying FetchFailed=True/UpstreamTimeout",
            InProgress,
        ),
        (
            "stale speaks before the fetch that failed",
            with(facts(3, 3), |f| {
                f.findings = vec![
                    finding(Wrong::FetchFailed, Reason::UpstreamError),
                    finding(Wrong::Stale, Reason::UpstreamUnreachable),
                    finding(Wrong::Stale, Reason::PodsSilent),
                ];
            }),
            "Ready=False/UpstreamUnreachable Reconciling=True/Retrying FetchFailed=True/UpstreamError Stale=True/UpstreamUnreachable",
            InProgress,
        ),
        (
            "the store is down, and all are served",
            with(facts(3, 3), |f| f.findings = vec![finding(Wrong::StoreFailed, Reason::StoreUnreachable)]),
            "Ready=True/Serving Reconciling=True/Retrying StoreFailed=True/StoreUnreachable",
            InProgress,
        ),
        (
            "no pod could restore",
            with(facts(0, 1), |f| {
                f.findings = vec![finding(Wrong::RestoreFailed, Reason::CheckpointDamaged)];
            }),
            "Ready=False/CheckpointDamaged Reconciling=True/Retrying RestoreFailed=True/CheckpointDamaged",
            InProgress,
        ),
        (
            "no pod could restore, so one clones",
            with(facts(0, 1), |f| {
                f.findings = vec![finding(Wrong::RestoreFailed, Reason::CheckpointDamaged)];
                f.progress = Some(note(Reason::Cloning));
            }),
            "Ready=False/CheckpointDamaged Reconciling=True/Cloning RestoreFailed=True/CheckpointDamaged",
            InProgress,
        ),
        (
            "a person must act, though data is served",
            with(facts(3, 3), |f| f.stalled = Some(note(Reason::SecretNotFound))),
            "Ready=False/SecretNotFound Stalled=True/SecretNotFound",
            Failed,
        ),
        (
            "stalled wins over progress and findings",
            with(facts(0, 3), |f| {
                f.stalled = Some(note(Reason::InvalidUrl));
                f.progress = Some(note(Reason::Cloning));
                f.findings = vec![finding(Wrong::FetchFailed, Reason::GitFailed)];
            }),
            "Ready=False/InvalidUrl Stalled=True/InvalidUrl FetchFailed=True/GitFailed",
            Failed,
        ),
        ("suspended", with(facts(3, 3), |f| f.suspended = true), "Ready=True/Suspended", Current),
        (
            "suspended without data",
            with(facts(0, 3), |f| f.suspended = true),
            "Ready=False/Suspended",
            InProgress,
        ),
        (
            "a cache with a pod missing",
            with(facts(2, 3), |f| f.pods.enough = 3),
            "Ready=False/WaitingForPods Reconciling=True/WaitingForPods",
            InProgress,
        ),
        (
            "a cache rolling out",
            with(facts(2, 3), |f| {
                f.pods.enough = 3;
                f.progress = Some(note(Reason::RollingOut));
            }),
            "Ready=False/RollingOut Reconciling=True/RollingOut",
            InProgress,
        ),
        (
            "a cache scaled to nothing",
            with(facts(0, 0), |f| f.pods.enough = 0),
            "Ready=False/NoPods",
            InProgress,
        ),
    ] {
        let conditions = summarize(&facts, &[], &time(1));
        assert_eq!(shape(&conditions), expected, "{what}");
        assert_eq!(kstatus(7, 7, &conditions), kstatus_expected, "{what}");
        assert_eq!(kstatus(8, 7, &conditions), Kstatus::InProgress, "{what}, seen by another generation");
    }
}

#[test]
fn every_condition_names_the_generation_it_speaks_of() {
    let mut facts = facts(1, 2);
    facts.findings = vec![finding(Wrong::StoreFailed, Reason::StoreDenied)];
    let conditions = summarize(&facts, &[], &time(1));
    assert!(conditions.iter().all(|condition| condition.observed_generation == Some(7)));
}

#[test]
fn a_time_stays_while_the_status_does() {
    let first = summarize(&facts(0, 2), &[], &time(1));
    let second = summarize(&facts(1, 2), &first, &time(2));
    let third = summarize(&facts(2, 2), &second, &time(3));
    let fourth = summarize(&facts(1, 2), &third, &time(4));
    let times = |conditions: &[Condition]| -> Vec<_> {
        conditions
            .iter()
            .map(|condition| (condition.type_.clone(), condition.last_transition_time.clone()))
            .collect()
    };
    assert_eq!(times(&first), [("Ready".into(), time(1)), ("Reconciling".into(), time(1))]);
    assert_eq!(times(&second), [("Ready".into(), time(2)), ("Reconciling".into(), time(1))]);
    assert_eq!(times(&third), [("Ready".into(), time(2))]);
    assert_eq!(times(&fourth), [("Ready".into(), time(2)), ("Reconciling".into(), time(4))]);
}

#[test]
fn the_same_facts_give_the_same_conditions() {
    let mut facts = facts(1, 2);
    facts.findings = vec![finding(Wrong::FetchFailed, Reason::DiskFull)];
    let first = summarize(&facts, &[], &time(1));
    assert_eq!(summarize(&facts, &first, &time(2)), first);
}

#[test]
fn conditions_nobody_owns_go() {
    let mut old = summarize(&facts(1, 1), &[], &time(1));
    old[0].type_ = "Sunny".into();
    assert_eq!(shape(&summarize(&facts(1, 1), &old, &time(2))), "Ready=True/Serving");
}

#[test]
fn what_does_not_take_ready_down_is_told_beside_it() {
    let mut facts = facts(3, 3);
    facts.findings = vec![finding(Wrong::StoreFailed, Reason::StoreUnreachable)];
    let conditions = summarize(&facts, &[], &time(1));
    assert_eq!(conditions[0].message, "3 of 3 pods serve; why");
    assert_eq!(conditions[1].message, "StoreFailed: why");
}

#[test]
fn long_messages_are_cut_between_characters() {
    let mut facts = facts(1, 1);
    facts.stalled = Some(Note::new(Reason::InvalidSpec, "ü".repeat(5000)));
    let conditions = summarize(&facts, &[], &time(1));
    let message = &conditions[0].message;
    assert!(message.len() <= MAX_MESSAGE && message.ends_with("ü…"), "{}", message.len());
}
