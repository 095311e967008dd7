//! The two sides of the comparison, each a server process of its own.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tarn_testkit::load::Client;
use tarn_testkit::measure::Server;
use tarn_testkit::upstream::Upstream;
use tokio::time::{sleep, timeout};

use crate::repository::Repository;
use crate::table::Table;

/// Mirroring 300 MB takes well under a minute here; beyond this something is wrong.
const MIRRORED: Duration = Duration::from_secs(600);

/// Whose figures these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SideName {
    /// What Tarn is compared with: git http-backend as CGI behind a small server, or what the table says.
    Baseline,
    /// tarn-agent.
    Tarn,
}

impl SideName {
    /// What a report calls it; the table says what the baseline is.
    pub(crate) fn label(self, table: &Table) -> &'static str {
        match self {
            Self::Baseline => table.baseline,
            Self::Tarn => "Tarn",
        }
    }
}

/// How old an answer about refs may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Staleness {
    /// `maxStaleness: 0s`, the default.
    None,
    /// `maxStaleness: 10s`.
    TenSeconds,
}

/// What mirroring cost Tarn before it could serve.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Mirrored {
    /// Mirrors of the same repository made at once.
    pub(crate) mirrors: usize,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// A running server and where it serves the repository.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) name: SideName,
    pub(crate) server: Server,
    pub(crate) mirrored: Option<Mirrored>,
    fresh: String,
    reusing: String,
}

impl Side {
    /// The repository's URL on this side.
    pub(crate) fn url(&self, staleness: Staleness) -> &str {
        match staleness {
            Staleness::None => &self.fresh,
            Staleness::TenSeconds => &self.reusing,
        }
    }

    /// Starts git http-backend under this name, for the repository `repo.git` of a directory.
    pub(crate) async fn baseline(name: &str, root: &Path, work: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let args = ["baseline-server".as_ref(), "--root".as_ref(), root.as_os_str()];
        let log = work.join(format!("{name}.log"));
        let (server, line) = Server::start(name, program, args, "listening ", &log).await?;
        let url = format!("http://{}/repo.git", address(&line, "git")?);
        Ok(Self { name: SideName::Baseline, server, mirrored: None, fresh: url.clone(), reusing: url })
    }

    /// Starts the agent and waits until it has mirrored the repository, once for each staleness.
    pub(crate) async fn tarn(agent: &Path, repository: &Repository, work: &Path) -> Result<Self> {
        let mut mirrors = Vec::new();
        for (name, staleness) in [("fresh", "0s"), ("reusing", "10s")] {
            // One repository, two names: two mirrors of one URL would be refused.
            let upstream = work.join(format!("{name}.git"));
            std::os::unix::fs::symlink(&repository.dir, &upstream)?;
            mirrors.push(Mirror { name, url: tarn_testkit::git::file_url(&upstream), staleness });
        }
        let Agent { server, git, mirrored, .. } = Agent::start(agent, "tarn", &mirrors, work).await?;
        let url = |name: &str| file_route(&git, &work.join(name));
        let (fresh, reusing) = (url("fresh")?, url("reusing")?);
        Ok(Self { name: SideName::Tarn, server, mirrored: Some(mirrored), fresh, reusing })
    }
}

/// A mirror to be declared.
#[derive(Debug)]
pub(crate) struct Mirror<'a> {
    pub(crate) name: &'a str,
    pub(crate) url: String,
    /// `maxStaleness`.
    pub(crate) staleness: &'a str,
}

/// A running agent whose mirrors are ready.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) server: Server,
    /// The address of its git port.
    pub(crate) git: String,
    /// Where it keeps its mirrors and its answers.
    pub(crate) data: PathBuf,
    /// The address of its admin port.
    pub(crate) admin: String,
    pub(crate) mirrored: Mirrored,
}

impl Agent {
    /// Starts an agent of this name with these mirrors, and waits until they are ready; it works in `work`.
    pub(crate) async fn start(agent: &Path, name: &str, mirrors: &[Mirror<'_>], work: &Path) -> Result<Self> {
        Self::start_with(agent, name, mirrors, &[], work).await
    }

    /// As [`Agent::start`], with further flags.
    pub(crate) async fn start_with(
        agent: &Path,
        name: &str,
        mirrors: &[Mirror<'_>],
        flags: &[&str],
        work: &Path,
    ) -> Result<Self> {
        let manifests = work.join(format!("{name}-manifests"));
        std::fs::create_dir(&manifests)?;
        for mirror in mirrors {
            std::fs::write(manifests.join(format!("{}.yaml", mirror.name)), manifest(mirror))?;
        }
        let data = work.join(format!("{name}-data"));
        let args = [
            "serve".as_ref(),
            "--manifests".as_ref(),
            manifests.as_os_str(),
            "--data".as_ref(),
            data.as_os_str(),
            "--allow-file-upstreams".as_ref(),
            "--listen=127.0.0.1:0".as_ref(),
            "--admin-listen=127.0.0.1:0".as_ref(),
        ];
        let args = args.into_iter().chain(flags.iter().map(OsStr::new));
        let log = work.join(format!("{name}.log"));
        let (server, line) = Server::start(name, agent, args, "listening ", &log).await?;
        let admin = format!("http://{}", address(&line, "admin")?);
        let ready = server.measure(mirrored(&admin, mirrors.len())).await;
        let ((), usage) = ready.with_context(|| tail(&log))?;
        let mirrored = Mirrored {
            mirrors: mirrors.len(),
            seconds: usage.wall.as_secs_f64(),
            cpu_seconds: usage.cpu.as_secs_f64(),
        };
        Ok(Self { server, git: address(&line, "git")?.to_owned(), data, admin, mirrored })
    }
}

/// Where an agent serves the mirror of a repository on this machine.
pub(crate) fn file_route(git: &str, upstream: &Path) -> Result<String> {
    let path = upstream.to_str().context("the working directory's name is not UTF-8")?;
    Ok(format!("http://{git}/git/localhost{path}"))
}

/// The agent's release binary, which lies beside this program.
pub(crate) fn agent_binary() -> Result<PathBuf> {
    let agent = std::env::current_exe()?.with_file_name("tarn-agent");
    ensure!(
        agent.is_file(),
        "{} is missing: cargo build --release -p tarn-agent (or --baseline-only)",
        agent.display()
    );
    Ok(agent)
}

/// Serves a directory's repositories until told to stop.
pub(crate) async fn serve_baseline(root: &Path) -> Result<()> {
    let upstream = Upstream::start(root)?;
    writeln!(std::io::stdout(), "listening git={}", upstream.address())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    terminate.recv().await;
    Ok(())
}

/// One mirror. The intervals keep background work out of the measurements.
fn manifest(mirror: &Mirror<'_>) -> String {
    let Mirror { name, url, staleness } = mirror;
    format!(
        "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nmetadata: {{name: {name}}}\nspec:\n  url: {url}\n  \
         interval: 6h\n  freshness: {{maxStaleness: {staleness}}}\n"
    )
}

/// Takes an address out of the line `listening git=… admin=…`.
fn address<'a>(line: &'a str, name: &str) -> Result<&'a str> {
    let found = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.with_context(|| format!("{line:?} names no {name} address"))
}

/// Waits until so many mirrors are ready.
async fn mirrored(admin: &str, count: usize) -> Result<()> {
    let mut client = Client::new(admin)?;
    let mut last = String::new();
    let wait = async {
        loop {
            let text = client.get("/status").await?;
            let status: Status = serde_json::from_slice(&text).context("read /status")?;
            if status.mirrors.iter().filter(|mirror| mirror.phase == "Ready").count() >= count {
                return anyhow::Ok(());
            }
            last = format!("{:?}", status.mirrors);
            sleep(Duration::from_millis(100)).await;
        }
    };
    match timeout(MIRRORED, wait).await {
        Ok(done) => done,
        Err(_) => bail!("not mirrored within {MIRRORED:?}: {last}"),
    }
}

/// The end of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(10).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// What is read of `/status`.
#[derive(Debug, Deserialize)]
struct Status {
    mirrors: Vec<MirrorStatus>,
}

/// What is read of one mirror there.
#[derive(Debug, Deserialize)]
struct MirrorStatus {
    phase: String,
    #[serde(default)]
    #[expect(dead_code, reason = "shown when mirroring takes too long")]
    message: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_by_name() {
        let line = "listening git=127.0.0.1:80 admin=127.0.0.1:81";
        assert_eq!(address(line, "git").unwrap(), "127.0.0.1:80");
        assert_eq!(address(line, "admin").unwrap(), "127.0.0.1:81");
        assert!(address(line, "metrics").is_err());
    }
}
