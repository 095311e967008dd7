//! Which objects are on the disk. Git answers, a child at a time for each mirror: questions that come while it runs
//! share the next one, which takes its turn in the queue.

use std::{collections::HashSet, mem, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use tarn_crds::repo::RepoId;
use tokio::sync::oneshot;

use super::Services;
use crate::{
    git::{Git, Oid, remote},
    queue::{Activity, Priority, Queue},
};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Presence(Arc<Inner>);

struct Inner {
    git: Git,
    id: RepoId,
    dir: PathBuf,
    queue: Queue,
    questions: Mutex<Questions>,
}

#[derive(Default)]
struct Questions {
    waiting: Vec<(Vec<Oid>, oneshot::Sender<HashSet<Oid>>)>,
    /// A task answers them, child by child.
    answering: bool,
}

impl Presence {
    pub(super) fn new(services: &Services, id: RepoId) -> Self {
        let (git, queue, dir) = (services.git.clone(), services.queue.clone(), services.disk.mirror(&id));
        Self(Arc::new(Inner { git, id, dir, queue, questions: Mutex::default() }))
    }

    /// Those of `oids` that the mirror lacks; all, where git cannot tell: at worst a needless fetch.
    pub(super) async fn missing(&self, oids: &[Oid]) -> HashSet<Oid> {
        if oids.is_empty() {
            return HashSet::new();
        }
        let (reply, answer) = oneshot::channel();
        let idle = {
            let mut questions = self.0.questions.lock();
            questions.waiting.push((oids.to_vec(), reply));
            !mem::replace(&mut questions.answering, true)
        };
        if idle {
            // A task of its own: whoever asked first may leave before the others have their answers.
            tokio::spawn(self.clone().answer());
        }
        answer.await.unwrap_or_else(|_| oids.iter().copied().collect())
    }

    async fn answer(self) {
        loop {
            let ticket = self.0.queue.acquire(Activity::Lookup, &self.0.id, Priority::Awaited).await;
            let asked = {
                let mut questions = self.0.questions.lock();
                questions.waiting.retain(|(_, reply)| !reply.is_closed());
                questions.answering = !questions.waiting.is_empty();
                mem::take(&mut questions.waiting)
            };
            if asked.is_empty() {
                return;
            }
            let all: HashSet<Oid> = asked.iter().flat_map(|(oids, _)| oids).copied().collect();
            let all: Vec<Oid> = all.into_iter().collect();
            let found = remote::missing(&self.0.git, &self.0.dir, &all).await;
            drop(ticket);
            let missing =
                found.inspect_err(|error| tracing::debug!(%error, "git cannot tell which objects are here"));
            for (oids, reply) in asked {
                let lacks = |oid: &Oid| missing.as_ref().map_or(true, |missing| missing.contains(oid));
                // Whoever has gone needs no answer.
                let _ = reply.send(oids.into_iter().filter(lacks).collect());
            }
        }
    }
}
