//! The upstream's LFS: the batch API, basic transfers and locks, as git-lfs's API documents describe them.
//! Objects are kept by the SHA-256 of their content.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Body;

/// What separates a repository from an LFS request in a path.
pub(super) const BELOW: &str = "/info/lfs/";

/// The header that every transfer must carry, as the batch answer says; URLs hold its value too, as signed ones do.
const TOKEN: &str = "X-Amz-Security-Token";

/// What every object of a batch answer is said to be.
#[derive(Debug, Clone)]
enum Lie {
    /// Unavailable, with this text.
    Error(String),
    /// To be had at this URL with these headers.
    At(String, BTreeMap<String, String>),
}

/// The LFS side of an [`super::Upstream`]; there is none until [`Lfs::enable`].
#[derive(Debug, Default)]
pub struct Lfs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    token: Option<String>,
    hrefs_at: Option<String>,
    lie: Option<Lie>,
    objects: BTreeMap<(String, String), Bytes>,
    locks: BTreeMap<String, (String, String)>,
}

impl Lfs {
    /// Answers LFS requests from now on; every transfer must carry `token`.
    pub fn enable(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Lets batch answers point to another server, such as `http://127.0.0.1:80`.
    pub fn hrefs_at(&self, base: &str) {
        self.lock().hrefs_at = Some(base.to_owned());
    }

    /// Lets batch answers name exactly this URL for every download, with these headers; there is nothing to be had but that.
    pub fn lead_to(&self, url: &str, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.lock().lie = Some(Lie::At(url.to_owned(), headers));
    }

    /// Lets batch answers say this of every object.
    pub fn refuse(&self, text: &str) {
        self.lock().lie = Some(Lie::Error(text.to_owned()));
    }

    /// Lets batch answers tell the truth again.
    pub fn repent(&self) {
        self.lock().lie = None;
    }

    /// Stores an object of `repo`, and gives the text of its pointer back.
    pub fn put(&self, repo: &str, content: &[u8]) -> String {
        let oid = oid(content);
        self.lock().objects.insert((repo.to_owned(), oid.clone()), Bytes::copy_from_slice(content));
        pointer(&oid, content.len())
    }

    /// The object of `repo` with this name.
    pub fn get(&self, repo: &str, oid: &str) -> Option<Bytes> {
        self.lock().objects.get(&(repo.to_owned(), oid.to_owned())).cloned()
    }

    /// Replaces what is sent for an object; its name and size stay what they are in batch answers.
    pub fn corrupt(&self, repo: &str, oid: &str, content: &[u8]) {
        self.lock().objects.insert((repo.to_owned(), oid.to_owned()), Bytes::copy_from_slice(content));
    }

    /// The locks that are held, by path, with who holds them.
    pub fn locks(&self) -> Vec<(String, String)> {
        self.lock().locks.values().cloned().collect()
    }

    pub(super) fn enabled(&self) -> bool {
        self.lock().token.is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the request for what comes after [`BELOW`].
    pub(super) async fn answer(
        &self,
        parts: &http::request::Parts,
        repo: &str,
        body: Body,
    ) -> Result<Response<Body>> {
        let path = parts.uri.path();
        let rest = path.rsplit_once(BELOW).map_or("", |(_, rest)| rest);
        let body = body.collect().await?.to_bytes();
        let asked = || serde_json::from_slice::<Value>(&body).context("not JSON");
        let user = parts.headers.get(http::header::AUTHORIZATION).map_or("nobody", |_| "somebody");
        let words: Vec<&str> = rest.split('/').collect();
        match (&parts.method, words.as_slice()) {
            (&Method::POST, ["objects", "batch"]) => {
                let host = parts.headers.get(HOST).context("no Host")?.to_str()?;
                Ok(self.batch(repo, host, &asked()?))
            }
            (&Method::GET | &Method::PUT, ["transfer", _]) if !self.admits(parts) => {
                Ok(message(StatusCode::FORBIDDEN, "no token"))
            }
            (&Method::GET, ["transfer", oid]) => Ok(match self.get(repo, oid) {
                Some(content) => whole(StatusCode::OK, "application/octet-stream", content),
                None => message(StatusCode::NOT_FOUND, "no such object"),
            }),
            (&Method::PUT, ["transfer", named]) => {
                if oid(&body) != *named {
                    return Ok(message(StatusCode::UNPROCESSABLE_ENTITY, "another content"));
                }
                self.put(repo, &body);
                Ok(message(StatusCode::OK, "stored"))
            }
            (&Method::GET, ["locks"]) => Ok(reply(StatusCode::OK, &json!({"locks": self.listed()}))),
            (&Method::POST, ["locks", "verify"]) => {
                Ok(reply(StatusCode::OK, &json!({"ours": self.listed(), "theirs": []})))
            }
            (&Method::POST, ["locks"]) => {
                let asked = asked()?;
                let path = asked.get("path").and_then(Value::as_str).context("no path")?.to_owned();
                let mut state = self.lock();
                let id = (state.locks.len() + 1).to_string();
                state.locks.insert(id.clone(), (path.clone(), user.to_owned()));
                Ok(reply(StatusCode::CREATED, &json!({"lock": lock(&id, &path, user)})))
            }
            (&Method::POST, ["locks", id, "unlock"]) => Ok(match self.lock().locks.remove(*id) {
                Some((path, user)) => reply(StatusCode::OK, &json!({"lock": lock(id, &path, &user)})),
                None => message(StatusCode::NOT_FOUND, "no such lock"),
            }),
            _ => Ok(message(StatusCode::NOT_FOUND, "no such route")),
        }
    }

    fn admits(&self, parts: &http::request::Parts) -> bool {
        let state = self.lock();
        let given = parts.headers.get(TOKEN).and_then(|value| value.to_str().ok());
        state.token.as_deref() == given
    }

    fn batch(&self, repo: &str, host: &str, asked: &Value) -> Response<Body> {
        let (token, base, lie) = {
            let state = self.lock();
            let base = state.hrefs_at.clone().unwrap_or_else(|| format!("http://{host}"));
            (state.token.clone(), base, state.lie.clone())
        };
        let upload = asked.get("operation").is_some_and(|operation| operation == "upload");
        let objects = asked.get("objects").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let answer = |object: &Value| {
            let named = object.get("oid").and_then(Value::as_str).unwrap_or_default();
            let size = object.get("size");
            let there = self.get(repo, named).is_some();
            let query = token.as_deref().unwrap_or_default();
            let href = format!("{base}/{repo}{BELOW}transfer/{named}?signature={query}");
            let action = json!({"href": href, "header": {TOKEN: token}});
            match &lie {
                Some(Lie::Error(text)) => {
                    return json!({"oid": named, "size": size, "error": {"code": 404, "message": text}});
                }
                Some(Lie::At(href, header)) => {
                    let action = json!({"href": href, "header": header});
                    return json!({"oid": named, "size": size, "actions": {"download": action, "upload": action}});
                }
                None => {}
            }
            match (upload, there) {
                (true, false) => json!({"oid": named, "size": size, "actions": {"upload": action}}),
                (true, true) => json!({"oid": named, "size": size}),
                (false, true) => json!({"oid": named, "size": size, "actions": {"download": action}}),
                (false, false) => {
                    let error = json!({"code": 404, "message": "the upstream has no such object"});
                    json!({"oid": named, "size": size, "error": error})
                }
            }
        };
        let objects: Vec<Value> = objects.iter().map(answer).collect();
        reply(StatusCode::OK, &json!({"transfer": "basic", "objects": objects}))
    }

    fn listed(&self) -> Vec<Value> {
        self.lock().locks.iter().map(|(id, (path, user))| lock(id, path, user)).collect()
    }
}

/// The name that LFS gives a content.
pub fn oid(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The pointer that git keeps in an object's place.
pub fn pointer(oid: &str, size: usize) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n")
}

fn lock(id: &str, path: &str, user: &str) -> Value {
    json!({"id": id, "path": path, "locked_at": "2026-01-01T00:00:00Z", "owner": {"name": user}})
}

fn message(status: StatusCode, text: &str) -> Response<Body> {
    reply(status, &json!({"message": text}))
}

fn reply(status: StatusCode, value: &Value) -> Response<Body> {
    whole(status, "application/vnd.git-lfs+json", value.to_string().into())
}

fn whole(status: StatusCode, kind: &'static str, content: Bytes) -> Response<Body> {
    let mut answer = Response::new(Full::new(content).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
