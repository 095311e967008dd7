//! The GitMirrors of the cache as the watch last showed them. No clock, no network.

use std::collections::{BTreeMap, BTreeSet};

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
    super::declarations::{Age, Content, Source},
    board::{Board, Shown},
};

/// A change of what is declared.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    /// An object is as the source says.
    Set(Age, Source),
    /// An object is gone, or on its way out.
    Remove(Age),
}

/// Which GitMirrors there are, and how old they are: of two that declare one repository the older has it.
#[derive(Debug)]
pub(super) struct Objects {
    pod: String,
    board: Board,
    /// By the names of objects. Those that an earlier process knew are among them until the first list is whole.
    ages: BTreeMap<String, Age>,
    /// Objects of a list that is still coming in.
    coming: Option<Vec<DynamicObject>>,
    listed: bool,
}

impl Objects {
    /// Knows no more than an earlier process did.
    pub(super) fn new<'a>(pod: &str, board: Board, earlier: impl Iterator<Item = &'a Age>) -> Self {
        let named = |age: &Age| Some((age.1.strip_prefix("GitMirror/")?.to_owned(), age.clone()));
        let ages = earlier.filter_map(named).collect();
        Self { pod: pod.to_owned(), board, ages, coming: None, listed: false }
    }

    /// Whether all objects have been listed once.
    pub(super) fn listed(&self) -> bool {
        self.listed
    }

    /// Takes an event in; says what it changes in what is declared. What a list that breaks off lacks is not taken for
    /// gone.
    pub(super) fn take(&mut self, event: Event<DynamicObject>) -> Vec<Edit> {
        match event {
            Event::Init => {
                self.coming = Some(Vec::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                self.coming.get_or_insert_default().push(object);
                Vec::new()
            }
            Event::InitDone => {
                let objects = self.coming.take().unwrap_or_default();
                let names: BTreeSet<_> =
                    objects.iter().filter_map(|object| object.metadata.name.clone()).collect();
                self.listed = true;
                let known: BTreeSet<String> =
                    self.board.names().into_iter().chain(self.ages.keys().cloned()).collect();
                let gone = known.iter().filter(|name| !names.contains(*name));
                let mut edits: Vec<Edit> = gone.filter_map(|name| self.forget(name)).collect();
                edits.extend(objects.into_iter().flat_map(|object| self.apply(object)));
                edits
            }
            Event::Apply(object) => self.apply(object),
            Event::Delete(object) => {
                self.forget(&object.metadata.name.unwrap_or_default()).into_iter().collect()
            }
        }
    }

    fn apply(&mut self, object: DynamicObject) -> Vec<Edit> {
        let DynamicObject { types: _, metadata, data } = object;
        let Some(name) = metadata.name.clone() else { return Vec::new() };
        // On its way out: nothing more may be published, and what was may have to go (see `cleanup`).
        if metadata.deletion_timestamp.is_some() {
            match to_be_removed(&metadata, &data) {
                Some(repo) => self.board.leave(&name, repo, shown(&self.pod, &metadata, &data)),
                None => self.board.forget(&name),
            }
            return self.withdraw(&name).into_iter().collect();
        }
        self.board.show(&name, shown(&self.pod, &metadata, &data));
        let file = format!("GitMirror/{name}");
        let source = Source { file: file.clone(), content: content(&name, &data) };
        let age = (metadata.creation_timestamp.map(|time| time.0), file);
        let former = self.ages.insert(name, age.clone()).filter(|former| *former != age);
        former.map(Edit::Remove).into_iter().chain([Edit::Set(age, source)]).collect()
    }

    fn forget(&mut self, name: &str) -> Option<Edit> {
        self.board.forget(name);
        self.withdraw(name)
    }

    /// Takes a declaration back, if there was one.
    fn withdraw(&mut self, name: &str) -> Option<Edit> {
        self.ages.remove(name).map(Edit::Remove)
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

    /// Which files each event declares and withdraws.
    fn told(edits: Vec<Edit>) -> Vec<String> {
        let told = edits.into_iter().map(|edit| match edit {
            Edit::Set((_, file), _) => format!("+{file}"),
            Edit::Remove((_, file)) => format!("-{file}"),
        });
        told.collect()
    }

    fn objects(board: &Board) -> Objects {
        Objects::new("p", board.clone(), std::iter::empty())
    }

    #[test]
    fn a_list_counts_when_it_is_whole() {
        let board = Board::default();
        let mut objects = objects(&board);
        objects.take(Event::Init);
        assert!(objects.take(Event::InitApply(simple("a", "2026-01-02T00:00:00Z"))).is_empty());
        assert!(!objects.listed());
        objects.take(Event::InitApply(simple("b", "2026-01-01T00:00:00Z")));
        let edits = objects.take(Event::InitDone);
        assert_eq!(told(edits), ["+GitMirror/a", "+GitMirror/b"]);
        assert_eq!(board.read(|all| all["a"].handled.clone()).as_deref(), Some("x"));
        // Another that breaks off takes nothing away; a whole one does.
        objects.take(Event::Init);
        assert!(objects.take(Event::Init).is_empty());
        objects.take(Event::InitApply(simple("a", "2026-01-02T00:00:00Z")));
        assert_eq!(told(objects.take(Event::InitDone)), ["-GitMirror/b", "+GitMirror/a"]);
        assert_eq!(board.read(BTreeMap::len), 1);
    }

    #[test]
    fn what_an_earlier_process_knew_goes_with_the_first_whole_list() {
        let board = Board::default();
        let age = |name: &str, time: &str| (Some(time.parse().unwrap()), format!("GitMirror/{name}"));
        let earlier = [age("gone", "2026-01-01T00:00:00Z"), age("anew", "2026-01-01T00:00:00Z")];
        let mut objects = Objects::new("p", board, earlier.iter());
        objects.take(Event::Init);
        objects.take(Event::InitApply(simple("anew", "2026-01-02T00:00:00Z")));
        assert!(!objects.listed());
        let edits = objects.take(Event::InitDone);
        assert_eq!(told(edits), ["-GitMirror/gone", "-GitMirror/anew", "+GitMirror/anew"]);
    }

    #[test]
    fn what_is_on_its_way_out_declares_nothing() {
        let board = Board::default();
        let mut objects = objects(&board);
        let mut one = simple("a", "2026-01-01T00:00:00Z");
        assert_eq!(told(objects.take(Event::Apply(one.clone()))), ["+GitMirror/a"]);
        one.metadata.annotations = Some([(REQUESTED_AT_ANNOTATION.to_owned(), "now".to_owned())].into());
        objects.take(Event::Apply(one.clone()));
        assert_eq!(board.read(|all| all["a"].requested_at.clone()).as_deref(), Some("now"));
        board.handled("a", "now".into());
        objects.take(Event::Apply(one.clone()));
        assert_eq!(board.read(|all| all["a"].handled.clone()).as_deref(), Some("now"));
        one.metadata.deletion_timestamp = one.metadata.creation_timestamp.clone();
        assert_eq!(told(objects.take(Event::Apply(one))), ["-GitMirror/a"]);
    }

    #[test]
    fn what_is_on_its_way_out_is_shown_until_it_is_gone() {
        let board = Board::default();
        let mut objects = objects(&board);
        let mut one =
            object("a", "2026-01-01T00:00:00Z", &json!({"url": "https://h/a", "deletionPolicy": "Delete"}));
        objects.take(Event::Apply(one.clone()));
        one.metadata.finalizers = Some(vec![STORE_FINALIZER.to_owned()]);
        one.metadata.deletion_timestamp = one.metadata.creation_timestamp.clone();
        assert_eq!(told(objects.take(Event::Apply(one.clone()))), ["-GitMirror/a"]);
        assert!(board.read(BTreeMap::is_empty));
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
        let mut objects = objects(&Board::default());
        let odd = object("a", "2026-01-01T00:00:00Z", &json!({"url": 7, "interval": "canary"}));
        let edits = objects.take(Event::Apply(odd));
        let Some(Edit::Set(_, source)) = edits.first() else { panic!("{edits:?}") };
        assert!(matches!(&source.content, Content::Unreadable(reason) if !reason.contains("canary")));
    }
}
