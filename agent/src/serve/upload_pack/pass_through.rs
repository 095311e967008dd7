//! The upstream's own answer, while the mirror is being made or cannot get what is wanted. Requests that are the same share
//! one, and it is kept while there is no mirror.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::response::Response;
use tarn_crds::repo::RepoId;

use super::ObjectsWanted;
use crate::{
    git::RefSet,
    mirror::View,
    packs,
    protocol::{fetch::Key, response::AnswerCheck},
    serve::error::Failure,
    spool::Keep,
    upstream::{Looker, forward::Ending},
};

/// The most answers that are kept of one mirror.
const MAX_KEPT: usize = 256;

/// The upstream's answers that are kept, by mirror. Once the mirror serves, they are of no more use.
#[derive(Debug, Default)]
pub(in crate::serve) struct Passed {
    keys: Mutex<HashMap<RepoId, HashSet<Key>>>,
}

impl Passed {
    /// Whether the answer `key` may be kept.
    fn note(&self, id: &RepoId, key: Key) -> bool {
        let mut all = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = all.entry(id.clone()).or_default();
        keys.contains(&key) || (keys.len() < MAX_KEPT && keys.insert(key))
    }

    /// The answers of a mirror that serves.
    pub(in crate::serve) fn take(&self, id: &RepoId) -> HashSet<Key> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(id).unwrap_or_default()
    }
}

impl ObjectsWanted {
    pub(super) async fn pass_through(
        mut self,
        view: &View,
        upstream: Arc<Looker>,
    ) -> Result<Response, Failure> {
        let refs =
            view.seen.as_ref().map_or_else(|| Arc::new(RefSet::empty(self.format)), |(refs, _)| refs.clone());
        let normal = self.fetch.clone().and_then(|request| request.normalised(&refs));
        let shared = normal.map(|request| {
            self.body = request.to_request(self.format).into();
            request.key(&self.mirror.id().to_string(), self.format, &refs)
        });
        // Never a key of the mirror's own answers: what an upstream spoils here, it spoils for no longer.
        let key = self.raw_key("passed", shared.unwrap_or_default());
        let kept =
            shared.is_some() && view.stored.is_none() && self.serving.passed.note(self.mirror.id(), key);
        tracing::debug!(repo = %self.mirror.id(), "passed through to the upstream");
        let whole = Arc::new(AtomicBool::new(false));
        let judged = whole.clone();
        let keep = move || {
            if kept { packs::if_it_holds_a_pack_and(judged.clone()) } else { Keep::Nothing }
        };
        let (version, format, expect) = (self.version, self.format, self.expect);
        let make = move |own: Self, sink| {
            let (upstream, whole) = (upstream.clone(), whole.clone());
            async move {
                let check = AnswerCheck::new(version, format, expect);
                let (length, ending) = upstream.fetch(version, own.body.clone(), sink, check).await?;
                whole.store(ending == Ending::Whole, Ordering::Relaxed);
                Ok(length)
            }
        };
        self.spooled(key, keep, make).await.map_err(Failure::from)
    }
}
