//! Where the upstream said that objects are: kept between a client's batch request and its downloads, so that each
//! costs the upstream no further question.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tarn_crds::repo::RepoId;

use crate::protocol::lfs::{Action, Answered, LfsOid, ObjectError};

/// How many are kept; beyond that, downloads ask again.
const MAX_KEPT: usize = 20_000;

/// For how long at most: signed URLs are good for minutes at least.
const MAX_AGE: Duration = Duration::from_secs(300);

/// See the module.
#[derive(Default)]
pub(super) struct Actions {
    kept: Mutex<HashMap<(RepoId, LfsOid), (Instant, Action)>>,
}

impl Actions {
    /// Keeps what an upstream's answer offers; gives back which objects those are, and why the others are none.
    pub(super) fn learn(
        &self,
        repo: &RepoId,
        answered: Answered,
    ) -> BTreeMap<LfsOid, Result<(), ObjectError>> {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.len() > MAX_KEPT {
            kept.retain(|_, (until, _)| *until > now);
        }
        let mut told = BTreeMap::new();
        for (oid, outcome) in answered {
            let outcome = outcome.map(|action| {
                let good_for = action.expires.map_or(MAX_AGE, |expires| expires.min(MAX_AGE));
                if kept.len() <= MAX_KEPT {
                    kept.insert((repo.clone(), oid), (now + good_for, action));
                }
            });
            told.insert(oid, outcome);
        }
        told
    }

    /// Where the object is, if that is known and still good. It is not given out twice: a download that fails asks
    /// the upstream anew.
    pub(super) fn take(&self, repo: &RepoId, oid: LfsOid) -> Option<Action> {
        let mut kept = self.kept.lock();
        let (until, action) = kept.remove(&(repo.clone(), oid))?;
        (until > Instant::now()).then_some(action)
    }
}
