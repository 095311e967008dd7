//! What is asked for lately, of which mirrors: what [`super::ahead`] makes before anyone asks again.

mod shapes;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tarn_crds::repo::RepoId;
use tokio::sync::mpsc;

use crate::{
    git::RefSet,
    mirror::{Changes, Mirror, Stored},
    protocol::{
        fetch::{Fetch, Key},
        shape::Shape,
    },
};
use shapes::{Moved, Shapes};

/// Mirrors that are asked for something for the first time, until they are followed; more are so when they are next asked.
const MAX_NEW: usize = 1024;

/// See the module.
pub struct Lately {
    new: mpsc::Sender<New>,
    mirrors: Mutex<HashMap<RepoId, Shapes>>,
}

/// A mirror that is to be followed, because it is asked for something now.
pub struct New {
    /// Which.
    pub(super) id: RepoId,
    /// Its changes from before its refs were noted, so that no move is missed.
    pub(super) changes: Changes,
    /// The digest of its refs.
    pub(super) digest: String,
}

/// What to make once refs have moved.
pub(super) struct Plan {
    /// Each with the pack that was made for it last.
    pub shapes: Vec<(Shape, Option<Key>)>,
    /// The refs.
    pub now: Arc<RefSet>,
}

/// What was made before anyone asked.
pub(super) struct MadeAhead {
    /// Names the answer.
    pub answer: Key,
    /// Names the file that was made for it: the answer, or what it has beyond a base.
    pub pack: Key,
    /// How long that is; `None` if it was there.
    pub bytes: Option<u64>,
}

impl Lately {
    /// Nothing is asked for. Mirrors that are come out of the receiver.
    pub fn new() -> (Self, mpsc::Receiver<New>) {
        let (new, coming) = mpsc::channel(MAX_NEW);
        (Self { new, mirrors: Mutex::default() }, coming)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RepoId, Shapes>> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client asks for `request`, whose answer `key` names, while the refs of `mirror` are `stored`.
    pub(super) fn asked(&self, mirror: &Mirror, request: &Fetch, key: &Key, stored: &Arc<Stored>) {
        if self.lock().get_mut(mirror.id()).is_some_and(|shapes| shapes.asked_again(request, key)) {
            return;
        }
        // Outside the lock: there may be very many refs.
        let Some(shape) = Shape::of(request, &stored.refs) else { return };
        let mut mirrors = self.lock();
        if let Some(shapes) = mirrors.get_mut(mirror.id()) {
            return shapes.asked(shape, *key);
        }
        let (id, digest) = (mirror.id().clone(), stored.digest.clone());
        if self.new.try_send(New { id: id.clone(), changes: mirror.changes(), digest }).is_ok() {
            let mut shapes = Shapes::default();
            shapes.asked(shape, *key);
            mirrors.insert(id, shapes);
        }
    }

    /// The refs of a mirror are `stored` now: packs that get no successor, and what to make. No plan if nobody asks for
    /// anything any more; the mirror is then forgotten.
    pub(super) fn moved(&self, id: &RepoId, stored: &Arc<Stored>) -> (Vec<Key>, Option<Plan>) {
        let mut mirrors = self.lock();
        let Some(asked) = mirrors.get_mut(id) else { return (Vec::new(), None) };
        let Moved { due: shapes, gone } = asked.moved();
        if asked.is_empty() {
            mirrors.remove(id);
            return (gone, None);
        }
        (gone, Some(Plan { shapes, now: stored.refs.clone() }))
    }

    /// The pack for a shape is there; `large` if it takes too much of the cache to be made again.
    pub(super) fn made(&self, id: &RepoId, shape: &Shape, ahead: &MadeAhead, large: bool) {
        if let Some(shapes) = self.lock().get_mut(id) {
            shapes.made(shape, ahead, large);
        }
    }

    /// The mirror is not here any more; these packs were made for it.
    pub(super) fn forget(&self, id: &RepoId) -> Vec<Key> {
        self.lock().remove(id).map(|shapes| shapes.all_made()).unwrap_or_default()
    }
}
