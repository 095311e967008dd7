use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use Priority::{Awaited, Background};

type Table = Schedule<&'static str, &'static str, &'static str>;

fn bounds(bounds: &[(&'static str, Capacity)]) -> Bounds<&'static str> {
    bounds.iter().map(|(key, capacity)| Bound { key: *key, capacity: *capacity }).collect()
}

fn ask<O>(
    bounds: Bounds<&'static str>,
    priority: Priority,
    weight: u64,
    owner: O,
) -> Request<&'static str, O> {
    Request { bounds, priority, rank: 0, weight, owner }
}

fn one(limit: usize) -> Bounds<&'static str> {
    bounds(&[("all", Capacity::of(limit))])
}

/// A schedule of one place that is taken, and the ticket that holds it.
fn taken() -> (Table, u64) {
    let mut table = Table::default();
    let (ticket, called) = table.enter(ask(one(1), Background, 0, "holder"), "holder");
    assert_eq!(called, Some("holder"));
    (table, ticket)
}

/// Who is called when one after the other gives its place back.
fn order_of(mut table: Table, mut holder: u64, tickets: &[(u64, &'static str)]) -> Vec<&'static str> {
    let mut order = Vec::new();
    loop {
        let called = table.leave(holder);
        let [name] = called[..] else {
            assert!(called.is_empty() && table.tickets.is_empty() && table.lanes.is_empty());
            assert!(table.levels.is_empty(), "what nobody holds is forgotten");
            return order;
        };
        order.push(name);
        holder = tickets.iter().find(|(_, who)| *who == name).unwrap().0;
    }
}

#[test]
fn awaited_work_goes_first_then_the_heavier_then_who_came_first() {
    let (mut table, holder) = taken();
    let tickets: Vec<_> = [
        ("first", Background, 0),
        ("second", Awaited, 0),
        ("third", Background, 0),
        ("fourth", Background, 7),
        ("fifth", Background, 0),
        ("sixth", Awaited, 7),
    ]
    .map(|(name, priority, weight)| (table.enter(ask(one(1), priority, weight, name), name).0, name))
    .into();
    assert_eq!(table.lift(tickets[2].0), None);
    let order = order_of(table, holder, &tickets);
    assert_eq!(order, ["sixth", "second", "third", "fourth", "first", "fifth"]);
}

#[test]
fn those_who_wait_can_be_weighed_anew() {
    let (mut table, holder) = taken();
    let tickets: Vec<_> =
        ["a", "b", "c"].map(|name| (table.enter(ask(one(1), Background, 0, name), name).0, name)).into();
    table.reweigh(|key, owner| u64::from(*key == "all" && *owner == "c"));
    assert_eq!(order_of(table, holder, &tickets), ["c", "a", "b"]);
}

#[test]
fn owners_take_turns_in_a_lane_and_lanes_take_turns_at_a_bound() {
    let (mut table, holder) = taken();
    let of = |client| bounds(&[("all", Capacity::of(1)), (client, Capacity::of(9))]);
    let mut tickets = Vec::new();
    for (client, owner, name) in [
        ("greedy", "x", "1"),
        ("greedy", "x", "2"),
        ("greedy", "x", "3"),
        ("greedy", "y", "4"),
        ("modest", "x", "5"),
        ("modest", "x", "6"),
    ] {
        tickets.push((table.enter(ask(of(client), Awaited, 0, owner), name).0, name));
    }
    assert_eq!(order_of(table, holder, &tickets), ["1", "5", "4", "6", "2", "3"]);
}

#[test]
fn lanes_of_a_smaller_rank_go_first() {
    let (mut table, holder) = taken();
    let ranked = |priority, rank, key| {
        let bounds = bounds(&[("all", Capacity::of(1)), (key, Capacity::of(1))]);
        Request { rank, ..ask(bounds, priority, 0, "x") }
    };
    let tickets: Vec<_> = [
        ("fetch", Background, 1),
        ("look", Background, 0),
        ("awaited fetch", Awaited, 1),
        ("awaited look", Awaited, 0),
    ]
    .map(|(name, priority, rank)| (table.enter(ranked(priority, rank, name), name).0, name))
    .into();
    assert_eq!(order_of(table, holder, &tickets), ["awaited look", "awaited fetch", "look", "fetch"]);
}

#[test]
fn some_places_are_for_awaited_work_alone() {
    let mut table = Table::default();
    let all = || bounds(&[("all", Capacity { background: 1, awaited: 2 })]);
    let (first, called) = table.enter(ask(all(), Background, 0, "a"), "first");
    assert_eq!(called, Some("first"));
    let (second, called) = table.enter(ask(all(), Background, 0, "b"), "second");
    assert_eq!(called, None);
    assert_eq!(table.lift(second), Some("second"));
    assert_eq!(table.enter(ask(all(), Awaited, 0, "c"), "third").1, None);
    assert_eq!(table.leave(first), ["third"], "awaited work may take both");
    assert_eq!(table.lift(second), None, "it has been called");
    assert_eq!(table.enter(ask(all(), Background, 0, "d"), "fourth").1, None);
    assert!(table.leave(second).is_empty(), "one is left for awaited work");
}

#[test]
fn who_waits_for_one_bound_holds_no_place_of_another() {
    let mut table = Table::default();
    let fetch = |host| bounds(&[("fetches", Capacity::of(4)), (host, Capacity::of(2))]);
    let slow: Vec<_> = (0..9).map(|_| table.enter(ask(fetch("slow"), Awaited, 0, "x"), "slow")).collect();
    assert_eq!(slow.iter().filter(|(_, called)| called.is_some()).count(), 2);
    assert_eq!(table.enter(ask(fetch("other"), Background, 0, "y"), "other").1, Some("other"));
    assert_eq!(table.leave(slow[0].0), ["slow"]);
    assert!(table.leave(slow[8].0).is_empty(), "a place in the queue is no place");
}

#[test]
fn the_best_of_all_whom_a_return_lets_go_is_called() {
    let mut table = Table::default();
    let both = || bounds(&[("a", Capacity::of(1)), ("b", Capacity::of(1))]);
    let (holder, _) = table.enter(ask(both(), Awaited, 0, "x"), "holder");
    table.enter(ask(bounds(&[("a", Capacity::of(1))]), Background, 0, "x"), "background");
    table.enter(ask(bounds(&[("b", Capacity::of(1)), ("a", Capacity::of(1))]), Awaited, 0, "x"), "awaited");
    assert_eq!(table.leave(holder), ["awaited"]);
}

#[test]
fn ten_thousand_take_no_time() {
    let begun = std::time::Instant::now();
    let mut table = Schedule::<&str, u32, u64>::default();
    let mut tickets: Vec<u64> =
        (0..10_000).map(|owner| table.enter(ask(one(4), Background, 0, owner), 0).0).collect();
    for ticket in tickets.iter().rev().step_by(2) {
        table.lift(*ticket);
    }
    tickets.drain(..).for_each(|ticket| drop(table.leave(ticket)));
    assert!(table.tickets.is_empty());
    // Debug builds take 0.1 s; what looks at all who wait each time takes a minute.
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[derive(Clone, Debug)]
enum Step {
    Enter { host: usize, clone: bool, awaited: bool, weight: u64, owner: u8 },
    Leave(prop::sample::Index),
    Lift(prop::sample::Index),
    Reweigh(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let enter = (0..3_usize, any::<bool>(), any::<bool>(), 0..2_u64, 0..3_u8).prop_map(
        |(host, clone, awaited, weight, owner)| Step::Enter { host, clone, awaited, weight, owner },
    );
    let step = prop_oneof![
        4 => enter,
        3 => any::<prop::sample::Index>().prop_map(Step::Leave),
        1 => any::<prop::sample::Index>().prop_map(Step::Lift),
        1 => (0..2_u64).prop_map(Step::Reweigh),
    ];
    prop::collection::vec(step, 1..80)
}

const HOSTS: [&str; 3] = ["h0", "h1", "h2"];

/// What each ticket asked for, and whether it has been called: the whole truth, without any cleverness.
#[derive(Default)]
struct Model {
    tickets: BTreeMap<u64, (Bounds<&'static str>, Priority, bool)>,
}

impl Model {
    fn held(&self, key: &str) -> usize {
        let holds = |(bounds, _, called): &&(Bounds<&'static str>, Priority, bool)| {
            *called && bounds.iter().any(|bound| bound.key == key)
        };
        self.tickets.values().filter(holds).count()
    }

    /// The priorities of those that could begin now and do not.
    fn held_back_for_nothing(&self) -> BTreeSet<Priority> {
        let waiting = self.tickets.values().filter(|(_, _, called)| !called);
        let free = |bound: &Bound<&'static str>, priority| self.held(bound.key) < bound.capacity.at(priority);
        waiting
            .filter(|(bounds, priority, _)| bounds.iter().all(|bound| free(bound, *priority)))
            .map(|(_, priority, _)| *priority)
            .collect()
    }

    fn call(&mut self, who: u64) {
        // Before it begins, nothing more urgent could have.
        let best = self.held_back_for_nothing().into_iter().next();
        let ticket = self.tickets.get_mut(&who).unwrap();
        assert_eq!(Some(ticket.1), best);
        assert!(!std::mem::replace(&mut ticket.2, true), "called twice");
    }
}

proptest! {
    #[test]
    fn no_place_is_lost_none_is_held_back_and_no_bound_is_exceeded(steps in steps()) {
        let mut table = Schedule::<&str, u8, u64>::default();
        let mut model = Model::default();
        let mut next = 0_u64;
        // The caller's name for a ticket, which is not known yet when it is called at once.
        let mut numbers = BTreeMap::new();
        for step in steps {
            match step {
                Step::Enter { host, clone, awaited, weight, owner } => {
                    let kind = if clone { ("clones", Capacity { background: 1, awaited: 2 }) }
                        else { ("fetches", Capacity { background: 2, awaited: 3 }) };
                    let bounds = bounds(&[kind, (HOSTS[host], Capacity::of(2))]);
                    let priority = if awaited { Awaited } else { Background };
                    next += 1;
                    model.tickets.insert(next, (bounds.clone(), priority, false));
                    let (ticket, called) = table.enter(ask(bounds, priority, weight, owner), next);
                    numbers.insert(next, ticket);
                    prop_assert!(called.is_none_or(|called| called == next));
                    called.into_iter().for_each(|who| model.call(who));
                }
                Step::Leave(index) if !model.tickets.is_empty() => {
                    let who = *model.tickets.keys().nth(index.index(model.tickets.len())).unwrap();
                    model.tickets.remove(&who);
                    for called in table.leave(numbers[&who]) {
                        model.call(called);
                    }
                }
                Step::Lift(index) if !model.tickets.is_empty() => {
                    let who = *model.tickets.keys().nth(index.index(model.tickets.len())).unwrap();
                    let ticket = model.tickets.get_mut(&who).unwrap();
                    if !ticket.2 {
                        ticket.1 = Awaited;
                    }
                    table.lift(numbers[&who]).into_iter().for_each(|who| model.call(who));
                }
                Step::Reweigh(odd) => table.reweigh(|_, owner| (u64::from(*owner) + odd) % 2),
                Step::Leave(_) | Step::Lift(_) => {}
            }
            prop_assert!(model.held_back_for_nothing().is_empty());
            for (key, most) in [("clones", 2), ("fetches", 3), ("h0", 2), ("h1", 2), ("h2", 2)] {
                prop_assert!(model.held(key) <= most);
            }
        }
        let tickets: Vec<_> = model.tickets.keys().copied().collect();
        for who in tickets {
            model.tickets.remove(&who);
            table.leave(numbers[&who]).into_iter().for_each(|who| model.call(who));
        }
        prop_assert!(table.tickets.is_empty() && table.lanes.is_empty() && table.levels.is_empty());
    }
}
