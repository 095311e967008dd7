//! The snapshot's bytes: several ranges at a time over the network, one stream in order for the reader.
//!
//! The archive is cut in ranges of [`RANGE`] bytes; `jobs` of them are downloaded at once, in order, and at most
//! `jobs + AHEAD` are held, the one being read included. A range that breaks off goes on where it stopped, and only
//! as part of the same archive (`If-Match`). Dropping the reader ends the download, and the other way round.

mod body;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, IF_MATCH, RANGE as RANGE_HEADER};
use reqwest::{Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::http::{Http, HttpError, header, transport};
use crate::screen::Screen;
use body::Piece;
pub use body::{Body, Room};

/// Bytes of a range: large enough that a request costs nothing beside it, small enough to hold several.
const RANGE: u64 = 8 * 1024 * 1024;

/// Ranges held besides those being downloaded: whole, and waiting for the reader.
const AHEAD: usize = 2;

/// Failures in a row of one range, without [`PROGRESS`] between them, before the download fails.
const FAILURES: u32 = 6;

/// Attempts to reach a server at all; where it is down, the fallback should not wait long.
const OPENING: u32 = 3;

/// Bytes after which an attempt counts as progress.
const PROGRESS: u64 = 1024 * 1024;

/// The longest attempt at a range; with [`PROGRESS`] it bounds how slow a download may be.
const ATTEMPT: Duration = Duration::from_secs(600);

/// The longest silence within a body.
const SILENCE: Duration = Duration::from_secs(20);

/// The wait after a body that ended early.
const BREATH: Duration = Duration::from_millis(200);

/// How long a snapshot that is being made is waited for.
const MAKING: Duration = Duration::from_secs(60);

const DOING: &str = "snapshot";
const COMMIT: HeaderName = HeaderName::from_static("x-cachew-snapshot-commit");

/// Why there are no bytes.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// A request failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The body ended early, or came so slowly that waiting for the rest is in vain.
    #[error("snapshot: a body that broke off")]
    BrokeOff,
    /// The server has another archive now.
    #[error("the snapshot was replaced during the download")]
    Replaced,
    /// The reader went away: it has its own reason.
    #[error("nobody reads the snapshot any more")]
    Abandoned,
}

fn wrong(what: &'static str) -> DownloadError {
    HttpError::Answer { doing: DOING, what }.into()
}

/// A snapshot whose first bytes are on their way.
#[derive(Debug)]
pub struct Snapshot {
    url: String,
    /// The archive's size.
    pub total: u64,
    /// The commit that HEAD stands for in the archive, as the server says.
    pub commit: Option<String>,
    etag: Option<String>,
    first: Response,
    /// Whether the first answer is the whole archive: the server knows no ranges.
    whole: bool,
}

impl Snapshot {
    /// Asks for the first range. Waits up to [`MAKING`] for a snapshot that is being made.
    ///
    /// # Errors
    /// There is none; or the server does not answer as it should.
    pub async fn open(http: &Http, url: String) -> Result<Self, DownloadError> {
        let deadline = Instant::now() + MAKING;
        let mut failures = 0;
        let first = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = http.send(DOING, |client| {
                let waiting = client.get(format!("{url}?wait={}s", left.as_secs()));
                waiting.header(RANGE_HEADER, format!("bytes=0-{}", RANGE - 1))
            });
            let error = match asked.await {
                Ok(answer) => break answer,
                Err(error) => error,
            };
            failures += 1;
            let making = error.status() == Some(StatusCode::SERVICE_UNAVAILABLE);
            let wait = error.wait(failures);
            let patient = if making { Instant::now() + wait < deadline } else { failures < OPENING };
            if !error.is_passing() || !patient {
                return Err(error.into());
            }
            tokio::time::sleep(wait).await;
        };
        let headers = first.headers();
        let strong = header(headers, &ETAG).filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
        let commit = header(headers, &COMMIT).map(str::to_owned);
        let whole = first.status() != StatusCode::PARTIAL_CONTENT;
        let total = if whole {
            let length = header(headers, &CONTENT_LENGTH).and_then(|text| text.parse().ok());
            length.ok_or(wrong("an answer without its length"))?
        } else {
            let (range, total) = content_range(&first)?;
            if range != (0..RANGE.min(total)) {
                return Err(wrong("another range than asked for"));
            }
            total
        };
        if !whole && strong.is_none() {
            return Err(wrong("ranges without a strong ETag"));
        }
        Ok(Self { url, total, commit, etag: strong, first, whole })
    }

    /// Starts the download: a future that does it, and what reads its bytes in order.
    pub fn start<'a>(
        self,
        http: &'a Http,
        jobs: usize,
        screen: &'a Screen,
    ) -> (impl Future<Output = Result<(), DownloadError>> + 'a, Body) {
        let size = if self.whole { self.total.max(1) } else { RANGE };
        let (pieces, body) = body::channel(jobs + AHEAD, self.total);
        let slots = Arc::new(Semaphore::new(jobs + AHEAD));
        let total = self.total;
        let asking = Arc::new(Asking { url: self.url, etag: self.etag, total, http, screen });
        let mut first = Some(self.first);
        let ranges = (0..total.div_ceil(size)).map(move |n| n * size..total.min((n + 1) * size));
        let work = stream::iter(ranges)
            .then(move |range| {
                let (slots, pieces) = (Arc::clone(&slots), pieces.clone());
                async move {
                    let slot = slots.acquire_owned().await.map_err(|_| DownloadError::Abandoned)?;
                    let (piece, chunks) = Piece::new(slot, range.end - range.start, RANGE);
                    pieces.send(piece).await.map_err(|_| DownloadError::Abandoned)?;
                    Ok((range, chunks))
                }
            })
            .map_ok(move |(range, chunks)| {
                let (asking, first) = (Arc::clone(&asking), first.take());
                async move { asking.download(range, first, &chunks).await }
            })
            .try_buffer_unordered(jobs)
            .try_for_each(|()| std::future::ready(Ok(())));
        (work, body)
    }
}

/// What all ranges of one download share.
struct Asking<'a> {
    url: String,
    etag: Option<String>,
    total: u64,
    http: &'a Http,
    screen: &'a Screen,
}

impl Asking<'_> {
    /// Downloads one range, going on where an attempt stopped.
    async fn download(
        &self,
        range: Range<u64>,
        mut first: Option<Response>,
        chunks: &Room,
    ) -> Result<(), DownloadError> {
        let (mut at, mut failures, mut counted) = (range.start, 0, range.start);
        loop {
            let attempt = self.attempt(&mut at, range.end, first.take(), chunks);
            let error = match tokio::time::timeout(ATTEMPT, attempt).await {
                Ok(Ok(())) if at == range.end => return Ok(()),
                Ok(Ok(())) | Err(_) => DownloadError::BrokeOff,
                Ok(Err(error)) => error,
            };
            let passing = match &error {
                DownloadError::Http(error) => error.is_passing(),
                DownloadError::BrokeOff => true,
                DownloadError::Replaced | DownloadError::Abandoned => false,
            };
            if at - counted >= PROGRESS {
                (counted, failures) = (at, 0);
            }
            failures += 1;
            // Without an ETag nobody can say that the rest belongs to the same archive.
            if !passing || failures > FAILURES || self.etag.is_none() {
                return Err(error);
            }
            let wait = match &error {
                DownloadError::Http(error) => error.wait(failures),
                _ => BREATH,
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks for what is missing of a range and passes it on as it comes.
    async fn attempt(
        &self,
        at: &mut u64,
        end: u64,
        first: Option<Response>,
        chunks: &Room,
    ) -> Result<(), DownloadError> {
        let answer = match first {
            Some(answer) => answer,
            None => self.ask(*at..end).await?,
        };
        let mut body = answer.bytes_stream();
        while *at < end {
            // Silence within a body is a connection that nobody closed: asking again is quicker than waiting.
            let Ok(next) = tokio::time::timeout(SILENCE, body.next()).await else {
                return Err(DownloadError::BrokeOff);
            };
            let Some(chunk) = next else { return Ok(()) };
            let chunk: Bytes = chunk.map_err(|source| transport(DOING, source))?;
            let size = chunk.len() as u64;
            if size > end - *at {
                return Err(wrong("a body longer than it said"));
            }
            chunks.send(chunk).await.map_err(|_| DownloadError::Abandoned)?;
            self.screen.received(size);
            *at += size;
        }
        Ok(())
    }

    async fn ask(&self, range: Range<u64>) -> Result<Response, DownloadError> {
        let asked = self.http.send(DOING, |client| {
            let request = client.get(&self.url);
            let request = request.header(RANGE_HEADER, format!("bytes={}-{}", range.start, range.end - 1));
            match &self.etag {
                Some(etag) => request.header(IF_MATCH, etag),
                None => request,
            }
        });
        let answer = match asked.await {
            Ok(answer) => answer,
            Err(error) if error.status() == Some(StatusCode::PRECONDITION_FAILED) => {
                return Err(DownloadError::Replaced);
            }
            Err(error) => return Err(error.into()),
        };
        if header(answer.headers(), &ETAG) != self.etag.as_deref() {
            return Err(DownloadError::Replaced);
        }
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(wrong("the whole instead of a range"));
        }
        let (got, total) = content_range(&answer)?;
        if got != range || total != self.total {
            return Err(wrong("another range than asked for"));
        }
        Ok(answer)
    }
}

/// Reads `Content-Range: bytes a-b/total`.
fn content_range(answer: &Response) -> Result<(Range<u64>, u64), DownloadError> {
    let text = header(answer.headers(), &CONTENT_RANGE);
    text.and_then(parse_range).ok_or(wrong("a part without a range"))
}

fn parse_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
    let total: u64 = total.parse().ok()?;
    (start <= last && last < total).then(|| (start..last + 1, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_lies_within_its_total() {
        assert_eq!(parse_range("bytes 0-9/20"), Some((0..10, 20)));
        for wrong in ["0-9/20", "bytes 9-0/20", "bytes 0-20/20", "bytes */20", "bytes 0-9/*", "bytes 0-9"] {
            assert_eq!(parse_range(wrong), None, "{wrong}");
        }
    }
}
