//! What the API server shows of each GitMirror besides its spec, for whoever reports to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard};
use tarn_crds::{repo::RepoId, v1alpha1::Replica};
use tokio::sync::Notify;

/// One GitMirror as the API server shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// The entry of this pod in `status.replicas`.
    pub entry: Option<Replica>,
    /// The object's resource version: later ones are greater.
    pub version: u64,
    /// The annotation that asks for a look now.
    pub requested_at: Option<String>,
    /// The last value of that annotation that this pod acted on.
    pub handled: Option<String>,
}

/// A GitMirror on its way out, whose objects are to go from the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaving {
    /// Its repository.
    pub repo: RepoId,
    /// The object as the API server shows it.
    pub shown: Shown,
    /// Since when this pod knows.
    pub since: Instant,
    /// Whether this pod has removed the objects.
    pub removed: bool,
}

/// All GitMirrors of the cache by name. Cheap to clone; all clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    all: BTreeMap<String, Shown>,
    leaving: BTreeMap<String, Leaving>,
    /// What has changed since [`Board::take_changed`].
    changed: BTreeSet<String>,
    /// Those with a request that this pod has not acted on.
    asked: BTreeSet<String>,
}

impl State {
    /// Takes in that a GitMirror is shown anew, or no more.
    fn note(&mut self, name: &str) {
        let shown = self.all.get(name);
        if shown.is_some_and(|shown| shown.requested_at.is_some() && shown.requested_at != shown.handled) {
            self.asked.insert(name.to_owned());
        } else {
            self.asked.remove(name);
        }
    }
}

impl Board {
    /// Reads everything; `work` must be short.
    pub fn read<T>(&self, work: impl FnOnce(&BTreeMap<String, Shown>) -> T) -> T {
        work(&self.0.state.lock().all)
    }

    /// A GitMirror that is on its way out.
    pub fn leaving(&self, name: &str) -> Option<Leaving> {
        self.0.state.lock().leaving.get(name).cloned()
    }

    /// All that are on their way out, and whose objects this pod has not removed.
    pub fn unremoved(&self) -> Vec<(String, Leaving)> {
        let state = self.0.state.lock();
        let left = state.leaving.iter().filter(|(_, leaving)| !leaving.removed);
        left.map(|(name, leaving)| (name.clone(), leaving.clone())).collect()
    }

    /// The names of all, those on their way out included.
    pub(super) fn names(&self) -> Vec<String> {
        let state = self.0.state.lock();
        state.all.keys().chain(state.leaving.keys()).cloned().collect()
    }

    /// The requests that this pod has not acted on, by the names of their GitMirrors.
    pub(super) fn asked(&self) -> Vec<(String, String)> {
        let state = self.0.state.lock();
        let value = |name: &String| Some((name.clone(), state.all.get(name)?.requested_at.clone()?));
        state.asked.iter().filter_map(value).collect()
    }

    /// Waits until another one is on its way out.
    pub async fn left(&self) {
        self.0.left.notified().await;
    }

    /// The names of those that have changed, or gone, since this was called last.
    pub fn take_changed(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.0.state.lock().changed)
    }

    /// Waits until there is something for [`Self::take_changed`].
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Shows a GitMirror as it is now. What this pod acted on stays known.
    pub(super) fn show(&self, name: &str, mut shown: Shown) {
        let mut state = self.0.state.lock();
        let told = shown.entry.as_ref().and_then(|entry| entry.last_handled_requested_at.clone());
        shown.handled = state.all.get(name).map_or(told, |known| known.handled.clone());
        state.leaving.remove(name);
        let before = state.all.insert(name.to_owned(), shown.clone());
        self.touch(state, name, before.as_ref() != Some(&shown));
    }

    /// Shows one that is on its way out.
    pub(super) fn leave(&self, name: &str, repo: RepoId, shown: Shown) {
        let mut state = self.0.state.lock();
        state.all.remove(name);
        let fresh = || Leaving { repo, shown: Shown::default(), since: Instant::now(), removed: false };
        state.leaving.entry(name.to_owned()).or_insert_with(fresh).shown = shown;
        self.touch(state, name, true);
        self.0.left.notify_one();
    }

    /// Notes that this pod has removed the objects of one that is on its way out.
    pub fn removed(&self, name: &str) {
        let mut state = self.0.state.lock();
        let Some(leaving) = state.leaving.get_mut(name) else { return };
        leaving.removed = true;
        self.touch(state, name, true);
    }

    /// Forgets one that is gone.
    pub(super) fn forget(&self, name: &str) {
        let mut state = self.0.state.lock();
        let known = state.all.remove(name).is_some() | state.leaving.remove(name).is_some();
        self.touch(state, name, known);
    }

    /// Notes that a request was acted on.
    pub(super) fn handled(&self, name: &str, value: String) {
        let mut state = self.0.state.lock();
        let Some(shown) = state.all.get_mut(name) else { return };
        shown.handled = Some(value);
        self.touch(state, name, true);
    }

    fn touch(&self, mut state: MutexGuard<'_, State>, name: &str, changed: bool) {
        if changed {
            state.note(name);
            state.changed.insert(name.to_owned());
            drop(state);
            self.0.changed.notify_one();
        }
    }
}
