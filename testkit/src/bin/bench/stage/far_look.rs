//! Lists of refs that may not be old, from an upstream a round trip of 20 ms away: every answer waits for a look
//! sent after its request, and the looks of 64 connections must be few.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tarn_testkit::load::{listings, percentile};
use tarn_testkit::proxy::{FaultProxy, Trouble};

use super::Shared;
use super::relay::Relay;
use crate::scenario::{Sample, Turn};
use crate::side::{Agent, Mirror, Side, SideName, Staleness};

/// How long a byte is under way in either direction: half of a round trip.
const ONE_WAY: Duration = Duration::from_millis(10);
/// Looks before those that count.
const WARM_UP: Duration = Duration::from_millis(200);
/// Connections to Tarn at once.
const CONNECTIONS: usize = 64;

/// An upstream far away, and an agent that mirrors it.
#[derive(Debug)]
pub(crate) struct FarLook {
    agent: Agent,
    url: String,
    prefixes: &'static [&'static str],
    relay: Relay,
    direct: String,
    _far: FaultProxy,
}

impl FarLook {
    /// Mirrors the shared baseline through a relay that counts looks, and then puts it far away.
    pub(super) async fn set(
        agent: &Path,
        baseline: &Side,
        prefixes: &'static [&'static str],
        name: &str,
        work: &Path,
    ) -> Result<Self> {
        let near = baseline.url(Staleness::None);
        let (authority, path) =
            near.trim_start_matches("http://").split_once('/').context("a URL with a path")?;
        let far = FaultProxy::start(authority.parse()?)?;
        let relay = Relay::start(far.address())?;
        let authority = relay.address();
        let direct = format!("http://{authority}/{path}");
        let mirror = Mirror { name: "far", url: direct.clone(), staleness: "0s" };
        let agent = Agent::start(agent, name, &[mirror], work).await?;
        agent.server.rest(crate::IDLE).await?;
        let url = format!("http://{}/git/{authority}/{path}", agent.git);
        far.set(Trouble { latency: ONE_WAY, ..Trouble::default() });
        Ok(Self { agent, url, prefixes, relay, direct, _far: far })
    }

    /// Lists refs for a while: alone and directly, or of Tarn over many connections.
    pub(super) async fn measure(&self, name: SideName, shared: &Shared, turn: Turn) -> Result<Sample> {
        let (server, url, connections, percent) = match name {
            SideName::Baseline => (&shared.baseline.server, &self.direct, 1, 50),
            SideName::Tarn => (&self.agent.server, &self.url, CONNECTIONS, 99),
        };
        let digest = shared.truth.digest(self.prefixes);
        // The upstream closes connections that nobody used for a while: the first look would count their opening.
        listings(url, 1, WARM_UP, self.prefixes, digest).await?;
        self.relay.begin();
        let work = listings(url, connections, turn.listing, self.prefixes, digest);
        let (answers, usage) = server.measure(work).await?;
        let looks = self.relay.looks();
        let (latencies, seconds) = (&answers.latencies, usage.wall.as_secs_f64());
        let count = latencies.len().max(1) as f64;
        let ms = |percent| percentile(latencies, percent).as_secs_f64() * 1e3;
        let figures = vec![
            ms(percent),
            ms(50),
            ms(99),
            count / seconds,
            looks.most as f64,
            looks.all as f64 / seconds,
            usage.cpu.as_secs_f64() * 1e3 / count,
            usage.client_cpu.as_secs_f64() * 1e3 / count,
        ];
        Ok(Sample { figures, objects: None })
    }
}
