//! From what is known of an object to its conditions: Ready, Reconciling, Stalled, and what is wrong.
//!
//! A pure function. It follows kstatus, so that `kubectl wait`, Flux, Argo CD and Helm understand the result: Stalled
//! means that a person must act, Reconciling that it is enough to wait, and neither that Ready is the last word.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::v1alpha1::conditions::{ConditionType, Reason};

/// The longest message, in bytes: it holds people's words, not logs.
pub const MAX_MESSAGE: usize = 1024;

/// All there is to know of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Generation of the spec that the facts belong to.
    pub generation: i64,
    /// Whether the user suspended it.
    pub suspended: bool,
    /// Whether no pod has it, and none is to have it before somebody asks for it.
    pub on_demand: bool,
    /// Pods that serve, and how many should.
    pub pods: Pods,
    /// What keeps anything from going on until a person acts.
    pub stalled: Option<Note>,
    /// What is under way, other than the upkeep of a healthy object (an ordinary fetch is not progress).
    pub progress: Option<Note>,
    /// What is wrong and being retried; of each type the first counts.
    pub findings: Vec<Finding>,
    /// Whose tokens travel unencrypted. News for people: neither Ready nor Reconciling follow from it.
    pub insecure: Option<Note>,
}

/// Pods that serve, and how many should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pods {
    /// How many serve.
    pub ready: u32,
    /// How many should.
    pub desired: u32,
    /// How many it takes to call the object Ready: one for a GitMirror, all for a GitCache.
    pub enough: u32,
}

/// A reason, in a word and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// In a word.
    pub reason: Reason,
    /// For people; no credentials.
    pub message: String,
}

impl Note {
    /// Puts the two together.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub wrong: Wrong,
    /// Why.
    pub note: Note,
}

/// The conditions that are present only while something is wrong; the first that applies speaks for Ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wrong {
    /// See [`ConditionType::Withheld`].
    Withheld,
    /// See [`ConditionType::Damaged`].
    Damaged,
    /// See [`ConditionType::Stale`].
    Stale,
    /// See [`ConditionType::FetchFailed`].
    FetchFailed,
    /// See [`ConditionType::RestoreFailed`].
    RestoreFailed,
    /// See [`ConditionType::StoreFailed`].
    StoreFailed,
}

impl Wrong {
    /// All, the worst first.
    pub const ALL: [Self; 6] = [
        Self::Withheld,
        Self::Damaged,
        Self::Stale,
        Self::FetchFailed,
        Self::RestoreFailed,
        Self::StoreFailed,
    ];

    /// The condition.
    pub const fn condition(self) -> ConditionType {
        match self {
            Self::Withheld => ConditionType::Withheld,
            Self::Damaged => ConditionType::Damaged,
            Self::Stale => ConditionType::Stale,
            Self::FetchFailed => ConditionType::FetchFailed,
            Self::RestoreFailed => ConditionType::RestoreFailed,
            Self::StoreFailed => ConditionType::StoreFailed,
        }
    }

    /// Whether Ready cannot be True beside it. What only the store lacks does not keep anyone from being served.
    const fn takes_ready_down(self) -> bool {
        matches!(self, Self::Withheld | Self::Stale | Self::FetchFailed)
    }
}

/// The conditions of an object. `previous` gives the times of those that did not change; others in it are left out.
pub fn summarize(facts: &Facts, previous: &[Condition], now: &Time) -> Vec<Condition> {
    let worst = facts.findings.iter().min_by_key(|finding| finding.wrong);
    let reconciling = reconciling(facts, worst);
    let (ready, ready_note) = ready(facts, reconciling.as_ref());
    let mut conditions = vec![(ConditionType::Ready, ready, ready_note)];
    conditions.extend(reconciling.map(|note| (ConditionType::Reconciling, true, note)));
    conditions.extend(facts.stalled.clone().map(|note| (ConditionType::Stalled, true, note)));
    for finding in &facts.findings {
        let type_ = finding.wrong.condition();
        if !conditions.iter().any(|(present, ..)| *present == type_) {
            conditions.push((type_, true, finding.note.clone()));
        }
    }
    conditions.extend(facts.insecure.clone().map(|note| (ConditionType::InsecureTransport, true, note)));
    conditions.sort_by_key(|(type_, ..)| *type_);
    let condition = |(type_, status, note): (ConditionType, bool, Note)| {
        let status = if status { "True" } else { "False" };
        let same = previous.iter().find(|old| old.type_ == type_.as_str() && old.status == status);
        Condition {
            type_: type_.as_str().to_owned(),
            status: status.to_owned(),
            reason: note.reason.as_str().to_owned(),
            message: shortened(note.message),
            observed_generation: Some(facts.generation),
            last_transition_time: same.map_or(now, |old| &old.last_transition_time).clone(),
        }
    };
    conditions.into_iter().map(condition).collect()
}

/// What is under way: the caller's word for it, else retries, else pods that are missing.
fn reconciling(facts: &Facts, worst: Option<&Finding>) -> Option<Note> {
    if facts.stalled.is_some() || facts.suspended {
        return None;
    }
    let retrying = |finding: &Finding| {
        let condition = finding.wrong.condition();
        Note::new(Reason::Retrying, format!("{condition}: {}", finding.note.message))
    };
    let Pods { ready, desired, .. } = facts.pods;
    let waiting = || {
        (ready < desired)
            .then(|| Note::new(Reason::WaitingForPods, format!("{ready} of {desired} pods serve")))
    };
    let waiting = || if facts.on_demand { None } else { waiting() };
    facts.progress.clone().or_else(|| worst.map(retrying)).or_else(waiting)
}

/// Ready's status and why.
fn ready(facts: &Facts, reconciling: Option<&Note>) -> (bool, Note) {
    let Pods { ready, desired, enough } = facts.pods;
    let served = ready >= enough;
    let worst = |down: bool| {
        let findings = facts.findings.iter().filter(move |finding| !down || finding.wrong.takes_ready_down());
        findings.min_by_key(|finding| finding.wrong).map(|finding| finding.note.clone())
    };
    if let Some(stalled) = &facts.stalled {
        return (false, stalled.clone());
    }
    if facts.suspended {
        let message = if served { "suspended; served as it is" } else { "suspended" };
        return (served && ready > 0, Note::new(Reason::Suspended, message));
    }
    if facts.on_demand && facts.findings.is_empty() {
        let message = "on no pod's disk before somebody asks for it; requests are passed on meanwhile";
        return (true, Note::new(Reason::OnDemand, message));
    }
    if desired == 0 && ready == 0 {
        return (false, Note::new(Reason::NoPods, "no pods are wanted, so none serve"));
    }
    if !served {
        let note = worst(false).or_else(|| reconciling.cloned());
        let waiting = || Note::new(Reason::WaitingForPods, format!("{ready} of {desired} pods serve"));
        return (false, note.unwrap_or_else(waiting));
    }
    match worst(true) {
        Some(note) => (false, note),
        None => {
            let mut message = format!("{ready} of {desired} pods serve");
            if let Some(note) = worst(false) {
                message = format!("{message}; {}", note.message);
            }
            (true, Note::new(Reason::Serving, message))
        }
    }
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
mod tests;
