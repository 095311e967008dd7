//! Request bodies: bounded in length, in memory and in time; plain or gzip'd.

use std::{
    io::{self, Cursor, Read},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use http::{header, request::Parts};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    error::Failure,
    limits::{BodyBudget, BodyRoom, UNCOUNTED},
};
use crate::files::blocking;

/// The longest request: 300,000 wants or haves of 50 bytes each. Git splits longer negotiations.
pub const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// How much of a body that is too long is read and thrown away, so that the client gets the answer: so many times its
/// limit.
const DISCARDED: usize = 4;

/// A body whose length is not announced, or that is unpacked, gets room for so many times as much, again and again.
const GROWTH: usize = 8;

/// How long a client may be silent in the middle of a body.
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes a second below which a client counts as silent.
const LEAST_RATE: u64 = 1 << 10;

/// Reads the whole body, which must be of the type `expected`. Its memory is counted for as long as it is there.
///
/// # Errors
/// Another type, a body longer than [`MAX_REQUEST`] before or after decompression, broken gzip, no room for it.
pub async fn read(parts: &Parts, body: Body, expected: &'static str) -> Result<Bytes, Failure> {
    let named = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let kind = named(header::CONTENT_TYPE).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some(expected) {
        return Err(Failure::media_type(expected));
    }
    // Said in advance: refused before it is sent.
    if announced(parts).is_some_and(|length| length > MAX_REQUEST) {
        return Err(Failure::too_large(MAX_REQUEST));
    }
    let whole = collect_into(parts, body, MAX_REQUEST).await?;
    match named(header::CONTENT_ENCODING).unwrap_or("identity") {
        "identity" => Ok(Bytes::from_owner(whole)),
        "gzip" | "x-gzip" => Ok(Bytes::from_owner(gunzip(whole).await?)),
        _ => Err(Failure::media_type(expected)),
    }
}

/// Reads the whole body, as it is. Its memory is counted for as long as it is there.
///
/// # Errors
/// It is longer than `limit`, or cut short, or there is no room for it.
pub(super) async fn collect(parts: &Parts, body: Body, limit: usize) -> Result<Bytes, Failure> {
    Ok(Bytes::from_owner(collect_into(parts, body, limit).await?))
}

/// A body in memory, with the room that it takes.
struct Whole {
    bytes: Vec<u8>,
    room: BodyRoom,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn announced(parts: &Parts) -> Option<usize> {
    parts.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn collect_into(parts: &Parts, mut body: Body, limit: usize) -> Result<Whole, Failure> {
    let budget =
        parts.extensions.get::<BodyBudget>().expect("a request gets its budget before it is dispatched");
    let (mut room, mut length) = (budget.open(), 0_usize);
    let announced = announced(parts).filter(|length| *length <= limit);
    let mut reserved = announced.unwrap_or(UNCOUNTED);
    room.reserve(reserved).await.map_err(Failure::no_room)?;
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default());
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|_| Failure::bad_request("BodyCutShort", "the body ended early, or came too slowly"))?;
        let Some(data) = frame.data_ref() else { continue };
        length = length.saturating_add(data.len());
        if length <= limit {
            while reserved < length {
                reserved = reserved.saturating_mul(GROWTH).min(limit);
                room.reserve(reserved).await.map_err(Failure::no_room)?;
                bytes.reserve_exact(reserved - bytes.len());
            }
            bytes.extend_from_slice(data);
        } else if length <= limit.saturating_mul(DISCARDED) {
            // A client that is still sending reads no answer: let it finish, within reason, and learn why.
            (bytes, room) = (Vec::new(), budget.open());
        } else {
            break;
        }
    }
    if length > limit {
        return Err(Failure::too_large(limit));
    }
    room.shrink(bytes.len());
    bytes.shrink_to_fit();
    Ok(Whole { bytes, room })
}

/// Unpacks a body: the beginning at once, what is longer off the runtime's threads.
async fn gunzip(packed: Whole) -> Result<Whole, Failure> {
    let Whole { bytes, mut room } = packed;
    let held = bytes.len();
    let (mut unpacking, mut limit) =
        (Unpacking { decoder: MultiGzDecoder::new(Cursor::new(bytes)), bytes: Vec::new() }, UNCOUNTED);
    let broken = |_| Failure::bad_request("BrokenGzip", "the body is not valid gzip");
    let mut whole = unpacking.advance(limit).map_err(broken)?;
    while !whole {
        if limit == MAX_REQUEST {
            return Err(Failure::too_large(MAX_REQUEST));
        }
        limit = limit.saturating_mul(GROWTH).min(MAX_REQUEST);
        room.reserve(held + limit).await.map_err(Failure::no_room)?;
        let work = move || unpacking.advance(limit).map(|whole| (unpacking, whole));
        (unpacking, whole) = blocking(work).await.map_err(broken)?;
    }
    let mut bytes = unpacking.bytes;
    bytes.shrink_to_fit();
    room.shrink(bytes.len());
    Ok(Whole { bytes, room })
}

struct Unpacking {
    decoder: MultiGzDecoder<Cursor<Vec<u8>>>,
    bytes: Vec<u8>,
}

impl Unpacking {
    /// Goes on up to `limit` bytes; says whether that was all.
    fn advance(&mut self, limit: usize) -> io::Result<bool> {
        let left = limit.saturating_sub(self.bytes.len());
        self.bytes.reserve_exact(left.saturating_add(1));
        // One more byte tells whether there is more; it is the next step's first.
        let one_more = u64::try_from(left).unwrap_or(u64::MAX).saturating_add(1);
        Read::by_ref(&mut self.decoder).take(one_more).read_to_end(&mut self.bytes)?;
        Ok(self.bytes.len() <= limit)
    }
}

/// The same body, which is an error to whoever reads it once it has come more slowly than it may for as long as it may: no
/// client holds a request open by a byte now and then. Time in which nobody reads does not count.
pub(super) fn paced(body: Body) -> Body {
    Body::new(Paced::new(body, SILENCE))
}

struct Paced {
    body: Body,
    silence: Duration,
    /// How long has been waited for bytes, less the time that those that came may have taken.
    behind: Duration,
    /// Since when bytes are waited for, and until when they may be.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Paced {
    fn new(body: Body, silence: Duration) -> Self {
        Self { body, silence, behind: Duration::ZERO, waiting: None }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the body comes too slowly")]
struct TooSlow;

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            let left = this.silence.saturating_sub(this.behind);
            let (_, end) = this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
            return end.as_mut().poll(context).map(|()| Some(Err(axum::Error::new(TooSlow))));
        };
        if let Some((since, _)) = this.waiting.take() {
            this.behind += since.elapsed();
        }
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let may_take = Duration::from_millis(bytes.saturating_mul(1000) / LEAST_RATE);
        this.behind = this.behind.saturating_sub(may_take);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// How many of these bytes are read, each of which comes after a pause.
    async fn read(pauses: &'static [(u64, usize)]) -> usize {
        let pieces = stream::unfold(pauses.iter().copied(), |mut pauses| async {
            let (pause, bytes) = pauses.next()?;
            sleep(Duration::from_millis(pause)).await;
            Some((Ok::<_, io::Error>(vec![0; bytes]), pauses))
        });
        let mut body = Paced::new(Body::from_stream(pieces), Duration::from_secs(1));
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
        read
    }

    #[tokio::test]
    async fn a_body_that_drips_is_ended_and_one_that_flows_is_not() {
        assert_eq!(read(&[(600, 1), (600, 1), (600, 1)]).await, 1, "a byte now and then");
        assert_eq!(read(&[(5000, 1)]).await, 0, "silence");
        assert_eq!(read(&[(600, 1024), (600, 1024), (600, 1024)]).await, 3072, "a link that is slow");
    }
}
