//! The first client after a push: how long until its pack begins, from an agent that makes packs ahead of demand and from
//! one that does not. `make bench-ahead`; docs/benchmarks.md says what it means.

#![expect(clippy::print_stdout, reason = "its results are what it is for")]
#![expect(clippy::indexing_slicing, reason = "a missing field of a JSON answer is a null")]

#[expect(dead_code, reason = "other benchmarks need more of it")]
mod shared;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use shared::{middle, shown};
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::generate::{edits, kept, linked_copy};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::load::{Ask, Check, Client, Depth};

const ROUNDS: usize = 7;
/// Commits of one push.
const COMMITS: usize = 10;
/// An agent without children for so long has done all its upkeep: it begins that after 5 quiet seconds.
const CALM: Duration = Duration::from_secs(15);
/// The bound of the ratio.
const BOUND: f64 = 0.1;

/// What the first client after a push may ask for.
#[derive(Clone, Copy)]
enum Usual {
    Full,
    DepthOne,
    Fetch,
}

impl Usual {
    const ALL: [(Self, &str); 3] =
        [(Self::Full, "full clone"), (Self::DepthOne, "depth-1 clone"), (Self::Fetch, "fetch")];
}

/// An agent, and a clone of what it serves.
struct Side {
    agent: Agent,
    url: String,
    repo: String,
    clone: Repo,
    /// What the clone's git says of its packets.
    trace: PathBuf,
}

impl Side {
    async fn start(upstream: &Path, work: &Path, name: &str, percent: u8) -> Result<Self> {
        let url = tarn_testkit::git::file_url(upstream);
        let agent = Builder::new(env!("CARGO_BIN_EXE_tarn-agent"))
            .file_upstreams()
            .arg(format!("--pack-ahead={percent}"))
            .start_with(&[("a.yaml", &manifest("a", &url, &["interval: 1h"]))])
            .await?;
        let repo = repo_id(&url);
        agent.wait_phase(&repo, "Ready").await?;
        let (dir, trace) = (work.join(name), work.join(format!("{name}.trace")));
        let git = Git::new()?.with_config("safe.directory", "*").with_timeout(Duration::from_secs(300));
        // As a clone through the agent would be, without the minute it takes.
        let clone = git.clone_repo(&url, &dir, &["--no-checkout", "--local"]).await?;
        let url = agent.git_url(&repo)?;
        clone.git(&["remote", "set-url", "origin", &url]).await?;
        let clone = Repo::open(git.with_env("GIT_TRACE_PACKET", &trace).with_config("gc.auto", "0"), dir);
        Ok(Self { agent, url, repo, clone, trace })
    }

    /// From the request to the first byte of the pack.
    async fn first_byte(&self, usual: Usual) -> Result<Duration> {
        let depth = match usual {
            Usual::Fetch => return self.fetch().await,
            Usual::Full => Depth::Full,
            Usual::DepthOne => Depth::One,
        };
        let ask = Ask { depth, check: Check::Shape, wants: None };
        Ok(Client::new(&self.url)?.clone(&ask).await?.1.first_byte)
    }

    /// Git itself says when it has asked and when the pack begins.
    async fn fetch(&self) -> Result<Duration> {
        let _ = std::fs::remove_file(&self.trace);
        self.clone.git(&["fetch", "origin"]).await?;
        let trace = std::fs::read(&self.trace)?;
        let trace = String::from_utf8_lossy(&trace);
        let at = |part: &str| {
            let line = trace.lines().find(|line| line.contains(part));
            let time = line.and_then(|line| line.split(' ').next());
            seconds(time.with_context(|| format!("no {part} in the trace"))?)
        };
        let (asked, began) = (at("fetch> command=fetch")?, at("fetch< packfile")?);
        Ok(Duration::from_secs_f64((began - asked).rem_euclid(86_400.0)))
    }

    async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.agent.metrics().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.map_or(0.0, |value| value.parse().unwrap_or(0.0)))
    }
}

/// A time of day such as `18:05:42.123456`, in seconds.
fn seconds(time: &str) -> Result<f64> {
    time.split(':').try_fold(0.0, |sum, part| Ok(sum * 60.0 + part.parse::<f64>()?))
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let work = tempfile::tempdir_in("/var/tmp")?;
    let dir = work.path().join("repo.git");
    // Beside the kept one, for its packs are linked.
    let kept = kept()?;
    let near = tempfile::tempdir_in(kept.parent().context("a directory")?)?;
    linked_copy(&kept, &near.path().join("repo.git"))?;
    std::os::unix::fs::symlink(near.path().join("repo.git"), &dir)?;
    let origin = Repo::open(Git::new()?.with_config("safe.directory", "*"), &dir);
    let sides = [
        Side::start(&dir, work.path(), "ahead", 10).await?,
        Side::start(&dir, work.path(), "behind", 0).await?,
    ];

    let mut times: Vec<[Vec<Duration>; 2]> = Usual::ALL.map(|_| [Vec::new(), Vec::new()]).into();
    // The first rounds show the agents what is asked for: a fetch by clients that were up to date is known after a push.
    for round in 0..ROUNDS + 2 {
        origin.fast_import(edits(&origin, round, COMMITS).await?.as_bytes()).await?;
        let head = origin.rev_parse("HEAD").await?;
        for side in &sides {
            side.agent.fetch_now(&side.repo).await?;
            side.agent.wait_status(&side.repo, "the push", |status| status["head"]["sha"] == head).await?;
        }
        for side in &sides {
            side.agent.wait_calm(CALM).await?;
        }
        for ((usual, name), times) in Usual::ALL.into_iter().zip(&mut times) {
            // In turn, so that neither is always the first.
            for at in [round % 2, 1 - round % 2] {
                let (Some(side), Some(times)) = (sides.get(at), times.get_mut(at)) else { continue };
                let first = side.first_byte(usual).await?;
                if round >= 2 {
                    times.push(first);
                } else {
                    println!("round {round}, {name}: {first:?}");
                }
            }
        }
    }
    println!(
        "first byte of the first pack after a push of {COMMITS} commits, {ROUNDS} rounds, median (range)"
    );
    for ((_, name), [ahead, behind]) in Usual::ALL.into_iter().zip(&times) {
        let mid = |times: &[Duration]| middle(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>());
        println!(
            "{name}: ahead {} s, not ahead {} s: {:.3} (bound {BOUND})",
            shown(ahead),
            shown(behind),
            mid(ahead) / mid(behind)
        );
    }
    let [ahead, _] = &sides;
    let made = ahead.metric("tarn_packs_ahead_total{outcome=\"made\"}").await?;
    let used = ahead.metric("tarn_packs_ahead_total{outcome=\"used\"}").await?;
    let spent = ahead.metric("tarn_packs_ahead_seconds_total").await?;
    println!("made {made}, used {used}, {:.2} s for each", spent / made);
    Ok(())
}
