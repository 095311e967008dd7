//! What may go. Nothing that a kept manifest names ever goes.
//!
//! A generation is kept while it is among the newest, and for a grace period after newer ones have pushed it out: who
//! reads it meanwhile still finds all of it. An object that no manifest names goes once it is older than the grace
//! period: until then it may belong to a generation that is being published. Both are longer for what is large: S3 dates
//! an object by the *beginning* of its upload, and whoever reads one needs time as well.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Generation, GenerationError, Generations, Numbered, Numbers};
use crate::store::{Meta, StoreError, clock::store_clock};

/// How long uploads that nobody has ended are kept.
const UPLOADS: Duration = Duration::from_secs(24 * 3600);

/// Bytes a second: nobody uploads or reads more slowly than this and is waited for.
const SLOW: u64 = 4 << 20;

/// What there is to remove of one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Manifests, marks and signatures.
    pub manifests: Vec<String>,
    /// What no manifest names.
    pub objects: Vec<Meta>,
}

impl Garbage {
    /// The length of its objects, in bytes.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|meta| meta.bytes).sum()
    }
}

impl<M: Numbered> Generations<M> {
    /// Finds what may go of the manifests and of `there`, the objects that they may name. Manifests are read, the
    /// newest first, only until all old objects are accounted for: most are named by the newest.
    ///
    /// # Errors
    /// The store cannot be asked, or a manifest that is to stay cannot be read: then nothing may go, for nobody knows
    /// what it names.
    pub async fn garbage(
        &self,
        there: Vec<Meta>,
        keep: usize,
        grace: Duration,
    ) -> Result<Garbage, GenerationError> {
        let numbers = self.numbers().await?;
        let now = store_clock(&*self.store).await?;
        let mut gone = Vec::new();
        for (generation, since) in outdated(&numbers, keep, grace, now) {
            match self.named(generation).await {
                Ok(manifest) if !is_past(since, grace, manifest.total(), now) => {}
                Ok(_) | Err(GenerationError::Damaged { .. }) => gone.push(generation),
                Err(error) => return Err(error),
            }
        }
        let old = there.into_iter().filter(|meta| is_past(meta.modified, grace, meta.bytes, now));
        let mut unnamed: BTreeMap<String, Meta> = old.map(|meta| (meta.key.clone(), meta)).collect();
        for generation in numbers.written.keys().rev().filter(|generation| !gone.contains(generation)) {
            if unnamed.is_empty() {
                break;
            }
            match self.named(*generation).await {
                Ok(manifest) => {
                    for key in manifest.objects(&self.repository) {
                        unnamed.remove(&key);
                    }
                }
                // Marked, and unreadable: it names nothing that anyone would use.
                Err(GenerationError::Damaged { .. }) if numbers.bad.contains(generation) => {}
                Err(error) => return Err(error),
            }
        }
        let marks = gone.iter().filter(|g| numbers.bad.contains(g)).map(|g| self.mark(*g));
        // One without a manifest may belong to one that is about to be written.
        let lost = |g: &Generation, meta: &Meta| {
            !numbers.written.contains_key(g) && is_past(meta.modified, grace, 0, now)
        };
        let signatures = numbers.signatures.iter().filter(|(g, meta)| gone.contains(g) || lost(g, meta));
        let signatures = signatures.map(|(_, meta)| meta.key.clone());
        let manifests = gone.iter().map(|g| self.key(*g)).chain(marks).chain(signatures).collect();
        Ok(Garbage { manifests, objects: unnamed.into_values().collect() })
    }

    /// Removes `garbage`: manifests first, so that none names what is gone. What such a manifest named goes the next
    /// time. An object that somebody has put again since it was listed stays: it is about to be named. Uploads below
    /// `below` that nobody has ended in a day end here.
    ///
    /// # Errors
    /// The store's; what is left goes the next time.
    pub async fn remove(&self, garbage: &Garbage, below: &str) -> Result<(), StoreError> {
        for key in &garbage.manifests {
            self.store.delete(key).await?;
        }
        for listed in &garbage.objects {
            match self.store.head(&listed.key).await {
                Ok((now, _)) if now.modified == listed.modified => self.store.delete(&listed.key).await?,
                Ok(_) | Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.store.abort_uploads(below, UPLOADS).await?;
        Ok(())
    }
}

/// The generations to delete, oldest first, each with when it came to be so: those older than `grace` behind `keep`
/// newer good ones, and bad ones as old. `now` is the store's clock.
fn outdated(numbers: &Numbers, keep: usize, grace: Duration, now: Timestamp) -> Vec<(Generation, Timestamp)> {
    let good: Vec<(Generation, Timestamp)> =
        numbers.good().filter_map(|g| Some((g, *numbers.written.get(&g)?))).collect();
    // The good ones are newest first; the one `keep` places before a generation pushed it out.
    let pushed = good.iter().zip(good.iter().skip(keep.max(1)));
    let pushed = pushed.map(|((_, pushed_out), (generation, _))| (*generation, *pushed_out));
    let newest = good.first().map(|(newest, _)| *newest);
    let bad = numbers.bad.iter().filter(|g| newest.is_some_and(|newest| newest > **g));
    let bad = bad.filter_map(|g| Some((*g, *numbers.written.get(g)?)));
    let mut gone: Vec<_> = pushed.chain(bad).filter(|(_, since)| is_past(*since, grace, 0, now)).collect();
    gone.sort_unstable();
    gone
}

/// Whether what is `bytes` long has been out of use for long enough since `since`; `now` is the store's clock.
fn is_past(since: Timestamp, grace: Duration, bytes: u64, now: Timestamp) -> bool {
    let grace = grace.saturating_add(Duration::from_secs(bytes / SLOW));
    now.duration_since(since) >= SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(24 * 3600);

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(hours * 3600).unwrap()
    }

    fn numbers(written: &[(u64, i64)], bad: &[u64]) -> Numbers {
        Numbers {
            written: written.iter().map(|(n, hours)| (Generation(*n), at(*hours))).collect(),
            bad: bad.iter().map(|n| Generation(*n)).collect(),
            signatures: Vec::new(),
        }
    }

    fn gone(written: &[(u64, i64)], bad: &[u64], keep: usize, now: i64) -> Vec<u64> {
        outdated(&numbers(written, bad), keep, GRACE, at(now)).into_iter().map(|(g, _)| g.0).collect()
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

    #[test]
    fn what_takes_long_to_upload_or_to_read_is_kept_for_longer() {
        assert!(is_past(at(0), GRACE, 0, at(24)) && !is_past(at(0), GRACE, 0, at(23)));
        let hour = 3600 * SLOW;
        assert!(!is_past(at(0), GRACE, 7 * hour, at(30)) && is_past(at(0), GRACE, 7 * hour, at(31)));
    }
}
