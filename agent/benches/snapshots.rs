//! Snapshots from a real S3 server through a cold agent beside a raw download, from a warm one beside nginx, and
//! clones made of them beside `git clone`. `make bench-snapshots`; docs/benchmarks.md says what it means.

#![expect(clippy::print_stdout, reason = "its results are what it is for")]
#![expect(clippy::indexing_slicing, reason = "a missing field of a JSON answer is a null")]

mod shared;

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use shared::{CALM, RANGE, SHAPED, builder, client, median, mib, ratios, shown};
use tarn_agent::store::SharedStore;
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::{Agent, repo_id};
use tarn_testkit::generate::kept;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::load::{Client, Download};
use tarn_testkit::measure::{Server, Usage, peak_rss, reaped_cpu};
use tarn_testkit::nginx::Sendfile;
use tarn_testkit::process;
use tarn_testkit::proxy::{FaultProxy, HttpFaultProxy, Trouble};
use tarn_testkit::s3::S3Server;

const ROUNDS: usize = 5;
/// Ranges of the raw download at once: as the agent's own.
const AT_ONCE: usize = 8;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime.block_on(async {
        // cargo bench adds a flag of its own.
        let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
        let stage = Stage::set().await?;
        for (name, run) in [("cold", 0), ("warm", 1), ("clone", 2)] {
            if only.as_deref().is_none_or(|only| only == name) {
                match run {
                    0 => stage.cold().await?,
                    1 => stage.warm().await?,
                    _ => stage.clones().await?,
                }
            }
        }
        Ok(())
    })
}

/// An S3 server with a checkpoint and a snapshot of the large repository.
struct Stage {
    s3: S3Server,
    work: tempfile::TempDir,
    url: String,
    repo: String,
    key: String,
    bytes: u64,
}

impl Stage {
    async fn set() -> Result<Self> {
        let url = tarn_testkit::git::file_url(&kept()?);
        let (s3, work) = (S3Server::start().await?, tempfile::tempdir_in("/var/tmp")?);
        let repo = repo_id(&url);
        let mut publisher = builder(&s3.endpoint()).mirror(&url).start().await?;
        let began = Instant::now();
        let status = loop {
            let status = publisher.mirror_status(&repo).await?;
            let there = |part: &str| status[part]["generation"].as_u64().is_some_and(|number| number > 0);
            if there("checkpoint") && there("snapshot") {
                break status;
            }
            ensure!(began.elapsed() < Duration::from_secs(600), "no snapshot: {status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        publisher.stop().await?;
        let snapshot = &status["snapshot"];
        let text = |name: &str| snapshot[name].as_str().context("a text").map(str::to_owned);
        let prefix = RepoId::from_route(&repo)?.store_prefix();
        let key = format!("v1/{prefix}/snapshots/{}-{}.tar.zst", text("commit")?, text("digest")?);
        let bytes = snapshot["bytes"].as_u64().context("a length")?;
        println!("snapshot of {:.0} MiB, {ROUNDS} rounds, median (range)", mib(bytes));
        Ok(Self { s3, work, url, repo, key, bytes })
    }

    fn target(&self) -> String {
        format!("/git/{}/snapshot.tar.zst", self.repo)
    }

    async fn cold(&self) -> Result<()> {
        let line = FaultProxy::start(self.s3.address())?;
        let endpoint = format!("http://{}", line.address());
        let store = client(&endpoint)?;
        for (name, bandwidth) in [("2 Gbit/s", Some(SHAPED)), ("unshaped", None)] {
            line.set(Trouble { bandwidth, ..Trouble::default() });
            let (mut raw, mut raw_first, mut total) = (Vec::new(), Vec::new(), Vec::new());
            let (mut first, mut busy) = (Vec::new(), Vec::new());
            let mut crowds = [(8, Vec::new()), (32, Vec::new())];
            for _ in 0..ROUNDS {
                let (took, byte) = self.raw(&store).await?;
                raw.push(took);
                raw_first.push(byte);
                // Each agent ends before the next is measured: else it would go on with its restore meanwhile.
                let mut agent = self.cold_agent(&endpoint).await?;
                let (took, byte) = read(&agent, &self.target(), self.bytes).await?;
                agent.kill9().await?;
                total.push(took);
                busy.push(byte);
                // The same once the restore and what follows it are over, and line and processors are free, as they were
                // for the raw read.
                let mut agent = self.cold_agent(&endpoint).await?;
                agent.wait_phase(&self.repo, "Ready").await?;
                agent.wait_calm(CALM).await?;
                first.push(read(&agent, &self.target(), self.bytes).await?.1);
                agent.kill9().await?;
                for (count, times) in &mut crowds {
                    let mut agent = self.cold_agent(&endpoint).await?;
                    let began = Instant::now();
                    let target = self.target();
                    try_join_all((0..*count).map(|_| read(&agent, &target, self.bytes))).await?;
                    times.push(began.elapsed());
                    agent.kill9().await?;
                }
            }
            println!("{name}: raw {} s, cold agent {} s", shown(&raw), shown(&total));
            let (raw, total) = (median(&raw), median(&total));
            println!("{name}: cold / raw {:.2}, cold - raw {:.2} s", total / raw, total - raw);
            println!("{name}: within 1.05 raw + 0.3 s: {}", total <= 1.05 * raw + 0.3);
            let ratio = median(&first) / median(&raw_first);
            println!(
                "{name}: first byte raw {}, cold {}: {ratio:.2} (bound 2); while a restore gives way {}",
                shown(&raw_first),
                shown(&first),
                shown(&busy)
            );
            for (count, times) in &crowds {
                let ratio = median(times) / total;
                println!(
                    "{name}: {count} clients {} s: {ratio:.2} of one client's (bound for 8: 1.3)",
                    shown(times)
                );
            }
        }
        // How often the store is read, and what it costs: counted by a proxy that knows requests.
        for count in [8, 32] {
            let proxy = HttpFaultProxy::start(self.s3.address())?;
            let agent = self.cold_agent(&proxy.url()).await?;
            let target = self.target();
            try_join_all((0..count).map(|_| read(&agent, &target, self.bytes))).await?;
            let gets = proxy.seen().into_iter();
            let archive = gets.filter(|s| s.method == Method::GET && s.target.contains(".tar.zst"));
            let bytes: u64 = archive.map(|seen| seen.down).sum();
            println!(
                "{count} cold clients: {:.3} of the object read from the store (bound 1.05), peak RSS {:.0} MiB (bound 143)",
                bytes as f64 / self.bytes as f64,
                mib(peak_rss(agent.pid()?)?)
            );
        }
        Ok(())
    }

    /// An agent with an empty disk that knows which snapshot there is.
    async fn cold_agent(&self, endpoint: &str) -> Result<Agent> {
        let agent = builder(endpoint).mirror(&self.url).start().await?;
        while agent.mirror_status(&self.repo).await?["snapshot"].is_null() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(agent)
    }

    /// Reads the object in ranges and throws it away; how long all of it took, and its first byte.
    async fn raw(&self, store: &SharedStore) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let mut body = store.get_range(&self.key, 0..65_536, None).await?;
        body.next().await.context("a chunk")??;
        let first = began.elapsed();
        drop(body);
        let began = Instant::now();
        let step = usize::try_from(RANGE)?;
        let ranges = (0..self.bytes).step_by(step).map(|start| start..(start + RANGE).min(self.bytes));
        stream::iter(ranges.map(Ok::<_, anyhow::Error>))
            .try_for_each_concurrent(AT_ONCE, |range| async move {
                let mut body = store.get_range(&self.key, range, None).await?;
                while let Some(chunk) = body.next().await {
                    chunk?;
                }
                Ok(())
            })
            .await?;
        Ok((began.elapsed(), first))
    }

    async fn warm(&self) -> Result<()> {
        let nginx =
            tarn_testkit::nginx::find().context("nginx is not installed (Debian package nginx-light)")?;
        let work = self.work.path().join("nginx");
        std::fs::create_dir(&work)?;
        std::fs::copy(self.s3.bucket_dir().join("bench").join(&self.key), work.join("archive"))?;
        let (nginx, nginx_url) =
            tarn_testkit::nginx::serve(&nginx, Sendfile::Off, &work, "/archive", self.bytes).await?;
        let data = self.work.path().join("data");
        let log = self.work.path().join("agent.log");
        let (endpoint, location) = (self.s3.endpoint(), format!("s3://{}/bench", S3Server::BUCKET));
        let args =
            ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--allow-file-upstreams"];
        let store = ["--s3-endpoint", &endpoint, "--s3-region", S3Server::REGION, "--s3-path-style"];
        let args =
            args.into_iter().chain(store).chain(["--store", &location, "--mirror", &self.url, "--data"]);
        let args = args.map(OsString::from).chain([data.into_os_string()]);
        let program = env!("CARGO_BIN_EXE_tarn-agent");
        let (agent, line) = Server::start("tarn-agent", program, args, "listening", &log).await?;
        let address =
            line.split("git=").nth(1).and_then(|rest| rest.split(' ').next()).context("an address")?;
        let agent_url = format!("http://{address}");
        let target = self.target();
        let warmed = Client::new(&agent_url)?.download(Download::File(&target), |_| Ok(())).await?;
        ensure!(warmed.bytes == self.bytes, "{} bytes", warmed.bytes);
        agent.calm(CALM, Duration::from_secs(240)).await?;

        for clients in [1, 8] {
            let (mut speed, mut cost, mut cpu) = (Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
            for _ in 0..ROUNDS {
                let ours = self.transfer(&agent, &agent_url, &target, clients).await?;
                let theirs = self.transfer(&nginx, &nginx_url, "/archive", clients).await?;
                speed.push(theirs.wall.as_secs_f64() / ours.wall.as_secs_f64());
                cpu.0.push(ours.cpu);
                cpu.1.push(theirs.cpu);
                cost.push(ours.cpu.as_secs_f64() / theirs.cpu.as_secs_f64());
            }
            println!("warm, {clients} clients: throughput / nginx {} (bound 0.9)", ratios(&speed));
            println!("warm, {clients} clients: CPU / nginx {} (bound 1.3)", ratios(&cost));
            println!("warm, {clients} clients: CPU {} s, nginx {} s", shown(&cpu.0), shown(&cpu.1));
        }
        let mut rate = Vec::new();
        for _ in 0..ROUNDS {
            let (ours, theirs) = (heads(&agent_url, &target).await?, heads(&nginx_url, "/archive").await?);
            rate.push(theirs.as_secs_f64() / ours.as_secs_f64());
        }
        println!("warm: HEAD rate / nginx {} (bound 0.5)", ratios(&rate));
        let usage = self.transfer(&agent, &agent_url, &target, 32).await?;
        println!("warm, 32 clients: peak RSS {:.0} MiB (bound 95)", mib(usage.peak_rss));
        Ok(())
    }

    async fn transfer(&self, server: &Server, url: &str, route: &str, clients: usize) -> Result<Usage> {
        let work = async {
            let all = (0..clients).map(|_| async {
                let got = Client::new(url)?.download(Download::File(route), |_| Ok(())).await?;
                ensure!(got.bytes == self.bytes, "{} bytes", got.bytes);
                Ok(())
            });
            try_join_all(all).await.map(drop)
        };
        Ok(server.measure_settling(Duration::ZERO, work).await?.1)
    }

    async fn clones(&self) -> Result<()> {
        let agent = builder(&self.s3.endpoint()).mirror(&self.url).start().await?;
        agent.wait_phase(&self.repo, "Ready").await?;
        let git = Git::new()?;
        let through = agent.git_url(&self.repo)?;
        let program = Path::new(env!("CARGO_BIN_EXE_tarn-agent")).with_file_name("git-tarn");
        ensure!(program.exists(), "{} is missing: cargo build --release -p tarn-client", program.display());
        let (mut plain, mut ours, mut ours_cpu) = (Vec::new(), Vec::new(), Vec::new());
        let head = git.ls_remote(&through).await?.get("HEAD").cloned();
        // The first of each warms what later ones find. None is removed before the end: ext4 passes inodes over that
        // were freed a moment ago, one by one, and whoever comes next would pay for it.
        for round in 0..=ROUNDS {
            let place = self.work.path().join(format!("clone-{round}"));
            let began = Instant::now();
            git.run(["clone", "--quiet", &through, &place.display().to_string()]).await?;
            let git_took = began.elapsed();
            let place = self.work.path().join(format!("tarn-{round}"));
            let args = ["clone", "--quiet", "--server"].map(OsString::from).into_iter();
            let server = format!("http://{}", agent.git_address()?);
            let args = args.chain([server.into(), self.url.clone().into(), place.clone().into_os_string()]);
            let (took, cpu) = run(&program, args).await?;
            let clone = Repo::open(Git::new()?, &place);
            ensure!(clone.git(&["status", "--porcelain"]).await?.is_empty(), "not clean");
            ensure!(Some(clone.rev_parse("HEAD").await?) == head, "not the upstream's HEAD");
            if round > 0 {
                plain.push(git_took);
                ours.push(took);
                ours_cpu.push(cpu);
            }
        }
        println!("git clone through Tarn {} s, git tarn clone {} s", shown(&plain), shown(&ours));
        println!("git clone / git tarn clone: {:.1} (bound 10)", median(&plain) / median(&ours));
        let archive = self.s3.bucket_dir().join("bench").join(&self.key);
        let mut pipe = Vec::new();
        for round in 0..ROUNDS {
            let place = self.work.path().join(format!("tar-{round}"));
            std::fs::create_dir(&place)?;
            let script = "zstd -dcq \"$1\" | tar -xf - -C \"$2\"";
            let args = ["-c", script, "sh"].map(OsString::from).into_iter();
            let args = args.chain([archive.clone().into_os_string(), place.clone().into_os_string()]);
            pipe.push(run(Path::new("/bin/sh"), args).await?.1);
        }
        println!("CPU: zstd -d | tar -x {} s, git tarn clone {} s", shown(&pipe), shown(&ours_cpu));
        println!("CPU of git tarn clone / zstd | tar: {:.2} (bound 1.3)", median(&ours_cpu) / median(&pipe));
        Ok(())
    }
}

/// Reads what lies at `target`, which has so many bytes; how long all of it took, and its first byte.
async fn read(agent: &Agent, target: &str, bytes: u64) -> Result<(Duration, Duration)> {
    let mut client = Client::new(&format!("http://{}", agent.git_address()?))?;
    let (began, mut first) = (Instant::now(), None);
    let got = client.download(Download::File(target), |_| {
        first.get_or_insert_with(|| began.elapsed());
        Ok(())
    });
    let got = got.await?;
    ensure!(got.bytes == bytes, "{} bytes, not {bytes}", got.bytes);
    Ok((began.elapsed(), first.context("no byte")?))
}

/// Asks for headers, over eight connections at once.
async fn heads(url: &str, route: &str) -> Result<Duration> {
    let began = Instant::now();
    let all = (0..8).map(|_| async {
        let mut client = Client::new(url)?;
        for _ in 0..1000 {
            client.head(route).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(all).await?;
    Ok(began.elapsed())
}

/// Runs a program to its end; how long it took, and its CPU.
async fn run(program: &Path, args: impl IntoIterator<Item = OsString>) -> Result<(Duration, Duration)> {
    let (began, cpu) = (Instant::now(), reaped_cpu()?);
    let mut command = process::command(program);
    command.args(args);
    let done = process::run(command, b"", Duration::from_secs(600)).await?;
    ensure!(done.status.success(), "{}: {}", program.display(), done.stderr);
    Ok((began.elapsed(), reaped_cpu()?.saturating_sub(cpu)))
}
