//! How often to ask again after a watch has failed, and what to say of the failure.

use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use kube::runtime::{
    WatchStreamExt,
    utils::Backoff,
    watcher::{Error, Event},
};

use crate::backoff::backoff;

/// The wait after a first failure: an API server that restarts is back within seconds.
const FIRST: Duration = Duration::from_millis(500);

/// The longest wait: how late changes may be seen once the API server is back.
const LAST: Duration = Duration::from_secs(10);

/// After this long without a failure, the next one is a first one.
const CALM: Duration = Duration::from_secs(60);

/// A watch that waits between its attempts.
pub(super) fn watched<K>(
    events: impl Stream<Item = Result<Event<K>, Error>> + Send,
) -> impl Stream<Item = Result<Event<K>, Error>> + Send
where
    K: Send,
{
    events.backoff(Waits::default()).fuse()
}

/// What failed, without what the server said: that may repeat anything.
pub(super) fn reason(error: &Error) -> &'static str {
    let inner = match error {
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => error,
        Error::WatchError(status) if status.code == 410 => return "the API server has forgotten older states",
        Error::WatchError(_) | Error::NoResourceVersion => return "the API server answers with an error",
    };
    match inner {
        kube::Error::Api(status) if status.code == 403 => "the API server does not allow it",
        kube::Error::Api(status) if status.code == 401 => {
            "the API server does not know the pod's service account"
        }
        kube::Error::Api(status) if status.code == 404 => "the API server does not know the kind",
        kube::Error::Api(_) => "the API server answers with an error",
        _ => "the API server cannot be reached",
    }
}

/// Waits that grow with each failure, shorter again after a calm while.
#[derive(Debug, Default)]
struct Waits {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.is_none_or(|last| last.elapsed() > CALM) {
            self.failures = 0;
        }
        self.last = Some(Instant::now());
        self.failures = self.failures.saturating_add(1);
        Some(backoff(FIRST, LAST, self.failures, rand::random()))
    }
}

impl Backoff for Waits {
    /// Does nothing: the watch calls it at every beginning of a list, which says nothing about success.
    fn reset(&mut self) {}
}
