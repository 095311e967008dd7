//! `POST ensure-refs`: make sure that refs and commits are here before a job asks for them.
//!
//! The caller names refs, each with the object it expects or with nothing for "whatever it is now", and
//! commits. The answer comes when they are on the disk, or proven not to be upstream.

use std::collections::BTreeMap;

use axum::{Json, body::Body, response::IntoResponse, response::Response};
use http::request::Parts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{body, error::Failure};
use crate::{
    git::{Oid, RefSet},
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
    let before = mirror.view().stored.map(|stored| stored.digest.clone());

    if mirror.settings().suspend {
        return Err(Unavailable::Suspended.into());
    }
    let (refs, _) = mirror.look(&[]).await.map_err(|error| Failure::from(BringError::Look(error)))?;
    let named = |refs: &RefSet| -> BTreeMap<String, Oid> {
        wanted
            .refs
            .keys()
            .filter_map(|name| Some((name.clone(), refs.get(name.as_str().into())?.oid)))
            .collect()
    };
    let found = named(&refs);
    let tips: Vec<Oid> = found.values().copied().collect();
    mirror.bring(&tips).await?;
    let mut missing_commits = Vec::new();
    for commit in commits {
        // One by one: a commit that does not exist must not hide those that do.
        match mirror.bring(&[commit]).await {
            Ok(()) => {}
            Err(BringError::Missing(oid)) => missing_commits.push(oid.to_hex()),
            Err(error) => return Err(error.into()),
        }
    }
    missing_commits.sort_unstable();
    missing_commits.dedup();
    let after = mirror.view().stored.map(|stored| stored.digest.clone());
    let refs = found.into_iter().map(|(name, oid)| (name, oid.to_hex())).collect();
    Ok(Json(Found { refs, missing_commits, fetched: after != before }).into_response())
}
