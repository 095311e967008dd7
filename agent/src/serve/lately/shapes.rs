//! The shapes of requests that one mirror is asked for lately. Pure.

use std::collections::HashMap;

use crate::protocol::{fetch::Key, shape::Shape};

/// Shapes of one mirror; of more, those asked for least are forgotten.
const MAX_SHAPES: usize = 16;

/// So often do the refs move before a shape that nobody asks for is no longer made.
const MOVES: u32 = 4;

/// The shapes that one mirror is asked for.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    of: HashMap<Shape, Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// How often.
    times: u32,
    /// The same, halved at each move.
    weight: u32,
    /// Moves since.
    idle: u32,
    /// Names what it was answered with last, or is to be.
    answer: Option<Key>,
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
                self.of.remove(&least);
            }
        }
    }

    /// Somebody asks for what `key` names; says whether that is known to be the answer to a shape, for shapes are dear to
    /// find out.
    pub(super) fn asked_again(&mut self, key: &Key) -> bool {
        let known = self.of.values_mut().find(|asked| asked.answer.as_ref() == Some(key));
        known.map(Asked::count).is_some()
    }

    /// The refs have moved: what to make now, the most asked for first, each with what it was answered with before.
    pub(super) fn moved(&mut self) -> Vec<(Shape, Option<Key>)> {
        for asked in self.of.values_mut() {
            asked.idle += 1;
        }
        self.of.retain(|_, asked| asked.idle <= MOVES);
        let expected = |shape: &Shape, asked: &Asked| !asked.large && asked.times >= shape.expected_after();
        let mut due: Vec<_> = self.of.iter_mut().filter(|(shape, asked)| expected(shape, asked)).collect();
        due.sort_by_key(|(_, asked)| std::cmp::Reverse((asked.weight, MOVES - asked.idle)));
        let due = due.into_iter().map(|(shape, asked)| {
            asked.weight = asked.weight.div_ceil(2);
            (shape.clone(), asked.answer.take())
        });
        let due = due.collect();
        // Whoever asks for the same objects now asks for something else.
        self.of.values_mut().for_each(|asked| asked.answer = None);
        due
    }

    /// Its pack has been made; `large` if it takes too much of the cache to be made again.
    pub(super) fn made(&mut self, shape: &Shape, key: Key, large: bool) {
        if let Some(asked) = self.of.get_mut(shape) {
            (asked.answer, asked.large) = (Some(key), large);
        }
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
    fn shape(depth: u32) -> Shape {
        let oid = Oid::from_hex(&[b'1'; 40]).unwrap();
        let main = Ref { name: "refs/heads/main".into(), oid, peeled: None };
        let refs = RefSet::new(ObjectFormat::Sha1, Head::Missing, vec![main]);
        let deepen = format!("deepen {depth}");
        let request = Fetch::parse([deepen.as_bytes()]).unwrap().about(vec![oid], vec![], vec![]);
        Shape::of(&request, &refs, None).unwrap()
    }

    fn key(depth: u32) -> Key {
        [u8::try_from(depth).unwrap(); 32]
    }

    fn shapes(moved: Vec<(Shape, Option<Key>)>) -> Vec<Shape> {
        moved.into_iter().map(|(shape, _)| shape).collect()
    }

    #[test]
    fn the_most_asked_comes_first_and_what_nobody_asks_for_is_forgotten() {
        let mut asked = Shapes::default();
        [1, 2, 2, 2, 3, 3].into_iter().for_each(|depth| asked.asked(shape(depth), key(depth)));
        assert_eq!(shapes(asked.moved()), [2, 3, 1].map(shape));
        for _ in 1..MOVES {
            asked.asked(shape(1), key(1));
            assert_eq!(asked.moved().len(), 3);
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
    fn what_was_made_before_is_told_once_and_what_is_too_large_is_not_made_again() {
        let mut asked = Shapes::default();
        [1, 2].into_iter().for_each(|depth| asked.asked(shape(depth), key(depth)));
        assert_eq!(asked.moved().len(), 2);
        asked.made(&shape(1), key(3), false);
        asked.made(&shape(2), key(4), true);
        assert_eq!(asked.moved(), [(shape(1), Some(key(3)))]);
        assert_eq!(asked.moved(), [(shape(1), None)]);
    }

    #[test]
    fn who_asks_for_what_was_made_asks_for_its_shape() {
        let mut asked = Shapes::default();
        asked.asked(shape(1), key(1));
        assert!(asked.asked_again(&key(1)) && !asked.asked_again(&key(2)));
        for _ in 0..=MOVES {
            asked.moved();
            asked.made(&shape(1), key(2), false);
            assert!(asked.asked_again(&key(2)) && !asked.asked_again(&key(1)));
        }
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
