//! The shapes of requests that one mirror is asked for lately. Pure.

use std::collections::HashMap;

use super::MadeAhead;
use crate::protocol::{
    fetch::{Fetch, Key},
    shape::Shape,
};

/// Shapes of one mirror; of more, those asked for least are forgotten.
const MAX_SHAPES: usize = 16;

/// So often do the refs move before a shape that nobody asks for is no longer made.
const MOVES: u32 = 4;

/// The shapes that one mirror is asked for.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    of: HashMap<Shape, Asked>,
    /// Packs that were made for shapes that are forgotten.
    gone: Vec<Key>,
}

/// What follows from a move of the refs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// What to make, the most asked for first, each with the pack that was made for it last.
    pub due: Vec<(Shape, Option<Key>)>,
    /// Packs that get no successor.
    pub gone: Vec<Key>,
}

#[derive(Debug, Default)]
struct Asked {
    /// How often.
    times: u32,
    /// The same, halved at each move.
    weight: u32,
    /// Moves since.
    idle: u32,
    /// Names what it is answered with since the refs moved.
    answer: Option<Key>,
    /// Names the pack that was made for it last.
    made: Option<Key>,
    /// That took too much of the cache.
    large: bool,
}

impl Asked {
    fn count(&mut self) {
        self.times = self.times.saturating_add(1);
        (self.weight, self.idle) = (self.weight.saturating_add(1), 0);
    }
}

impl Shapes {
    /// Somebody asks for it, and `key` names the answer.
    pub(super) fn asked(&mut self, shape: Shape, key: Key) {
        let asked = self.of.entry(shape).or_default();
        asked.answer = Some(key);
        asked.count();
        if self.of.len() > MAX_SHAPES {
            let least = self.of.iter().filter(|(_, asked)| asked.weight <= 1);
            // The newest is among them: it is kept if any other can go.
            if let Some(least) = least.max_by_key(|(_, asked)| asked.idle).map(|(shape, _)| shape.clone()) {
                self.gone.extend(self.of.remove(&least).and_then(|asked| asked.made));
            }
        }
    }

    /// Somebody asks for `request`, whose answer `key` names; says whether that is known to be the answer to a shape, for
    /// shapes are dear to find out.
    pub(super) fn asked_again(&mut self, request: &Fetch, key: &Key) -> bool {
        // Requests that differ in words only may have one answer.
        let known = self
            .of
            .iter_mut()
            .find(|(shape, asked)| asked.answer.as_ref() == Some(key) && shape.says(request));
        known.map(|(_, asked)| asked.count()).is_some()
    }

    /// The refs have moved.
    pub(super) fn moved(&mut self) -> Moved {
        let mut gone = std::mem::take(&mut self.gone);
        for asked in self.of.values_mut() {
            asked.idle += 1;
            // Whoever asks for the same objects now may mean other refs.
            asked.answer = None;
        }
        self.of.retain(|_, asked| {
            let stays = asked.idle <= MOVES;
            gone.extend(asked.made.filter(|_| !stays));
            stays
        });
        let mut due = Vec::new();
        for (shape, asked) in &mut self.of {
            if !asked.large && asked.times >= shape.expected_after() {
                due.push((shape, asked));
            } else {
                gone.extend(asked.made.take());
            }
        }
        due.sort_by_key(|(_, asked)| std::cmp::Reverse((asked.weight, MOVES - asked.idle)));
        let due = due.into_iter().map(|(shape, asked)| {
            asked.weight = asked.weight.div_ceil(2);
            (shape.clone(), asked.made)
        });
        Moved { due: due.collect(), gone }
    }

    /// Its pack is there; `large` if it takes too much of the cache to be made again.
    pub(super) fn made(&mut self, shape: &Shape, ahead: &MadeAhead, large: bool) {
        if let Some(asked) = self.of.get_mut(shape) {
            (asked.answer, asked.made, asked.large) = (Some(ahead.answer), Some(ahead.pack), large);
        }
    }

    /// Packs that were made for any.
    pub(super) fn all_made(&self) -> Vec<Key> {
        self.of.values().filter_map(|asked| asked.made).chain(self.gone.iter().copied()).collect()
    }

    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        git::{Head, ObjectFormat, Oid, Ref, RefSet},
        protocol::fetch::Fetch,
    };

    /// A clone of one branch at depth `depth`.
    fn request(depth: u32) -> Fetch {
        let deepen = format!("deepen {depth}");
        Fetch::parse([deepen.as_bytes()]).unwrap().about(vec![tip()], vec![], vec![])
    }

    fn ahead(number: u32) -> MadeAhead {
        MadeAhead { answer: key(number), pack: key(number), bytes: None }
    }

    fn tip() -> Oid {
        Oid::from_hex(&[b'1'; 40]).unwrap()
    }

    fn shape(depth: u32) -> Shape {
        let main = Ref { name: "refs/heads/main".into(), oid: tip(), peeled: None };
        let refs = RefSet::new(ObjectFormat::Sha1, Head::Missing, vec![main]);
        Shape::of(&request(depth), &refs).unwrap()
    }

    fn key(depth: u32) -> Key {
        [u8::try_from(depth).unwrap(); 32]
    }

    fn shapes(moved: Moved) -> Vec<Shape> {
        moved.due.into_iter().map(|(shape, _)| shape).collect()
    }

    #[test]
    fn the_most_asked_comes_first_and_what_nobody_asks_for_is_forgotten() {
        let mut asked = Shapes::default();
        [1, 2, 2, 2, 3, 3].into_iter().for_each(|depth| asked.asked(shape(depth), key(depth)));
        assert_eq!(shapes(asked.moved()), [2, 3, 1].map(shape));
        for _ in 1..MOVES {
            asked.asked(shape(1), key(1));
            assert_eq!(asked.moved().due.len(), 3);
        }
        asked.asked(shape(1), key(1));
        assert_eq!(shapes(asked.moved()), [shape(1)]);
        for _ in 0..MOVES {
            assert!(!asked.is_empty());
            asked.moved();
        }
        assert!(asked.is_empty());
    }

    #[test]
    fn what_was_made_is_told_until_it_has_a_successor_whoever_asks_for_what_else() {
        let mut asked = Shapes::default();
        asked.asked(shape(1), key(1));
        asked.moved();
        asked.made(&shape(1), &ahead(2), false);
        // The same shape, other objects.
        asked.asked(shape(1), key(3));
        assert_eq!(asked.moved(), Moved { due: vec![(shape(1), Some(key(2)))], gone: vec![] });
        // The refs moved again before the next one was whole.
        assert_eq!(asked.moved(), Moved { due: vec![(shape(1), Some(key(2)))], gone: vec![] });
        asked.made(&shape(1), &ahead(4), false);
        assert_eq!(asked.moved().due, [(shape(1), Some(key(4)))]);
    }

    #[test]
    fn packs_without_a_successor_are_told_once() {
        let mut asked = Shapes::default();
        [1, 2].into_iter().for_each(|depth| asked.asked(shape(depth), key(depth)));
        asked.made(&shape(1), &ahead(3), false);
        asked.made(&shape(2), &ahead(4), true);
        assert_eq!(asked.moved(), Moved { due: vec![(shape(1), Some(key(3)))], gone: vec![key(4)] });
        for _ in 1..MOVES {
            assert_eq!(asked.moved(), Moved { due: vec![(shape(1), Some(key(3)))], gone: vec![] });
        }
        assert_eq!(asked.all_made(), [key(3)]);
        assert_eq!(asked.moved(), Moved { due: vec![], gone: vec![key(3)] });
        assert_eq!(asked.moved(), Moved::default());
        assert!(asked.is_empty());
    }

    #[test]
    fn who_asks_for_what_was_made_asks_for_its_shape() {
        let mut asked = Shapes::default();
        asked.asked(shape(1), key(1));
        assert!(asked.asked_again(&request(1), &key(1)) && !asked.asked_again(&request(1), &key(2)));
        for _ in 0..=MOVES {
            asked.moved();
            asked.made(&shape(1), &ahead(2), false);
            assert!(asked.asked_again(&request(1), &key(2)) && !asked.asked_again(&request(1), &key(1)));
        }
        assert!(!asked.asked_again(&request(2), &key(2)), "other words");
        assert!(!asked.is_empty(), "it was asked for after every move");
    }

    #[test]
    fn shapes_are_bounded_and_those_asked_for_often_stay() {
        let mut asked = Shapes::default();
        [1, 1, 1].into_iter().for_each(|depth| asked.asked(shape(depth), key(depth)));
        (2..200).for_each(|depth| asked.asked(shape(depth), key(depth)));
        assert_eq!(asked.of.len(), MAX_SHAPES);
        assert_eq!(shapes(asked.moved()).first(), Some(&shape(1)));
    }
}
