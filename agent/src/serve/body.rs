//! Request bodies: bounded, plain or gzip'd.

use std::io::Read;

use axum::body::Body;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::Failure;

/// The longest request: 300,000 wants or haves of 50 bytes each. Git splits longer negotiations.
pub const MAX_REQUEST: usize = 16 * 1024 * 1024;

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
    let collected = Limited::new(body, MAX_REQUEST).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            Failure::too_large(MAX_REQUEST)
        } else {
            Failure::bad_request("BodyCutShort", "the body ended early")
        }
    })?;
    let bytes = collected.to_bytes();
    match named(header::CONTENT_ENCODING).unwrap_or("identity") {
        "identity" => Ok(bytes),
        "gzip" | "x-gzip" => gunzip(&bytes),
        _ => Err(Failure::media_type(expected)),
    }
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
