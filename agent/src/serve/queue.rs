//! A bounded number of children, handed out fairly.
//!
//! Those who wait stand in one line per client and mirror; a free place goes to the lines in turn. So a
//! client that asks a hundred times delays others no more than one that asks once.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

/// Those who may wait in all; more are turned away.
const MAX_WAITING: usize = 4096;

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Mutex<Lines>>,
}

struct Lines {
    free: usize,
    waiting: usize,
    /// The next place goes to the first line; each line has someone in it.
    lines: VecDeque<(String, VecDeque<oneshot::Sender<Place>>)>,
}

/// The right to run one child. Dropping it hands the place on.
pub struct Place {
    queue: Queue,
}

impl Queue {
    /// A queue for `places` children.
    pub fn new(places: usize) -> Self {
        Self { shared: Arc::new(Mutex::new(Lines { free: places, waiting: 0, lines: VecDeque::new() })) }
    }

    /// Waits for a place in the line called `line`; `None` when too many wait. A dropped future gives up
    /// its turn.
    pub async fn place(&self, line: &str) -> Option<Place> {
        let turn = {
            let mut lines = self.lock();
            if lines.free > 0 {
                lines.free -= 1;
                return Some(Place { queue: self.clone() });
            }
            if lines.waiting >= MAX_WAITING {
                return None;
            }
            lines.waiting += 1;
            let (sender, turn) = oneshot::channel();
            match lines.lines.iter_mut().find(|(name, _)| name == line) {
                Some((_, waiting)) => waiting.push_back(sender),
                None => lines.lines.push_back((line.to_owned(), VecDeque::from([sender]))),
            }
            turn
        };
        turn.await.ok()
    }

    fn release(&self) {
        loop {
            let next = {
                let mut lines = self.lock();
                let Some((name, mut waiting)) = lines.lines.pop_front() else {
                    lines.free += 1;
                    return;
                };
                lines.waiting -= 1;
                let next = waiting.pop_front();
                if !waiting.is_empty() {
                    lines.lines.push_back((name, waiting));
                }
                next
            };
            // Outside the lock: a place that nobody takes comes back through its own drop.
            let Some(next) = next.filter(|next| !next.is_closed()) else { continue };
            let _ = next.send(Place { queue: self.clone() });
            return;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.release();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    #[tokio::test]
    async fn lines_take_turns() {
        let queue = Queue::new(1);
        let first = queue.place("greedy").await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let names = ["greedy", "greedy", "greedy", "modest"];
        let mut waiting: Vec<_> = names
            .map(|name| {
                let (queue, order) = (queue.clone(), order.clone());
                Box::pin(async move {
                    let _place = queue.place(name).await.unwrap();
                    order.lock().unwrap().push(name);
                })
            })
            .into();
        for place in &mut waiting {
            assert!(place.now_or_never().is_none());
        }
        drop(first);
        join_all(waiting).await;
        assert_eq!(*order.lock().unwrap(), ["greedy", "modest", "greedy", "greedy"]);
    }

    #[tokio::test]
    async fn those_who_leave_the_line_lose_no_place() {
        let queue = Queue::new(1);
        let first = queue.place("a").await.unwrap();
        let mut gone = Box::pin(queue.place("b"));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        drop(first);
        assert!(queue.place("c").now_or_never().flatten().is_some());
    }
}
