//! Packs ahead of demand: when a mirror's refs move, what clients asked for lately is made for the new refs, so that the
//! first one after a push finds its pack as all others do (docs/decisions/0015).
//!
//! Requests say what is asked for ([`Lately`](super::lately::Lately)); a task follows each mirror that is asked for
//! something, and ends when it no longer is. One pack is made at a time in the whole agent, in its turn among clients,
//! within a share of one processor's time, and none is begun while the disk is nearly full. It is given up when the refs
//! move again before it is whole, unless a client follows it already.

mod credit;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tarn_crds::repo::RepoId;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Serving,
    lately::{New, Plan},
    upload_pack,
};
use crate::{
    metrics::{self, Metrics},
    mirror::Mirror,
    protocol::{fetch::Key, shape::Shape},
};
use credit::Credit;

/// A fetch that a client waits for moves refs, too: it goes first.
const YIELD: Duration = Duration::from_millis(100);

/// The largest part of the cache that one pack made ahead may take: this one of so many.
const LARGE: u64 = 4;

/// Makes packs for the mirrors that come out of `new`, in `percent` of one processor's time.
pub async fn run(serving: Arc<Serving>, mut new: mpsc::Receiver<New>, percent: u8) {
    // Held by whoever makes something.
    let credit = Arc::new(Mutex::new(Credit::new(f64::from(percent) / 100.0, Instant::now())));
    let mut following = JoinSet::new();
    loop {
        tokio::select! {
            new = new.recv() => match new {
                Some(new) => drop(following.spawn(follow(serving.clone(), credit.clone(), new))),
                None => return,
            },
            Some(_) = following.join_next() => {}
        }
    }
}

/// Makes what is asked for lately of one mirror, each time its refs are others.
async fn follow(serving: Arc<Serving>, credit: Arc<Mutex<Credit>>, new: New) {
    let New { id, mut changes, mut digest } = new;
    let Some(lately) = &serving.lately else { return };
    let discard = |key: &Key| serving.packs.discard_unused(&id, *key);
    let mut work: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    loop {
        let done = async {
            match &mut work {
                Some(work) => work.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = done => {
                work = None;
                continue;
            }
            there = changes.next() => if !there { break },
        }
        let Some(mirror) = serving.fleet.get(&id) else { break };
        let Some(stored) = mirror.view().stored else { break };
        if stored.digest == digest {
            continue;
        }
        digest.clone_from(&stored.digest);
        let (gone, plan) = lately.moved(&id, &stored);
        gone.iter().for_each(discard);
        let Some(plan) = plan else { return };
        // What is under way is dropped, and with it given up.
        work = Some(Box::pin(make_all(serving.clone(), credit.clone(), id.clone(), plan)));
    }
    lately.forget(&id).iter().for_each(discard);
}

async fn make_all(serving: Arc<Serving>, credit: Arc<Mutex<Credit>>, id: RepoId, plan: Plan) {
    let discard = |key: &Key| serving.packs.discard_unused(&id, *key);
    sleep(YIELD).await;
    for (at, (shape, old)) in plan.shapes.iter().enumerate() {
        let mut credit = credit.lock().await;
        let wait = credit.wait(Instant::now());
        if !wait.is_zero() {
            tracing::debug!(repo = %id, ?wait, "packs ahead have used their time up");
        }
        sleep(wait).await;
        if serving.fleet.room().is_tight() {
            tracing::debug!(repo = %id, "no packs ahead: the disk is nearly full");
            return plan.shapes.iter().skip(at).filter_map(|(_, old)| old.as_ref()).for_each(discard);
        }
        // Not held while waiting: a mirror goes only when nobody holds it.
        let Some(mirror) = serving.fleet.get(&id) else { return };
        let attempt =
            Attempt { credit: &mut credit, metrics: &serving.metrics, begun: Instant::now(), outcome: None };
        let new = make(&serving, &mirror, &plan, shape, attempt).await;
        // Where the refs that are asked for stayed, so does the pack.
        if new != *old {
            old.iter().for_each(discard);
        }
    }
}

/// Names the pack that is there afterwards.
async fn make(
    serving: &Arc<Serving>,
    mirror: &Mirror,
    plan: &Plan,
    shape: &Shape,
    mut attempt: Attempt<'_>,
) -> Option<Key> {
    // Its files stay while they are read.
    let _reading = mirror.read();
    let lately = serving.lately.as_ref()?;
    let request = shape.foresee(&plan.now)?;
    attempt.outcome = Some(metrics::Ahead::ABANDONED);
    // As long as a fetch may take: a child that hangs must not hold up all mirrors' packs.
    let making = upload_pack::make_ahead(serving, mirror, request);
    let made = timeout(mirror.settings().timeout, making).await;
    match made.map_err(|_| "it takes too long".to_owned()).and_then(|made| made.map_err(|e| e.to_string())) {
        Ok(made) => {
            attempt.outcome = None;
            let ahead = made?;
            if let Some(bytes) = ahead.bytes {
                attempt.outcome = Some(metrics::Ahead::MADE);
                let (millis, repo) = (attempt.begun.elapsed().as_millis(), mirror.id());
                tracing::debug!(%repo, ?shape, bytes, millis, "a pack is there ahead of who asks for it");
            }
            let large = ahead.bytes.is_some_and(|bytes| bytes > serving.packs.budget() / LARGE);
            lately.made(mirror.id(), shape, &ahead, large);
            Some(ahead.pack)
        }
        Err(error) => {
            tracing::debug!(repo = %mirror.id(), error, "a pack cannot be made ahead");
            attempt.outcome = Some(metrics::Ahead::FAILED);
            None
        }
    }
}

/// Time spent on one pack; charged and counted when it is over, however that comes.
struct Attempt<'a> {
    credit: &'a mut Credit,
    metrics: &'a Metrics,
    begun: Instant,
    /// `None` while there is nothing to count.
    outcome: Option<metrics::Ahead>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let spent = self.begun.elapsed();
        self.credit.charge(spent);
        self.metrics.packs.ahead_seconds.inc_by(spent.as_secs_f64());
        if let Some(outcome) = &self.outcome {
            self.metrics.packs.ahead.get_or_create(outcome).inc();
        }
    }
}
