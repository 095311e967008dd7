//! What checkpoints and snapshots may rely on, in a directory and in a real S3 server alike, and what is said
//! when a store fails.

mod conformance;
mod faults;

pub(crate) use faults::Careless;

use anyhow::Result;
use bytes::Bytes;
use futures_util::TryStreamExt;
use tarn_agent::store::{
    Body, StoreError,
    s3::{S3Config, S3Credentials, S3Store},
};
use tarn_testkit::s3::S3Server;

/// How a test reaches the bucket of `S3Server` at another endpoint: that of a proxy.
pub(crate) fn config(endpoint: &str) -> S3Config {
    S3Config {
        bucket: S3Server::BUCKET.into(),
        prefix: "some/prefix/".into(),
        endpoint: Some(endpoint.into()),
        region: Some(S3Server::REGION.into()),
        path_style: true,
        credentials: Some(S3Credentials::new(S3Server::ACCESS_KEY, S3Server::SECRET_KEY, None)),
        ca_bundle: None,
    }
}

pub(crate) fn store(endpoint: &str) -> Result<S3Store> {
    Ok(S3Store::new(config(endpoint))?)
}

/// A body to its end.
pub(crate) async fn whole(body: Body) -> Result<Vec<u8>, StoreError> {
    let chunks: Vec<Bytes> = body.try_collect().await?;
    Ok(chunks.concat())
}

/// Bytes that no two parts of a file share.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
