//! What the API server shows of each GitMirror besides its spec, for whoever reports to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tarn_crds::v1alpha1::Replica;

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

/// All GitMirrors of the cache by name. Cheap to clone; all clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, Shown>>>);

impl Board {
    /// Reads everything; `work` must be short.
    pub fn read<T>(&self, work: impl FnOnce(&BTreeMap<String, Shown>) -> T) -> T {
        work(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shows a GitMirror as it is now. What this pod acted on stays known.
    pub(super) fn show(&self, name: &str, mut shown: Shown) {
        self.write(|all| {
            let told = shown.entry.as_ref().and_then(|entry| entry.last_handled_requested_at.clone());
            shown.handled = all.get(name).map_or(told, |known| known.handled.clone());
            all.insert(name.to_owned(), shown);
        });
    }

    /// Forgets all but these.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.write(|all| all.retain(|name, _| keep(name)));
    }

    /// Notes that a request was acted on.
    pub(super) fn handled(&self, name: &str, value: String) {
        self.write(|all| {
            if let Some(shown) = all.get_mut(name) {
                shown.handled = Some(value);
            }
        });
    }

    fn write(&self, work: impl FnOnce(&mut BTreeMap<String, Shown>)) {
        // Whole values are replaced: a panic leaves none half written.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
