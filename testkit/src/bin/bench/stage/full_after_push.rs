//! The first full clone after a push, once the agent has fetched the push and done what it does on its own account: with
//! packs made ahead of demand, and without. What the clone leaves on the disk is counted as well.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::generate::{edits, linked_copy};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::load::{Ask, CLONE_PREFIXES, Check, Client, Clones, Depth, clones};
use tarn_testkit::measure::Usage;

use super::disk_use::{DiskUse, held};
use crate::repository::Repository;
use crate::scenario::{Ahead, Sample, Turn, mebibytes};
use crate::side::{Agent, Mirror, Side, SideName, Staleness, file_route};

/// Commits of one push.
const COMMITS: usize = 30;
/// The agent puts packs in order 5 s after the last fetch; it is at rest when it had no children for longer.
const CALM: Duration = Duration::from_secs(7);
/// Beyond this, something is wrong with the agent's own work.
const LIMIT: Duration = Duration::from_secs(300);
/// A clone of all branches and tags.
const FULL: Ask = Ask { depth: Depth::Full, check: Check::Trailer, wants: None };

/// A repository that is pushed to, and both servers of it.
#[derive(Debug)]
pub(crate) struct FullAfterPush {
    git: Git,
    upstream: Repo,
    baseline: Side,
    agent: Agent,
    url: String,
    pushed: Mutex<Pushed>,
}

/// What a push was, and what it made the agent do.
#[derive(Debug, Clone, Default)]
struct Pushed {
    head: String,
    /// Bytes of a thin pack of it.
    thin: u64,
    /// CPU of the agent from the push until it was at rest.
    cpu: Duration,
    /// Bytes by which what the agent holds has grown.
    ready: u64,
}

impl FullAfterPush {
    /// Copies the repository, serves it with git and mirrors it.
    pub(super) async fn set(
        agent: &Path,
        repository: &Repository,
        ahead: Ahead,
        work: &Path,
    ) -> Result<Self> {
        let root = work.join("upstream");
        let dir = root.join("repo.git");
        linked_copy(&repository.dir, &dir)?;
        let git = Git::new()?.with_config("safe.directory", "*");
        let upstream = Repo::open(git.clone(), &dir);
        let baseline = Side::baseline("full-after-push-baseline", &root, work).await?;
        let url = tarn_testkit::git::file_url(&dir);
        let mirror = Mirror { name: "pushed", url, staleness: "0s" };
        let flags: &[&str] = if ahead == Ahead::None { &["--pack-ahead=0"] } else { &[] };
        let agent = Agent::start_with(agent, "full-after-push-tarn", &[mirror], flags, work).await?;
        let url = file_route(&agent.git, &dir)?;
        let stage = Self { git, upstream, baseline, agent, url, pushed: Mutex::default() };
        // A clone tells the agent what clients ask for, and brings git's files into memory.
        clones(&stage.url, 1, &FULL).await?;
        clones(stage.baseline.url(Staleness::None), 1, &FULL).await?;
        stage.agent.server.calm(CALM, LIMIT).await?;
        Ok(stage)
    }

    /// Pushes to the upstream, has the agent fetch that, and waits until the agent is at rest.
    pub(super) async fn push(&self, turn: Turn) -> Result<()> {
        self.agent.server.calm(CALM, LIMIT).await?;
        let old = self.upstream.git(&["rev-parse", "HEAD"]).await?;
        let script = edits(&self.upstream, turn.number, COMMITS).await?;
        self.upstream.fast_import(script.as_bytes()).await?;
        let head = self.upstream.git(&["rev-parse", "HEAD"]).await?;
        let thin = self.thin(&old, &head).await?;
        let (data, pid) = (&self.agent.data, self.agent.server.pid());
        let before = held(data, pid);
        let work = async {
            let listed = Client::new(&self.url)?.ls_refs(&CLONE_PREFIXES).await?;
            ensure!(listed.set.head() == Some(&head), "the agent shows an older HEAD than {head}");
            self.agent.server.calm(CALM, LIMIT).await
        };
        let ((), usage) = self.agent.server.measure(work).await?;
        let ready = held(data, pid).saturating_sub(before);
        *self.pushed.lock().expect("nobody panics with it") = Pushed { head, thin, cpu: usage.cpu, ready };
        Ok(())
    }

    /// Makes the first clone after the push.
    pub(super) async fn measure(&self, name: SideName) -> Result<Sample> {
        let (server, url) = match name {
            SideName::Baseline => (&self.baseline.server, self.baseline.url(Staleness::None)),
            SideName::Tarn => (&self.agent.server, self.url.as_str()),
        };
        let pushed = self.pushed.lock().expect("nobody panics with it").clone();
        let disk = DiskUse::watch(&self.agent.data, self.agent.server.pid());
        let (clones, usage) = server.measure(clones(url, 1, &FULL)).await?;
        let beyond = disk.beyond();
        let (listed, _) = clones.each.first().context("no clone was made")?;
        let head = listed.set.head();
        ensure!(head == Some(&pushed.head), "the clone was shown another HEAD than {}", pushed.head);
        let (cpu, ready) = match name {
            SideName::Baseline => (Duration::ZERO, 0),
            SideName::Tarn => (pushed.cpu, pushed.ready),
        };
        let pushed = Pushed { cpu, ready, ..pushed };
        Ok(Sample { figures: figures(&clones, &usage, &pushed, beyond), objects: None })
    }

    /// Bytes of a thin pack of what was pushed.
    async fn thin(&self, old: &str, new: &str) -> Result<u64> {
        let args = ["pack-objects", "--revs", "--thin", "--delta-base-offset", "--stdout", "--quiet"];
        let dir = self.upstream.path().to_str().context("the working directory's name is not UTF-8")?;
        let args = ["-C", dir].into_iter().chain(args);
        let pack = self.git.run_with(args, format!("{new}\n^{old}\n").as_bytes()).await?;
        Ok(pack.stdout.len() as u64)
    }
}

/// In the order of the table's columns.
fn figures(clones: &Clones, usage: &Usage, pushed: &Pushed, beyond: u64) -> Vec<f64> {
    vec![
        usage.cpu.as_secs_f64(),
        usage.own_cpu.as_secs_f64(),
        clones.wall.as_secs_f64(),
        clones.first_byte(50).as_secs_f64() * 1e3,
        pushed.cpu.as_secs_f64(),
        mebibytes(beyond),
        beyond as f64 * 100.0 / (2 * pushed.thin + (1 << 20)) as f64,
        mebibytes(beyond + pushed.ready),
        mebibytes(pushed.thin),
        usage.client_cpu.as_secs_f64(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::FULL_AFTER_PUSH;

    #[test]
    fn the_table_names_the_figures() {
        let clones = Clones { wall: Duration::ZERO, each: Vec::new() };
        let second = Duration::from_secs(1);
        let usage = Usage {
            cpu: second,
            own_cpu: second,
            peak_rss: 0,
            children_pss: 0,
            children_anonymous: 0,
            children: 0,
            client_cpu: second,
            wall: second,
        };
        let pushed = Pushed { ready: 3 << 20, thin: 1 << 20, ..Pushed::default() };
        let figures = figures(&clones, &usage, &pushed, 2 << 20);
        assert_eq!(figures.len(), FULL_AFTER_PUSH.columns.len());
        assert_eq!((figures[5], figures[7], figures[8]), (2.0, 5.0, 1.0));
    }
}
