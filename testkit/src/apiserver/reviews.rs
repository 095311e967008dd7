//! Whose tokens are, and who may clone what: reviews as the real one answers them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A review that was asked for.
#[derive(Debug, Clone)]
pub struct Review {
    /// As in URLs: `tokenreviews`, `localsubjectaccessreviews`.
    pub kind: String,
    /// Its spec, without a token.
    pub spec: Value,
}

#[derive(Debug)]
struct Known {
    user: String,
    audiences: Vec<String>,
}

#[derive(Debug, Default)]
struct Inner {
    tokens: BTreeMap<String, Known>,
    grants: BTreeSet<(String, String)>,
    asked: Vec<Review>,
    minted: u32,
    knows_no_audiences: bool,
}

/// All tokens and rights.
#[derive(Debug, Default)]
pub(super) struct Reviews(Mutex<Inner>);

impl Reviews {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mint(&self, user: &str, audience: &str) -> String {
        let mut inner = self.lock();
        inner.minted += 1;
        let claims = json!({"sub": user, "aud": [audience], "jti": inner.minted});
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.c2lnbmF0dXJl", encode("{\"alg\":\"none\"}"), encode(&claims.to_string()));
        let known = Known { user: user.to_owned(), audiences: vec![audience.to_owned()] };
        inner.tokens.insert(token.clone(), known);
        token
    }

    pub(super) fn revoke(&self, token: &str) {
        self.lock().tokens.remove(token);
    }

    /// `right` as `VERB RESOURCE/SUBRESOURCE NAME`.
    pub(super) fn grant(&self, subject: &str, right: &str) {
        self.lock().grants.insert((subject.to_owned(), right.to_owned()));
    }

    pub(super) fn take_back(&self, subject: &str, right: &str) {
        self.lock().grants.remove(&(subject.to_owned(), right.to_owned()));
    }

    pub(super) fn forget_audiences(&self) {
        self.lock().knows_no_audiences = true;
    }

    pub(super) fn asked(&self) -> Vec<Review> {
        self.lock().asked.clone()
    }

    /// Answers a review; `None` where it is no such kind.
    pub(super) fn answer(&self, kind: &str, mut review: Value) -> Option<Value> {
        let mut inner = self.lock();
        let mut spec = review["spec"].clone();
        let status = match kind {
            "tokenreviews" => {
                if let Some(fields) = spec.as_object_mut() {
                    fields.remove("token");
                }
                inner.whose(&review["spec"])
            }
            "localsubjectaccessreviews" => inner.whether(&review["spec"]),
            _ => return None,
        };
        inner.asked.push(Review { kind: kind.to_owned(), spec });
        review["status"] = status;
        Some(review)
    }
}

impl Inner {
    fn whose(&self, spec: &Value) -> Value {
        let no = json!({"authenticated": false, "user": {}, "error": "[invalid bearer token, unknown]"});
        let Some(known) = spec["token"].as_str().and_then(|token| self.tokens.get(token)) else { return no };
        let wanted = spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let both: Vec<&str> = wanted.filter(|name| known.audiences.iter().any(|has| has == name)).collect();
        if both.is_empty() && !self.knows_no_audiences {
            return no;
        }
        let mut status = json!({"authenticated": true, "user": {
            "username": known.user, "uid": format!("uid-of-{}", known.user),
            "groups": ["system:authenticated", "pods"], "extra": {"example.org/pod": ["job-1"]},
        }});
        if !self.knows_no_audiences {
            status["audiences"] = json!(both);
        }
        status
    }

    fn whether(&self, spec: &Value) -> Value {
        let asks = |field: &str| spec["resourceAttributes"][field].as_str().unwrap_or_default();
        let here = asks("namespace") == super::NAMESPACE && asks("group") == "tarn.dev";
        let right = format!("{} {}/{} {}", asks("verb"), asks("resource"), asks("subresource"), asks("name"));
        let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut subjects = spec["user"].as_str().into_iter().chain(groups);
        let granted = subjects.any(|of| self.grants.contains(&(of.to_owned(), right.clone())));
        json!({"allowed": here && granted})
    }
}
