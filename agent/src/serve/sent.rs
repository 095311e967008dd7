//! An answer on its way out: held to its rate, counted, and written into the audit log once it is over.

use std::{
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use axum::{
    body::{Body, HttpBody},
    response::Response,
};
use bytes::Bytes;
use http::header;
use http_body::{Frame, SizeHint};
use tarn_crds::repo::RepoId;
use tokio::time::{Sleep, sleep_until};

use super::{limits::UnderLimits, upload_pack::PackSeen};
use crate::{access::caller::Caller, metrics::Lookup, popularity::day::Taken};

/// What a request turned out to be, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Its label in metrics.
    pub(super) label: &'static str,
    /// Whose it is, and of which repository.
    pub(super) of: Option<(RepoId, Caller)>,
}

/// A line of the audit log: who got what.
#[derive(Debug)]
struct Line {
    began: Instant,
    client: SocketAddr,
    repo: RepoId,
    caller: Caller,
    what: &'static str,
    cache: &'static str,
    status: u16,
    /// Where only a pack is content.
    pack: Option<PackSeen>,
}

impl Line {
    /// The line of an answer that is content; refs, errors and webhooks have none.
    fn of(account: Account, response: &Response, client: SocketAddr, began: Instant) -> Option<Self> {
        let (repo, caller) = account.of?;
        let extensions = response.extensions();
        let what = match (account.label, extensions.get::<Taken>()) {
            ("fetch", Some(Taken::Clone)) => "clone",
            ("fetch", Some(_)) => "fetch",
            // The answer of another agent, which writes its own line.
            ("fetch", None) => return None,
            (label @ ("snapshot" | "bundle" | "lfs-object" | "lfs-snapshot" | "push"), _) => label,
            _ => return None,
        };
        let cache = extensions.get::<Lookup>().map_or("", |lookup| lookup.result);
        let status = response.status().as_u16();
        let pack = extensions.get::<PackSeen>().cloned();
        Some(Self { began, client, repo, caller, what, cache, status, pack })
    }

    fn write(&self, bytes: u64, whole: bool) {
        tracing::info!(
            target: "tarn_agent::audit",
            caller = self.caller.name,
            by = self.caller.kind.as_str(),
            client = %self.client.ip(),
            repo = %self.repo,
            what = self.what,
            status = self.status,
            bytes,
            whole,
            cache = self.cache,
            seconds = self.began.elapsed().as_secs_f64(),
            "served"
        );
    }
}

/// Holds `response` to the rate of its client, and the request under way until it is over.
pub(super) fn send(
    response: Response,
    limits: UnderLimits,
    account: Account,
    client: SocketAddr,
    began: Instant,
) -> Response {
    let line = Line::of(account, &response, client, began);
    let told =
        response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    response.map(|body| {
        let expected = told.or_else(|| body.size_hint().exact());
        Body::new(Sent { body, limits, wait: None, bytes: 0, expected, ended: false, line })
    })
}

/// The body of an answer.
struct Sent {
    body: Body,
    limits: UnderLimits,
    /// Until the next bytes may go.
    wait: Option<Pin<Box<Sleep>>>,
    bytes: u64,
    /// Its length, where that is known.
    expected: Option<u64>,
    /// Whether its end has been seen.
    ended: bool,
    line: Option<Line>,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Some(wait) = &mut this.wait {
            ready!(wait.as_mut().poll(context));
            this.wait = None;
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let sent = frame.data_ref().map_or(0, Bytes::len);
                this.bytes += u64::try_from(sent).unwrap_or(0);
                this.wait = this
                    .limits
                    .send(sent, tokio::time::Instant::now())
                    .map(|until| Box::pin(sleep_until(until)));
            }
            Some(Err(_)) => {}
            None => this.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let whole = self.ended || self.body.is_end_stream() || self.expected == Some(self.bytes);
        // A round of negotiation holds none.
        let line = self.line.as_ref().filter(|line| line.pack.as_ref().is_none_or(PackSeen::get));
        if let Some(line) = line {
            line.write(self.bytes, whole);
        }
    }
}
