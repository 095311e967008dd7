//! `POST git-upload-pack`: refs from memory; objects from the pack cache, whose misses a child or, while
//! the mirror is not there yet, the upstream fills.

use std::{fs, io, net::IpAddr, sync::Arc};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http::{HeaderValue, Method, header, request::Parts};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{
    Serving, answer, body,
    error::Failure,
    info_refs::{fresh_refs, known_format},
    proxy::{Ask, Origin, is_cold},
    version,
};
use crate::{
    git::{
        ObjectFormat, Oid, RefSet, pack,
        stderr::FailureKind,
        upload_pack::{Job, ProtocolVersion, Tuning},
    },
    metrics::Lookup,
    mirror::{BringError, Mirror, View, demand::Reading},
    packs::{Keep, Shelf, Spool},
    popularity::day::Taken,
    protocol::{
        fetch::{Fetch, Key, annotated},
        pktline,
        request::{self, Request},
        sideband,
    },
    tail::{Blame, Tail, TailError},
    upstream::Looker,
};

const REQUEST: &str = "application/x-git-upload-pack-request";
const RESULT: &str = "application/x-git-upload-pack-result";

/// How a request for refs begins in protocol v2, after its length.
const LS_REFS: &[u8] = b"command=ls-refs";

/// Answers the request of `client`; `label` becomes its kind.
///
/// # Errors
/// The request makes no sense. What goes wrong later is answered with an `ERR` packet, which git shows.
pub async fn handle(
    serving: &Arc<Serving>,
    mirror: Mirror,
    client: IpAddr,
    parts: &Parts,
    body: Body,
    label: &mut &'static str,
) -> Result<Response, Failure> {
    let headers = &parts.headers;
    let version = version(headers);
    let bytes = body::read(parts, body, REQUEST).await?;
    if is_cold(&mirror) {
        *label = if bytes.windows(LS_REFS.len()).take(64).any(|part| part == LS_REFS) {
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
    let format = format(serving, &mirror).await?;
    let request =
        request::parse(&bytes, version, format).map_err(|error| Failure::bad_request("BadRequest", error))?;
    let wanted = |request| Wanted {
        serving: serving.clone(),
        client: Some(client),
        mirror: mirror.clone(),
        format,
        version,
        request,
        body: bytes.clone(),
        reading: mirror.read(),
    };
    match request {
        Request::Probe => Ok(answer(RESULT, None, Body::empty())),
        Request::LsRefs(request) => {
            *label = "ls-refs";
            Ok(match fresh_refs(serving, &mirror, &request.prefixes).await {
                Ok(refs) => match serving.rendered.ls_refs(request, &refs.refs).await {
                    Ok(list) => answer(RESULT, Some(refs.freshness), list.into()),
                    Err(failure) => failure.into_packet(),
                },
                Err(failure) => failure.into_packet(),
            })
        }
        Request::Fetch(request) => {
            *label = "fetch";
            let wants = request.wants.clone();
            let taken = taken(&mirror, &request);
            serving.count(&mirror, taken);
            let answered = wanted(Some(*request)).serve(&wants).await;
            let mut response = answered.unwrap_or_else(Failure::into_packet);
            response.extensions_mut().insert(taken);
            Ok(response)
        }
        Request::Negotiation { wants } => {
            *label = "fetch";
            Ok(wanted(None).serve(&wants).await.unwrap_or_else(Failure::into_packet))
        }
    }
}

/// Begins to make the answer to `request`, which nobody has asked yet. `None` where it cannot be shared, or the mirror is
/// not here; no [`Shelf`] if it is there, or being made.
///
/// # Errors
/// The disk.
pub(super) fn begin_ahead(
    serving: &Arc<Serving>,
    mirror: &Mirror,
    request: Fetch,
) -> io::Result<Option<(Key, Option<Shelf>)>> {
    let reading = mirror.read();
    let view = mirror.view();
    let Some(stored) = view.stored.clone() else { return Ok(None) };
    let Some(request) = request.normalised(&stored.refs) else { return Ok(None) };
    let format = stored.refs.format();
    let key = request.key(&mirror.id().to_string(), format, &stored.refs);
    let wanted = Wanted {
        serving: serving.clone(),
        client: None,
        mirror: mirror.clone(),
        format,
        version: ProtocolVersion::V2,
        body: request.to_request(format).into(),
        request: None,
        reading,
    };
    let make = |spool| wanted.make(request, view, spool);
    Ok(Some((key, serving.packs.make_ahead(key, make)?)))
}

/// What a client that asks so is about. One that has nothing and wants no ref's object fills up a partial clone.
fn taken(mirror: &Mirror, request: &Fetch) -> Taken {
    let stored = mirror.view().stored;
    let tip = |want: &Oid| stored.as_ref().is_none_or(|stored| stored.tips.contains(want));
    if request.haves.is_empty() && request.wants.iter().any(tip) { Taken::Clone } else { Taken::Fetch }
}

/// The repository's object format; a client that comes here has asked `info/refs` before, so it is known
/// but for a restart in between.
async fn format(serving: &Serving, mirror: &Mirror) -> Result<ObjectFormat, Failure> {
    match known_format(mirror) {
        Some(format) => Ok(format),
        None => Ok(fresh_refs(serving, mirror, &[]).await?.refs.format()),
    }
}

/// A request for objects on its way to an answer.
#[derive(Clone)]
struct Wanted {
    serving: Arc<Serving>,
    /// Who asks; nobody yet where it is made ahead.
    client: Option<IpAddr>,
    mirror: Mirror,
    format: ObjectFormat,
    version: ProtocolVersion,
    /// The request as understood; `None` before protocol v2.
    request: Option<Fetch>,
    body: Bytes,
    /// Keeps the mirror's files, from before it is looked whether they are there.
    reading: Reading,
}

impl Wanted {
    async fn serve(self, wants: &[Oid]) -> Result<Response, Failure> {
        let view = self.mirror.view();
        let upstream = view.upstream.clone().filter(|upstream| upstream.can_forward());
        if let Some(upstream) = upstream.as_ref().filter(|_| view.stored.is_none()) {
            return self.pass_through(&view, upstream.clone()).await;
        }
        let settings = self.mirror.settings();
        let brought =
            timeout(settings.timeout, self.mirror.bring(wants)).await.map_err(|_| Failure::busy())?;
        match (brought, upstream.filter(|_| !settings.suspend)) {
            (Ok(()), _) => {
                self.await_tags(&view).await;
                self.serve_from_disk().await
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
            view.seen.as_ref().filter(|_| self.request.as_ref().is_some_and(Fetch::includes_tags))
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
            let _ = timeout(patience, self.mirror.settle(&tags)).await;
        }
    }

    /// From the cache or, where the answer cannot be shared, from a child of its own.
    async fn serve_from_disk(self) -> Result<Response, Failure> {
        let view = self.mirror.view();
        let refs =
            view.stored.as_ref().map_or_else(|| Arc::new(RefSet::empty(self.format)), |s| s.refs.clone());
        let shallow = self.request.as_ref().is_some_and(Fetch::is_shallow);
        if shallow {
            self.mirror.asked_shallow();
        }
        let Some(request) = self.request.clone().and_then(|request| request.normalised(&refs)) else {
            return self.stream(Tuning::default()).await;
        };
        let key = request.key(&self.mirror.id().to_string(), self.format, &refs);
        if let (Some(lately), Some(asked), Some(stored)) = (&self.serving.lately, &self.request, &view.stored)
        {
            lately.asked(&self.mirror, asked, &key, stored);
        }
        if let Some(response) = self.whole(&request, &view).await {
            return Ok(response);
        }
        let normal = Self { body: request.to_request(self.format).into(), ..self.clone() };
        match self.shared(key, Keep::Packs, |spool| normal.make(request, view, spool)).await {
            Ok(response) => Ok(response),
            Err(TailError::Writer { reason, blame: Blame::Request }) => Err(Failure::git(reason)),
            // A full disk, or a maker that died: the client need not suffer for it.
            Err(error) => {
                tracing::warn!(%error, "an answer cannot be cached; it is streamed");
                self.stream(Tuning::default()).await
            }
        }
    }

    /// The mirror's pack as it is, where it is just what is asked for: after a restore all that is wanted is in one, and no
    /// child need count and hash it anew while a cold pod's first clients wait.
    async fn whole(&self, request: &Fetch, view: &View) -> Option<Response> {
        let stored = view.stored.as_ref()?;
        let pack = stored.pack.as_ref().filter(|_| request.wants_all())?;
        let all = request.wants.len() == stored.tips.len()
            && request.wants.iter().all(|want| stored.tips.contains(want));
        if !all {
            return None;
        }
        let count = || pack::is_exact(&self.serving.git, self.mirror.dir(), &pack.path, &request.wants);
        let exact = pack.exact.get_or_try_init(count).await;
        let exact = exact.inspect_err(|error| tracing::debug!(%error, "the restored pack cannot be counted"));
        if !exact.is_ok_and(|exact| *exact) {
            return None;
        }
        // It may have gone meanwhile, its objects into another.
        let file = fs::File::open(&pack.path).ok()?;
        let length = file.metadata().ok()?.len();
        self.serving.metrics.pack_lookups.get_or_create(&Lookup::PACK).inc();
        let reading = self.reading.clone();
        let framed = Tail::whole(file, length).read().map_ok(|chunk| sideband::data(&chunk));
        let end = stream::once(async { Ok(Bytes::from_static(pktline::FLUSH)) });
        let rest = framed.chain(end).inspect(move |_| {
            let _held = &reading;
        });
        let mut response = self.respond(Bytes::from_static(sideband::PACKFILE), rest);
        response.extensions_mut().insert(Lookup::PACK);
        Some(response)
    }

    /// Serves the cached answer `key`, which `make` fills if it is not there; an error if it ends before
    /// its first byte.
    async fn shared<F>(
        &self,
        key: Key,
        keep: Keep,
        make: impl FnOnce(Spool) -> F,
    ) -> Result<Response, TailError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let shelf = self
            .serving
            .packs
            .get_or_make(key, keep, make)
            .map_err(|error| TailError::Read(Arc::new(error)))?;
        let (length, lookup) = (shelf.length(), shelf.lookup());
        let mut chunks = Box::pin(shelf.read());
        let first = match chunks.next().await {
            Some(Ok(first)) => first,
            Some(Err(error)) => return Err(error),
            None => Bytes::new(),
        };
        let mut response = self.respond(first, chunks);
        response.extensions_mut().insert(lookup);
        if let Some(length) = length {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok(response)
    }

    /// Fills `spool` by a child.
    async fn make(self, request: Fetch, view: View, spool: Spool) {
        let Spool { file, writer, unwanted } = spool;
        let work = async {
            let busy = |_| ("too many requests wait".to_owned(), Blame::File);
            let _turn = self.serving.turn(self.client, self.mirror.id()).await.map_err(busy)?;
            let job = self.job(&request, &view).await;
            job.spool(&self.serving.git, file, |length| writer.grown(length)).await.map_err(|error| {
                tracing::warn!(%error, "upload-pack failed");
                (
                    error.to_string(),
                    if error.kind() == FailureKind::Disk { Blame::File } else { Blame::Request },
                )
            })
        };
        let done = tokio::select! {
            done = work => done,
            () = unwanted.cancelled() => Err(unwanted_any_more()),
        };
        match done {
            Ok(length) => writer.finish(length),
            Err((reason, blame)) => writer.fail(&reason, blame),
        }
    }

    async fn job(&self, request: &Fetch, view: &View) -> Job {
        let mirror = self.mirror.dir().to_owned();
        let (repository, tuning) = match (&view.seed, request.deepen) {
            (Some((seed, _)), Some(_)) => (seed.clone(), Tuning::Seeded),
            (None, Some(_)) => (mirror, Tuning::Unseeded),
            (_, None) if request.haves.is_empty() => (mirror, Tuning::Plain),
            (_, None) => {
                let near = pack::is_near(&self.serving.git, &mirror, &request.wants, &request.haves).await;
                (mirror, if near { Tuning::NearHaves } else { Tuning::Plain })
            }
        };
        Job {
            repository,
            version: self.version,
            request: self.body.clone(),
            tuning,
            idle: self.client.is_none(),
        }
    }

    /// Streams the answer of a child that serves this request only.
    async fn stream(self, tuning: Tuning) -> Result<Response, Failure> {
        self.serving.metrics.pack_lookups.get_or_create(&Lookup::BYPASS).inc();
        let turn = self.serving.turn(self.client, self.mirror.id()).await?;
        let reading = self.reading.clone();
        let (repository, request) = (self.mirror.dir().to_owned(), self.body.clone());
        let job = Job { repository, version: self.version, request, tuning, idle: false };
        let mut child = Box::pin(job.stream(&self.serving.git).map_err(|error| Failure::child(&error))?);
        // The first bytes decide between an answer and an error that git can show.
        let first = match child.next().await {
            Some(Ok(first)) => first,
            Some(Err(error)) => return Err(Failure::child(&error)),
            None => Bytes::new(),
        };
        let held = child.inspect(move |_| {
            let _held = (&turn, &reading);
        });
        let mut response = self.respond(first, held);
        response.extensions_mut().insert(Lookup::BYPASS);
        Ok(response)
    }

    /// From the upstream, while the mirror is being made. Requests that are the same share one answer.
    async fn pass_through(self, view: &View, upstream: Arc<Looker>) -> Result<Response, Failure> {
        let refs =
            view.seen.as_ref().map_or_else(|| Arc::new(RefSet::empty(self.format)), |(refs, _)| refs.clone());
        let normal = self.request.clone().and_then(|request| request.normalised(&refs));
        let (key, keep, body) = match normal {
            Some(request) => {
                let key = request.key(&self.mirror.id().to_string(), self.format, &refs);
                (key, Keep::Packs, request.to_request(self.format).into())
            }
            None => (self.raw_key(), Keep::Nothing, self.body.clone()),
        };
        let version = self.version;
        let make = move |spool: Spool| async move {
            let Spool { file, writer, unwanted } = spool;
            let done = tokio::select! {
                done = upstream.fetch(version, body, file, |length| writer.grown(length)) => done.map_err(|error| (error.to_string(), Blame::Request)),
                () = unwanted.cancelled() => Err(unwanted_any_more()),
            };
            match done {
                Ok(length) => writer.finish(length),
                Err((reason, blame)) => writer.fail(&reason, blame),
            }
        };
        tracing::debug!(repo = %self.mirror.id(), "passed through to the upstream");
        self.shared(key, keep, make).await.map_err(Failure::upstream)
    }

    /// Names a request that has no normal form by its very bytes.
    fn raw_key(&self) -> Key {
        let mut hash = Sha256::new();
        hash.update(format!("{} {} ", self.mirror.id(), self.version.env()));
        hash.update(&self.body);
        hash.finalize().into()
    }

    /// `first`, then `rest`; an error there breaks the connection, so that nobody takes what came before
    /// for the whole.
    fn respond<E>(
        &self,
        first: Bytes,
        rest: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Response
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let sent = self.serving.metrics.sent.clone();
        let all = stream::once(async { Ok(first) }).chain(rest).inspect(move |chunk| match chunk {
            Ok(chunk) => drop(sent.inc_by(u64::try_from(chunk.len()).unwrap_or(0))),
            Err(error) => tracing::warn!(%error, "an answer breaks off; the connection is cut"),
        });
        answer(RESULT, None, Body::from_stream(all))
    }
}

fn unwanted_any_more() -> (String, Blame) {
    ("nobody wants it any more".to_owned(), Blame::File)
}
