//! `POST ensure-refs`: make sure that refs and commits are here before a job asks for them.
//!
//! The caller names refs, each with the object it expects or with nothing for "whatever it is now", and
//! commits. The answer comes when they are on the disk, or proven not to be upstream. Commits that are here need no
//! upstream.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use axum::{Json, body::Body, response::IntoResponse, response::Response};
use http::request::Parts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{body, error::Failure};
use crate::{
    git::Oid,
    mirror::{BringError, Mirror, freshness::Unavailable},
};

/// What the caller wants to be there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Full ref names, each with the object it should name, or empty.
    #[serde(default)]
    refs: BTreeMap<String, String>,
    /// Commits, by full name.
    #[serde(default)]
    commits: Vec<String>,
}

/// What is there.
#[derive(Debug, Serialize)]
struct Found {
    /// The refs asked for and what they name now; those the upstream lacks are left out.
    refs: BTreeMap<String, String>,
    /// The commits asked for, or expected of refs, that cannot be had.
    missing_commits: Vec<String>,
    /// Whether the mirror changed for it.
    fetched: bool,
}

/// The most names in one request.
const MAX_NAMES: usize = 10_000;

/// Answers the request.
///
/// # Errors
/// The request makes no sense, or the upstream fails.
pub async fn handle(mirror: &Mirror, parts: &Parts, body: Body) -> Result<Response, Failure> {
    let bytes = body::read(parts, body, "application/json").await?;
    let bad = |reason: String| Failure::bad_request("BadRequest", reason);
    let object: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let wanted: Wanted = serde_json::from_value(object.into()).map_err(|error| bad(error.to_string()))?;
    if wanted.refs.len() + wanted.commits.len() > MAX_NAMES {
        return Err(bad(format!("more than {MAX_NAMES} names")));
    }
    let oid = |hex: &String| {
        Oid::from_hex(hex.as_bytes())
            .ok_or_else(|| bad("a commit is named by its full, lower-case hash".into()))
    };
    let expected = wanted.refs.values().filter(|hex| !hex.is_empty());
    let commits = expected.chain(&wanted.commits).map(oid).collect::<Result<Vec<Oid>, _>>()?;
    let patience = mirror.settings().timeout;
    let found = timeout(patience, find(mirror, &wanted.refs, &commits)).await;
    found.map_err(|_| Failure::busy())?.map(|found| Json(found).into_response())
}

/// Brings what can be had: one look and one fetch for all of it, and another by id for commits that no ref leads to.
async fn find(mirror: &Mirror, refs: &BTreeMap<String, String>, commits: &[Oid]) -> Result<Found, Failure> {
    // Held from before it is looked whether the objects are here.
    let _reading = mirror.read();
    let stored = mirror.view().stored;
    if refs.is_empty() && stored.is_some() && mirror.missing(commits).await.is_empty() {
        return Ok(Found { refs: BTreeMap::new(), missing_commits: Vec::new(), fetched: false });
    }
    if mirror.settings().suspend {
        return Err(Unavailable::Suspended.into());
    }
    let looked = mirror.look(&[]).await;
    let (shown, began) = looked.map_err(|error| Failure::from(BringError::Look(error)))?;
    let named = refs.keys().filter_map(|name| Some((name, shown.get(name.as_str().into())?.oid)));
    let named: BTreeMap<&String, Oid> = named.collect();
    let all: HashSet<Oid> = named.values().chain(commits).copied().collect();
    let all: Vec<Oid> = all.into_iter().collect();
    let missing = mirror.bring_known(&all, began).await?;
    if let Some(lost) = named.values().find(|oid| missing.contains(oid)) {
        return Err(BringError::Missing(*lost).into());
    }
    let missing: BTreeSet<String> =
        commits.iter().filter(|oid| missing.contains(oid)).map(|oid| oid.to_hex()).collect();
    let refs = named.into_iter().map(|(name, oid)| (name.clone(), oid.to_hex())).collect();
    let (before, after) =
        (stored.map(|it| it.digest.clone()), mirror.view().stored.map(|it| it.digest.clone()));
    Ok(Found { refs, missing_commits: missing.into_iter().collect(), fetched: before != after })
}
