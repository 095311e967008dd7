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
use jiff::Timestamp;
use tokio::time::{Sleep, sleep_until};

use super::{headers::Account, limits::UnderLimits, upload_pack::PackSeen};
use crate::{
    audit::{Audit, Entry},
    metrics::Lookup,
    popularity::day::Taken,
};

/// An entry of the audit log that is being made.
#[derive(Debug)]
struct Line {
    audit: Audit,
    entry: Entry,
    /// Where only a pack is content.
    pack: Option<PackSeen>,
}

impl Line {
    /// The entry of an answer that is content, or was handed on; refs, errors before that and webhooks have none.
    fn of(audit: Audit, account: Account, response: &Response, client: SocketAddr) -> Option<Self> {
        let (repo, caller) = account.of?;
        let extensions = response.extensions();
        let what = match (account.label, extensions.get::<Taken>()) {
            _ if account.what.is_some() => account.what?,
            ("fetch", Some(Taken::Clone)) => "clone",
            ("fetch", Some(_)) => "fetch",
            // The answer of another agent, which writes its own entry.
            ("fetch", None) => return None,
            (label @ ("snapshot" | "bundle" | "lfs-object" | "lfs-snapshot" | "push"), _) => label,
            _ => return None,
        };
        let entry = Entry {
            time: Timestamp::now(),
            caller,
            client: client.ip(),
            repo,
            what,
            wants: account.wants,
            status: response.status().as_u16(),
            bytes: 0,
            whole: false,
            cache: extensions.get::<Lookup>().map_or("", |lookup| lookup.result),
            seconds: 0.0,
        };
        Some(Self { audit, entry, pack: extensions.get::<PackSeen>().cloned() })
    }

    fn write(self, bytes: u64, whole: bool, began: Instant) {
        // A round of negotiation holds no pack.
        if self.pack.as_ref().is_none_or(PackSeen::get) {
            let seconds = began.elapsed().as_secs_f64();
            self.audit.write(Entry { bytes, whole, seconds, ..self.entry });
        }
    }
}

/// Holds `response` to the rate of its client, and the request under way until it is over.
pub(super) fn send(
    response: Response,
    limits: UnderLimits,
    audit: Audit,
    account: Account,
    client: SocketAddr,
    began: Instant,
) -> Response {
    let line = Line::of(audit, account, &response, client);
    let told =
        response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    response.map(|body| {
        let expected = told.or_else(|| body.size_hint().exact());
        Body::new(Sent { body, limits, wait: None, bytes: 0, expected, ended: false, began, line })
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
    began: Instant,
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
        if let Some(line) = self.line.take() {
            line.write(self.bytes, whole, self.began);
        }
    }
}
