//! Which blocks to fetch next: those somebody waits for, then those read soon, then the rest in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::layout::Layout;

/// How many blocks after a reader's are fetched before the others.
const READ_AHEAD: usize = 4;

/// Where the readers are, by when each arrived there, the one that has waited longest first.
#[derive(Debug, Default)]
pub(super) struct Readers {
    places: BTreeMap<u64, Place>,
    arrivals: u64,
}

/// The block a reader is at, and the last one it will read.
#[derive(Clone, Copy, Debug)]
struct Place {
    block: usize,
    last: usize,
}

impl Readers {
    /// A reader arrives at `block` and will read up to `last`. Returns what to [`leave`](Self::leave) with.
    pub(super) fn arrive(&mut self, block: usize, last: usize) -> u64 {
        self.arrivals += 1;
        self.places.insert(self.arrivals, Place { block, last });
        self.arrivals
    }

    /// The reader that arrived with `arrival` is there no more.
    pub(super) fn leave(&mut self, arrival: u64) {
        self.places.remove(&arrival);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// Takes what to fetch next, with one request, out of `missing`: one block, or the small ones from it on.
    pub(super) fn next(&self, layout: Layout, missing: &mut BTreeSet<usize>) -> Option<Range<usize>> {
        let first = (0..=READ_AHEAD)
            .find_map(|ahead| {
                self.places.values().find_map(|place| {
                    let block = place.block + ahead;
                    (block <= place.last && missing.contains(&block)).then_some(block)
                })
            })
            .or_else(|| missing.first().copied())?;
        missing.remove(&first);
        let mut end = first + 1;
        while layout.is_small(first) && end < layout.count() && layout.is_small(end) && missing.remove(&end) {
            end += 1;
        }
        Some(first..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockfile::layout::{LARGE, SMALL_UNTIL};

    fn order(readers: &Readers, bytes: u64) -> Vec<Range<usize>> {
        let layout = Layout::new(bytes);
        let mut missing = (0..layout.count()).collect();
        std::iter::from_fn(|| readers.next(layout, &mut missing)).collect()
    }

    #[test]
    fn without_readers_blocks_come_in_order_and_small_ones_at_once() {
        assert_eq!(order(&Readers::default(), SMALL_UNTIL + 2 * LARGE), [0..16, 16..17, 17..18]);
        assert_eq!(order(&Readers::default(), 1).first(), Some(&(0..1)));
        assert!(order(&Readers::default(), 0).is_empty());
    }

    #[test]
    fn what_is_waited_for_comes_first_then_what_is_read_soon() {
        let mut readers = Readers::default();
        let gone = readers.arrive(18, 18);
        readers.arrive(24, 25);
        readers.arrive(20, 30);
        readers.leave(gone);
        let mut starts = order(&readers, SMALL_UNTIL + 20 * LARGE);
        starts.truncate(9);
        assert_eq!(starts, [24..25, 20..21, 25..26, 21..22, 22..23, 23..24, 0..16, 16..17, 17..18]);
    }

    #[test]
    fn a_reader_amid_the_small_blocks_has_its_own_first() {
        let mut readers = Readers::default();
        readers.arrive(5, 5);
        assert_eq!(order(&readers, SMALL_UNTIL), [5..16, 0..5]);
    }
}
