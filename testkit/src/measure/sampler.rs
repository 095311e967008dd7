//! Looks at the memory of a server's children from time to time, and keeps the peak.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::proc::{self, Share};

/// The shortest time between two looks.
const OFTEN: Duration = Duration::from_millis(100);
/// A look costs CPU on the machine under test: the time between two is at least so many times one look's.
const RARELY: u32 = 25;

/// What was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The largest sum over all children.
    pub(super) peak: Share,
    /// The most children at one time.
    pub(super) most: usize,
    /// CPU that looking cost.
    pub(super) cost: Duration,
}

/// A thread that looks until it is told to stop.
#[derive(Debug)]
pub(super) struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Seen>,
}

impl Sampler {
    /// Starts to look at the processes that `children` lists.
    pub(super) fn start(children: impl Fn() -> Vec<u32> + Send + 'static) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || look(&children, &stopped));
        Self { stop, thread }
    }

    /// Stops and tells what was seen.
    pub(super) fn stop(self) -> Seen {
        // A thread that is gone has dropped its end, and joining says why.
        let _ = self.stop.send(());
        self.thread.join().unwrap_or_default()
    }
}

fn look(children: &dyn Fn() -> Vec<u32>, stopped: &Receiver<()>) -> Seen {
    let mut seen = Seen::default();
    let mut pause = OFTEN;
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let start = Instant::now();
        let shares: Vec<Share> = children().into_iter().filter_map(proc::share).collect();
        let all = shares.iter().map(|share| share.all).sum();
        let anonymous = shares.iter().map(|share| share.anonymous).sum();
        seen.peak = Share { all: seen.peak.all.max(all), anonymous: seen.peak.anonymous.max(anonymous) };
        seen.most = seen.most.max(shares.len());
        pause = OFTEN.max(start.elapsed() * RARELY);
    }
    let cost = clock_gettime(ClockId::ThreadCPUTime);
    seen.cost = Duration::new(cost.tv_sec.unsigned_abs(), u32::try_from(cost.tv_nsec).unwrap_or_default());
    seen
}
