//! Events: on transitions of conditions only, with the condition's reason as theirs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder as Inner, Reporter},
};

/// Writes Events. Best effort: they are for people, and nothing rests on them.
#[derive(Clone)]
pub struct Recorder(Inner);

/// A condition that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Whether it is bad news.
    pub bad: bool,
    /// The type of the condition.
    pub condition: String,
    /// The condition's reason.
    pub reason: String,
    /// The condition's message.
    pub message: String,
}

/// The conditions that became something else: another status or reason, or there where they were not. That passing news
/// is over shows in Ready.
pub fn transitions(before: &[Condition], after: &[Condition]) -> Vec<Transition> {
    let changed = |condition: &&Condition| {
        let same = |old: &&Condition| {
            old.type_ == condition.type_ && old.status == condition.status && old.reason == condition.reason
        };
        before.iter().find(same).is_none()
    };
    let mut told: Vec<Transition> = Vec::new();
    // Several conditions often have one cause, which is told once; Ready comes last so that the cause has its own name.
    let (ready, others): (Vec<&Condition>, Vec<&Condition>) =
        after.iter().filter(changed).partition(|condition| condition.type_ == "Ready");
    for condition in others.into_iter().chain(ready) {
        if told.iter().any(|other| other.reason == condition.reason) {
            continue;
        }
        told.push(Transition {
            bad: match condition.type_.as_str() {
                "Ready" => {
                    condition.status != "True"
                        && before.iter().any(|old| old.status == "True" && old.type_ == "Ready")
                }
                "Reconciling" => false,
                _ => true,
            },
            condition: condition.type_.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        });
    }
    told
}

impl Recorder {
    /// Writes as `instance`, the name of the operator's pod.
    pub fn new(client: Client, instance: Option<String>) -> Self {
        Self(Inner::new(client, Reporter { controller: "tarn-operator".into(), instance }))
    }

    /// Tells of transitions of `object`.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, transitions: &[Transition]) {
        for transition in transitions {
            let event = Event {
                type_: if transition.bad { EventType::Warning } else { EventType::Normal },
                reason: transition.reason.clone(),
                note: Some(transition.message.clone()),
                action: transition.condition.clone(),
                secondary: None,
            };
            if let Err(error) = self.0.publish(&event, &object.object_ref(&())).await {
                tracing::warn!(%error, reason = transition.reason, "an event is lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn condition(type_: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn only_transitions_are_told_and_one_cause_once() {
        let good = [condition("Ready", "True", "Serving")];
        let bad = [
            condition("Ready", "False", "UpstreamTimeout"),
            condition("Reconciling", "True", "Retrying"),
            condition("FetchFailed", "True", "UpstreamTimeout"),
        ];
        let told = |before: &[Condition], after: &[Condition]| -> Vec<(String, bool)> {
            transitions(before, after).into_iter().map(|told| (told.condition, told.bad)).collect()
        };
        assert_eq!(told(&good, &good), []);
        assert_eq!(told(&bad, &bad), []);
        assert_eq!(told(&good, &bad), [("Reconciling".into(), false), ("FetchFailed".into(), true)]);
        assert_eq!(told(&bad, &good), [("Ready".into(), false)]);
    }
}
