//! What the benchmarks need: the repository, agents with a bucket, and figures in their form.

use std::time::Duration;

use anyhow::Result;
use tarn_agent::store::{S3Options, SharedStore, StoreLocation, open};
use tarn_testkit::agent::Builder;
use tarn_testkit::s3::S3Server;

/// A line of 2 Gbit/s, in bytes per second.
pub(crate) const SHAPED: u64 = 250_000_000;
/// The length of a range of a raw download: as the agent's own.
pub(crate) const RANGE: u64 = 8 << 20;

/// An agent without children for so long has done all its upkeep: it begins that after 5 quiet seconds.
pub(crate) const CALM: Duration = Duration::from_secs(15);

/// An agent with an empty disk, and the bucket at `endpoint`.
pub(crate) fn builder(endpoint: &str) -> Builder {
    Builder::new(env!("CARGO_BIN_EXE_tarn-agent"))
        .without_manifests()
        .file_upstreams()
        .bucket("bench", endpoint)
        .env("NO_PROXY", "127.0.0.1")
}

/// The agents' store, with the agents' own client.
pub(crate) fn client(endpoint: &str) -> Result<SharedStore> {
    // The default chain reads the environment of this process; it is set by the Makefile.
    let location: StoreLocation = format!("s3://{}/bench", S3Server::BUCKET).parse()?;
    let options = S3Options {
        endpoint: Some(endpoint.to_owned()),
        region: Some(S3Server::REGION.to_owned()),
        path_style: true,
    };
    Ok(open(&location, options)?)
}

/// In MiB.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The one in the middle, in seconds.
pub(crate) fn median(times: &[Duration]) -> f64 {
    middle(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
}

/// The one in the middle.
pub(crate) fn middle(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Median and range, in seconds.
pub(crate) fn shown(times: &[Duration]) -> String {
    ratios(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
}

/// Median and range.
pub(crate) fn ratios(figures: &[f64]) -> String {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(0.0, f64::max);
    format!("{:.3} ({least:.3}-{most:.3})", middle(figures))
}
