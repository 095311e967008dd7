//! The GitMirrors of the cache as the watch last showed them. No clock, no network.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{api::DynamicObject, runtime::watcher::Event};
use serde::Deserialize;
use serde_json::Value;
use tarn_crds::{
    REQUESTED_AT_ANNOTATION, STORE_FINALIZER,
    manifest::Manifest,
    repo::RepoId,
    v1alpha1::{DeletionPolicy, GitMirror, GitMirrorSpec, Replica},
};

use super::{
    super::desired::{Content, Source},
    board::{Board, Shown},
};

/// What an event changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// At most what the board shows.
    Shown,
    /// Which mirrors are declared, or how.
    Declared,
}

/// All GitMirrors, oldest first: of two that declare one repository the older has it.
#[derive(Debug)]
pub(super) struct Objects {
    pod: String,
    board: Board,
    known: BTreeMap<Age, Source>,
    ages: BTreeMap<String, Age>,
    /// Objects of a list that is still coming in.
    coming: Option<Vec<DynamicObject>>,
    listed: bool,
}

/// When an object was made, and its name.
type Age = (Option<Timestamp>, String);

impl Objects {
    pub(super) fn new(pod: &str, board: Board) -> Self {
        Self {
            pod: pod.to_owned(),
            board,
            known: BTreeMap::new(),
            ages: BTreeMap::new(),
            coming: None,
            listed: false,
        }
    }

    /// Whether all objects have been listed once.
    pub(super) fn listed(&self) -> bool {
        self.listed
    }

    /// All declarations, oldest first.
    pub(super) fn declared(&self) -> impl Iterator<Item = &Source> {
        self.known.values()
    }

    /// Takes an event in. What a list that breaks off lacks is not taken for gone.
    pub(super) fn take(&mut self, event: Event<DynamicObject>) -> Change {
        match event {
            Event::Init => {
                self.coming = Some(Vec::new());
                Change::Shown
            }
            Event::InitApply(object) => {
                self.coming.get_or_insert_default().push(object);
                Change::Shown
            }
            Event::InitDone => {
                let objects = self.coming.take().unwrap_or_default();
                let names: BTreeSet<_> =
                    objects.iter().filter_map(|object| object.metadata.name.clone()).collect();
                let known = self.board.names().into_iter();
                let gone: Vec<_> = known.filter(|name| !names.contains(name)).collect();
                // The first list is a change even if it is empty: from now on it is known that it is.
                let mut changed = !self.listed;
                self.listed = true;
                for name in gone {
                    changed |= self.forget(&name);
                }
                for object in objects {
                    changed |= self.apply(object);
                }
                if changed { Change::Declared } else { Change::Shown }
            }
            Event::Apply(object) => match self.apply(object) {
                true => Change::Declared,
                false => Change::Shown,
            },
            Event::Delete(object) => {
                let name = object.metadata.name.unwrap_or_default();
                if self.forget(&name) { Change::Declared } else { Change::Shown }
            }
        }
    }

    fn apply(&mut self, object: DynamicObject) -> bool {
        let DynamicObject { types: _, metadata, data } = object;
        let Some(name) = metadata.name.clone() else { return false };
        // On its way out: nothing more may be published, and what was may have to go (see `cleanup`).
        if metadata.deletion_timestamp.is_some() {
            let known = self.withdraw(&name);
            match to_be_removed(&metadata, &data) {
                Some(repo) => self.board.leave(&name, repo, shown(&self.pod, &metadata, &data)),
                None => self.board.forget(&name),
            }
            return known;
        }
        self.board.show(&name, shown(&self.pod, &metadata, &data));
        let source = Source { file: format!("GitMirror/{name}"), content: content(&name, &data) };
        let age = (metadata.creation_timestamp.map(|time| time.0), name.clone());
        let old = self.ages.insert(name, age.clone());
        let moved = old.filter(|old| *old != age).is_some_and(|old| self.known.remove(&old).is_some());
        let replaced = self.known.insert(age, source.clone());
        moved || replaced.as_ref() != Some(&source)
    }

    fn forget(&mut self, name: &str) -> bool {
        self.board.forget(name);
        self.withdraw(name)
    }

    /// Takes a declaration back; says whether there was one.
    fn withdraw(&mut self, name: &str) -> bool {
        self.ages.remove(name).is_some_and(|age| self.known.remove(&age).is_some())
    }
}

/// The repository of an object on its way out whose objects in the store are waited for.
fn to_be_removed(metadata: &ObjectMeta, data: &Value) -> Option<RepoId> {
    let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == STORE_FINALIZER) {
        return None;
    }
    let spec = GitMirrorSpec::deserialize(data.get("spec")?).ok()?;
    let delete = spec.deletion_policy == DeletionPolicy::Delete;
    RepoId::from_url(&spec.url).ok().filter(|_| delete)
}

/// The Secret that a declaration names.
pub(super) fn secret_of(source: &Source) -> Option<&str> {
    match &source.content {
        Content::Object(manifest) => match manifest.as_ref() {
            Manifest::GitMirror(mirror) => mirror.spec.secret_ref.as_ref().map(|secret| secret.name.as_str()),
            _ => None,
        },
        _ => None,
    }
}

/// The spec. The API server has checked it; what it took and these types do not is another version's.
fn content(name: &str, data: &Value) -> Content {
    match GitMirrorSpec::deserialize(data.get("spec").unwrap_or(&Value::Null)) {
        Ok(spec) => {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let mirror = GitMirror { metadata, spec, status: None };
            Content::Object(Box::new(Manifest::GitMirror(Box::new(mirror))))
        }
        // Serde's own words may repeat a value.
        Err(_) => Content::Unreadable("does not fit the types of this version of Tarn".into()),
    }
}

fn shown(pod: &str, metadata: &ObjectMeta, data: &Value) -> Shown {
    let annotation = metadata.annotations.iter().flatten().find(|(key, _)| *key == REQUESTED_AT_ANNOTATION);
    let version = metadata.resource_version.as_ref().and_then(|version| version.parse().ok());
    Shown {
        entry: own_entry(pod, data),
        version: version.unwrap_or(0),
        // As long as status can repeat it: a longer one could never be seen to be acted on.
        requested_at: annotation.map(|(_, value)| value.chars().take(256).collect()),
        handled: None,
    }
}

/// The pod's entry in an object's status.
pub(crate) fn own_entry(pod: &str, data: &Value) -> Option<Replica> {
    let entries = data.pointer("/status/replicas").and_then(Value::as_array);
    let own = entries?.iter().find(|entry| entry.get("pod").and_then(Value::as_str) == Some(pod))?;
    Replica::deserialize(own).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, created: &str, spec: &Value) -> DynamicObject {
        let json = json!({
            "apiVersion": "tarn.dev/v1alpha1",
            "kind": "GitMirror",
            "metadata": {"name": name, "creationTimestamp": created, "resourceVersion": "7"},
            "spec": spec,
            "status": {"replicas": [{"pod": "p", "podUID": "u", "lastHandledRequestedAt": "x"}]},
        });
        serde_json::from_value(json).unwrap()
    }

    fn simple(name: &str, created: &str) -> DynamicObject {
        object(name, created, &json!({"url": format!("https://h/{name}")}))
    }

    fn files(objects: &Objects) -> Vec<&str> {
        objects.declared().map(|source| source.file.as_str()).collect()
    }

    #[test]
    fn a_list_counts_when_it_is_whole() {
        let board = Board::default();
        let mut objects = Objects::new("p", board.clone());
        objects.take(Event::Init);
        objects.take(Event::InitApply(simple("a", "2026-01-02T00:00:00Z")));
        assert!(!objects.listed() && files(&objects).is_empty());
        objects.take(Event::InitApply(simple("b", "2026-01-01T00:00:00Z")));
        assert_eq!(objects.take(Event::InitDone), Change::Declared);
        assert_eq!(files(&objects), ["GitMirror/b", "GitMirror/a"]);
        assert_eq!(board.read(|all| all["a"].handled.clone()).as_deref(), Some("x"));
        // Another that breaks off takes nothing away; a whole one does.
        objects.take(Event::Init);
        objects.take(Event::Init);
        assert_eq!(files(&objects).len(), 2);
        objects.take(Event::InitApply(simple("a", "2026-01-02T00:00:00Z")));
        assert_eq!(objects.take(Event::InitDone), Change::Declared);
        assert_eq!(files(&objects), ["GitMirror/a"]);
        assert_eq!(board.read(BTreeMap::len), 1);
    }

    #[test]
    fn only_the_spec_declares() {
        let board = Board::default();
        let mut objects = Objects::new("p", board.clone());
        let mut one = simple("a", "2026-01-01T00:00:00Z");
        assert_eq!(objects.take(Event::Apply(one.clone())), Change::Declared);
        one.metadata.annotations = Some([(REQUESTED_AT_ANNOTATION.to_owned(), "now".to_owned())].into());
        assert_eq!(objects.take(Event::Apply(one.clone())), Change::Shown);
        assert_eq!(board.read(|all| all["a"].requested_at.clone()).as_deref(), Some("now"));
        board.handled("a", "now".into());
        assert_eq!(objects.take(Event::Apply(one.clone())), Change::Shown);
        assert_eq!(board.read(|all| all["a"].handled.clone()).as_deref(), Some("now"));
        one.metadata.deletion_timestamp = one.metadata.creation_timestamp.clone();
        assert_eq!(objects.take(Event::Apply(one)), Change::Declared);
        assert!(files(&objects).is_empty());
    }

    #[test]
    fn what_is_on_its_way_out_is_shown_until_it_is_gone() {
        let board = Board::default();
        let mut objects = Objects::new("p", board.clone());
        let mut one =
            object("a", "2026-01-01T00:00:00Z", &json!({"url": "https://h/a", "deletionPolicy": "Delete"}));
        objects.take(Event::Apply(one.clone()));
        one.metadata.finalizers = Some(vec![STORE_FINALIZER.to_owned()]);
        one.metadata.deletion_timestamp = one.metadata.creation_timestamp.clone();
        assert_eq!(objects.take(Event::Apply(one.clone())), Change::Declared);
        assert!(files(&objects).is_empty() && board.read(BTreeMap::is_empty));
        assert_eq!(board.unremoved().len(), 1);
        board.removed("a");
        // What was done stays known while the object changes.
        objects.take(Event::Apply(one.clone()));
        assert!(board.leaving("a").unwrap().removed);
        objects.take(Event::Delete(one.clone()));
        assert_eq!(board.leaving("a"), None);
        // Objects that are to stay are nobody's business.
        one.data["spec"]["deletionPolicy"] = json!("Retain");
        objects.take(Event::Apply(one));
        assert!(board.unremoved().is_empty());
    }

    #[test]
    fn what_does_not_fit_is_named_without_its_values() {
        let mut objects = Objects::new("p", Board::default());
        let odd = object("a", "2026-01-01T00:00:00Z", &json!({"url": 7, "interval": "canary"}));
        objects.take(Event::Apply(odd));
        let content = &objects.declared().next().unwrap().content;
        assert!(matches!(content, Content::Unreadable(reason) if !reason.contains("canary")));
    }
}
