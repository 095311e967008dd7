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
    mirrors: Mutex<HashMap<RepoId, Watched>>,
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

/// A mirror that is asked for something.
struct Watched {
    now: Arc<Stored>,
    before: Option<Arc<Stored>>,
    shapes: Shapes,
}

impl Watched {
    /// Takes up the refs `stored`, if they are others.
    fn advance(&mut self, stored: &Arc<Stored>) {
        if self.now.digest != stored.digest {
            self.before = Some(std::mem::replace(&mut self.now, stored.clone()));
        }
    }
}

/// What to make once refs have moved.
pub(super) struct Plan {
    /// Each with the pack that was made for it last.
    pub shapes: Vec<(Shape, Option<Key>)>,
    /// The refs.
    pub now: Arc<RefSet>,
    /// The refs before that.
    pub before: Arc<RefSet>,
}

impl Lately {
    /// Nothing is asked for. Mirrors that are come out of the receiver.
    pub fn new() -> (Self, mpsc::Receiver<New>) {
        let (new, coming) = mpsc::channel(MAX_NEW);
        (Self { new, mirrors: Mutex::default() }, coming)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RepoId, Watched>> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client asks for `request`, whose answer `key` names, while the refs of `mirror` are `stored`.
    pub(super) fn asked(&self, mirror: &Mirror, request: &Fetch, key: &Key, stored: &Arc<Stored>) {
        let before = match self.lock().get_mut(mirror.id()) {
            Some(watched) => {
                // Other requests may have seen the next move already.
                if watched.before.as_ref().is_none_or(|before| before.digest != stored.digest) {
                    watched.advance(stored);
                }
                if watched.shapes.asked_again(request, key) {
                    return;
                }
                watched.before.clone()
            }
            None => None,
        };
        // Outside the lock: there may be very many refs.
        let shape = Shape::of(request, &stored.refs, before.as_ref().map(|before| &*before.refs));
        let Some(shape) = shape else { return };
        let mut mirrors = self.lock();
        if let Some(watched) = mirrors.get_mut(mirror.id()) {
            return watched.shapes.asked(shape, *key);
        }
        let (id, digest) = (mirror.id().clone(), stored.digest.clone());
        if self.new.try_send(New { id: id.clone(), changes: mirror.changes(), digest }).is_ok() {
            let mut watched = Watched { now: stored.clone(), before: None, shapes: Shapes::default() };
            watched.shapes.asked(shape, *key);
            mirrors.insert(id, watched);
        }
    }

    /// The refs of a mirror are `stored` now: packs that get no successor, and what to make. No plan if nobody asks for
    /// anything any more; the mirror is then forgotten.
    pub(super) fn moved(&self, id: &RepoId, stored: &Arc<Stored>) -> (Vec<Key>, Option<Plan>) {
        let mut mirrors = self.lock();
        let Some(watched) = mirrors.get_mut(id) else { return (Vec::new(), None) };
        watched.advance(stored);
        let Moved { due: shapes, gone } = watched.shapes.moved();
        if watched.shapes.is_empty() {
            mirrors.remove(id);
            return (gone, None);
        }
        let before = watched.before.as_ref().unwrap_or(&watched.now).refs.clone();
        (gone, Some(Plan { shapes, now: stored.refs.clone(), before }))
    }

    /// The pack for a shape is there; `large` if it takes too much of the cache to be made again.
    pub(super) fn made(&self, id: &RepoId, shape: &Shape, key: Key, large: bool) {
        if let Some(watched) = self.lock().get_mut(id) {
            watched.shapes.made(shape, key, large);
        }
    }

    /// The mirror is not here any more; these packs were made for it.
    pub(super) fn forget(&self, id: &RepoId) -> Vec<Key> {
        self.lock().remove(id).map(|watched| watched.shapes.all_made()).unwrap_or_default()
    }
}
