//! Many clients at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::{Ask, Client, Fetched, Listed, percentile};

/// What a crowd of clones saw.
#[derive(Debug)]
pub struct Clones {
    /// From the start of the first to the end of the last.
    pub wall: Duration,
    /// Each clone: the refs it was shown and the pack it got.
    pub each: Vec<(Listed, Fetched)>,
}

impl Clones {
    /// From the `fetch` request to the first byte of its pack, at this percentile.
    pub fn first_byte(&self, percent: u32) -> Duration {
        self.over(percent, |fetched| fetched.first_byte)
    }

    /// From the `fetch` request to its last byte, at this percentile.
    pub fn total(&self, percent: u32) -> Duration {
        self.over(percent, |fetched| fetched.total)
    }

    fn over(&self, percent: u32, of: impl Fn(&Fetched) -> Duration) -> Duration {
        let measured: Vec<_> = self.each.iter().map(|(_, fetched)| of(fetched)).collect();
        percentile(&measured, percent)
    }
}

/// What a crowd of listings saw.
#[derive(Debug)]
pub struct Answers {
    /// From the start to the last answer.
    pub wall: Duration,
    /// How long each answer took.
    pub latencies: Vec<Duration>,
}

/// Runs `count` identical clones, all started at once; every one must succeed.
pub async fn clones(url: &str, count: usize, ask: &Ask) -> Result<Clones> {
    let mut crowd = JoinSet::new();
    let start = Instant::now();
    for _ in 0..count {
        let mut client = Client::new(url)?;
        let ask = ask.clone();
        crowd.spawn(async move { client.clone(&ask).await });
    }
    let mut each = Vec::with_capacity(count);
    while let Some(done) = crowd.join_next().await {
        each.push(done.context("a clone ended by itself")??);
    }
    Ok(Clones { wall: start.elapsed(), each })
}

/// Lists refs over `connections` at once for a while, each asking again as soon as it has its answer; every
/// answer must be the same set of refs as `digest` names.
pub async fn listings(
    url: &str,
    connections: usize,
    time: Duration,
    prefixes: &'static [&'static str],
    digest: &str,
) -> Result<Answers> {
    let mut crowd = JoinSet::new();
    let start = Instant::now();
    for _ in 0..connections {
        let mut client = Client::new(url)?;
        let digest = digest.to_owned();
        crowd.spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let listed = client.ls_refs(prefixes).await?;
                ensure!(listed.set.digest == digest, "the refs changed under way");
                latencies.push(listed.latency);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = crowd.join_next().await {
        latencies.extend(done.context("a listing ended by itself")??);
    }
    Ok(Answers { wall: start.elapsed(), latencies })
}
