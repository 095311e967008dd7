//! The mirror's pack as it is, where it is just what is asked for: after a restore all that is wanted is in one, and no
//! child need count and hash it anew while a cold pod's first clients wait.

use std::{fs, sync::Arc};

use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::ObjectsWanted;
use crate::{
    files::blocking,
    git::pack,
    metrics::Lookup,
    mirror::View,
    packs::MakeError,
    protocol::{fetch::Fetch, pktline, sideband},
    spool::read_file,
};

impl ObjectsWanted {
    /// The restored pack, if that answers `request`.
    pub(super) async fn restored(&self, request: &Fetch, view: &View) -> Option<Response> {
        let stored = view.stored.as_ref()?;
        let pack = stored.pack.as_ref().filter(|_| request.wants_all())?;
        let all = request.wants.len() == stored.tips.len()
            && request.wants.iter().all(|want| stored.tips.contains(want));
        if !all {
            return None;
        }
        let count = || async {
            let turn = self.serving.turn(self.client, self.mirror.id()).await;
            let _turn = turn.map_err(|_| MakeError::Busy)?;
            let exact = pack::is_exact(&self.serving.git, self.mirror.dir(), &pack.path, &request.wants);
            Ok::<_, MakeError>(exact.await?)
        };
        let exact = pack.exact.get_or_try_init(count).await;
        let exact = exact.inspect_err(|error| tracing::debug!(%error, "the restored pack cannot be counted"));
        if !exact.is_ok_and(|exact| *exact) {
            return None;
        }
        let path = pack.path.clone();
        let opened = blocking(move || {
            let file = fs::File::open(path)?;
            Ok((file.metadata()?.len(), Arc::new(file)))
        });
        // It may have gone meanwhile, its objects into another.
        let (length, file) = opened.await.ok()?;
        self.mirror.made(length);
        self.serving.metrics.packs.lookups.get_or_create(&Lookup::PACK).inc();
        let reading = self.reading.clone();
        let framed = read_file(file, length).map_ok(|chunk| sideband::data(&chunk));
        let end = stream::once(async { Ok(Bytes::from_static(pktline::FLUSH)) });
        let rest = framed.chain(end).inspect(move |_| {
            let _held = &reading;
        });
        let mut response = self.respond(Bytes::from_static(sideband::PACKFILE), rest);
        response.extensions_mut().insert(Lookup::PACK);
        Some(response)
    }
}
