//! Compares `git http-backend` and Tarn, side by side in one run: CPU of the server's whole process tree, wall
//! time, memory and the client's own CPU, for clones and lists of refs. docs/benchmarks.md says what it means.

mod figures;
mod git_versions;
mod machine;
mod repository;
mod report;
mod scenario;
mod side;
mod stage;
mod table;
mod targets;
mod truth;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use tarn_testkit::generate::Profile;
use tokio::time::timeout;

use crate::figures::Row;
use crate::machine::Machine;
use crate::report::Report;
use crate::repository::Cache;
use crate::scenario::{SCENARIOS, Scenario, Turn};
use crate::side::{Side, SideName};
use crate::stage::{Shared, Stage};
use crate::truth::Truth;

/// The exit code that says: the repository is too small for a comparison.
const TOO_SMALL: u8 = 3;
/// No single measurement takes so long.
const SAMPLE: Duration = Duration::from_secs(10 * 60);
/// How long a server may go on with its own work (packing a new mirror, its first snapshot) before it is measured.
const IDLE: Duration = Duration::from_secs(180);
/// The whole run ends after this time, whatever happens.
const RUN: Duration = Duration::from_secs(60 * 60);

/// Compares `git http-backend` and Tarn on one repository.
#[derive(Debug, Parser)]
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,
    /// One round of the smaller scenarios.
    #[arg(long)]
    quick: bool,
    /// Rounds; sides alternate A B B A.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Clients at once in a storm of distinct commits.
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// Only scenarios whose name begins so; repeatable. Storms run only when named so.
    #[arg(long)]
    only: Vec<String>,
    /// Only git http-backend: figures of the repository, no comparison.
    #[arg(long)]
    baseline_only: bool,
    /// The repository: full, huge (5 GB more), or small to try the harness itself (it refuses to compare with that).
    #[arg(long, default_value = "full")]
    profile: String,
    /// Markdown file whose part between the markers is replaced by the results.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where the results go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the repositories of a directory through git http-backend; started by the benchmark itself.
    BaselineServer {
        /// The directory.
        #[arg(long)]
        root: PathBuf,
    },
    /// Compares versions of git at what an agent has them do; prints a table.
    GitVersions {
        /// A directory with a `git`; repeatable, the first is what others are compared with.
        #[arg(long, required = true)]
        git: Vec<PathBuf>,
    },
    /// Names the scenarios.
    List,
}

fn main() -> Result<ExitCode> {
    let flags = Flags::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &flags.command {
        Some(Command::BaselineServer { root }) => runtime.block_on(side::serve_baseline(root))?,
        Some(Command::GitVersions { git }) => runtime.block_on(git_versions::compare(git, &flags))?,
        Some(Command::List) => {
            for Scenario { name, title, .. } in SCENARIOS {
                writeln!(std::io::stdout(), "{name:<22} {title}")?;
            }
        }
        None => {
            let done = runtime.block_on(until_interrupted(&flags));
            // The generator may still be at work; nothing is to wait for it.
            runtime.shutdown_background();
            return done;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Servers run in process groups of their own and end when they are dropped, so an interrupt must unwind.
async fn until_interrupted(flags: &Flags) -> Result<ExitCode> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = timeout(RUN, compare(flags)) => done.with_context(|| format!("not done after {RUN:?}"))?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn compare(flags: &Flags) -> Result<ExitCode> {
    let start = Instant::now();
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(|scenario| chosen(flags, scenario)).collect();
    if scenarios.is_empty() {
        bail!("--only {:?} names no scenario; see `bench list`", flags.only);
    }
    let profile = Profile::named(&flags.profile).context("--profile is full, small or huge")?;
    let agent = if flags.baseline_only { None } else { Some(side::agent_binary()?) };
    let cache = Cache::open()?;
    let repository = cache.repository(profile).await?;
    let work = cache.work_directory()?;
    let mut machine = Machine::look();

    let root = repository.dir.parent().context("the repository lies in a directory")?;
    let baseline = Side::baseline("baseline", root, work.path()).await?;
    let rounds = if flags.quick { 1 } else { flags.rounds.max(1) };
    let ancestors = repository.ancestors(rounds * SCENARIOS.len()).await?;
    let (truth, floor) = Truth::establish(&baseline, ancestors).await?;
    say(&format!("git http-backend pays {floor}"))?;
    if !flags.baseline_only
        && let Err(reason) = floor.holds()
    {
        say(&format!("refusing to compare: {reason}"))?;
        return Ok(ExitCode::from(TOO_SMALL));
    }
    machine.accounting = baseline.server.accounting().describe();
    let mut tarn = None;
    if let Some(agent) = &agent
        && scenarios.iter().any(|scenario| scenario.work.needs_mirror())
    {
        let side = Side::tarn(agent, &repository, work.path()).await?;
        truth.holds_for(&side).await?;
        side.server.rest(IDLE).await?;
        tarn = Some(side);
    }
    let shared = Shared { repository, truth, baseline, tarn, agent, work };

    let listing = Duration::from_secs(if flags.quick { 2 } else { 5 });
    let clients = flags.clients.max(1);
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    for (at, scenario) in scenarios.into_iter().enumerate() {
        let turns = (0..rounds).map(|round| Turn { number: at * rounds + round, round, listing, clients });
        match Stage::set(scenario, &shared).await.with_context(|| format!("prepare {}", scenario.name))? {
            Ok(stage) => {
                rows.push(run(scenario, stage, &shared, turns).await?);
                // Its servers are gone; what they still held goes with the whole directory.
                let _ = std::fs::remove_dir_all(shared.work.path().join(scenario.name));
            }
            Err(reason) => {
                say(&format!("{} is left out: {reason}", scenario.name))?;
                left_out.push((*scenario, reason));
            }
        }
    }
    let Shared { repository, baseline, tarn, .. } = shared;
    let report = Report {
        machine,
        repository: repository.facts,
        floor,
        mirrored: tarn.as_ref().and_then(|side| side.mirrored),
        rounds,
        seconds: start.elapsed().as_secs(),
        rows,
        left_out,
    };
    for side in [Some(baseline), tarn].into_iter().flatten() {
        side.server.stop().await?;
    }
    publish(flags, &cache, &report)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the flags ask for a scenario.
fn chosen(flags: &Flags, scenario: &Scenario) -> bool {
    let named = flags.only.iter().any(|name| scenario.name.starts_with(name.as_str()));
    let usual = !scenario.work.only_when_named() && (!flags.quick || scenario.quick);
    if flags.only.is_empty() { usual } else { named }
}

/// Runs one scenario on both sides: A B, B A, A B, …
async fn run(
    scenario: &Scenario,
    mut stage: Stage,
    shared: &Shared,
    turns: impl Iterator<Item = Turn>,
) -> Result<Row> {
    let mut samples: BTreeMap<SideName, Vec<Vec<f64>>> = BTreeMap::new();
    for (round, turn) in turns.enumerate() {
        let mut order = vec![SideName::Baseline];
        order.extend(shared.agent.as_ref().map(|_| SideName::Tarn));
        if round % 2 == 1 {
            order.reverse();
        }
        stage.begin_round(turn).await.with_context(|| format!("{} round {}", scenario.name, round + 1))?;
        let mut objects = BTreeMap::new();
        for name in order {
            let what = format!("{} {} round {}", scenario.name, name.label(scenario.table), round + 1);
            let sample = timeout(SAMPLE, stage.measure(scenario, name, shared, turn)).await;
            let sample = sample.with_context(|| format!("{what}: not done after {SAMPLE:?}"))?;
            let sample = sample.with_context(|| what.clone())?;
            say(&format!("{what}: {}", scenario.table.describe(&sample.figures)))?;
            objects.insert(name, sample.objects);
            samples.entry(name).or_default().push(sample.figures);
        }
        if let (Some(Some(exact)), Some(Some(sent))) =
            (objects.get(&SideName::Baseline), objects.get(&SideName::Tarn))
        {
            let what = format!("{} round {}", scenario.name, round + 1);
            ensure!(truth::answers(*sent, *exact), "{what}: {sent} objects, not {exact}");
        }
    }
    Ok(Row { scenario: *scenario, samples })
}

/// Writes the report where it is wanted.
fn publish(flags: &Flags, cache: &Cache, report: &Report) -> Result<()> {
    let markdown = report.markdown();
    writeln!(std::io::stdout(), "{markdown}")?;
    let json = flags.json.clone().unwrap_or_else(|| cache.dir.join("last.json"));
    let text = serde_json::to_string_pretty(&report.json())?;
    std::fs::write(&json, text + "\n").with_context(|| format!("write {}", json.display()))?;
    let Some(out) = &flags.out else { return Ok(()) };
    replace(out, &markdown)
}

/// Puts the results between the markers of a file.
fn replace(out: &Path, markdown: &str) -> Result<()> {
    let text = std::fs::read_to_string(out).with_context(|| format!("read {}", out.display()))?;
    let text = report::between_markers(&text, markdown)
        .with_context(|| format!("{} lacks the line {} or {}", out.display(), report::BEGIN, report::END))?;
    std::fs::write(out, text).with_context(|| format!("write {}", out.display()))
}

/// Says how far the run is.
fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "bench: {line}")?)
}
