//! What is to be done about a mirror's snapshot, and when: a pure function.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// What the decision rests on.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// When the mirror was declared here: since then it has needed a snapshot.
    pub(super) since: Timestamp,
    /// The snapshot that is served.
    pub(super) held: Option<Held>,
    /// The commit that the mirror's `HEAD` leads to.
    pub(super) head: Option<String>,
    /// The commit of which no snapshot can be made.
    pub(super) refused: Option<String>,
    /// The user wants none.
    pub(super) suspended: bool,
    /// The mirror is brought when somebody asks for it, and nobody has.
    pub(super) on_demand: bool,
    /// When somebody last asked for a snapshot.
    pub(super) wanted: Option<Timestamp>,
    /// The mirror is up to date, and nothing is wrong with it.
    pub(super) sound: bool,
    /// There is a store.
    pub(super) shared: bool,
    /// When the store was last asked, and answered.
    pub(super) asked: Option<Timestamp>,
    /// Nothing is tried before this: something failed.
    pub(super) retry_at: Option<Timestamp>,
    /// The shortest time between two snapshots.
    pub(super) interval: Duration,
    /// A snapshot as old as this is replaced though `HEAD` did not move.
    pub(super) max_age: Duration,
    /// How long this agent leaves building to others once it is due.
    pub(super) patience: Duration,
}

/// A snapshot, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) commit: String,
    pub(super) time: Timestamp,
    /// It is in the store, or there is none.
    pub(super) published: bool,
    /// It was found, is whole here, and nobody knows whether it is what it says.
    pub(super) doubtful: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the store for a newer snapshot.
    Find,
    /// Build one.
    Build,
    /// Publish the one that is held.
    Publish,
    /// Compare the one that is held with its commit.
    Compare,
    /// Nothing until then, or until something happens.
    Wait(Option<Timestamp>),
}

/// How often an agent that leaves building to another asks whether that has been done: this part of the interval, …
const ASKS: u32 = 12;
/// … within these bounds.
const SELDOM: Duration = Duration::from_secs(300);
const OFTEN: Duration = Duration::from_secs(10);

/// How long the first snapshot is left to those that come before, for each of them: the mirror may take them as long.
const FIRST: Duration = Duration::from_secs(120);
/// How long an agent waits to learn of the others.
const UNKNOWN: Duration = Duration::from_secs(10);

/// How long the agent of this rank (unknown in its first seconds) leaves building to those before it.
pub(super) fn patience(rank: Option<usize>, held: bool, interval: Duration) -> Duration {
    let each = if held { interval.saturating_mul(2) } else { FIRST };
    match rank {
        None => UNKNOWN,
        Some(rank) => each.saturating_mul(u32::try_from(rank).unwrap_or(u32::MAX)),
    }
}

/// What to do at `now`.
pub(super) fn plan(facts: &Facts, now: Timestamp) -> Step {
    if facts.suspended {
        return Step::Wait(None);
    }
    if let Some(at) = facts.retry_at.filter(|at| *at > now) {
        return Step::Wait(Some(at));
    }
    // Of a mirror that waits for its first reader the store is asked when there is one: thousands of them may be
    // declared.
    let wanted = facts.wanted.is_some_and(|wanted| facts.asked.is_none_or(|asked| wanted > asked));
    let idle = facts.on_demand && !wanted;
    if facts.shared && facts.asked.is_none() && !idle {
        return Step::Find;
    }
    if facts.shared && facts.held.as_ref().is_some_and(|held| !held.published) {
        return Step::Publish;
    }
    if facts.sound && facts.held.as_ref().is_some_and(|held| held.doubtful) {
        return Step::Compare;
    }
    let head = facts.head.as_ref().filter(|head| facts.sound && facts.refused.as_ref() != Some(*head));
    let Some(head) = head else {
        // What the store had when this began goes from it once newer ones are there.
        let again = facts.asked.filter(|_| facts.shared && facts.head.is_none() && !idle);
        let again = again.map(|asked| after(asked, facts.interval.max(SELDOM)));
        return if again.is_some_and(|at| at <= now) { Step::Find } else { Step::Wait(again) };
    };
    let due = match &facts.held {
        None => facts.since,
        Some(held) => after(held.time, if held.commit == *head { facts.max_age } else { facts.interval }),
    };
    if due > now {
        return Step::Wait(Some(due));
    }
    // Another agent may have built it meanwhile.
    let ask_at = match facts.asked {
        Some(asked) if asked >= due => after(asked, (facts.interval / ASKS).clamp(OFTEN, SELDOM)),
        _ => due,
    };
    if facts.shared && ask_at <= now {
        return Step::Find;
    }
    let ours = after(due, facts.patience);
    if ours <= now { Step::Build } else { Step::Wait(Some(ours.min(ask_at))) }
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
    time.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(count * 60)
    }

    /// A sound mirror whose HEAD has moved on from a published snapshot of minute 0, and whose store has been
    /// asked at minute 60, when that became due.
    fn moved() -> Facts {
        let held = Held { commit: "old".into(), time: at(0), published: true, doubtful: false };
        Facts {
            since: at(0),
            held: Some(held),
            head: Some("new".into()),
            refused: None,
            suspended: false,
            on_demand: false,
            wanted: None,
            sound: true,
            shared: true,
            asked: Some(at(60)),
            interval: minutes(60),
            max_age: minutes(24 * 60),
            retry_at: None,
            patience: Duration::ZERO,
        }
    }

    #[test]
    fn the_store_is_asked_before_anything_is_built() {
        assert_eq!(plan(&Facts { held: None, asked: None, ..moved() }, at(0)), Step::Find);
        assert_eq!(plan(&Facts { asked: Some(at(59)), ..moved() }, at(60)), Step::Find);
        assert_eq!(plan(&moved(), at(60)), Step::Build);
        assert_eq!(plan(&Facts { shared: false, asked: None, ..moved() }, at(60)), Step::Build);
    }

    #[test]
    fn one_is_built_when_head_moved_and_the_interval_passed_or_max_age_has() {
        assert_eq!(plan(&moved(), at(59)), Step::Wait(Some(at(60))));
        let still = Facts { head: Some("old".into()), asked: Some(at(24 * 60)), ..moved() };
        assert_eq!(plan(&still, at(60)), Step::Wait(Some(at(24 * 60))));
        assert_eq!(plan(&still, at(24 * 60)), Step::Build);
        assert_eq!(plan(&Facts { held: None, asked: Some(at(5)), ..moved() }, at(6)), Step::Build);
    }

    #[test]
    fn nothing_is_built_from_a_mirror_that_is_not_sound_or_has_no_commit() {
        assert_eq!(plan(&Facts { sound: false, ..moved() }, at(99)), Step::Wait(None));
        assert_eq!(plan(&Facts { head: None, shared: false, ..moved() }, at(99)), Step::Wait(None));
        // The store may have newer ones, which whoever asks is to get.
        let cold = Facts { head: None, asked: Some(at(50)), ..moved() };
        assert_eq!(plan(&cold, at(99)), Step::Wait(Some(at(110))));
        assert_eq!(plan(&cold, at(110)), Step::Find);
    }

    #[test]
    fn the_store_is_asked_for_an_idle_mirror_only_when_somebody_wants_its_snapshot() {
        let idle = Facts { held: None, head: None, sound: false, on_demand: true, asked: None, ..moved() };
        assert_eq!(plan(&idle, at(0)), Step::Wait(None));
        let wanted = Facts { wanted: Some(at(5)), ..idle };
        assert_eq!(plan(&wanted, at(5)), Step::Find);
        let asked = Facts { asked: Some(at(6)), ..wanted };
        assert_eq!(plan(&asked, at(600)), Step::Wait(None));
        let again = Facts { wanted: Some(at(7)), ..asked };
        assert_eq!(plan(&again, at(8)), Step::Wait(Some(at(66))));
        assert_eq!(plan(&again, at(66)), Step::Find);
    }

    #[test]
    fn a_commit_too_large_for_a_snapshot_is_not_tried_again() {
        let refused = Facts { refused: Some("new".into()), ..moved() };
        assert_eq!(plan(&refused, at(6000)), Step::Wait(None));
        assert_eq!(plan(&Facts { head: Some("newer".into()), ..refused }, at(60)), Step::Build);
    }

    #[test]
    fn nothing_is_done_while_the_user_wants_no_snapshot() {
        let unpublished = Held { commit: "old".into(), time: at(0), published: false, doubtful: false };
        for facts in [moved(), Facts { asked: None, ..moved() }, Facts { held: Some(unpublished), ..moved() }]
        {
            assert_eq!(plan(&Facts { suspended: true, ..facts }, at(6000)), Step::Wait(None));
        }
    }

    #[test]
    fn what_is_not_published_is_published_first() {
        let held = Held { commit: "old".into(), time: at(0), published: false, doubtful: false };
        let unpublished = Facts { held: Some(held), sound: false, ..moved() };
        assert_eq!(plan(&unpublished, at(1)), Step::Publish);
        assert_eq!(plan(&Facts { retry_at: Some(at(2)), ..unpublished }, at(1)), Step::Wait(Some(at(2))));
    }

    #[test]
    fn what_was_found_is_compared_once_the_mirror_is_sound() {
        let held = Held { commit: "old".into(), time: at(0), published: true, doubtful: true };
        let found = Facts { held: Some(held), ..moved() };
        assert_eq!(plan(&found, at(1)), Step::Compare);
        assert_ne!(plan(&Facts { sound: false, ..found }, at(1)), Step::Compare);
    }

    #[test]
    fn the_owner_builds_at_once_and_others_later() {
        let after = |rank, held| patience(rank, held, minutes(60));
        assert_eq!(after(Some(0), true), Duration::ZERO);
        assert_eq!(after(Some(2), true), minutes(240));
        assert_eq!(after(Some(2), false), minutes(4));
        assert!(after(None, false) < minutes(1));
    }

    #[test]
    fn an_agent_that_leaves_building_to_another_asks_for_it_and_builds_at_last() {
        let patient = Facts { patience: patience(Some(1), true, minutes(75)), ..moved() };
        assert_eq!(plan(&patient, at(61)), Step::Wait(Some(at(65))));
        assert_eq!(plan(&patient, at(65)), Step::Find);
        let asked = Facts { asked: Some(at(207)), ..patient };
        assert_eq!(plan(&asked, at(209)), Step::Wait(Some(at(210))));
        assert_eq!(plan(&asked, at(210)), Step::Build);
    }
}
