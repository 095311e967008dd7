//! Versions of git at the work that agents leave to git: putting packs in order, and answers that no base or kept answer
//! serves. Each version works on a copy of its own, on the same objects, with the settings that an agent gives it. CPU is that of
//! git's processes alone, whoever starts them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::generate::{Profile, edits, linked_copy};
use tarn_testkit::git::{Git, Repo, isolate};
use tarn_testkit::load;
use tarn_testkit::measure::{Cost, once};

use crate::Flags;
use crate::figures::{Summary, line};
use crate::repository::Cache;
use crate::scenario::mebibytes;

/// Pushes that arrived since packs were last put in order, each a pack of its own, …
const PUSHES: usize = 8;
/// … and commits of each.
const COMMITS: usize = 30;
/// No command takes so long.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// From this version on, an agent has git copy from all packs of a multi-pack index.
const MULTI_PACK_REUSE: (u32, u32) = (2, 48);

/// What is measured, in the order of the table.
const WORK: [&str; 4] = ["packs in order", "full clone", "full fetch of one commit", "depth-1 fetch"];

/// A version of git, and what it cost in each round.
#[derive(Debug)]
struct Version {
    program: PathBuf,
    version: String,
    costs: Vec<[Cost; WORK.len()]>,
}

/// Measures and prints the table.
pub(crate) async fn compare(directories: &[PathBuf], flags: &Flags) -> Result<()> {
    let profile = Profile::named(&flags.profile).context("--profile is full, small or huge")?;
    let cache = Cache::open()?;
    let repository = cache.repository(profile).await?;
    let work = cache.work_directory()?;
    let pushed = work.path().join("pushed.git");
    linked_copy(&repository.dir, &pushed)?;
    let git = Git::new()?.with_config("safe.directory", "*").with_config("fastimport.unpackLimit", "1");
    let upstream = Repo::open(git, &pushed);
    for push in 0..PUSHES {
        upstream.fast_import(edits(&upstream, push, COMMITS).await?.as_bytes()).await?;
    }
    upstream.git(&["pack-refs", "--all"]).await?;

    let mut versions = Vec::new();
    for directory in directories {
        let program = directory.join("git");
        ensure!(program.is_file(), "{} is missing", program.display());
        let version = version(&program)?;
        versions.push(Version { program, version, costs: Vec::new() });
    }
    let rounds = if flags.quick { 1 } else { flags.rounds.max(1) };
    for round in 0..rounds {
        let mut order: Vec<&mut Version> = versions.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for version in order {
            let place = work.path().join("round.git");
            linked_copy(&pushed, &place)?;
            let costs = version.round(&place, &upstream, work.path()).await?;
            let said =
                WORK.iter().zip(&costs).map(|(what, cost)| format!("{what} {:.2} s", cost.cpu.as_secs_f64()));
            let said: Vec<_> = said.collect();
            crate::say(&format!("git {} round {}: {}", version.version, round + 1, said.join(", ")))?;
            version.costs.push(costs);
            std::fs::remove_dir_all(&place)?;
        }
    }
    writeln!(std::io::stdout(), "{}", table(&versions))?;
    Ok(())
}

impl Version {
    /// All of the work once, in a repository of this round.
    async fn round(&self, repository: &Path, upstream: &Repo, work: &Path) -> Result<[Cost; WORK.len()]> {
        let dir = repository.to_str().context("the working directory's name is not UTF-8")?;
        let in_order = ["repack", "--geometric=2", "-d", "--quiet", "--write-midx", "--write-bitmap-index"];
        let frugal = ["-c", "pack.threads=1", "-c", "pack.windowMemory=64m", "-C", dir];
        let upkeep = self.run(work, frugal.into_iter().chain(in_order), b"").await?;

        let heads = upstream.git(&["for-each-ref", "--format=%(objectname)"]).await?;
        let mut all: Vec<&str> = heads.lines().collect();
        all.sort_unstable();
        all.dedup();
        let commit = upstream.rev_parse("HEAD~20").await?;
        let full = self.answer(work, dir, &all, None).await?;
        let one = self.answer(work, dir, &[&commit], None).await?;
        let shallow = self.answer(work, dir, &[&commit], Some("deepen 1")).await?;
        Ok([upkeep, full, one, shallow])
    }

    /// One answer of `git upload-pack`, as an agent has it made.
    async fn answer(&self, work: &Path, dir: &str, wants: &[&str], deepen: Option<&str>) -> Result<Cost> {
        let mut args = vec!["-c", "uploadpack.allowAnySHA1InWant=true"];
        if deepen.is_some() {
            args.extend(["-c", "pack.window=0"]);
        }
        if numbers(&self.version).is_some_and(|version| version >= MULTI_PACK_REUSE) {
            args.extend(["-c", "pack.allowPackReuse=multi"]);
        }
        args.extend(["upload-pack", "--stateless-rpc", dir]);
        let wants: Vec<_> = wants.iter().map(|want| format!("want {want}")).collect();
        let head = ["command=fetch", "object-format=sha1", "0001", "no-progress", "ofs-delta"];
        let lines = head.into_iter().chain(deepen).chain(wants.iter().map(String::as_str)).chain(["done"]);
        self.run(work, args, &load::request(lines)).await
    }

    async fn run<'a>(
        &self,
        work: &Path,
        args: impl IntoIterator<Item = &'a str>,
        stdin: &[u8],
    ) -> Result<Cost> {
        let prepare = |command: &mut std::process::Command| {
            isolate(command, work);
            command.env("GIT_PROTOCOL", "version=2");
        };
        let args = ["-c", "safe.directory=*"].into_iter().chain(args);
        let output = tempfile::tempfile_in(work)?;
        once("git-versions", &self.program, args, prepare, stdin, output, LIMIT).await
    }
}

/// What `git version` says, without its first words.
fn version(program: &Path) -> Result<String> {
    let said = tarn_testkit::process::command(program).arg("version").output();
    let said = said.with_context(|| format!("start {}", program.display()))?;
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    Ok(said.strip_prefix("git version ").with_context(|| format!("not git: {said}"))?.to_owned())
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A row for each work and version; the ratio is that of the CPU of one round to the first version's of the same round.
fn table(versions: &[Version]) -> String {
    let mut text = String::new();
    let headings = [
        "work",
        "git",
        "CPU s",
        "wall s",
        "anonymous memory MiB",
        "answer MB",
        "CPU, compared with the first",
    ];
    line(&mut text, headings.map(ToOwned::to_owned));
    line(&mut text, headings.map(|_| "---".to_owned()));
    for (at, what) in WORK.iter().enumerate() {
        for (number, version) in versions.iter().enumerate() {
            let of = |version: &Version, figure: fn(&Cost) -> f64| -> Vec<f64> {
                version.costs.iter().filter_map(|costs| costs.get(at)).map(figure).collect()
            };
            let shown = |figure: fn(&Cost) -> f64, digits: usize| {
                Summary::of(of(version, figure)).map(|summary| summary.text(digits)).unwrap_or_default()
            };
            let cpu: fn(&Cost) -> f64 = |cost| cost.cpu.as_secs_f64();
            let first = versions.first().map(|first| of(first, cpu)).unwrap_or_default();
            let ratios = of(version, cpu).into_iter().zip(first).map(|(own, first)| own / first);
            let ratio = Summary::of(ratios).filter(|_| number > 0);
            line(
                &mut text,
                [
                    (*what).to_owned(),
                    version.version.clone(),
                    shown(cpu, 2),
                    shown(|cost| cost.wall.as_secs_f64(), 2),
                    shown(|cost| mebibytes(cost.anonymous), 0),
                    shown(|cost| cost.written as f64 / 1e6, 1),
                    ratio.map(|ratio| ratio.text(2)).unwrap_or_default(),
                ],
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_with_the_first() {
        let cost = |seconds| Cost {
            cpu: Duration::from_secs(seconds),
            wall: Duration::from_secs(1),
            anonymous: 1 << 20,
            written: 2_000_000,
        };
        let version = |name: &str, seconds| Version {
            program: PathBuf::new(),
            version: name.into(),
            costs: vec![[cost(seconds); WORK.len()]],
        };
        let text = table(&[version("2.39.5", 4), version("2.55.0", 2)]);
        assert!(text.contains("| full clone | 2.39.5 | 4.00 | 1.00 | 1 | 2.0 |  |"), "{text}");
        assert!(text.contains("| full clone | 2.55.0 | 2.00 | 1.00 | 1 | 2.0 | 0.50 |"), "{text}");
        assert_eq!((numbers("2.55.0"), numbers("x")), (Some((2, 55)), None));
    }
}
