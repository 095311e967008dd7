//! An answer on its way to a reader. It goes out in small pieces; a reader that does not take the next one in time is let go:
//! over HTTP/1.1 its connection, over HTTP/2 the one stream, whose other side may well answer every ping.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, sleep, sleep_until};

use super::connections::Busy;

/// The most that is handed over at once. It is also what a reader has to take within its time.
const PIECE: usize = 32 << 10;

tokio::task_local! {
    /// How far the answers that this task sends have come.
    pub(super) static PROGRESS: Arc<Progress>;
}

/// Since when a piece of an answer has been waiting to be taken.
#[derive(Debug, Default)]
pub(super) struct Progress {
    waiting: Mutex<Option<Instant>>,
}

impl Progress {
    fn set(&self, waiting: Option<Instant>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// Waits until nothing has been taken for as long as `patience`. Time in which there is nothing to take does not count.
    pub(super) async fn stalled(&self, patience: Duration) {
        loop {
            let waiting = *self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            match waiting.map(|since| since + patience) {
                Some(end) if end <= Instant::now() => return,
                Some(end) => sleep_until(end).await,
                None => sleep(patience).await,
            }
        }
    }
}

/// Runs the streams of an HTTP/2 connection, each for as long as its reader takes what there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    pub(super) patience: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (patience, progress) = (self.patience, Arc::new(Progress::default()));
        let own = progress.clone();
        let watched = async move {
            tokio::select! {
                () = stream => {}
                () = own.stalled(patience) => tracing::debug!("the reader of an HTTP/2 stream takes nothing"),
            }
        };
        tokio::spawn(PROGRESS.scope(progress, watched));
    }
}

/// An answer's body, in pieces.
pub(super) struct Pieces {
    body: Body,
    /// What of the last frame has not been handed over yet.
    rest: Bytes,
    progress: Option<Arc<Progress>>,
    _busy: Busy,
}

impl Pieces {
    /// `body` for a reader whose progress this task watches.
    pub(super) fn of(body: Body, busy: Busy) -> Body {
        let progress = PROGRESS.try_with(Arc::clone).ok();
        Body::new(Self { body, rest: Bytes::new(), progress, _busy: busy })
    }

    fn waiting(&self, since: Option<Instant>) {
        if let Some(progress) = &self.progress {
            progress.set(since);
        }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.waiting(None);
        let frame = if self.rest.is_empty() {
            ready!(Pin::new(&mut self.body).poll_frame(context))
        } else {
            Some(Ok(Frame::data(std::mem::take(&mut self.rest))))
        };
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        let frame = match frame.into_data() {
            Ok(mut data) => {
                self.rest = data.split_off(data.len().min(PIECE));
                Frame::data(data)
            }
            Err(other) => other,
        };
        self.waiting(Some(Instant::now()));
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let (body, mut hint) = (self.body.size_hint(), SizeHint::new());
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(body.lower().saturating_add(rest));
        hint
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.waiting(None);
    }
}
