//! Mirrors that leave the disk and come back again and again: more are in use than the budget holds. No clock.

use std::collections::BTreeMap;

use tarn_crds::repo::RepoId;

/// A mirror that is evicted again within so many seconds after it might come back did not stay for long.
const SOON: u64 = 1200;

/// So many short stays in a row are an accident; from then on the mirror is held off.
const SHORT_STAYS: u32 = 2;

/// How long it is held off first, in seconds; twice as long each time, …
const FIRST: u64 = 60;
/// … but not longer.
const LAST: u64 = 3600;

/// Which mirrors were evicted lately.
#[derive(Debug, Default)]
pub(super) struct Returns(BTreeMap<RepoId, Eviction>);

#[derive(Debug)]
struct Eviction {
    /// From when on it might come back, in Unix time.
    free: u64,
    /// Short stays in a row.
    short: u32,
}

impl Returns {
    /// Takes in that a mirror was evicted; says for how many seconds it is not to come back, if it comes and goes.
    pub(super) fn evicted(&mut self, id: &RepoId, now: u64) -> Option<u64> {
        self.0.retain(|_, eviction| now < eviction.free.saturating_add(SOON));
        let short = self.0.get(id).map_or(0, |eviction| eviction.short + 1);
        let doubled = short.checked_sub(SHORT_STAYS).map(|times| FIRST << times.min(16));
        let held = doubled.map(|seconds| seconds.min(LAST));
        self.0.insert(id.clone(), Eviction { free: now.saturating_add(held.unwrap_or(0)), short });
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_and_goes_is_held_off_for_longer_each_time() {
        let (mut returns, id) = (Returns::default(), RepoId::from_route("h/o/r").unwrap());
        let mut now = 1000;
        let mut held = Vec::new();
        for _ in 0..10 {
            let seconds = returns.evicted(&id, now);
            held.push(seconds);
            // It is asked for at once, and stays a minute.
            now += seconds.unwrap_or(0) + 60;
        }
        let expected = [0, 0, 60, 120, 240, 480, 960, 1920, 3600, 3600];
        assert_eq!(held, expected.map(|seconds| (seconds > 0).then_some(seconds)));
        // Others are not meant, and one that stayed is not either.
        assert_eq!(returns.evicted(&RepoId::from_route("h/o/other").unwrap(), now), None);
        assert_eq!(returns.evicted(&id, now + LAST + SOON), None);
        assert_eq!(returns.0.len(), 1, "nothing is remembered for ever");
    }
}
