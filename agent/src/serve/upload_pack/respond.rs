//! From the spool to the client: the first byte decides between an answer and an error that git can show.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, header};
use tokio::time::sleep;

use super::{ObjectsWanted, RESULT};
use crate::{
    files,
    git::stderr::{Culprit, FailureKind},
    metrics::Lookup,
    packs::{self, MakeError, PackError},
    protocol::{fetch::Key, response::AnswerCheck},
    serve::{answer, error::Failure},
    spool::{Keep, Sink, SpoolError},
};

/// Attempts at an answer that this disk could not take or give back.
const ATTEMPTS: u32 = 3;

/// The wait between them, in which room is made.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// Set once a pack is on its way in the answer whose extensions it is in: a round of negotiation holds none.
#[derive(Clone, Debug, Default)]
pub(in crate::serve) struct PackSeen(Arc<AtomicBool>);

impl PackSeen {
    pub(in crate::serve) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ObjectsWanted {
    /// Serves the answer `key` from the spool, which `make` fills if it is not there; an error if it ends before its first
    /// byte.
    pub(super) async fn spooled<F>(
        &self,
        key: Key,
        keep: impl Fn() -> Keep + Send,
        make: impl Fn(Self, Sink<MakeError>) -> F + Clone + Send + 'static,
    ) -> Result<Response, PackError>
    where
        F: Future<Output = Result<u64, MakeError>> + Send + 'static,
    {
        let mut attempt = 1;
        loop {
            let (own, make) = (self.clone(), make.clone());
            let (packs, id) = (&self.serving.packs, self.mirror.id());
            let pack = packs.get_or_make(id, key, keep(), move |sink| make(own, sink)).await;
            let (length, lookup) = (pack.length(), pack.lookup());
            let mut chunks = Box::pin(pack.read());
            drop(pack);
            let first = match chunks.next().await {
                Some(Ok(first)) => first,
                // A full disk, or an answer that has become unreadable: the client need not suffer for it.
                Some(Err(error)) if is_disk(&error) && attempt < ATTEMPTS => {
                    tracing::warn!(%error, attempt, "an answer is made again");
                    attempt += 1;
                    if lookup != Lookup::HIT {
                        self.serving.packs.shrink(u64::MAX).await;
                        sleep(AGAIN).await;
                    }
                    continue;
                }
                Some(Err(error)) => return Err(error),
                None => Bytes::new(),
            };
            let mut response = self.respond(first, chunks);
            response.extensions_mut().insert(lookup);
            if let Some(length) = length {
                response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            return Ok(response);
        }
    }

    /// `first`, then `rest`; an error there breaks the connection, so that nobody takes what came before
    /// for the whole.
    pub(super) fn respond<E>(
        &self,
        first: Bytes,
        rest: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Response
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (serving, mirror, taken) = (self.serving.clone(), self.mirror.clone(), self.taken);
        let seen = PackSeen::default();
        let (shown, mut check) = (seen.clone(), AnswerCheck::new(self.version, self.format, self.expect));
        let all = stream::once(async { Ok(first) }).chain(rest).inspect(move |chunk| match chunk {
            Ok(chunk) => {
                serving.metrics.serve.sent.inc_by(u64::try_from(chunk.len()).unwrap_or(0));
                if !shown.get() {
                    check.see(chunk);
                    if check.holds_pack() {
                        shown.set();
                        serving.count(&mirror, taken);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "an answer breaks off; the connection is cut"),
        });
        let mut response = answer(RESULT, None, Body::from_stream(all));
        response.extensions_mut().insert(seen);
        response
    }
}

/// Whether the child found the repository damaged.
pub(super) fn is_damage(error: &PackError) -> bool {
    matches!(packs::maker(error), Some(MakeError::Git(error)) if error.culprit() == Culprit::Repository)
}

/// Whether this disk is at fault, and another attempt may go well.
fn is_disk(error: &PackError) -> bool {
    match error {
        SpoolError::Disk(_) | SpoolError::GivenUp => true,
        SpoolError::Maker(error) => match &**error {
            MakeError::Disk(_) => true,
            MakeError::Git(error) => error.kind() == FailureKind::Disk,
            MakeError::Busy | MakeError::NoRoom(_) | MakeError::Upstream(_) => false,
        },
        SpoolError::NoRoom(_) | SpoolError::TooSlow => false,
    }
}

/// Whether this disk takes no more.
pub(super) fn is_full(error: &PackError) -> bool {
    match error {
        SpoolError::Disk(error) => files::is_full(error),
        SpoolError::Maker(error) => match &**error {
            MakeError::Disk(error) => files::is_full(error),
            MakeError::Git(error) => error.kind() == FailureKind::Disk,
            MakeError::Busy | MakeError::NoRoom(_) | MakeError::Upstream(_) => false,
        },
        SpoolError::NoRoom(_) | SpoolError::TooSlow | SpoolError::GivenUp => false,
    }
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        match &error {
            SpoolError::Maker(error) => match &**error {
                MakeError::Busy | MakeError::NoRoom(_) => Self::busy(),
                MakeError::Git(_) if is_disk(&SpoolError::Maker(error.clone())) => Self::disk(error),
                MakeError::Git(_) => Self::git(error),
                MakeError::Upstream(_) => Self::upstream(error),
                MakeError::Disk(_) => Self::disk(error),
            },
            SpoolError::Disk(_) => Self::disk(error),
            SpoolError::NoRoom(_) | SpoolError::TooSlow | SpoolError::GivenUp => Self::busy(),
        }
    }
}
