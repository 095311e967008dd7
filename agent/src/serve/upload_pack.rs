//! `POST git-upload-pack`: refs from memory, objects from the spool.
//!
//! The ways to an answer, in this order: the upstream's own, while there is no mirror ([`pass_through`]); a base
//! and what is new since ([`composed`]); and a spooled answer that a child makes ([`child`]), shared by all whose requests
//! are the same. Whatever a child makes is a file before it is sent, so a child never waits for a client.

mod child;
mod composed;
mod pass_through;
mod respond;
mod waiting;

use std::{net::IpAddr, sync::Arc, time::Instant};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{Method, request::Parts};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

pub(super) use composed::Recipes;
pub(super) use pass_through::Passed;
pub(super) use respond::PackSeen;
use respond::is_damage;

use super::{
    Serving, answer, body,
    error::Failure,
    headers::Account,
    info_refs::{fresh_refs, known_format},
    lately::MadeAhead,
    proxy::{Ask, Origin, is_cold},
    version,
};
use crate::{
    audit,
    git::{ObjectFormat, Oid, RefSet, upload_pack::ProtocolVersion},
    mirror::{BringError, Mirror, View, demand::Reading},
    packs::{self, PackError},
    popularity::day::Taken,
    protocol::{
        fetch::{Fetch, Key, annotated},
        request::{self, Request},
        response::Expect,
    },
    spool::Keep,
};

const REQUEST: &str = "application/x-git-upload-pack-request";
const RESULT: &str = "application/x-git-upload-pack-result";

/// How a request for refs begins in protocol v2, after its length.
const LS_REFS: &[u8] = b"command=ls-refs";

/// Answers the request of `client`; `account` is told what it turns out to be.
///
/// # Errors
/// The request makes no sense. What goes wrong later is answered with an `ERR` packet, which git shows.
pub(super) async fn handle(
    serving: &Arc<Serving>,
    mirror: Mirror,
    client: IpAddr,
    parts: &Parts,
    body: Body,
    account: &mut Account,
) -> Result<Response, Failure> {
    let headers = &parts.headers;
    let version = version(headers);
    let bytes = body::read(parts, body, REQUEST).await?;
    if is_cold(&mirror) {
        account.label = if bytes.windows(LS_REFS.len()).take(64).any(|part| part == LS_REFS) {
            "ls-refs"
        } else {
            "fetch"
        };
        let (method, verb, voucher) = (Method::POST, "/git-upload-pack", serving.vouch(parts));
        let ask = Ask { method, verb, headers, body: bytes.clone(), voucher };
        if let Some(answer) = serving.of_peer(&mirror, Origin::of(headers), ask).await? {
            return Ok(answer);
        }
    }
    let format = match known_format(&mirror) {
        Some(format) => format,
        // A client that comes here has asked `info/refs` before, but for a restart in between.
        None => fresh_refs(serving, &mirror, &[]).await?.refs.format(),
    };
    let request =
        request::parse(&bytes, version, format).map_err(|error| Failure::bad_request("BadRequest", error))?;
    let (fetch, wants, haves, done) = match request {
        Request::Probe => return Ok(answer(RESULT, None, Body::empty())),
        Request::LsRefs(request) => {
            account.label = "ls-refs";
            return Ok(match fresh_refs(serving, &mirror, &request.prefixes).await {
                Ok(refs) => match serving.rendered.ls_refs(request, &refs.refs).await {
                    Ok(list) => answer(RESULT, Some(refs.freshness), list.into()),
                    Err(failure) => failure.into_packet(),
                },
                Err(failure) => failure.into_packet(),
            });
        }
        Request::Fetch(fetch) => {
            let (wants, haves, done) = (fetch.wants.clone(), !fetch.haves.is_empty(), fetch.done);
            (Some(*fetch), wants, haves, done)
        }
        Request::Negotiation { wants, haves, done } => (None, wants, haves, done),
    };
    account.label = "fetch";
    account.wants = audit::objects(&wants);
    let wanted = ObjectsWanted {
        serving: serving.clone(),
        client: Some(client),
        taken: taken(&mirror, &wants, haves),
        reading: mirror.read(),
        mirror,
        format,
        version,
        fetch,
        expect: if done { Expect::Pack } else { Expect::Any },
        body: bytes,
    };
    let taken = wanted.taken;
    let mut response = match &wanted.fetch {
        Some(fetch) if fetch.begins_with_pack() => {
            waiting::patiently(Box::pin(async move { Box::pin(wanted.serve(&wants)).await })).await
        }
        _ => Box::pin(wanted.serve(&wants)).await.unwrap_or_else(Failure::into_packet),
    };
    response.extensions_mut().insert(taken);
    Ok(response)
}

/// Makes the answer to `request` before anyone asks. `None` where it cannot be shared, or the mirror is not here.
///
/// # Errors
/// It cannot be made.
pub(super) async fn make_ahead(
    serving: &Arc<Serving>,
    mirror: &Mirror,
    request: Fetch,
) -> Result<Option<MadeAhead>, PackError> {
    let reading = mirror.read();
    let view = mirror.view();
    let Some(stored) = view.stored.clone() else { return Ok(None) };
    let Some(request) = request.normalised(&stored.refs) else { return Ok(None) };
    let format = stored.refs.format();
    let answer = request.key(&mirror.edition(), format, &stored.refs);
    let wanted = ObjectsWanted {
        serving: serving.clone(),
        client: None,
        taken: Taken::Clone,
        mirror: mirror.clone(),
        format,
        version: ProtocolVersion::V2,
        body: request.to_request(format).into(),
        fetch: Some(request.clone()),
        expect: Expect::Pack,
        reading,
    };
    if let Some((pack, bytes)) = wanted.compose_ahead(&request, &view).await? {
        return Ok(Some(MadeAhead { answer, pack: pack.unwrap_or(answer), bytes }));
    }
    let making = serving.packs.make_ahead(mirror.id(), answer, move |sink| wanted.fill(view, sink));
    let bytes = match making {
        Some(pack) => Some(pack.whole().await?),
        None => None,
    };
    Ok(Some(MadeAhead { answer, pack: answer, bytes }))
}

/// What a client that asks so is about. One that has nothing and wants no ref's object fills up a partial clone.
fn taken(mirror: &Mirror, wants: &[Oid], haves: bool) -> Taken {
    let stored = mirror.view().stored;
    let tip = |want: &Oid| stored.as_ref().is_none_or(|stored| stored.tips.contains(want));
    if !haves && wants.iter().any(tip) { Taken::Clone } else { Taken::Fetch }
}

/// A request for objects on its way to an answer.
#[derive(Clone)]
struct ObjectsWanted {
    serving: Arc<Serving>,
    /// Who asks; nobody yet where it is made ahead.
    client: Option<IpAddr>,
    taken: Taken,
    mirror: Mirror,
    format: ObjectFormat,
    version: ProtocolVersion,
    /// The request as understood; `None` before protocol v2.
    fetch: Option<Fetch>,
    expect: Expect,
    body: Bytes,
    /// Keeps the mirror's files, from before it is looked whether they are there.
    reading: Reading,
}

impl ObjectsWanted {
    async fn serve(self, wants: &[Oid]) -> Result<Response, Failure> {
        let view = self.mirror.view();
        let upstream = view.upstream.clone().filter(|upstream| upstream.can_forward());
        if let Some(upstream) = upstream.as_ref().filter(|_| view.stored.is_none()) {
            return self.pass_through(&view, upstream.clone()).await;
        }
        // It may have been restored since this request came.
        self.serving.may_show(&self.mirror, None).await?;
        let settings = self.mirror.settings();
        let upstream = upstream.filter(|_| !settings.suspend);
        let brought =
            timeout(settings.timeout, self.mirror.bring(wants)).await.map_err(|_| Failure::busy())?;
        match (brought, upstream) {
            (Ok(()), upstream) => {
                self.await_tags(&view).await;
                match (self.clone().serve_from_disk().await, upstream) {
                    (Err(error), Some(upstream)) if is_damage(&error) => {
                        tracing::warn!(repo = %self.mirror.id(), %error, "the upstream answers in the mirror's place");
                        self.pass_through(&view, upstream).await
                    }
                    (answered, _) => answered.map_err(Failure::from),
                }
            }
            // A full disk here, say: the upstream may have what this mirror cannot get. Else it says so itself.
            (Err(BringError::Fetch(_) | BringError::Missing(_)), Some(upstream)) => {
                self.pass_through(&view, upstream).await
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// A client that was shown a tag and asks for tags to be included never asks for them again: they must
    /// be on the disk first. Where they cannot be had, the rest is served all the same.
    async fn await_tags(&self, view: &View) {
        let Some((seen, _)) =
            view.seen.as_ref().filter(|_| self.fetch.as_ref().is_some_and(Fetch::includes_tags))
        else {
            return;
        };
        let stored = self.mirror.view().stored;
        if stored.as_ref().is_some_and(|stored| Arc::ptr_eq(&stored.refs, seen)) {
            return;
        }
        let lacks = |oid: &Oid| stored.as_ref().is_some_and(|stored| !stored.tips.contains(oid));
        let tags: Vec<Oid> = annotated(seen).map(|(tag, _)| tag).filter(lacks).collect();
        if !tags.is_empty() {
            let patience = self.mirror.settings().timeout;
            let _ = timeout(patience, self.mirror.settle(&tags, Instant::now())).await;
        }
    }

    async fn serve_from_disk(self) -> Result<Response, PackError> {
        for key in self.serving.passed.take(self.mirror.id()) {
            self.serving.packs.discard(self.mirror.id(), key);
        }
        let view = self.mirror.view();
        let refs =
            view.stored.as_ref().map_or_else(|| Arc::new(RefSet::empty(self.format)), |s| s.refs.clone());
        if self.fetch.as_ref().is_some_and(Fetch::is_shallow) {
            self.mirror.asked_shallow();
        }
        let Some(request) = self.fetch.clone().and_then(|fetch| fetch.normalised(&refs)) else {
            // Where refs point may matter.
            let refs = view.stored.as_ref().map_or("", |stored| &stored.digest);
            let key = self.raw_key("", refs);
            return self.spooled(key, || Keep::Nothing, move |own, sink| own.fill(view.clone(), sink)).await;
        };
        let key = request.key(&self.mirror.edition(), self.format, &refs);
        if let (Some(lately), Some(asked), Some(stored)) = (&self.serving.lately, &self.fetch, &view.stored) {
            lately.asked(&self.mirror, asked, &key, stored);
        }
        // What is there is served, however it came.
        if !self.serving.packs.holds(self.mirror.id(), key)
            && let Some(response) = self.composed(&request, &view).await?
        {
            return Ok(response);
        }
        let normal = Self { body: request.to_request(self.format).into(), ..self };
        let make = move |own: Self, sink| own.fill(view.clone(), sink);
        normal.spooled(key, packs::if_it_holds_a_pack, make).await
    }

    /// Names a request that has no normal form by its very bytes.
    fn raw_key(&self, way: &str, refs: impl AsRef<[u8]>) -> Key {
        let mut hash = Sha256::new();
        hash.update(format!("{way} {} {} ", self.mirror.edition(), self.version.env()));
        hash.update(refs);
        hash.update(&self.body);
        hash.finalize().into()
    }
}
