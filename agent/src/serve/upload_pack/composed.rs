//! Answers to clients that have nothing: a base, and what is new since ([`crate::recipe`]).
//!
//! One recipe serves all who want the whole history of a mirror, at whatever commit: it holds what any of its refs reach.
//! Who wants one commit without history gets the seed and what its tree has beyond it. Where an answer would hold much more
//! than was asked for, or nothing fits, git makes it.

mod known;

use std::{fs, path::Path, sync::Arc};

use axum::response::Response;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderValue, header};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::{
    ObjectsWanted,
    respond::{AGAIN, is_full},
};
use crate::{
    files::blocking,
    git::{Oid, RefSet, base::Base, layer, young},
    metrics::{self, Lookup},
    mirror::{Stored, View, seed::Seed},
    packs::{MakeError, Pack, PackError},
    protocol::{
        fetch::{Fetch, Key},
        pktline, sideband,
    },
    queue::Ticket,
    recipe::{self, Proof, Recipe, is_damaged},
    spool::{Sink, SpoolError},
};
pub(in crate::serve) use known::Recipes;
use known::{Composed, Made};

/// An answer may hold so many percent of the objects that were asked for.
const MOST_PERCENT: u64 = 130;

/// How much of a base's objects, in percent, times [`MOST_PERCENT`], a commit reaches from which the young ones descend:
/// room for a layer of as many percent more.
const FLOOR_PERCENT: u64 = 110;

/// A tree of so few objects more is no matter.
const FEW: u64 = 64;

/// A layer of more than this part of its base is not worth its making: the packs are soon put in order.
const LARGEST_LAYER: u32 = 4;

/// A layer of no more objects than this is always worth it.
const SMALL_LAYER: u64 = 1000;

/// A layer of more is never: each object takes 33 bytes of memory.
const MOST_LAYER: u64 = 250_000;

/// What a recipe is made of: a base, what it lacks, and what comes before the pack.
type Parts = (Arc<Proof>, layer::Lacking, Bytes);

impl ObjectsWanted {
    /// The answer to `request`, where it can be composed.
    ///
    /// # Errors
    /// The disk is full, and git would need more room still.
    pub(super) async fn composed(&self, request: &Fetch, view: &View) -> Result<Option<Response>, PackError> {
        let composed = match (request.single(), &view.stored) {
            (_, Some(stored)) if request.wants_all() => self.whole(request, stored).await,
            (Some(want), _) if request.wants_tree() => self.tree(request, want, view).await,
            _ => return Ok(None),
        };
        match composed {
            Ok(response) => Ok(response),
            Err(error) if is_full(&error) && self.wants_much(request).await? => Err(error),
            Err(error) => {
                tracing::debug!(repo = %self.mirror.id(), %error, "an answer cannot be composed; git makes it");
                Ok(None)
            }
        }
    }

    /// Whether git's own answer takes more room than what is new does.
    async fn wants_much(&self, request: &Fetch) -> Result<bool, PackError> {
        if request.wants_tree() {
            return Ok(true);
        }
        let (dir, format) = (self.mirror.dir().to_owned(), self.format);
        let base = blocking(move || Base::find(&dir, format)).await?;
        let half = base.map_or(0, |base| u64::from(base.index.count()) / 2);
        Ok(self.asked_for(request).await? > half)
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
            (Some(want), _) if request.wants_tree() => {
                let found = self.tree_recipe(request, want, view).await?;
                found.map(|(composed, lookup, _)| (composed, lookup))
            }
            _ => None,
        };
        let Some((composed, lookup)) = found else { return Ok(None) };
        let bytes = (lookup == Lookup::MISS).then(|| composed.recipe.layer());
        Ok(Some((composed.layer, bytes)))
    }

    async fn whole(&self, request: &Fetch, stored: &Arc<Stored>) -> Result<Option<Response>, PackError> {
        // Its base may have gone with a repack; then there is another.
        for _ in 0..2 {
            let Some((composed, lookup)) = self.whole_recipe(request, stored).await? else { return Ok(None) };
            let sent = self.send(composed, lookup, whole_key(), &metrics::Composed::HISTORY).await?;
            if sent.is_some() {
                return Ok(sent);
            }
        }
        Ok(None)
    }

    /// What answers all who want the history that these refs reach, if it holds all that `request` wants and not much more.
    async fn whole_recipe(
        &self,
        request: &Fetch,
        stored: &Arc<Stored>,
    ) -> Result<Option<(Composed, Lookup)>, PackError> {
        let make = || async {
            let (dir, format) = (self.mirror.dir().to_owned(), self.format);
            let Some(base) = blocking(move || Base::find(&dir, format)).await? else {
                self.mirror.asked_base();
                return Ok(None);
            };
            let proof = self.serving.recipes.proof(self.mirror.edition(), base);
            // What a deleted or rewritten branch has left behind was taken away on purpose.
            let tips = &proof.base().tips;
            if !self.reached(&proof.base().pack, tips, stored).await? {
                self.mirror.asked_base();
                return Ok(None);
            }
            let (base, tips) = (proof.base().clone(), stored.clone());
            let new = blocking(move || base.index.lacks(&tips.tips)).await?;
            let lacking = if new.is_empty() {
                layer::Lacking::default()
            } else {
                let _turn = self.place().await?;
                layer::lacking(&self.serving.git, self.mirror.dir(), proof.base(), &new).await?
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
        if !known && !blocking(move || held.holds(&wants)).await? {
            return Ok(None);
        }
        let fits = self.fits(request, &recipe, stored).await?;
        Ok(found.filter(|_| fits))
    }

    /// Whether the recipe of all history holds not much more than `request` asks for.
    async fn fits(&self, request: &Fetch, recipe: &Recipe, stored: &Arc<Stored>) -> Result<bool, PackError> {
        let enough = |objects: u64| recipe.count() * 100 <= objects * MOST_PERCENT;
        let wanted = |oid: &Oid| request.wants.binary_search(oid).is_ok();
        if stored.tips.len() <= request.wants.len() && stored.tips.iter().all(wanted) {
            return Ok(true);
        }
        let base = recipe.proof().base();
        let (git, dir) = (&self.serving.git, self.mirror.dir());
        let head = stored.refs.head_oid();
        // Most ask for a young commit; one walk tells them all.
        let floor = self.serving.recipes.floors.get(self.name("floor", &base.pack, ""), || async {
            let _turn = self.place().await?;
            let least = u64::from(base.index.count()) * FLOOR_PERCENT / MOST_PERCENT;
            // What cannot be found out in time is not tried again.
            Ok(match head {
                Some(head) => young::floor(git, dir, head, least).await.ok().flatten(),
                None => None,
            })
        });
        if let Some(floor) = floor.await.map_err(maker::<MakeError>)?.filter(|floor| enough(floor.objects)) {
            let name = self.name("young", &base.pack, &stored.digest);
            let young = self.serving.recipes.young.get(name, || async {
                let _turn = self.place().await?;
                let tips: Vec<Oid> = stored.tips.iter().copied().collect();
                Ok(young::young(git, dir, floor.commit, &tips).await.unwrap_or_default().into())
            });
            let young = young.await.map_err(maker::<MakeError>)?;
            if request.wants.iter().any(|want| young.binary_search(want).is_ok()) {
                return Ok(true);
            }
        }
        Ok(enough(self.asked_for(request).await?))
    }

    /// Whether the refs `stored` still reach all that `tips` reach, of which `made` was made.
    async fn reached(&self, made: &Path, tips: &[Oid], stored: &Stored) -> Result<bool, MakeError> {
        if tips.iter().all(|tip| stored.tips.contains(tip)) {
            return Ok(true);
        }
        let name = self.name("reached", made, &stored.digest);
        let reached = self.serving.recipes.reached.get(name, || async {
            let _turn = self.place().await?;
            Ok(layer::reach(&self.serving.git, self.mirror.dir(), tips, &stored.tips).await?)
        });
        reached.await
    }

    /// What names a fact about a file at a state of the mirror.
    fn name(&self, fact: &str, made: &Path, state: &str) -> Key {
        Sha256::digest(format!("{fact} {} {} {state}", self.mirror.edition(), made.display())).into()
    }

    async fn tree(&self, request: &Fetch, want: Oid, view: &View) -> Result<Option<Response>, PackError> {
        let Some((composed, lookup, key)) = self.tree_recipe(request, want, view).await? else {
            return Ok(None);
        };
        self.send(composed, lookup, key, &metrics::Composed::TREE).await
    }

    /// What names the recipe of one commit's tree.
    fn tree_key(&self, request: &Fetch, seed: &Seed) -> Key {
        let key = request.key(&self.mirror.edition(), self.format, &RefSet::empty(self.format));
        Sha256::new_with_prefix(key).chain_update(seed.dir.as_os_str().as_encoded_bytes()).finalize().into()
    }

    /// What answers who wants the commit `want` without its history, and what names it.
    async fn tree_recipe(
        &self,
        request: &Fetch,
        want: Oid,
        view: &View,
    ) -> Result<Option<(Composed, Lookup, Key)>, PackError> {
        let Some(stored) = &view.stored else { return Ok(None) };
        let (id, recipes) = (self.mirror.id(), &self.serving.recipes);
        let seeds = view.seeds.iter().map(|seed| (self.tree_key(request, seed), seed));
        // A former one serves what was made of it; else the newest is taken.
        let known = seeds.clone().filter(|(key, _)| recipes.knows(&(id.clone(), *key)));
        for (key, seed) in known.chain(seeds.take(1)) {
            // What a rewritten branch has left behind was taken away on purpose.
            if self.reached(&seed.dir, &[seed.tip], stored).await.map_err(maker)? {
                let found = self.recipe(key, "", || self.tree_parts(want, seed)).await?;
                return Ok(found.map(|(composed, lookup)| (composed, lookup, key)));
            }
        }
        Ok(None)
    }

    async fn tree_parts(&self, want: Oid, seed: &Seed) -> Result<Option<Parts>, MakeError> {
        let (git, dir) = (&self.serving.git, self.mirror.dir());
        let _turn = self.place().await?;
        let Some(parents) = layer::parents(git, dir, want).await? else { return Ok(None) };
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
                Some(parts) => self.put_together_somehow(key, state, parts).await,
                None => Ok(Made::Unfit(Instant::now())),
            }
        });
        Ok(match made.await? {
            Made::Recipe(composed) if !composed.recipe.proof().is_damaged() => {
                Some((composed.clone(), lookup))
            }
            Made::Full(_, error) => return Err(error.clone()),
            Made::Recipe(_) | Made::Unfit(_) => None,
        })
    }

    /// Where the disk is full, makes room and tries once more.
    async fn put_together_somehow(&self, key: Key, state: &str, parts: Parts) -> Result<Made, PackError> {
        match self.put_together(key, state, parts.clone()).await {
            // What is made ahead drives nothing out.
            Err(error) if is_full(&error) && self.client.is_some() => {
                tracing::warn!(%error, "what is new is packed again");
                self.serving.packs.shrink(u64::MAX).await;
                sleep(AGAIN).await;
            }
            made => return made.map(Made::Recipe),
        }
        match self.put_together(key, state, parts).await {
            Err(error) if is_full(&error) => Ok(Made::Full(Instant::now(), error)),
            made => made.map(Made::Recipe),
        }
    }

    async fn put_together(&self, key: Key, state: &str, parts: Parts) -> Result<Composed, PackError> {
        let (proof, lacking, head) = parts;
        let oids = lacking.oids.clone();
        let name = (!oids.is_empty()).then(|| layer_key(key, state, &proof));
        let layer = match name {
            Some(name) => Some(self.layer(name, lacking).await?),
            None => None,
        };
        let bytes = match &layer {
            Some(layer) => layer.whole().await?,
            None => 0,
        };
        // Only who asks for all history may want what is new in it.
        let whole = key == whole_key();
        let path = proof.base().pack.clone();
        let recipe = blocking(move || Recipe::new(proof, oids, bytes, whole)).await?;
        if self.client.is_none() {
            // Whoever comes need not pay for the hash.
            let file = Arc::new(blocking(move || fs::File::open(path)).await?);
            recipe.trailer(&file, layer.as_ref()).await?;
        }
        Ok(Composed { recipe: Arc::new(recipe), layer: name, head })
    }

    /// Makes the thin pack `name`, and waits until it is whole.
    async fn layer(&self, name: Key, lacking: layer::Lacking) -> Result<Pack, PackError> {
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
        layer.whole().await?;
        if recipe::counts(&layer, objects).await? {
            return Ok(layer);
        }
        packs.discard(self.mirror.id(), name);
        Err(std::io::Error::other("git packed other objects than it had listed").into())
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
        let mut name = Sha256::new_with_prefix(self.mirror.edition());
        request.wants.iter().for_each(|want| name.update(want.as_bytes()));
        let count = self.serving.recipes.counts.get(name.finalize().into(), || async {
            let _turn = self.place().await?;
            // What cannot be counted in time does not fit, and is not counted again.
            let count = layer::count(&self.serving.git, self.mirror.dir(), &request.wants).await;
            Ok(count.ok().flatten().unwrap_or(0))
        });
        count.await.map_err(maker::<MakeError>)
    }

    /// Its turn among those who start children.
    async fn place(&self) -> Result<Ticket, MakeError> {
        self.serving.shared_turn(self.client, self.mirror.id()).await.map_err(|_| MakeError::Busy)
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

fn maker<E: Into<MakeError>>(error: E) -> PackError {
    SpoolError::Maker(Arc::new(error.into()))
}
