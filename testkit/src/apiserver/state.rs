//! The objects, and every state they have been in.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::watch;

/// A write that was accepted.
#[derive(Debug, Clone)]
pub struct Write {
    /// When.
    pub at: Instant,
    /// The kind, as in URLs.
    pub kind: String,
    /// The object.
    pub name: String,
    /// Who wrote it.
    pub manager: String,
    /// What.
    pub patch: Value,
}

/// Which objects are meant: all whose fields have these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector(Vec<(String, String)>);

impl Selector {
    /// Reads a field selector of equalities on the fields that can be selected by.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let terms = text.split(',').filter(|term| !term.is_empty()).map(|term| {
            let (field, value) = term.split_once('=')?;
            let known = ["metadata.name", "spec.cacheRef.name", "spec.url"].contains(&field);
            known.then(|| (format!("/{}", field.replace('.', "/")), value.to_owned()))
        });
        terms.collect::<Option<_>>().map(Self)
    }

    /// Adds a label selector of equalities.
    pub(super) fn with_labels(mut self, text: &str) -> Option<Self> {
        for term in text.split(',').filter(|term| !term.is_empty()) {
            let (label, value) = term.split_once('=')?;
            let label = label.replace('~', "~0").replace('/', "~1");
            self.0.push((format!("/metadata/labels/{label}"), value.to_owned()));
        }
        Some(self)
    }

    /// Whether at most one object can be meant.
    pub(super) fn names_one(&self) -> bool {
        self.0.iter().any(|(field, _)| field == "/metadata/name")
    }

    fn selects(&self, object: &Value) -> bool {
        self.0.iter().all(|(field, value)| object.pointer(field).and_then(Value::as_str) == Some(value))
    }
}

/// A change: what the object was before and is after it.
#[derive(Debug, Clone)]
struct Change {
    version: u64,
    kind: String,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    changes: Vec<Change>,
    /// Changes up to this one are forgotten.
    compacted: u64,
    writes: Vec<Write>,
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) reviews: super::reviews::Reviews,
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every change.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Creates or edits an object; one that stays as it is has not changed.
    pub(super) fn put(&self, kind: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Value {
        let mut inner = self.lock();
        let after = inner.put(kind, name, edit);
        drop(inner);
        self.changed.send_replace(());
        after
    }

    pub(super) fn delete(&self, kind: &str, name: &str) {
        let mut inner = self.lock();
        if let Some(before) = inner.objects.remove(&(kind.to_owned(), name.to_owned())) {
            inner.version += 1;
            let version = inner.version;
            inner.changes.push(Change { version, kind: kind.to_owned(), before: Some(before), after: None });
        }
        drop(inner);
        self.changed.send_replace(());
    }

    pub(super) fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(kind.to_owned(), name.to_owned())).cloned()
    }

    pub(super) fn writes(&self) -> Vec<Write> {
        self.lock().writes.clone()
    }

    pub(super) fn text(&self) -> String {
        let inner = self.lock();
        let changes = inner.changes.iter().filter(|change| change.kind != "secrets");
        changes.filter_map(|change| Some(change.after.as_ref()?.to_string())).collect()
    }

    pub(super) fn compact(&self) {
        let mut inner = self.lock();
        inner.version += 1;
        inner.compacted = inner.version;
    }

    /// The objects that are meant, and the version they are of.
    pub(super) fn list(&self, kind: &str, selector: &Selector) -> (Vec<Value>, u64) {
        let inner = self.lock();
        let found = inner.objects.iter().filter(|((of, _), object)| of == kind && selector.selects(object));
        (found.map(|(_, object)| object.clone()).collect(), inner.version)
    }

    /// The events after a version, and the version they lead to; `None` where they are forgotten.
    pub(super) fn since(&self, kind: &str, selector: &Selector, from: u64) -> Option<(Vec<Value>, u64)> {
        let inner = self.lock();
        if from < inner.compacted {
            return None;
        }
        let later = inner.changes.iter().filter(|change| change.version > from && change.kind == kind);
        let events = later.filter_map(|change| {
            let was = change.before.as_ref().filter(|object| selector.selects(object));
            let is = change.after.as_ref().filter(|object| selector.selects(object));
            match (was, is) {
                (None, None) => None,
                (None, Some(object)) => Some(json!({"type": "ADDED", "object": object})),
                (Some(_), Some(object)) => Some(json!({"type": "MODIFIED", "object": object})),
                (Some(object), None) => {
                    let mut object = object.clone();
                    object["metadata"]["resourceVersion"] = json!(change.version.to_string());
                    Some(json!({"type": "DELETED", "object": object}))
                }
            }
        });
        Some((events.collect(), inner.version.max(from)))
    }

    /// Applies a pod's entry to a GitMirror's status, as the admission policy allows it: a manager owns the entry of
    /// its pod, and what it no longer names goes.
    pub(super) fn apply_status(&self, name: &str, manager: &str, patch: &Value) -> Option<Value> {
        let mut inner = self.lock();
        if !inner.objects.contains_key(&("gitmirrors".to_owned(), name.to_owned())) {
            return None;
        }
        inner.note("gitmirrors", name, manager, patch);
        let entries = patch["status"]["replicas"].as_array().cloned().unwrap_or_default();
        let pod = manager.trim_start_matches("tarn-agent.").to_owned();
        let after = inner.put("gitmirrors", name, |object| {
            let replicas = &mut object["status"]["replicas"];
            if !replicas.is_array() {
                *replicas = json!([]);
            }
            if let Some(replicas) = replicas.as_array_mut() {
                replicas.retain(|entry| entry["pod"] != pod.as_str());
                replicas.extend(entries);
            }
        });
        drop(inner);
        self.changed.send_replace(());
        Some(after)
    }

    /// Applies a Lease; it is made if there is none.
    pub(super) fn apply_lease(&self, name: &str, manager: &str, patch: &Value) -> Value {
        let mut inner = self.lock();
        inner.note("leases", name, manager, patch);
        inner.put("leases", name, |object| {
            for field in ["apiVersion", "kind", "spec"] {
                object[field] = patch[field].clone();
            }
            for field in ["labels", "ownerReferences"] {
                object["metadata"][field] = patch["metadata"][field].clone();
            }
        })
    }
}

impl Inner {
    fn put(&mut self, kind: &str, name: &str, edit: impl FnOnce(&mut Value)) -> Value {
        let key = (kind.to_owned(), name.to_owned());
        let before = self.objects.get(&key).cloned();
        let new = || {
            json!({"metadata": {"name": name, "namespace": super::NAMESPACE, "uid": format!("{kind}-{name}"),
                "creationTimestamp": "2026-01-01T00:00:00Z"}})
        };
        let mut after = before.clone().unwrap_or_else(new);
        edit(&mut after);
        if before.as_ref() == Some(&after) {
            return after;
        }
        self.version += 1;
        let version = self.version;
        after["metadata"]["resourceVersion"] = json!(version.to_string());
        self.objects.insert(key, after.clone());
        self.changes.push(Change { version, kind: kind.to_owned(), before, after: Some(after.clone()) });
        after
    }

    fn note(&mut self, kind: &str, name: &str, manager: &str, patch: &Value) {
        self.writes.push(Write {
            at: Instant::now(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            manager: manager.to_owned(),
            patch: patch.clone(),
        });
    }
}
