//! Which objects of a mirror may go. What decides is pure; nothing a kept manifest names ever goes.
//!
//! A generation is kept while it is among the newest, and for a grace period after newer ones have pushed it
//! out: a pod that restores it meanwhile still finds all of it. An object that no manifest names goes once it is
//! older than the grace period: until then it may belong to a checkpoint that is being published.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    CheckpointError,
    lineage::{Generations, Lineage},
    manifest::{Generation, Keys, Manifest},
};
use crate::store::{Meta, Store, StoreError, clock::store_clock, list_all};

/// How long a generation that newer ones have pushed out, and an object without a manifest, are kept.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// The generations to delete, oldest first: those older than `grace` behind `keep` newer good ones, and bad ones
/// as old. `now` is the store's clock.
pub fn outdated(generations: &Generations, keep: usize, grace: Duration, now: Timestamp) -> Vec<Generation> {
    let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
    let old = |written: &Timestamp| now.duration_since(*written) >= grace;
    let good: Vec<(Generation, Timestamp)> =
        generations.good().filter_map(|g| Some((g, *generations.written.get(&g)?))).collect();
    // The good ones are newest first; the one `keep` places before a generation pushed it out.
    let mut gone: Vec<Generation> = good
        .iter()
        .zip(good.iter().skip(keep.max(1)))
        .filter(|((_, pushed_out), _)| old(pushed_out))
        .map(|(_, (generation, _))| *generation)
        .collect();
    let bad = generations.bad.iter().filter(|g| generations.written.get(g).is_some_and(&old));
    gone.extend(bad.filter(|g| generations.good().next().is_some_and(|newest| newest > **g)));
    gone.sort_unstable();
    gone
}

/// The objects among `there` that no manifest in `kept` names, older than `grace`.
fn unnamed(keys: &Keys, kept: &[Manifest], there: Vec<Meta>, grace: Duration, now: Timestamp) -> Vec<Meta> {
    let files = kept.iter().flat_map(Manifest::files).map(|(pack, file)| keys.file(pack, file.kind));
    let refs = kept.iter().flat_map(Manifest::refs_objects).map(|name| keys.refs(name));
    let named: BTreeSet<String> = files.chain(refs).collect();
    there.into_iter().filter(|meta| !named.contains(&meta.key) && is_older(meta, grace, now)).collect()
}

/// What there is to remove of one mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Manifests and marks.
    pub manifests: Vec<String>,
    /// Packs and lists of refs.
    pub objects: Vec<Meta>,
}

impl Garbage {
    /// The length of its objects, in bytes.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|meta| meta.bytes).sum()
    }
}

/// Finds what may go.
///
/// # Errors
/// The store cannot be asked, or a manifest that is to stay cannot be read: then nothing may go, for nobody
/// knows what it names.
pub async fn find(lineage: &Lineage, keep: usize, grace: Duration) -> Result<Garbage, CheckpointError> {
    let (store, keys) = (&*lineage.store, &lineage.keys);
    let generations = lineage.generations().await?;
    let now = store_clock(store).await?;
    let outdated = outdated(&generations, keep, grace, now);
    let mut kept = Vec::new();
    for generation in generations.written.keys().filter(|g| !outdated.contains(g)) {
        match lineage.manifest(*generation).await {
            Ok(manifest) => kept.push(manifest),
            // Marked, and unreadable: it names nothing that anyone would restore.
            Err(CheckpointError::Damaged { .. }) if generations.bad.contains(generation) => {}
            Err(error) => return Err(error),
        }
    }
    let mut there = list_all(store, &keys.packs()).await?;
    there.extend(list_all(store, &keys.all_refs()).await?);
    let objects = unnamed(keys, &kept, there, grace, now);
    let marks = outdated.iter().filter(|g| generations.bad.contains(g)).map(|g| keys.bad(*g));
    let manifests = outdated.iter().map(|g| keys.manifest(*g)).chain(marks).collect();
    Ok(Garbage { manifests, objects })
}

/// Whether an object was written at least `age` before `now`, the store's time.
pub fn is_older(meta: &Meta, age: Duration, now: Timestamp) -> bool {
    now.duration_since(meta.modified) >= SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX)
}

/// Removes `garbage`: manifests first, so that none names what is gone. What such a manifest named goes the next
/// time. An object that somebody has put again since it was listed stays: it is about to be named. Uploads below
/// `prefix` that nobody has ended in a day end here.
///
/// # Errors
/// The store's; what is left goes the next time.
pub async fn remove(store: &dyn Store, prefix: &str, garbage: &Garbage) -> Result<(), StoreError> {
    for key in &garbage.manifests {
        store.delete(key).await?;
    }
    for listed in &garbage.objects {
        match store.head(&listed.key).await {
            Ok((now, _)) if now.modified == listed.modified => store.delete(&listed.key).await?,
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    store.abort_uploads(prefix, GRACE).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(hours * 3600).unwrap()
    }

    fn generations(written: &[(u64, i64)], bad: &[u64]) -> Generations {
        Generations {
            written: written.iter().map(|(n, hours)| (Generation(*n), at(*hours))).collect(),
            bad: bad.iter().map(|n| Generation(*n)).collect(),
        }
    }

    fn gone(written: &[(u64, i64)], bad: &[u64], keep: usize, now: i64) -> Vec<u64> {
        outdated(&generations(written, bad), keep, GRACE, at(now)).into_iter().map(|g| g.0).collect()
    }

    #[test]
    fn the_newest_stay_however_old() {
        let written = [(1, 0), (2, 1), (3, 2)];
        assert!(gone(&written, &[], 3, 1_000_000).is_empty());
        assert_eq!(gone(&written, &[], 2, 1_000_000), [1]);
        assert_eq!(gone(&written, &[], 0, 1_000_000), [1, 2]);
    }

    #[test]
    fn one_just_pushed_out_stays_for_the_grace_period() {
        let written = [(1, 0), (2, 100), (3, 110)];
        assert_eq!(gone(&written, &[], 1, 123), [0; 0]);
        // Generation 2 pushed 1 out at hour 100, and 3 pushed 2 out at hour 110.
        assert_eq!(gone(&written, &[], 1, 124), [1]);
        assert_eq!(gone(&written, &[], 1, 134), [1, 2]);
    }

    #[test]
    fn bad_ones_do_not_count_and_go_once_there_is_a_newer_good_one() {
        let written = [(1, 0), (2, 1), (3, 2)];
        assert!(gone(&written, &[2, 3], 1, 1000).is_empty(), "a bad one says that its number is taken");
        assert_eq!(gone(&[(1, 0), (2, 1), (3, 2), (4, 3)], &[2, 3], 2, 1000), [2, 3]);
    }
}
