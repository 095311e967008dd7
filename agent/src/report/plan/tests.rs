use std::collections::VecDeque;

use proptest::prelude::*;
use tarn_crds::v1alpha1::Phase;

use super::*;

const INTERVAL: Duration = Duration::from_secs(900);
const NOBODY: Known<'static> = Known { entry: None, version: 0 };

fn entry(head: &str) -> Replica {
    Replica { phase: Some(Phase::Ready), head: Some(head.to_owned()), ..Replica::new("p", "u") }
}

fn bigger(entry: Replica, bytes: i64) -> Replica {
    Replica { bytes: Some(bytes), ..entry }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn write(name: &str, entry: Replica) -> Next {
    Next::Write(name.to_owned(), Box::new(entry))
}

#[test]
fn the_first_is_told_at_once_and_the_newest_ten_seconds_later() {
    let (mut plan, start) = (Plan::default(), Instant::now());
    plan.update("a", entry("1"), INTERVAL, NOBODY, start);
    assert_eq!(plan.next(start), write("a", entry("1")));
    plan.wrote("a", entry("1"), Some(entry("1")), 5, start);
    assert_eq!(plan.next(start), Next::Wait(None));
    for (at, head) in [(1, "2"), (2, "3")] {
        plan.update("a", entry(head), INTERVAL, NOBODY, start + secs(at));
    }
    assert_eq!(plan.next(start + secs(2)), Next::Wait(Some(start + secs(10))));
    assert_eq!(plan.next(start + secs(10)), write("a", entry("3")));
    plan.wrote("a", entry("3"), Some(entry("3")), 6, start + secs(10));
    // Quiet for long: the next is told at once again.
    plan.update("a", entry("4"), INTERVAL, NOBODY, start + secs(60));
    assert_eq!(plan.next(start + secs(60)), write("a", entry("4")));
}

#[test]
fn times_alone_wait_for_the_interval_and_never_less_than_ten_minutes() {
    for (interval, wait) in [(secs(10), 600), (INTERVAL, 900)] {
        let (mut plan, start) = (Plan::default(), Instant::now());
        // What an earlier process of the pod wrote is known, and not written again.
        let known = Known { entry: Some(&entry("1")), version: 3 };
        plan.update("a", bigger(entry("1"), 7), interval, known, start);
        assert_eq!(plan.waiting(), 0);
        assert_eq!(plan.next(start), Next::Wait(Some(start + secs(wait))));
        let at = start + secs(wait);
        assert_eq!(plan.next(at), write("a", bigger(entry("1"), 7)));
    }
}

#[test]
fn transitions_go_before_times_and_the_longest_waiting_first() {
    let (mut plan, start) = (Plan::default(), Instant::now());
    let known = Known { entry: Some(&entry("1")), version: 3 };
    plan.update("times", bigger(entry("1"), 7), secs(10), known, start);
    let late = start + secs(700);
    plan.update("b", entry("1"), secs(10), NOBODY, late - secs(1));
    plan.update("a", entry("1"), secs(10), NOBODY, late);
    let mut order = Vec::new();
    for step in 0..3 {
        let now = late + PACE * step;
        let Next::Write(name, told) = plan.next(now) else { panic!("{order:?}") };
        plan.wrote(&name, (*told).clone(), Some(*told), 9, now);
        assert!(matches!(plan.next(now), Next::Wait(_)), "five a second");
        order.push(name);
    }
    assert_eq!(order, ["b", "a", "times"]);
}

#[test]
fn an_entry_that_someone_takes_away_is_told_again() {
    let (mut plan, start) = (Plan::default(), Instant::now());
    plan.update("a", entry("1"), INTERVAL, NOBODY, start);
    assert_eq!(plan.next(start), write("a", entry("1")));
    plan.wrote("a", entry("1"), Some(entry("1")), 5, start);
    // The watch lags behind: this is from before the write.
    plan.update("a", entry("1"), INTERVAL, Known { entry: None, version: 4 }, start + secs(1));
    assert_eq!(plan.next(start + secs(60)), Next::Wait(None));
    plan.update("a", entry("1"), INTERVAL, Known { entry: None, version: 6 }, start + secs(61));
    assert_eq!(plan.next(start + secs(61)), write("a", entry("1")));
}

#[test]
fn what_an_older_schema_drops_is_not_told_for_ever() {
    let (mut plan, start) = (Plan::default(), Instant::now());
    let told = Replica { message: Some("new".into()), ..entry("1") };
    plan.update("a", told.clone(), INTERVAL, NOBODY, start);
    assert_eq!(plan.next(start), write("a", told.clone()));
    plan.wrote("a", told.clone(), Some(entry("1")), 5, start);
    let known = entry("1");
    plan.update("a", told, INTERVAL, Known { entry: Some(&known), version: 6 }, start + secs(60));
    assert_eq!(plan.next(start + secs(60)), Next::Wait(None));
}

#[test]
fn one_object_that_fails_holds_up_no_other_and_a_server_that_fails_holds_up_all() {
    let (mut plan, start) = (Plan::default(), Instant::now());
    plan.update("a", entry("1"), INTERVAL, NOBODY, start);
    plan.update("b", entry("1"), INTERVAL, NOBODY, start + PACE);
    assert_eq!(plan.next(start), write("a", entry("1")));
    assert_eq!(plan.failed("a", Fault::Object, start, 1.0), 1);
    assert_eq!(plan.next(start + PACE), write("b", entry("1")));
    plan.failed("b", Fault::Server, start + PACE, 1.0);
    assert_eq!(plan.next(start + PACE * 2), Next::Wait(Some(start + PACE * 2 + secs(1) / 2)));
    assert_eq!(plan.next(start + secs(1)), write("b", entry("1")));
    plan.wrote("b", entry("1"), Some(entry("1")), 1, start + secs(1));
    assert_eq!(plan.next(start + secs(1) + PACE), write("a", entry("1")));
}

#[test]
fn an_object_on_which_the_server_always_fails_keeps_no_other_waiting() {
    let (mut plan, start) = (Plan::default(), Instant::now());
    plan.update("bad", entry("1"), INTERVAL, NOBODY, start);
    plan.update("good", entry("1"), INTERVAL, NOBODY, start + secs(1));
    let mut now = start + secs(1);
    for _ in 0..2 {
        match plan.next(now) {
            Next::Write(name, told) if name == "good" => {
                return plan.wrote(&name, (*told).clone(), Some(*told), 1, now);
            }
            Next::Write(name, _) => assert_eq!(plan.failed(&name, Fault::Server, now, 1.0), 1),
            Next::Wait(at) => panic!("nothing is due before {at:?}"),
        }
        now += secs(1);
    }
    panic!("the good one was never tried");
}

/// What happens around the plan.
#[derive(Clone, Debug)]
enum Happening {
    Head(u8, u8),
    Bytes(u8, u8),
    TakenAway(u8),
    Forgotten(u8),
    Pass(u16),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..6_u8, any::<u8>()).prop_map(|(who, head)| Happening::Head(who, head)),
        2 => (0..6_u8, any::<u8>()).prop_map(|(who, bytes)| Happening::Bytes(who, bytes)),
        1 => (0..6_u8).prop_map(Happening::TakenAway),
        1 => (0..6_u8).prop_map(Happening::Forgotten),
        4 => (0..20_000_u16).prop_map(Happening::Pass),
    ]
}

/// The API server, the mirrors and the writes so far.
#[derive(Default)]
struct World {
    wanted: BTreeMap<String, Replica>,
    shown: BTreeMap<String, (Replica, u64)>,
    version: u64,
    recent: VecDeque<Instant>,
    last: BTreeMap<String, Instant>,
}

impl World {
    /// Does what the plan says until `until`; `fails` says which writes fail.
    fn run(&mut self, plan: &mut Plan, now: &mut Instant, until: Instant, fails: &mut dyn FnMut() -> bool) {
        loop {
            for (name, wanted) in &self.wanted {
                let shown = self.shown.get(name);
                let known = Known {
                    entry: shown.map(|(entry, _)| entry),
                    version: shown.map_or(self.version, |shown| shown.1),
                };
                plan.update(name, wanted.clone(), secs(10), known, *now);
            }
            match plan.next(*now) {
                Next::Write(name, entry) => {
                    self.recent.push_back(*now);
                    if self.recent.len() > 5 {
                        let sixth = self.recent.pop_front().unwrap();
                        assert!(*now - sixth >= secs(1), "six writes within a second");
                    }
                    if fails() {
                        let fault = if fails() { Fault::Object } else { Fault::Server };
                        plan.failed(&name, fault, *now, 0.5);
                        continue;
                    }
                    if let Some(last) = self.last.insert(name.clone(), *now) {
                        assert!(*now - last >= SPACING, "{name} twice within ten seconds");
                    }
                    self.version += 1;
                    self.shown.insert(name.clone(), ((*entry).clone(), self.version));
                    plan.wrote(&name, (*entry).clone(), Some(*entry), self.version, *now);
                }
                Next::Wait(at) => {
                    let next = at.map_or(until, |at| at.min(until));
                    assert!(next > *now || next == until, "the plan waits for the past");
                    *now = next.max(*now);
                    if *now >= until {
                        return;
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn limits_always_hold_and_the_newest_state_is_told_in_the_end(
        happenings in proptest::collection::vec(happening(), 1..60),
        failures in proptest::collection::vec(any::<bool>(), 1..40),
    ) {
        let (mut plan, mut world, mut now) = (Plan::default(), World::default(), Instant::now());
        let mut failures = failures.into_iter();
        for happening in happenings {
            let name = |who: u8| format!("m{who}");
            match happening {
                Happening::Head(who, head) => {
                    let bytes = world.wanted.get(&name(who)).and_then(|entry| entry.bytes);
                    world.wanted.insert(name(who), Replica { bytes, ..entry(&head.to_string()) });
                }
                Happening::Bytes(who, bytes) => {
                    if let Some(wanted) = world.wanted.get_mut(&name(who)) {
                        wanted.bytes = Some(bytes.into());
                    }
                }
                Happening::TakenAway(who) => {
                    world.version += 1;
                    world.shown.remove(&name(who));
                }
                Happening::Forgotten(who) => {
                    // The object goes, and all there is of it; one of this name may come again.
                    world.wanted.remove(&name(who));
                    world.shown.remove(&name(who));
                    world.last.remove(&name(who));
                    plan.forget(&name(who));
                }
                Happening::Pass(millis) => {
                    let until = now + Duration::from_millis(millis.into());
                    world.run(&mut plan, &mut now, until, &mut || failures.next().unwrap_or(false));
                }
            }
        }
        let until = now + secs(3600);
        world.run(&mut plan, &mut now, until, &mut || false);
        let shown: BTreeMap<_, _> = world.shown.into_iter().map(|(name, (entry, _))| (name, entry)).collect();
        prop_assert_eq!(shown, world.wanted);
        prop_assert_eq!(plan.waiting(), 0);
    }
}
