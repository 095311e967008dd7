//! Answers to clients that have nothing: a base, and what is new since ([`crate::recipe`]).
//!
//! One recipe serves all who want the whole history of a mirror, at whatever commit: it holds what any of its refs reach.
//! Who wants one commit without history gets the seed and what its tree has beyond it. Where an answer would hold much more
//! than was asked for, or nothing fits, git makes it.

use std::{fs, sync::Arc};

use axum::response::Response;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderValue, header};
use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tarn_crds::repo::RepoId;
use tokio::{
    sync::OnceCell,
    time::{Duration, Instant},
};

use super::ObjectsWanted;
use crate::{
    files::blocking,
    git::{Oid, RefSet, base::Base, layer},
    metrics::{self, Lookup},
    mirror::{Stored, View},
    packs::{MakeError, Pack, PackError},
    protocol::{
        fetch::{Fetch, Key},
        pktline, sideband,
    },
    queue::Ticket,
    recipe::{self, Proof, Recipe, is_damaged},
    spool::{Sink, SpoolError},
};

/// An answer may hold so many percent of the objects that were asked for.
const MOST_PERCENT: u64 = 130;

/// A tree of so few objects more is no matter.
const FEW: u64 = 64;

/// A layer of more than this part of its base is not worth its making: the packs are soon put in order.
const LARGEST_LAYER: u32 = 4;

/// A layer of no more objects than this is always worth it.
const SMALL_LAYER: u64 = 1000;

/// A layer of more is never: each object takes 33 bytes of memory.
const MOST_LAYER: u64 = 250_000;

/// Recipes and counts that are kept: some hundred bytes each, but for padding, and for what is new in a whole history.
const KEPT: usize = 1024;

/// How long a mirror for which no recipe fits is not asked again.
const UNFIT: Duration = Duration::from_secs(30);

/// The recipes that are known. Whatever they name may go at any time; then they are made again.
pub(in crate::serve) struct Recipes {
    /// By mirror and what is asked for.
    cells: Mutex<LruCache<(RepoId, Key), Arc<Cell>>>,
    /// What is known of each mirror's base, by mirror and edition.
    proofs: Mutex<LruCache<String, Arc<Proof>>>,
    /// How many objects requests ask for.
    counts: Mutex<LruCache<Key, u64>>,
}

/// One recipe, once it is made.
struct Cell {
    /// For which refs, or which seed.
    state: String,
    made: OnceCell<Made>,
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
enum Made {
    Recipe(Composed),
    /// None fits, as was found then.
    Unfit(Instant),
}

/// A recipe, and where the rest of the answer is.
#[derive(Clone)]
struct Composed {
    recipe: Arc<Recipe>,
    /// The name of its layer, if it has one.
    layer: Option<Key>,
    /// What comes before the pack.
    head: Bytes,
}

/// What a recipe is made of: a base, what it lacks, and what comes before the pack.
type Parts = (Arc<Proof>, layer::Lacking, Bytes);

impl Default for Recipes {
    fn default() -> Self {
        let kept = KEPT.try_into().unwrap_or(std::num::NonZeroUsize::MIN);
        Self {
            cells: Mutex::new(LruCache::new(kept)),
            proofs: Mutex::new(LruCache::new(kept)),
            counts: Mutex::new(LruCache::new(kept)),
        }
    }
}

impl Recipes {
    /// The cell of what is asked for, in this state. What is of another one is forgotten; its layer, if it has one, is to go.
    fn cell(&self, name: (RepoId, Key), state: &str) -> (Arc<Cell>, Option<Key>) {
        let mut cells = self.cells.lock();
        let fits = |cell: &&Arc<Cell>| {
            let unfit = matches!(cell.made.get(), Some(Made::Unfit(then)) if then.elapsed() > UNFIT);
            cell.state == state && !unfit
        };
        if let Some(cell) = cells.get(&name).filter(fits) {
            return (cell.clone(), None);
        }
        let cell = Arc::new(Cell { state: state.to_owned(), made: OnceCell::new() });
        let former = cells.put(name, cell.clone());
        (cell, former.and_then(|former| former.layer()))
    }

    /// Forgets a recipe whose base or layer has gone.
    fn forget(&self, id: &RepoId, key: Key) {
        self.cells.lock().pop(&(id.clone(), key));
    }

    /// The base is damaged: git answers, which may find out more, until the mirror is whole again.
    fn distrust(&self, id: &RepoId, key: Key) {
        if let Some(cell) = self.cells.lock().get_mut(&(id.clone(), key)) {
            let made = OnceCell::new_with(Some(Made::Unfit(Instant::now())));
            *cell = Arc::new(Cell { state: cell.state.clone(), made });
        }
    }

    /// What is known of the base of a mirror, if it is this one.
    fn proof(&self, edition: String, base: Base) -> Arc<Proof> {
        let mut proofs = self.proofs.lock();
        if let Some(proof) = proofs.get(&edition).filter(|proof| proof.base().pack == base.pack) {
            return proof.clone();
        }
        let proof = Arc::new(Proof::new(Arc::new(base)));
        proofs.put(edition, proof.clone());
        proof
    }
}

impl ObjectsWanted {
    /// The answer to `request`, where it can be composed.
    pub(super) async fn composed(&self, request: &Fetch, view: &View) -> Option<Response> {
        let composed = match request.single() {
            _ if request.wants_all() => self.whole(request, view.stored.as_ref()?).await,
            Some(want) if request.wants_tree() => self.tree(request, want, view).await,
            _ => return None,
        };
        composed.unwrap_or_else(|error| {
            tracing::debug!(repo = %self.mirror.id(), %error, "an answer cannot be composed; git makes it");
            None
        })
    }

    /// Makes what the answer to `request` is composed of before anyone asks. Gives the name of its layer, if it has one,
    /// and how many bytes were made; `None` where the answer cannot be composed.
    pub(super) async fn compose_ahead(
        &self,
        request: &Fetch,
        view: &View,
    ) -> Result<Option<(Option<Key>, Option<u64>)>, PackError> {
        let found = match (request.single(), &view.stored) {
            (_, Some(stored)) if request.wants_all() => self.whole_recipe(request, stored).await?,
            (Some(want), _) if request.wants_tree() => self.tree_recipe(request, want, view).await?,
            _ => None,
        };
        let made = |(composed, lookup): (Composed, Lookup)| {
            let bytes = (lookup == Lookup::MISS).then(|| composed.recipe.layer());
            (composed.layer, bytes)
        };
        Ok(found.map(made))
    }

    async fn whole(&self, request: &Fetch, stored: &Arc<Stored>) -> Result<Option<Response>, PackError> {
        let Some((composed, lookup)) = self.whole_recipe(request, stored).await? else { return Ok(None) };
        self.send(composed, lookup, whole_key(), &metrics::Composed::HISTORY).await
    }

    /// What answers all who want the history that these refs reach, if it holds all that `request` wants and not much more.
    async fn whole_recipe(
        &self,
        request: &Fetch,
        stored: &Arc<Stored>,
    ) -> Result<Option<(Composed, Lookup)>, PackError> {
        let make = || async {
            let _turn = self.place().await?;
            let (dir, format) = (self.mirror.dir().to_owned(), self.format);
            let Some(base) = blocking(move || Base::find(&dir, format)).await? else {
                self.mirror.asked_base();
                return Ok(None);
            };
            let proof = self.serving.recipes.proof(self.mirror.edition(), base);
            let (git, dir) = (&self.serving.git, self.mirror.dir());
            // What a deleted or rewritten branch has left behind was taken away on purpose.
            if !layer::reach(git, dir, &proof.base().tips, &stored.tips).await? {
                self.mirror.asked_base();
                return Ok(None);
            }
            let (base, tips) = (proof.base().clone(), stored.clone());
            let new = blocking(move || base.index.lacks(&tips.tips)).await?;
            let lacking = if new.is_empty() {
                layer::Lacking::default()
            } else {
                layer::lacking(git, dir, proof.base(), &new).await?
            };
            if is_too_large(&proof, &lacking) {
                self.mirror.asked_base();
            }
            Ok(Some((proof, lacking, Bytes::from_static(sideband::PACKFILE))))
        };
        let found = self.recipe(whole_key(), &stored.digest, make).await?;
        let Some(recipe) = found.as_ref().map(|(composed, _)| composed.recipe.clone()) else {
            return Ok(None);
        };
        let known = request.wants.iter().all(|want| stored.tips.contains(want));
        let (wants, held) = (request.wants.clone(), recipe.clone());
        if !known && !blocking(move || held.holds(&wants)).await.map_err(disk)? {
            return Ok(None);
        }
        let fits = recipe.count() * 100 <= self.asked_for(request).await? * MOST_PERCENT;
        Ok(found.filter(|_| fits))
    }

    async fn tree(&self, request: &Fetch, want: Oid, view: &View) -> Result<Option<Response>, PackError> {
        let Some((composed, lookup)) = self.tree_recipe(request, want, view).await? else { return Ok(None) };
        self.send(composed, lookup, self.tree_key(request), &metrics::Composed::TREE).await
    }

    /// What names the recipe of one commit's tree.
    fn tree_key(&self, request: &Fetch) -> Key {
        request.key(&self.mirror.edition(), self.format, &RefSet::empty(self.format))
    }

    /// What answers who wants the commit `want` without its history.
    async fn tree_recipe(
        &self,
        request: &Fetch,
        want: Oid,
        view: &View,
    ) -> Result<Option<(Composed, Lookup)>, PackError> {
        let (Some(stored), Some(seed)) = (&view.stored, &view.seed) else { return Ok(None) };
        let (git, dir) = (&self.serving.git, self.mirror.dir());
        let make = || async {
            let _turn = self.place().await?;
            let Some(parents) = layer::parents(git, dir, want).await? else { return Ok(None) };
            // What a rewritten branch has left behind was taken away on purpose.
            if !layer::reach(git, dir, &[seed.tip], &stored.tips).await? {
                return Ok(None);
            }
            let lacking = layer::lacking_of_tree(git, dir, seed.proof.base(), want).await?;
            let sent = u64::from(seed.proof.base().index.count()) + lacking.oids.len() as u64;
            let asked = layer::count_tree(git, dir, want).await?.unwrap_or(0);
            if sent * 100 > asked * MOST_PERCENT + FEW * 100 {
                return Ok(None);
            }
            let mut head = Vec::new();
            pktline::write(&mut head, &[b"shallow-info\n"]);
            if !parents.is_empty() {
                pktline::write(&mut head, &[b"shallow ", want.to_hex().as_bytes(), b"\n"]);
            }
            head.extend_from_slice(pktline::DELIMITER);
            head.extend_from_slice(sideband::PACKFILE);
            Ok(Some((seed.proof.clone(), lacking, head.into())))
        };
        let state = format!("{} {}", seed.dir.display(), stored.digest);
        self.recipe(self.tree_key(request), &state, make).await
    }

    /// The recipe called `key` in this `state`, from a base and what it lacks where `make` finds them.
    async fn recipe<F>(
        &self,
        key: Key,
        state: &str,
        make: impl FnOnce() -> F,
    ) -> Result<Option<(Composed, Lookup)>, PackError>
    where
        F: Future<Output = Result<Option<Parts>, MakeError>>,
    {
        let state = format!("{} {state}", self.mirror.edition());
        let (id, packs) = (self.mirror.id(), &self.serving.packs);
        let (cell, gone) = self.serving.recipes.cell((id.clone(), key), &state);
        if let Some(gone) = gone {
            packs.discard_unused(id, gone);
            packs.discard(id, gone);
        }
        let mut lookup = if cell.made.initialized() { Lookup::HIT } else { Lookup::JOINED };
        let (own, state) = (&mut lookup, &state);
        let made = cell.made.get_or_try_init(|| async move {
            *own = Lookup::MISS;
            let parts = match make().await {
                Ok(parts) => parts,
                Err(error @ MakeError::Busy) => return Err(maker(error)),
                // Not tried again at once by all who wait.
                Err(error) => {
                    tracing::debug!(repo = %self.mirror.id(), %error, "what is new cannot be told");
                    None
                }
            };
            match parts.filter(|(proof, lacking, _)| !is_too_large(proof, lacking)) {
                Some(parts) => self.put_together(key, state, parts).await.map(Made::Recipe),
                None => Ok(Made::Unfit(Instant::now())),
            }
        });
        Ok(match made.await? {
            Made::Recipe(composed) if !composed.recipe.proof().is_damaged() => {
                Some((composed.clone(), lookup))
            }
            _ => None,
        })
    }

    async fn put_together(&self, key: Key, state: &str, parts: Parts) -> Result<Composed, PackError> {
        let (proof, lacking, head) = parts;
        let oids = lacking.oids.clone();
        let (bytes, layer) = if oids.is_empty() {
            (0, None)
        } else {
            let name = layer_key(key, state, &proof);
            (self.layer(name, lacking).await?, Some(name))
        };
        // Only who asks for all history may want what is new in it.
        let whole = key == whole_key();
        let recipe = blocking(move || Recipe::new(proof, oids, bytes, whole)).await.map_err(disk)?;
        Ok(Composed { recipe: Arc::new(recipe), layer, head })
    }

    /// Makes the thin pack `name`; returns its length.
    async fn layer(&self, name: Key, lacking: layer::Lacking) -> Result<u64, PackError> {
        let (git, dir, reading) =
            (self.serving.git.clone(), self.mirror.dir().to_owned(), self.reading.clone());
        let own = self.clone();
        let objects = lacking.oids.len();
        let make = move |sink: Sink<MakeError>| async move {
            let _reading = reading;
            let (file, growth) = sink.for_child()?;
            growth.room().await?;
            let _turn = own.place().await?;
            let seen = file.try_clone()?;
            layer::pack(&git, &dir, lacking, file).await?;
            let length = seen.metadata()?.len();
            growth.grown(length);
            Ok(length)
        };
        let (packs, ahead) = (&self.serving.packs, self.client.is_none());
        let layer = packs.layer_or_make(self.mirror.id(), name, ahead, make).await?;
        let bytes = layer.whole().await?;
        if recipe::counts(&layer, objects).await? {
            return Ok(bytes);
        }
        packs.discard(self.mirror.id(), name);
        Err(disk(std::io::Error::other("git packed other objects than it had listed")))
    }

    /// The base's file and the layer; `None` where one of them has gone, and the recipe with it.
    async fn open(&self, composed: &Composed) -> Result<Option<(Arc<fs::File>, Option<Pack>)>, PackError> {
        let path = composed.recipe.proof().base().pack.clone();
        let Ok(file) = blocking(move || fs::File::open(path)).await else { return Ok(None) };
        let Some(name) = composed.layer else { return Ok(Some((Arc::new(file), None))) };
        let layer = self.serving.packs.layer(self.mirror.id(), name).await;
        Ok(layer.map(|layer| (Arc::new(file), Some(layer))))
    }

    async fn send(
        &self,
        composed: Composed,
        lookup: Lookup,
        key: Key,
        base: &metrics::Composed,
    ) -> Result<Option<Response>, PackError> {
        let Some((file, layer)) = self.open(&composed).await? else {
            self.serving.recipes.forget(self.mirror.id(), key);
            return Ok(None);
        };
        let Composed { recipe, head, .. } = composed;
        let length = recipe.length(head.len());
        self.mirror.made(length);
        self.serving.metrics.packs.lookups.get_or_create(&lookup).inc();
        self.serving.metrics.packs.composed.get_or_create(base).inc();
        let (own, prepared) = (self.clone(), (recipe.clone(), file.clone(), layer.clone()));
        if lookup == Lookup::MISS {
            // Hashed while it is sent.
            tokio::spawn(async move {
                let (recipe, file, layer) = prepared;
                if let Err(error) = recipe.trailer(&file, layer.as_ref()).await {
                    tracing::debug!(%error, "an answer has no hash");
                }
            });
        }
        let sent = recipe.read(&head, file, layer).inspect_err(move |error| {
            if is_damaged(error) {
                own.mirror.doubt(&error.to_string());
                own.serving.recipes.distrust(own.mirror.id(), key);
            }
        });
        let mut response = self.respond(Bytes::new(), sent);
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        response.extensions_mut().insert(lookup);
        Ok(Some(response))
    }

    /// How many objects `request` asks for.
    async fn asked_for(&self, request: &Fetch) -> Result<u64, PackError> {
        let mut name = Sha256::new();
        name.update(self.mirror.edition());
        request.wants.iter().for_each(|want| name.update(want.as_bytes()));
        let name = name.finalize().into();
        if let Some(count) = self.serving.recipes.counts.lock().get(&name) {
            return Ok(*count);
        }
        let _turn = self.place().await.map_err(maker)?;
        // Others may have asked the same meanwhile.
        if let Some(count) = self.serving.recipes.counts.lock().get(&name) {
            return Ok(*count);
        }
        // What cannot be counted in time does not fit, and is not counted again.
        let count = layer::count(&self.serving.git, self.mirror.dir(), &request.wants).await;
        let count = count.ok().flatten().unwrap_or(0);
        self.serving.recipes.counts.lock().put(name, count);
        Ok(count)
    }

    /// Its turn among those who start children.
    async fn place(&self) -> Result<Ticket, MakeError> {
        self.serving.turn(self.client, self.mirror.id()).await.map_err(|_| MakeError::Busy)
    }
}

/// Whether so much is new that a recipe is not worth its making.
fn is_too_large(proof: &Proof, lacking: &layer::Lacking) -> bool {
    let small = proof.base().index.count() / LARGEST_LAYER;
    lacking.oids.len() as u64 > u64::from(small).clamp(SMALL_LAYER, MOST_LAYER)
}

/// What names the recipe of a mirror's whole history.
fn whole_key() -> Key {
    Sha256::digest("all history").into()
}

/// What names a layer in the spool.
fn layer_key(key: Key, state: &str, proof: &Proof) -> Key {
    let mut hash = Sha256::new();
    hash.update(format!("layer {state} {}", proof.base().pack.display()));
    hash.update(key);
    hash.finalize().into()
}

fn disk(error: std::io::Error) -> PackError {
    SpoolError::Disk(Arc::new(error))
}

fn maker(error: impl Into<MakeError>) -> PackError {
    SpoolError::Maker(Arc::new(error.into()))
}
