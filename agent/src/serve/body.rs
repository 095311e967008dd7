//! Request bodies: bounded, plain or gzip'd.

use std::io::Read;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, header};
use http_body_util::BodyExt;

use super::error::Failure;

/// The longest request: 300,000 wants or haves of 50 bytes each. Git splits longer negotiations.
pub const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// How much of a body that is too long is read and thrown away, so that the client gets the answer: so many times its
/// limit.
const DISCARDED: usize = 4;

/// Reads the whole body, which must be of the type `expected`.
///
/// # Errors
/// Another type, a body longer than [`MAX_REQUEST`] before or after decompression, broken gzip.
pub async fn read(headers: &HeaderMap, body: Body, expected: &'static str) -> Result<Bytes, Failure> {
    let named = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = named(header::CONTENT_TYPE).unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some(expected) {
        return Err(Failure::media_type(expected));
    }
    // Said in advance: refused before it is sent.
    let announced = named(header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_REQUEST) {
        return Err(Failure::too_large(MAX_REQUEST));
    }
    let bytes = collect(body, MAX_REQUEST).await?;
    match named(header::CONTENT_ENCODING).unwrap_or("identity") {
        "identity" => Ok(bytes),
        "gzip" | "x-gzip" => gunzip(&bytes),
        _ => Err(Failure::media_type(expected)),
    }
}

/// Reads the whole body, as it is.
///
/// # Errors
/// It is longer than `limit`, or cut short.
pub(super) async fn collect(mut body: Body, limit: usize) -> Result<Bytes, Failure> {
    let (mut bytes, mut length) = (BytesMut::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::bad_request("BodyCutShort", "the body ended early"))?;
        let Some(data) = frame.data_ref() else { continue };
        length = length.saturating_add(data.len());
        if length <= limit {
            bytes.extend_from_slice(data);
        } else if length <= limit.saturating_mul(DISCARDED) {
            // A client that is still sending reads no answer: let it finish, within reason, and learn why.
            bytes.clear();
        } else {
            break;
        }
    }
    if length > limit { Err(Failure::too_large(limit)) } else { Ok(bytes.freeze()) }
}

fn gunzip(bytes: &[u8]) -> Result<Bytes, Failure> {
    let mut out = Vec::new();
    let limit = u64::try_from(MAX_REQUEST).unwrap_or(u64::MAX);
    MultiGzDecoder::new(bytes)
        .take(limit + 1)
        .read_to_end(&mut out)
        .map_err(|_| Failure::bad_request("BrokenGzip", "the body is not valid gzip"))?;
    if out.len() > MAX_REQUEST { Err(Failure::too_large(MAX_REQUEST)) } else { Ok(out.into()) }
}
