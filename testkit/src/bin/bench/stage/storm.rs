//! A storm: clients that have nothing fetch distinct commits, all at once, as the jobs of a busy CI do. Each round takes
//! commits of its own, spread over the youngest ones of HEAD's branch, so nothing was made for a client before.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tarn_testkit::load::{Ask, Check, Client, Depth, Fetched, clones, percentile};
use tarn_testkit::measure::Usage;
use tokio::task::JoinSet;

use super::disk_use::DiskUse;
use crate::repository::Repository;
use crate::scenario::{Sample, Turn, mebibytes};
use crate::side::{Agent, Mirror, Side, SideName, Staleness, file_route};

/// The youngest commits of HEAD's branch, of which a storm takes some.
const AMONG: usize = 500;
/// How long the agent may work on its new mirror.
const REST: Duration = Duration::from_secs(600);

/// A mirror of its own, and the commits to ask for.
#[derive(Debug)]
pub(crate) struct Storm {
    agent: Agent,
    url: String,
    depth: Depth,
    commits: Vec<String>,
    /// Bytes of the mirror's packs.
    packs: u64,
    /// How many objects git sends for a commit, learned when it was asked.
    objects: Mutex<HashMap<String, u32>>,
}

/// What a storm left: those who got a pack, and what the others heard.
#[derive(Debug)]
struct Outcome {
    wall: Duration,
    fetched: Vec<(String, Fetched)>,
    refused: Vec<String>,
}

impl Storm {
    /// Mirrors the repository and lets the agent come to rest; for storms of shallow fetches after a first shallow clone.
    pub(super) async fn set(
        agent: &Path,
        repository: &Repository,
        depth: Depth,
        work: &Path,
    ) -> Result<Self> {
        let commits = repository.ancestors(AMONG).await?;
        // An agent refuses two mirrors of one URL; this one is its own.
        let url = tarn_testkit::git::file_url(&repository.dir);
        let mirror = Mirror { name: "storm", url, staleness: "0s" };
        let agent = Agent::start(agent, "storm-tarn", &[mirror], work).await?;
        agent.server.rest(REST).await?;
        let url = file_route(&agent.git, &repository.dir)?;
        if depth == Depth::One {
            // What serves shallow clones is made once somebody has asked for one.
            clones(&url, 1, &Ask { depth, check: Check::Shape, wants: None }).await?;
            agent.server.rest(REST).await?;
        }
        let packs = pack_bytes(&agent.data.join("mirrors"));
        ensure!(packs > 0, "no packs in {}", agent.data.display());
        Ok(Self { agent, url, depth, commits, packs, objects: Mutex::default() })
    }

    /// Has each client fetch its commit, all at once.
    pub(super) async fn measure(&self, name: SideName, baseline: &Side, turn: Turn) -> Result<Sample> {
        let wants = self.wants(turn)?;
        let (server, url) = match name {
            SideName::Baseline => (&baseline.server, baseline.url(Staleness::None)),
            SideName::Tarn => (&self.agent.server, self.url.as_str()),
        };
        let before = self.counters().await?;
        let disk = DiskUse::watch(&self.agent.data, self.agent.server.pid());
        let (outcome, usage) = server.measure(storm(url, self.depth, &wants)).await?;
        let beyond = disk.beyond();
        if name == SideName::Tarn {
            let counted = grown(&before, &self.counters().await?);
            crate::say(&format!("the agent counted {}", counted.join(", ")))?;
        }
        for (number, reason) in outcome.refused.iter().enumerate().filter(|(number, _)| *number < 3) {
            crate::say(&format!("refusal {} of {}: {reason}", number + 1, outcome.refused.len()))?;
        }
        self.compare(name, &outcome)?;
        let figures = figures(&outcome, &usage, beyond, self.packs);
        Ok(Sample { figures, objects: None })
    }

    /// What the agent has counted so far.
    async fn counters(&self) -> Result<BTreeMap<String, f64>> {
        let text = Client::new(&self.agent.admin)?.get("/metrics").await?;
        let samples = std::str::from_utf8(&text)?.lines().filter(|line| line.contains("_total"));
        let read = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(samples.filter(|line| !line.starts_with('#')).filter_map(read).collect())
    }

    /// A round's commits: spread over all of them, and never those of another round.
    fn wants(&self, turn: Turn) -> Result<Vec<String>> {
        let stride = self.commits.len() / turn.clients;
        ensure!(turn.round < stride, "{} commits are too few for so many rounds", self.commits.len());
        let mine = self.commits.iter().skip(turn.round).step_by(stride).take(turn.clients);
        Ok(mine.cloned().collect())
    }

    /// A server may send more than git does, never less.
    fn compare(&self, name: SideName, outcome: &Outcome) -> Result<()> {
        let mut known = self.objects.lock().expect("nobody panics with it");
        for (want, fetched) in &outcome.fetched {
            let got = fetched.received.objects;
            // The first side to be asked sets the bar where it is git, which is exact.
            match (name, known.get(want)) {
                (SideName::Baseline, _) => drop(known.insert(want.clone(), got)),
                (SideName::Tarn, Some(&exact)) => {
                    ensure!(got >= exact, "{want}: {got} objects, fewer than git's {exact}");
                }
                (SideName::Tarn, None) => {}
            }
        }
        Ok(())
    }
}

/// One client for each commit, all started at once. Whoever gets no whole pack with the right checksum was refused.
async fn storm(url: &str, depth: Depth, wants: &[String]) -> Result<Outcome> {
    let mut crowd = JoinSet::new();
    let start = Instant::now();
    for want in wants {
        let (mut client, want) = (Client::new(url)?, want.clone());
        crowd.spawn(async move {
            let fetch = async {
                client.capabilities().await?;
                client.fetch(std::slice::from_ref(&want), depth, Check::Trailer).await
            };
            let fetched = fetch.await;
            (want, fetched)
        });
    }
    let (mut fetched, mut refused) = (Vec::with_capacity(wants.len()), Vec::new());
    while let Some(done) = crowd.join_next().await {
        let (want, got) = done.context("a fetch ended by itself")?;
        match got {
            Ok(got) => fetched.push((want, got)),
            Err(error) => refused.push(format!("{want}: {error:#}")),
        }
    }
    Ok(Outcome { wall: start.elapsed(), fetched, refused })
}

/// The counters that have grown, and by how much: they tell how the answers were made.
fn grown(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<String> {
    let growth = after.iter().map(|(name, value)| (name, value - before.get(name).unwrap_or(&0.0)));
    growth.filter(|(_, by)| *by > 0.0).map(|(name, by)| format!("{name} +{by}")).collect()
}

/// Bytes of all packs below a directory.
fn pack_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => pack_bytes(&entry.path()),
        Ok(meta) if entry.path().extension().is_some_and(|extension| extension == "pack") => meta.len(),
        _ => 0,
    };
    entries.map(bytes).sum()
}

/// In the order of the table's columns.
fn figures(outcome: &Outcome, usage: &Usage, disk: u64, packs: u64) -> Vec<f64> {
    let count = (outcome.fetched.len() + outcome.refused.len()).max(1) as f64;
    let first_bytes: Vec<_> = outcome.fetched.iter().map(|(_, fetched)| fetched.first_byte).collect();
    let at = |percent| percentile(&first_bytes, percent).as_secs_f64() * 1e3;
    let received: u64 = outcome.fetched.iter().map(|(_, fetched)| fetched.received.pack_bytes).sum();
    vec![
        usage.cpu.as_secs_f64() / count,
        outcome.wall.as_secs_f64(),
        outcome.refused.len() as f64,
        at(0),
        at(50) - at(0),
        at(100),
        received as f64 / 1e6 / outcome.fetched.len().max(1) as f64,
        mebibytes(disk),
        disk as f64 * 100.0 / packs.max(1) as f64,
        mebibytes(usage.peak_rss),
        mebibytes(usage.children_pss),
        mebibytes(usage.children_anonymous),
        usage.client_cpu.as_secs_f64() / count,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::STORMS;

    #[test]
    fn only_counters_that_have_grown_are_told() {
        let samples =
            |values: &[(&str, f64)]| values.iter().map(|(name, v)| ((*name).to_owned(), *v)).collect();
        let (before, after) =
            (samples(&[("a", 1.0), ("b", 2.0)]), samples(&[("a", 3.0), ("b", 2.0), ("c", 1.0)]));
        assert_eq!(grown(&before, &after), ["a +2", "c +1"]);
    }

    #[test]
    fn the_table_names_the_figures() {
        let outcome = Outcome { wall: Duration::ZERO, fetched: Vec::new(), refused: vec!["no".into()] };
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
        let figures = figures(&outcome, &usage, 5 << 20, 100 << 20);
        assert_eq!(figures.len(), STORMS.columns.len());
        assert_eq!((figures[0], figures[2], figures[7], figures[8]), (1.0, 1.0, 5.0, 5.0));
    }
}
