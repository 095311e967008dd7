//! What a mirror's task publishes of it.

use std::{collections::HashSet, fmt, sync::Arc, time::Instant};

use jiff::Timestamp;
use tarn_crds::v1alpha1::{OnUpstreamRefusal, Phase, conditions::Reason};
use tokio::sync::watch;

use super::{
    entitlement::{Entitlement, Verdict},
    seed::Seed,
    settings::Settings,
    snapshots::SnapshotView,
};
use crate::{
    checkpoint::manifest::Checkpoint,
    git::{Oid, RefSet},
    upstream::Looker,
};

/// What a mirror's task last published.
#[derive(Clone, Debug)]
pub struct View {
    /// Where it is in its life.
    pub phase: Phase,
    /// The refs on the disk, all of whose objects are there.
    pub stored: Option<Arc<Stored>>,
    /// The refs the upstream showed in the newest look, and when that look began.
    pub seen: Option<(Arc<RefSet>, Instant)>,
    /// Why the last look failed, if it did.
    pub look_trouble: Option<Trouble>,
    /// Why the last fetch failed, if it did.
    pub fetch_trouble: Option<Trouble>,
    /// When the newest look that succeeded began.
    pub last_look: Option<Timestamp>,
    /// When the newest fetch that succeeded ended.
    pub last_fetch: Option<Timestamp>,
    /// Bytes on the disk.
    pub bytes: u64,
    /// The newest checkpoint known.
    pub checkpoint: Option<Arc<Checkpoint>>,
    /// Why the last checkpoint could not be published, if so.
    pub store_trouble: Option<Trouble>,
    /// Why the last restore failed, or passed a checkpoint over, if so.
    pub restore_trouble: Option<Trouble>,
    /// What the disk has damaged, while that lasts.
    pub damage: Option<Trouble>,
    /// How often this process has replaced a damaged mirror: what was made of the former ones is not to be used.
    pub replaced: u64,
    /// What serves shallow clones cheaply; the newest first.
    pub seeds: Vec<Arc<Seed>>,
    /// Whether the upstream lets this agent have it.
    pub entitlement: Arc<Entitlement>,
    /// The upstream, for requests that are handed on to it.
    pub upstream: Option<Arc<Looker>>,
}

impl View {
    /// Of a mirror of which nothing is known yet.
    pub(super) fn empty(entitlement: Arc<Entitlement>) -> Self {
        Self {
            phase: Phase::OnDemand,
            stored: None,
            seen: None,
            look_trouble: None,
            fetch_trouble: None,
            last_look: None,
            last_fetch: None,
            bytes: 0,
            checkpoint: None,
            store_trouble: None,
            restore_trouble: None,
            damage: None,
            replaced: 0,
            seeds: Vec::new(),
            entitlement,
            upstream: None,
        }
    }

    /// Whether `other` says the same. What is shared is compared by address, so that this costs next to nothing; a
    /// wrong no only wakes those who follow the mirror.
    pub(super) fn says(&self, other: &Self) -> bool {
        fn one<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            }
        }
        let Self {
            phase,
            stored,
            seen,
            look_trouble,
            fetch_trouble,
            last_look,
            last_fetch,
            bytes,
            checkpoint,
            store_trouble,
            restore_trouble,
            damage,
            replaced,
            seeds,
            entitlement,
            upstream,
        } = self;
        let (refs, began) = (seen.as_ref().map(|seen| &seen.0), seen.as_ref().map(|seen| seen.1));
        (*phase, *bytes, *last_look, *last_fetch)
            == (other.phase, other.bytes, other.last_look, other.last_fetch)
            && (look_trouble, fetch_trouble) == (&other.look_trouble, &other.fetch_trouble)
            && (store_trouble, restore_trouble) == (&other.store_trouble, &other.restore_trouble)
            && one(stored.as_ref(), other.stored.as_ref())
            && one(refs, other.seen.as_ref().map(|seen| &seen.0))
            && began == other.seen.as_ref().map(|seen| seen.1)
            && one(checkpoint.as_ref(), other.checkpoint.as_ref())
            && (damage, replaced) == (&other.damage, &other.replaced)
            && one(seeds.first(), other.seeds.first())
            && *entitlement == other.entitlement
            && one(upstream.as_ref(), other.upstream.as_ref())
    }

    /// Why nothing of it is shown, if so and somebody has to know: not while the first look is under way.
    pub fn withheld(&self, policy: OnUpstreamRefusal) -> Option<Trouble> {
        match self.entitlement.verdict(policy) {
            Verdict::Refused => Some(self.reason(Verdict::Refused)),
            Verdict::Unproven if self.look_trouble.is_some() => Some(self.reason(Verdict::Unproven)),
            _ => None,
        }
    }

    /// Why nothing is shown, in words that name the remedy.
    pub(super) fn reason(&self, verdict: Verdict) -> Trouble {
        if verdict == Verdict::Refused {
            let refusals = self.entitlement.refusals();
            let said = refusals.map_or("no reason given", |refusals| refusals.said.as_str());
            let since = refusals.map(|refusals| format!(" since {:.0}", refusals.since)).unwrap_or_default();
            let message = format!(
                "the upstream refuses this repository{since}, so Tarn serves nothing of it until a check succeeds; it \
                 says: {said}. Renew the credentials in spec.secretRef, or set spec.freshness.onUpstreamRefusal to \
                 ServeStale to serve what Tarn has"
            );
            return Trouble { reason: Reason::UpstreamRefuses, message };
        }
        let failed =
            self.look_trouble.as_ref().map(|trouble| format!("; the last one failed: {}", trouble.message));
        let message = format!(
            "what Tarn has of this repository was fetched with other credentials than spec.secretRef has now, so Tarn \
             serves it once a check with these has succeeded{}",
            failed.unwrap_or_default()
        );
        Trouble { reason: Reason::AccessUnproven, message }
    }

    /// What is wrong, the worst first; `None` while nothing is.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.look_trouble.as_ref().or(self.fetch_trouble.as_ref())
    }
}

/// What is wrong with a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// In a word.
    pub reason: Reason,
    /// For people; holds no secret.
    pub message: String,
}

impl Trouble {
    pub(super) fn new(reason: Reason, error: &impl fmt::Display) -> Self {
        Self { reason, message: error.to_string() }
    }
}

/// A state of the refs that is complete on the disk.
#[derive(Debug)]
pub struct Stored {
    /// The refs.
    pub refs: Arc<RefSet>,
    /// Their digest.
    pub digest: String,
    /// The objects they name.
    pub tips: HashSet<Oid>,
}

impl Stored {
    pub(super) fn new(refs: Arc<RefSet>) -> Self {
        Self { digest: refs.digest(), tips: refs.tips().collect(), refs }
    }
}

/// Follows what is told of a mirror, and does not keep it.
pub struct Changes {
    view: watch::Receiver<View>,
    settings: watch::Receiver<Arc<Settings>>,
    snapshots: watch::Receiver<SnapshotView>,
}

impl Changes {
    pub(super) fn new(
        view: watch::Receiver<View>,
        settings: watch::Receiver<Arc<Settings>>,
        snapshots: watch::Receiver<SnapshotView>,
    ) -> Self {
        Self { view, settings, snapshots }
    }

    /// Waits until the mirror's view, settings or snapshots have changed since the last call; false once the mirror has
    /// been removed. A dropped future loses nothing.
    pub async fn next(&mut self) -> bool {
        let changed = tokio::select! {
            changed = self.view.changed() => changed,
            changed = self.settings.changed() => changed,
            changed = self.snapshots.changed() => changed,
        };
        changed.is_ok()
    }
}
