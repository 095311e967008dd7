//! What is known of recipes, bases and requests; whatever it names may go at any time, and is then found out again.

use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tarn_crds::repo::RepoId;
use tokio::{
    sync::OnceCell,
    time::{Duration, Instant},
};

use crate::{
    git::{Oid, base::Base, young::Floor},
    packs::PackError,
    protocol::fetch::Key,
    recipe::{Proof, Recipe},
};

/// Recipes and facts that are kept: some hundred bytes each, but for padding, and for what is new in a whole history.
const KEPT: usize = 1024;

/// Sets of young commits that are kept: 2 MB each at the most.
const KEPT_SETS: usize = 64;

/// How long a mirror for which no recipe fits is not asked again.
const UNFIT: Duration = Duration::from_secs(30);

/// How long a disk that was full is taken to be so.
const FULL: Duration = Duration::from_secs(3);

/// Facts by name, each found out once, however many ask.
pub(super) struct Facts<T>(Mutex<LruCache<Key, Arc<OnceCell<T>>>>);

impl<T: Clone> Facts<T> {
    fn of(kept: usize) -> Self {
        Self(Mutex::new(cache(kept)))
    }

    /// The fact called `name`, which `find` finds out.
    ///
    /// # Errors
    /// Those of `find`; the next who asks tries again.
    pub(super) async fn get<E, F>(&self, name: Key, find: impl FnOnce() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let cell = self.0.lock().get_or_insert(name, Arc::default).clone();
        cell.get_or_try_init(find).await.cloned()
    }
}

fn cache<K: std::hash::Hash + Eq, V>(kept: usize) -> LruCache<K, V> {
    LruCache::new(kept.try_into().unwrap_or(std::num::NonZeroUsize::MIN))
}

/// See the module.
pub(in crate::serve) struct Recipes {
    /// By mirror and what is asked for.
    cells: Mutex<LruCache<(RepoId, Key), Arc<Cell>>>,
    /// What is known of each mirror's base, by mirror and edition.
    proofs: Mutex<LruCache<String, Arc<Proof>>>,
    /// How many objects requests ask for.
    pub(super) counts: Facts<u64>,
    /// Whether refs still reach all that a base was made of.
    pub(super) reached: Facts<bool>,
    /// Of bases: a commit that reaches nearly all of it.
    pub(super) floors: Facts<Option<Floor>>,
    /// The commits that reach such a one.
    pub(super) young: Facts<Arc<[Oid]>>,
}

/// One recipe, once it is made.
pub(super) struct Cell {
    /// For which refs.
    state: String,
    pub(super) made: OnceCell<Made>,
}

impl Cell {
    fn layer(&self) -> Option<Key> {
        match self.made.get() {
            Some(Made::Recipe(composed)) => composed.layer,
            _ => None,
        }
    }
}

/// What came of the making of a recipe.
pub(super) enum Made {
    Recipe(Composed),
    /// None fits, as was found then.
    Unfit(Instant),
    /// The disk was full then: who waits for the same need not find out again.
    Full(Instant, PackError),
}

/// A recipe, and where the rest of the answer is.
#[derive(Clone)]
pub(super) struct Composed {
    pub(super) recipe: Arc<Recipe>,
    /// The name of its layer, if it has one.
    pub(super) layer: Option<Key>,
    /// What comes before the pack.
    pub(super) head: Bytes,
}

impl Default for Recipes {
    fn default() -> Self {
        Self {
            cells: Mutex::new(cache(KEPT)),
            proofs: Mutex::new(cache(KEPT)),
            counts: Facts::of(KEPT),
            reached: Facts::of(KEPT),
            floors: Facts::of(KEPT),
            young: Facts::of(KEPT_SETS),
        }
    }
}

impl Recipes {
    /// The cell of what is asked for, in this state. What is of another one is forgotten; its layer, if it has one, is to go.
    pub(super) fn cell(&self, name: (RepoId, Key), state: &str) -> (Arc<Cell>, Option<Key>) {
        let mut cells = self.cells.lock();
        let fits = |cell: &&Arc<Cell>| {
            let past = match cell.made.get() {
                Some(Made::Unfit(then)) => then.elapsed() > UNFIT,
                Some(Made::Full(then, _)) => then.elapsed() > FULL,
                Some(Made::Recipe(_)) | None => false,
            };
            cell.state == state && !past
        };
        if let Some(cell) = cells.get(&name).filter(fits) {
            return (cell.clone(), None);
        }
        let cell = Arc::new(Cell { state: state.to_owned(), made: OnceCell::new() });
        let former = cells.put(name, cell.clone());
        (cell, former.and_then(|former| former.layer()))
    }

    /// Whether the recipe called `name` is there.
    pub(super) fn knows(&self, name: &(RepoId, Key)) -> bool {
        let cells = self.cells.lock();
        cells.peek(name).is_some_and(|cell| matches!(cell.made.get(), Some(Made::Recipe(_))))
    }

    /// Forgets a recipe whose base or layer has gone.
    pub(super) fn forget(&self, id: &RepoId, key: Key) {
        self.cells.lock().pop(&(id.clone(), key));
    }

    /// The base is damaged: git answers, which may find out more, until the mirror is whole again.
    pub(super) fn distrust(&self, id: &RepoId, key: Key) {
        if let Some(cell) = self.cells.lock().get_mut(&(id.clone(), key)) {
            let made = OnceCell::new_with(Some(Made::Unfit(Instant::now())));
            *cell = Arc::new(Cell { state: cell.state.clone(), made });
        }
    }

    /// What is known of the base of a mirror, if it is this one.
    pub(super) fn proof(&self, edition: String, base: Base) -> Arc<Proof> {
        let mut proofs = self.proofs.lock();
        if let Some(proof) = proofs.get(&edition).filter(|proof| proof.base().pack == base.pack) {
            return proof.clone();
        }
        let proof = Arc::new(Proof::new(Arc::new(base)));
        proofs.put(edition, proof.clone());
        proof
    }
}
