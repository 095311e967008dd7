//! The server: requests in, answers out.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

use super::fields::{Fields, apply};

/// `plural/namespace/name`.
type Key = String;

#[derive(Clone, Default)]
struct Stored {
    object: Value,
    managers: BTreeMap<String, Fields>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Stored>,
    version: u64,
    writes: Vec<String>,
    events: Vec<String>,
    /// Requests left until the process that sends them dies.
    fuse: Option<Answer>,
}

/// What becomes of the request at which the reconciler dies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// It takes effect after so many others, and its answer is lost.
    LostAfter(usize),
    /// It does not take effect.
    NeverAfter(usize),
}

/// The server.
#[derive(Clone, Default)]
pub(crate) struct Sim(Arc<Mutex<State>>);

impl Sim {
    /// A client of it.
    pub(crate) fn client(&self) -> kube::Client {
        let sim = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let sim = sim.clone();
            async move { Ok::<_, Infallible>(sim.answer(request).await) }
        });
        kube::Client::new(service, "ci")
    }

    /// From now on requests fail as `answer` says, until `None`.
    pub(crate) fn fail(&self, answer: Option<Answer>) {
        self.0.lock().unwrap().fuse = answer;
    }

    /// Writes since the last call that changed something or could have; Events are not among them.
    pub(crate) fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().writes)
    }

    /// Moves with every change.
    pub(crate) fn version(&self) -> u64 {
        self.0.lock().unwrap().version
    }

    /// Objects of a kind.
    pub(crate) fn list<K: serde::de::DeserializeOwned>(&self, plural: &str) -> Vec<K> {
        let state = self.0.lock().unwrap();
        let prefix = format!("{plural}/");
        let found = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
        found.map(|(_, stored)| serde_json::from_value(stored.object.clone()).unwrap()).collect()
    }

    /// Puts an object there as a user, or replaces its spec and metadata; the generation follows the spec.
    pub(crate) fn put(&self, plural: &str, object: Value) {
        let mut state = self.0.lock().unwrap();
        let key = format!("{plural}/ci/{}", object["metadata"]["name"].as_str().unwrap());
        state.store(&key, "user", &object, false);
    }

    /// Puts an object there that belongs to no namespace.
    pub(crate) fn put_global(&self, plural: &str, object: Value) {
        let mut state = self.0.lock().unwrap();
        let key = format!("{plural}//{}", object["metadata"]["name"].as_str().unwrap());
        state.store(&key, "user", &object, false);
    }

    /// Writes the status of an object as somebody.
    pub(crate) fn put_status(&self, plural: &str, name: &str, manager: &str, status: &Value) {
        let mut state = self.0.lock().unwrap();
        let key = format!("{plural}/ci/{name}");
        if state.objects.contains_key(&key) {
            state.store(&key, manager, &json!({"status": status}), true);
        }
    }

    /// Deletes an object.
    pub(crate) fn remove(&self, plural: &str, name: &str) {
        let mut state = self.0.lock().unwrap();
        if state.objects.remove(&format!("{plural}/ci/{name}")).is_some() {
            state.version += 1;
        }
    }

    /// Deletes an object as a user does at that time: one with finalizers stays until they are gone.
    pub(crate) fn terminate(&self, plural: &str, name: &str, time: &str) {
        let mut state = self.0.lock().unwrap();
        let key = format!("{plural}/ci/{name}");
        let Some(stored) = state.objects.get_mut(&key) else { return };
        let held = stored.object["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty());
        if held {
            let time = stored.object["metadata"]["deletionTimestamp"].as_str().unwrap_or(time).to_owned();
            stored.object["metadata"]["deletionTimestamp"] = json!(time);
        } else {
            state.objects.remove(&key);
        }
        state.version += 1;
        let version = state.version.to_string();
        if let Some(stored) = state.objects.get_mut(&key) {
            stored.object["metadata"]["resourceVersion"] = json!(version);
        }
    }

    /// Reasons and messages of the Events that were written.
    pub(crate) fn events(&self) -> Vec<String> {
        self.0.lock().unwrap().events.clone()
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut state = self.0.lock().unwrap();
        crate::rights::check(&parts.method, &parts.uri, |key| state.objects.contains_key(key));
        let (dies, effect) = match &mut state.fuse {
            None => (false, true),
            Some(Answer::LostAfter(left)) => (std::mem::replace(left, left.saturating_sub(1)) == 0, true),
            Some(Answer::NeverAfter(left)) => {
                let dies = std::mem::replace(left, left.saturating_sub(1)) == 0;
                (dies, !dies)
            }
        };
        let (code, answer) =
            if effect { state.handle(&parts.method, &parts.uri, &body) } else { (500, Value::Null) };
        if dies {
            state.fuse = Some(Answer::NeverAfter(0));
            return failure(503, "gone");
        }
        if code >= 400 {
            return failure(code, "as the test says");
        }
        Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()
    }
}

fn failure(code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": reason, "code": code});
    Response::builder().status(code).body(Body::from(status.to_string().into_bytes())).unwrap()
}

impl State {
    fn handle(&mut self, method: &Method, uri: &http::Uri, body: &[u8]) -> (u16, Value) {
        let path: Vec<&str> = uri.path().split('/').collect();
        let at = path.iter().position(|part| *part == "namespaces");
        // What belongs to no namespace: /apis/GROUP/VERSION/PLURAL/NAME.
        let (namespace, plural, at) = at.map_or(("", path[4], 5), |at| (path[at + 1], path[at + 2], at + 3));
        let name = path.get(at).copied();
        let status = path.get(at + 1) == Some(&"status");
        if plural == "events" {
            let event: Value = serde_json::from_slice(body).unwrap();
            self.events.push(format!("{}: {}", event["reason"], event["note"]));
            return (200, event);
        }
        let Some(name) = name else {
            let items: Vec<&Value> = self
                .objects
                .iter()
                .filter(|(key, _)| key.starts_with(&format!("{plural}/{namespace}/")))
                .map(|(_, stored)| &stored.object)
                .collect();
            return (200, json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}));
        };
        let key = format!("{plural}/{namespace}/{name}");
        match *method {
            Method::GET => self.objects.get(&key).map_or((404, Value::Null), |it| (200, it.object.clone())),
            Method::DELETE => {
                self.writes.push(format!("delete {key}"));
                let found = self.objects.remove(&key);
                (if found.is_some() { 200 } else { 404 }, json!({"kind": "Status", "status": "Success"}))
            }
            Method::PATCH => {
                let query: BTreeMap<&str, &str> = uri
                    .query()
                    .unwrap_or_default()
                    .split('&')
                    .filter_map(|pair| pair.split_once('='))
                    .collect();
                let manager = query.get("fieldManager").copied().unwrap_or("merge");
                let body: Value = serde_json::from_slice(body).unwrap();
                self.writes.push(format!("{manager} {key}{}", if status { "/status" } else { "" }));
                let wanted = body["metadata"]["resourceVersion"].as_str();
                let found = self.objects.get(&key);
                if status && found.is_none() {
                    return (404, Value::Null);
                }
                let there = found.and_then(|found| found.object["metadata"]["resourceVersion"].as_str());
                if wanted.is_some() && wanted != there {
                    return (409, Value::Null);
                }
                if let (true, Some(subjects)) = (namespace.is_empty(), body.get("subjects")) {
                    // A merge, which replaces lists.
                    let mut merged = self.objects[&key].clone();
                    merged.object["subjects"] = subjects.clone();
                    self.version += 1;
                    merged.object["metadata"]["resourceVersion"] = json!(self.version.to_string());
                    self.objects.insert(key, merged.clone());
                    return (200, merged.object);
                }
                (200, self.store(&key, manager, &body, status))
            }
            _ => (405, Value::Null),
        }
    }

    fn store(&mut self, key: &str, manager: &str, body: &Value, status: bool) -> Value {
        let mut stored = self.objects.get(key).cloned().unwrap_or_default();
        if stored.object.is_null() {
            stored.object = json!({});
        }
        let before = stored.object.clone();
        let mut part = body.clone();
        if status {
            part = json!({"status": body["status"]});
        } else {
            part.as_object_mut().unwrap().remove("status");
            if let Some(metadata) = part.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
            }
            if before == json!({}) {
                let uid = part["metadata"]["uid"]
                    .as_str()
                    .map_or_else(|| format!("uid-{}", self.version), Into::into);
                stored.object["metadata"] = json!({"uid": uid, "generation": 1,
                    "namespace": key.split('/').nth(1), "creationTimestamp": "2026-01-01T00:00:00Z"});
            }
        }
        // The status has managers of its own, as the API server keeps them apart by subresource.
        let manager = format!("{manager}{}", if status { "/status" } else { "" });
        apply(&mut stored.object, &mut stored.managers, &manager, &part);
        if !status && before != json!({}) && before["spec"] != stored.object["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            stored.object["metadata"]["generation"] = json!(generation);
        }
        if stored.object != before {
            self.version += 1;
            stored.object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            let metadata = &stored.object["metadata"];
            let held = metadata["finalizers"].as_array().is_some_and(|held| !held.is_empty());
            if metadata["deletionTimestamp"].is_string() && !held {
                self.objects.remove(key);
            } else {
                self.objects.insert(key.to_owned(), stored.clone());
            }
        }
        stored.object
    }
}
