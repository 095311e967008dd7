//! Content of a known length and name, whole or in parts: what preconditions and ranges make of it.

use std::ops::Range;

use axum::{
    BoxError,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, StatusCode, header, request::Parts};
use jiff::Timestamp;

use super::conditional::{Selection, Validators, date, select};

/// What identifies the content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<'a> {
    /// What it is, for people.
    pub(super) what: &'static str,
    /// Its media type.
    pub(super) kind: &'static str,
    /// Its strong entity tag, without quotes.
    pub(super) tag: &'a str,
    /// When it was made.
    pub(super) modified: Timestamp,
    /// Its length.
    pub(super) bytes: u64,
}

/// The bytes of a part. An error cuts the connection, so that nobody takes what came before for the whole.
pub(super) type Chunks<E> = stream::BoxStream<'static, Result<Bytes, E>>;

/// The answer to a request; `read` gives the bytes of a part.
pub(super) fn respond<E: Into<BoxError> + 'static>(
    request: &Parts,
    content: Content<'_>,
    read: impl Fn(Range<u64>) -> Chunks<E>,
) -> Response {
    let Content { what, kind, tag, modified, bytes: length } = content;
    let etag = format!("\"{tag}\"");
    let validators = Validators { etag: &etag, modified };
    let mut response = match select(&request.method, &request.headers, validators, length) {
        Selection::NotModified => StatusCode::NOT_MODIFIED.into_response(),
        Selection::PreconditionFailed => {
            let text = format!("PreconditionFailed: the {what} is now {etag}\n");
            (StatusCode::PRECONDITION_FAILED, text).into_response()
        }
        Selection::Unsatisfiable => {
            let text = format!("RangeNotSatisfiable: the {what} has {length} bytes\n");
            let range = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            (StatusCode::RANGE_NOT_SATISFIABLE, range, text).into_response()
        }
        Selection::Whole => {
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
                (header::CONTENT_LENGTH, length.into()),
            ];
            (StatusCode::OK, headers, Body::from_stream(read(0..length))).into_response()
        }
        Selection::Parts(parts) => partial(&parts, content, read),
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, header_value(&etag));
    headers.insert(header::LAST_MODIFIED, header_value(&date(modified)));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A 206: one part as it is, several as `multipart/byteranges` (RFC 9110, 14.6).
fn partial<E: Into<BoxError> + 'static>(
    parts: &[Range<u64>],
    content: Content<'_>,
    read: impl Fn(Range<u64>) -> Chunks<E>,
) -> Response {
    let Content { kind, bytes: length, .. } = content;
    let named = |part: &Range<u64>| format!("bytes {}-{}/{length}", part.start, part.end.saturating_sub(1));
    if let [part] = parts {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
            (header::CONTENT_LENGTH, (part.end - part.start).into()),
            (header::CONTENT_RANGE, header_value(&named(part))),
        ];
        return (StatusCode::PARTIAL_CONTENT, headers, Body::from_stream(read(part.clone()))).into_response();
    }
    let boundary = format!("{:032x}", rand::random::<u128>());
    let text = |text: String| stream::once(async { Ok(Bytes::from(text)) }).boxed();
    let (mut total, mut body) = (0, Vec::new());
    for part in parts {
        let range = named(part);
        let head = format!("\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: {range}\r\n\r\n");
        total += head.len() as u64 + (part.end - part.start);
        body.extend([text(head), read(part.clone())]);
    }
    let end = format!("\r\n--{boundary}--\r\n");
    total += end.len() as u64;
    body.push(text(end));
    let headers = [
        (header::CONTENT_TYPE, header_value(&format!("multipart/byteranges; boundary={boundary}"))),
        (header::CONTENT_LENGTH, total.into()),
    ];
    let body = Body::from_stream(stream::iter(body).flatten());
    (StatusCode::PARTIAL_CONTENT, headers, body).into_response()
}

pub(super) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
