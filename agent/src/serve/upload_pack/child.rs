//! An answer that a child makes: `git upload-pack`, writing straight into the spool.

use super::ObjectsWanted;
use crate::{
    git::{
        pack,
        upload_pack::{Job, Tuning},
    },
    mirror::View,
    packs::MakeError,
    popularity::day::Taken,
    protocol::fetch::Fetch,
    spool::Sink,
};

impl ObjectsWanted {
    /// Fills `sink` by a child.
    pub(super) async fn fill(self, view: View, sink: Sink<MakeError>) -> Result<u64, MakeError> {
        let (file, growth) = sink.for_child()?;
        let _turn = loop {
            growth.room().await?;
            // Only who begins with the pack can be told that it still comes.
            // What fills up a partial clone is small.
            let fills = |fetch: &Fetch| fetch.filter.is_some() && self.taken != Taken::Clone;
            let dear = self
                .fetch
                .as_ref()
                .is_some_and(|fetch| fetch.haves.is_empty() && fetch.begins_with_pack() && !fills(fetch));
            let turn = if dear {
                self.serving.dear_turn(self.client, &self.mirror).await
            } else {
                self.serving.turn(self.client, self.mirror.id()).await
            };
            let turn = turn.map_err(|_| MakeError::Busy)?;
            // Others may have filled the room while this one stood in line.
            if growth.has_room() {
                break turn;
            }
        };
        // The view holds the seed that the child may read.
        let job = self.job(&view).await;
        let spooled = job.spool(&self.serving.git, file, |length| growth.grown(length)).await;
        spooled.inspect(|length| self.mirror.made(*length)).map_err(|error| {
            tracing::warn!(repo = %self.mirror.id(), kind = ?error.kind(), %error, "upload-pack failed");
            self.mirror.doubt(&error.to_string());
            error.into()
        })
    }

    async fn job(&self, view: &View) -> Job {
        let mirror = self.mirror.dir().to_owned();
        let (repository, tuning) = match (&self.fetch, view.seeds.first()) {
            (None, _) => (mirror, Tuning::Plain),
            (Some(fetch), Some(seed)) if fetch.deepen.is_some() => (seed.dir.clone(), Tuning::Seeded),
            (Some(fetch), None) if fetch.deepen.is_some() => (mirror, Tuning::Unseeded),
            (Some(fetch), _) if fetch.haves.is_empty() => (mirror, Tuning::Plain),
            (Some(fetch), _) => {
                let near = pack::is_near(&self.serving.git, &mirror, &fetch.wants, &fetch.haves).await;
                (mirror, if near { Tuning::NearHaves } else { Tuning::Plain })
            }
        };
        let idle = self.client.is_none();
        Job { repository, version: self.version, request: self.body.clone(), tuning, idle }
    }
}
