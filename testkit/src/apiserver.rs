//! A small API server on loopback: lists, watches and server-side applies of a few kinds, as far as the agent uses
//! them. Where the real one would refuse, it refuses; what is written is kept with its field manager.

#![expect(clippy::indexing_slicing, reason = "a missing field of a JSON value is a null, or is made")]

mod reviews;
mod rights;
mod state;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

pub use self::reviews::Review;
pub use self::state::Write;
use self::state::{Selector, State};
use crate::listening::Listening;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A running API server. It runs on threads of its own, and stops when dropped.
#[derive(Debug)]
pub struct ApiServer {
    state: Arc<State>,
    listening: Listening,
}

/// The namespace of all objects.
pub const NAMESPACE: &str = "ci";

impl ApiServer {
    /// Starts on a free port of 127.0.0.1, without any object.
    pub fn start() -> Result<Self> {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::start("apiserver", address, move |stream| {
            let state = Arc::clone(&shared);
            let service = hyper::service::service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { anyhow::Ok(answer(state, request).await) }
            });
            async move {
                let io = hyper_util::rt::TokioIo::new(stream);
                // A cut connection is what the test asked for, or the client's own doing.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            }
        })?;
        Ok(Self { state, listening })
    }

    /// Writes a file for `KUBECONFIG` into a directory, and says where.
    pub fn kubeconfig(&self, dir: &Path) -> Result<std::path::PathBuf> {
        let path = dir.join("kubeconfig.json");
        let server = format!("http://{}", self.listening.address());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&path, config.to_string()).context("write a kubeconfig")?;
        Ok(path)
    }

    /// Stops listening and cuts all connections; the port stays reserved, the objects stay.
    pub async fn down(&self) {
        self.listening.down().await;
    }

    /// Listens again after [`ApiServer::down`].
    pub async fn up(&self) {
        self.listening.up().await;
    }

    /// Forgets older states: watches that go on from one are told to list again.
    pub fn compact(&self) {
        self.state.compact();
    }

    /// Creates a GitMirror of a cache with this spec, or replaces the spec of the one there is.
    pub fn mirror(&self, name: &str, cache: &str, mut spec: Value) {
        if let Some(fields) = spec.as_object_mut() {
            fields.insert("cacheRef".into(), json!({"name": cache}));
        }
        self.state.put("gitmirrors", name, |object| {
            object["apiVersion"] = json!("tarn.dev/v1alpha1");
            object["kind"] = json!("GitMirror");
            object["spec"] = spec;
        });
    }

    /// Annotates a GitMirror.
    pub fn annotate(&self, name: &str, key: &str, value: &str) {
        self.state.put("gitmirrors", name, |object| object["metadata"]["annotations"][key] = json!(value));
    }

    /// Creates or replaces a Secret with the label and the annotation that let it be sent to `hosts`.
    pub fn secret(&self, name: &str, hosts: &str, data: &[(&str, &str)]) {
        let encoded =
            data.iter().map(|(key, value)| ((*key).to_owned(), json!(crate::upstream::base64(value))));
        let data: serde_json::Map<String, Value> = encoded.collect();
        self.state.put("secrets", name, |object| {
            object["apiVersion"] = json!("v1");
            object["kind"] = json!("Secret");
            object["metadata"]["labels"] = json!({"tarn.dev/credentials": "true"});
            object["metadata"]["annotations"] = json!({"tarn.dev/hosts": hosts});
            object["data"] = Value::Object(data);
        });
    }

    /// Says that a pod of a Service is ready at an address: an EndpointSlice for each, because ports stand on slices.
    pub fn endpoint(&self, service: &str, pod: &str, address: SocketAddr) {
        self.state.put("endpointslices", &format!("{service}-{pod}"), |object| {
            object["apiVersion"] = json!("discovery.k8s.io/v1");
            object["kind"] = json!("EndpointSlice");
            object["metadata"]["labels"] = json!({"kubernetes.io/service-name": service});
            object["addressType"] = json!("IPv4");
            object["ports"] = json!([{"name": "git", "port": address.port(), "protocol": "TCP"}]);
            object["endpoints"] = json!([{
                "addresses": [address.ip().to_string()],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "name": pod},
            }]);
        });
    }

    /// Removes an object of a kind, named as in URLs: `gitmirrors`, `secrets`.
    pub fn delete(&self, kind: &str, name: &str) {
        self.state.delete(kind, name);
    }

    /// Deletes a GitMirror that a finalizer keeps: it is on its way out until [`ApiServer::delete`].
    pub fn terminate(&self, name: &str) {
        self.state.put("gitmirrors", name, |object| {
            object["metadata"]["finalizers"] = json!(["tarn.dev/store"]);
            object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
        });
    }

    /// Takes a pod's entry out of a GitMirror's status, as the operator does once the pod has gone.
    pub fn depart(&self, name: &str, pod: &str) {
        self.state.put("gitmirrors", name, |object| {
            if let Some(entries) = object["status"]["replicas"].as_array_mut() {
                entries.retain(|entry| entry["pod"] != pod);
            }
        });
    }

    /// An object as it is now.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.state.get(kind, name)
    }

    /// A pod's entry in a GitMirror's status.
    pub fn entry(&self, name: &str, pod: &str) -> Option<Value> {
        let object = self.get("gitmirrors", name)?;
        let entries = object["status"]["replicas"].as_array()?;
        entries.iter().find(|entry| entry["pod"] == pod).cloned()
    }

    /// A new token of a user for an audience: a JWT in form, as service accounts have them.
    pub fn mint(&self, user: &str, audience: &str) -> String {
        self.state.reviews.mint(user, audience)
    }

    /// Lets a token be valid no longer.
    pub fn revoke(&self, token: &str) {
        self.state.reviews.revoke(token);
    }

    /// Lets a user or a group `get` the subresource `clone` of a GitMirror.
    pub fn grant(&self, subject: &str, mirror: &str) {
        self.state.reviews.grant(subject, &format!("get gitmirrors/clone {mirror}"));
    }

    /// Gives a user or a group a right, such as `get gitcaches/admin default`.
    pub fn grant_right(&self, subject: &str, right: &str) {
        self.state.reviews.grant(subject, right);
    }

    /// Takes that right back.
    pub fn take_back(&self, subject: &str, mirror: &str) {
        self.state.reviews.take_back(subject, &format!("get gitmirrors/clone {mirror}"));
    }

    /// Answers from now on as a server that has never heard of audiences, to which any token is good.
    pub fn forget_audiences(&self) {
        self.state.reviews.forget_audiences();
    }

    /// Every review that was asked for, in order.
    pub fn reviews(&self) -> Vec<Review> {
        self.state.reviews.asked()
    }

    /// Every write that was accepted, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.state.writes()
    }

    /// Everything that was ever stored but Secrets, as text.
    pub fn text(&self) -> String {
        self.state.text()
    }
}

/// What a path names: a kind of an API group, an object of it, a subresource.
struct Target<'a> {
    group: &'static str,
    kind: &'a str,
    name: Option<&'a str>,
    status: bool,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let prefixes = [
            ("/api/v1/", ""),
            ("/apis/tarn.dev/v1alpha1/", "tarn.dev"),
            ("/apis/coordination.k8s.io/v1/", "coordination.k8s.io"),
            ("/apis/discovery.k8s.io/v1/", "discovery.k8s.io"),
        ];
        let (rest, group) =
            prefixes.iter().find_map(|(prefix, group)| Some((path.strip_prefix(prefix)?, *group)))?;
        let mut parts =
            rest.strip_prefix("namespaces/")?.strip_prefix(NAMESPACE)?.strip_prefix('/')?.split('/');
        let (kind, name) = (parts.next()?, parts.next());
        let target = Self { group, kind, name, status: parts.next() == Some("status") };
        ["gitmirrors", "secrets", "leases", "endpointslices"].contains(&target.kind).then_some(target)
    }

    /// Whether the agents' Role grants this verb. `named`: whether the request is about one object whose name it tells.
    fn grants(&self, verb: &str, named: bool) -> bool {
        let subresource = if self.status { "/status" } else { "" };
        rights::allow(self.group, &format!("{}{subresource}", self.kind), verb, named)
    }

    fn forbidden(&self, verb: &str) -> Response<Body> {
        status(StatusCode::FORBIDDEN, "Forbidden", &format!("{verb} {} is forbidden", self.kind))
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let get = |key: &str| {
        let pair = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
        let spaced = pair.replace('+', " ");
        Some(decode(&spaced))
    };
    let review = ["/apis/authentication.k8s.io/v1/", "/apis/authorization.k8s.io/v1/namespaces/ci/"];
    let review = review.iter().find_map(|prefix| parts.uri.path().strip_prefix(prefix));
    if let (&Method::POST, Some(kind)) = (&parts.method, review) {
        if kind.starts_with("local") && !rights::allow("authorization.k8s.io", kind, "create", false) {
            return status(StatusCode::FORBIDDEN, "Forbidden", "reviews are forbidden");
        }
        let text = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let answered =
            serde_json::from_slice(&text).ok().and_then(|review| state.reviews.answer(kind, review));
        return match answered {
            Some(answered) => json_answer(StatusCode::CREATED, &answered),
            None => status(StatusCode::BAD_REQUEST, "BadRequest", "no such review"),
        };
    }
    let Some(target) = Target::of(parts.uri.path()) else {
        return status(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource");
    };
    match (parts.method.clone(), target.name) {
        (Method::GET, None) => {
            let selector = Selector::parse(&get("fieldSelector").unwrap_or_default());
            let labels = get("labelSelector").unwrap_or_default();
            let Some(selector) = selector.and_then(|selector| selector.with_labels(&labels)) else {
                return status(StatusCode::BAD_REQUEST, "BadRequest", "field label not supported");
            };
            let lists = get("watch").is_none_or(|watch| watch == "false");
            let verb = if lists { "list" } else { "watch" };
            // Rights on Secrets are by name; the agent has none on all of them.
            if !target.grants(verb, selector.names_one()) {
                return target.forbidden(verb);
            }
            if lists {
                let (items, version) = state.list(target.kind, &selector);
                let list = json!({"kind": "List", "apiVersion": "v1",
                    "metadata": {"resourceVersion": version.to_string()}, "items": items});
                return json_answer(StatusCode::OK, &list);
            }
            let from = get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            watch(state, target.kind.to_owned(), selector, from)
        }
        (Method::PATCH, Some(name)) => {
            let text = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let applies = parts.headers.get(http::header::CONTENT_TYPE);
            if applies.is_none_or(|kind| kind.as_bytes() != b"application/apply-patch+yaml") {
                return status(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", "apply, please");
            }
            let (Ok(patch), Some(manager)) = (serde_json::from_slice(&text), get("fieldManager")) else {
                return status(StatusCode::BAD_REQUEST, "BadRequest", "no patch, or no field manager");
            };
            // Who applies what is not there creates it.
            let creates = !target.status && state.get(target.kind, name).is_none();
            let verbs: &[&str] = if creates { &["create", "patch"] } else { &["patch"] };
            if let Some(verb) = verbs.iter().find(|verb| !target.grants(verb, true)) {
                return target.forbidden(verb);
            }
            let applied = match (target.kind, target.status) {
                ("gitmirrors", true) => state.apply_status(name, &manager, &patch),
                ("leases", false) => Some(state.apply_lease(name, &manager, &patch)),
                _ => return status(StatusCode::FORBIDDEN, "Forbidden", "agents may not write that"),
            };
            match applied {
                Some(object) => json_answer(StatusCode::OK, &object),
                None => status(StatusCode::NOT_FOUND, "NotFound", "there is no such object"),
            }
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "not here"),
    }
}

/// A watch from a version on: one JSON object a line, for as long as the client listens.
fn watch(state: Arc<State>, kind: String, selector: Selector, from: u64) -> Response<Body> {
    let changes = state.changes();
    let start = (state, changes, from, std::collections::VecDeque::<Value>::new());
    let lines = stream::unfold(start, move |(state, mut changes, mut at, mut waiting)| {
        let (kind, selector) = (kind.clone(), selector.clone());
        async move {
            loop {
                if let Some(event) = waiting.pop_front() {
                    let line = Bytes::from(format!("{event}\n"));
                    return Some((Ok::<_, Infallible>(Frame::data(line)), (state, changes, at, waiting)));
                }
                if at == u64::MAX {
                    return None;
                }
                changes.borrow_and_update();
                match state.since(&kind, &selector, at) {
                    Some((events, version)) if version > at => {
                        at = version;
                        waiting.extend(events);
                        waiting.push_back(bookmark(version));
                    }
                    Some(_) => {
                        if changes.changed().await.is_err() {
                            return None;
                        }
                    }
                    None => {
                        let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                            "status": "Failure", "reason": "Expired", "code": 410,
                            "message": "too old resource version"});
                        waiting.push_back(json!({"type": "ERROR", "object": gone}));
                        at = u64::MAX;
                    }
                }
            }
        }
    });
    let mut answer = Response::new(StreamBody::new(lines).boxed_unsync());
    let json = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, json);
    answer
}

fn bookmark(version: u64) -> Value {
    let object = json!({"kind": "Bookmark", "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string()}});
    json!({"type": "BOOKMARK", "object": object})
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": code.as_u16()});
    json_answer(code, &status)
}

fn json_answer(code: StatusCode, value: &Value) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *answer.status_mut() = code;
    let json = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, json);
    answer
}

/// Undoes percent-encoding.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
