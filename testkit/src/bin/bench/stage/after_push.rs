//! A first depth-1 clone of HEAD after a push: no cached answer helps, and what the agent holds ready for
//! shallow clones is older than the push.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::generate::{edits, linked_copy};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::load::{Ask, Check, Clones, Depth, clones};
use tarn_testkit::measure::{Server, Usage};

use crate::repository::Repository;
use crate::scenario::{Sample, Turn};
use crate::side::{Agent, Mirror, Side, SideName, Staleness, file_route};

/// Commits of one push.
const COMMITS: usize = 30;
/// The agent's own work is over when it has had no children for so long: it puts packs in order 5 s after the
/// last fetch, and makes a new seed before that.
const CALM: Duration = Duration::from_secs(7);
/// Beyond this, something is wrong with the agent's own work.
const LIMIT: Duration = Duration::from_secs(180);
/// One commit of HEAD's branch.
const FIRST: Ask = Ask { depth: Depth::One, check: Check::Shape, wants: None };

/// A repository that is pushed to, and both servers of it.
#[derive(Debug)]
pub(crate) struct AfterPush {
    upstream: Repo,
    baseline: Side,
    agent: Agent,
    url: String,
}

impl AfterPush {
    /// Copies the repository, serves it with git, mirrors it, and lets the agent see one shallow clone.
    pub(super) async fn set(agent: &Path, repository: &Repository, work: &Path) -> Result<Self> {
        let root = work.join("upstream");
        let dir = root.join("repo.git");
        linked_copy(&repository.dir, &dir)?;
        let upstream = Repo::open(Git::new()?.with_config("safe.directory", "*"), &dir);
        let baseline = Side::baseline("after-push-baseline", &root, work).await?;
        let url = tarn_testkit::git::file_url(&dir);
        let mirror = Mirror { name: "pushed", url, staleness: "0s" };
        let agent = Agent::start(agent, "after-push-tarn", &[mirror], work).await?;
        let url = file_route(&agent.git, &dir)?;
        clones(&url, 1, &FIRST).await?;
        // The same for git: its files are in memory then.
        clones(baseline.url(Staleness::None), 1, &FIRST).await?;
        Ok(Self { upstream, baseline, agent, url })
    }

    /// Pushes to the upstream, once the agent has nothing left to do for the state before.
    pub(super) async fn push(&self, turn: Turn) -> Result<()> {
        self.agent.server.calm(CALM, LIMIT).await?;
        let script = edits(&self.upstream, turn.number, COMMITS).await?;
        self.upstream.fast_import(script.as_bytes()).await.map(drop)
    }

    /// Makes the first clone after the push.
    pub(super) async fn measure(&self, name: SideName) -> Result<Sample> {
        let (server, url) = match name {
            SideName::Baseline => (&self.baseline.server, self.baseline.url(Staleness::None)),
            SideName::Tarn => (&self.agent.server, self.url.as_str()),
        };
        let pushed = self.upstream.git(&["rev-parse", "HEAD"]).await?;
        let (clones, usage) = server.measure_settling(Duration::ZERO, clones(url, 1, &FIRST)).await?;
        let (listed, fetched) = clones.each.first().context("no clone was made")?;
        ensure!(listed.set.head() == Some(&pushed), "the clone was shown an older HEAD than {pushed}");
        let objects = Some(fetched.received.objects);
        let afterwards = afterwards(server, name).await?;
        Ok(Sample { figures: figures(&clones, &usage, afterwards), objects })
    }
}

/// CPU that a server uses on its own account once its answer is complete.
async fn afterwards(server: &Server, name: SideName) -> Result<Duration> {
    match name {
        SideName::Baseline => Ok(Duration::ZERO),
        SideName::Tarn => Ok(server.measure(server.calm(CALM, LIMIT)).await?.1.cpu),
    }
}

/// In the order of the table's columns.
pub(super) fn figures(clones: &Clones, usage: &Usage, afterwards: Duration) -> Vec<f64> {
    vec![
        usage.cpu.as_secs_f64(),
        usage.own_cpu.as_secs_f64(),
        clones.wall.as_secs_f64(),
        clones.first_byte(50).as_secs_f64() * 1e3,
        afterwards.as_secs_f64(),
        usage.client_cpu.as_secs_f64(),
    ]
}
