//! The first client after a push: how long until its pack begins, from an agent that makes packs ahead of demand and from
//! one that does not. `make bench-ahead`; docs/benchmarks.md says what it means.

#![expect(clippy::print_stdout, reason = "its results are what it is for")]
#![expect(clippy::indexing_slicing, reason = "a missing field of a JSON answer is a null")]

#[expect(dead_code, reason = "other benchmarks need more of it")]
mod shared;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use shared::{CALM, median, ratios};
use tarn_testkit::agent::{Agent, Builder, manifest, repo_id};
use tarn_testkit::generate::{edits, kept, linked_copy};
use tarn_testkit::git::{Git, Repo, file_url};
use tarn_testkit::load::{Ask, CLONE_PREFIXES, Check, Client, Depth, request};

const ROUNDS: usize = 7;
/// Commits of one push.
const COMMITS: usize = 10;
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

/// A clone that follows the upstream: what its git asks for, all clients ask for that were up to date.
struct Follower {
    clone: Repo,
    /// What its git says of its packets.
    trace: PathBuf,
}

impl Follower {
    async fn new(upstream: &str, work: &Path) -> Result<Self> {
        let (dir, trace) = (work.join("follower"), work.join("follower.trace"));
        let git = Git::new()?.with_config("safe.directory", "*").with_timeout(Duration::from_secs(300));
        let clone = git.clone_repo(upstream, &dir, &["--no-checkout"]).await?;
        let git = git.with_env("GIT_TRACE_PACKET", &trace).with_config("gc.auto", "0");
        Ok(Self { clone: Repo::open(git, clone.path()), trace })
    }

    /// Fetches from the upstream, and gives back what it asked for.
    async fn fetch(&self) -> Result<Bytes> {
        let _ = std::fs::remove_file(&self.trace);
        self.clone.git(&["fetch", "origin"]).await?;
        let trace = std::fs::read(&self.trace)?;
        let trace = String::from_utf8_lossy(&trace);
        let sent = trace.lines().filter_map(|line| Some(line.split_once(" fetch> ")?.1));
        let lines: Vec<_> =
            sent.skip_while(|line| *line != "command=fetch").take_while(|line| *line != "0000").collect();
        ensure!(lines.iter().any(|line| line.starts_with("have ")), "not a fetch: {lines:?}");
        Ok(request(lines))
    }
}

/// An agent that serves the upstream.
struct Side {
    agent: Agent,
    url: String,
    repo: String,
}

impl Side {
    async fn start(upstream: &str, percent: u8) -> Result<Self> {
        let agent = Builder::new(env!("CARGO_BIN_EXE_tarn-agent"))
            .file_upstreams()
            .arg(format!("--pack-ahead={percent}"))
            .start_with(&[("a.yaml", &manifest("a", upstream, &["interval: 1h"]))])
            .await?;
        let repo = repo_id(upstream);
        agent.wait_phase(&repo, "Ready").await?;
        let url = agent.git_url(&repo)?;
        Ok(Self { agent, url, repo })
    }

    /// From the request to the first byte of the pack; `update` is a follower's request.
    async fn first_byte(&self, usual: Usual, update: &Bytes) -> Result<Duration> {
        let mut client = Client::new(&self.url)?;
        let depth = match usual {
            Usual::Full => Depth::Full,
            Usual::DepthOne => Depth::One,
            Usual::Fetch => {
                client.capabilities().await?;
                client.ls_refs(&CLONE_PREFIXES).await?;
                return Ok(client.fetch_by(update.clone(), Check::Shape).await?.first_byte);
            }
        };
        let ask = Ask { depth, check: Check::Shape, wants: None };
        Ok(client.clone(&ask).await?.1.first_byte)
    }
}

fn millis(times: &[Duration]) -> String {
    ratios(&times.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>())
}

fn main() -> Result<()> {
    // One thread: the client's own hand-overs between threads would be a good part of what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
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
    let upstream = file_url(&dir);
    let sides = [Side::start(&upstream, 10).await?, Side::start(&upstream, 0).await?];
    let follower = Follower::new(&upstream, work.path()).await?;

    let mut times: Vec<[Vec<Duration>; 2]> = Usual::ALL.map(|_| [Vec::new(), Vec::new()]).into();
    // The first rounds show the agents what is asked for: a fetch by clients that were up to date is known after a push.
    for round in 0..ROUNDS + 2 {
        origin.fast_import(edits(&origin, round, COMMITS).await?.as_bytes()).await?;
        let head = origin.rev_parse("HEAD").await?;
        let update = follower.fetch().await?;
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
                let first = side.first_byte(usual, &update).await?;
                if round >= 2 {
                    times.push(first);
                } else {
                    println!("round {round}, {name}: {first:?}");
                }
            }
        }
    }
    println!(
        "first byte of the first pack after a push of {COMMITS} commits, {ROUNDS} rounds, ms, median (range)"
    );
    for ((_, name), [ahead, behind]) in Usual::ALL.into_iter().zip(&times) {
        let ratio = median(ahead) / median(behind);
        println!("{name}: ahead {}, not ahead {}: {ratio:.3} (bound {BOUND})", millis(ahead), millis(behind));
    }
    let [ahead, _] = &sides;
    let ahead = &ahead.agent;
    let made: f64 = ahead.metric("tarn_packs_ahead_total{outcome=\"made\"}").await?;
    let used: f64 = ahead.metric("tarn_packs_ahead_total{outcome=\"used\"}").await?;
    let spent: f64 = ahead.metric("tarn_packs_ahead_seconds_total").await?;
    println!("made {made}, used {used}, {:.2} s for each", spent / made);
    Ok(())
}
