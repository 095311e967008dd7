//! The agent as a real process with directories of its own: started, asked, killed and started again.

mod processes;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

pub use self::processes::Process;
use crate::eventually::eventually;
use crate::process::{Output, command, run};
use crate::s3::S3Server;
use crate::wire::{self, Answer, Connection};

/// How long a start, a stop or a phase may take: far longer than either does, for loaded machines.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// After so long an agent should have done all that it does of its own accord, even for a large repository.
const CALM: Duration = Duration::from_secs(240);

/// How an agent is to be started.
#[derive(Debug, Clone)]
pub struct Builder {
    binary: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    through: Vec<OsString>,
    data: Option<PathBuf>,
    settings: Settings,
    manifests: Manifests,
}

/// How the agent learns its own directories and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settings {
    Flags,
    Environment,
}

/// Whether the agent is given a manifests directory of the kit's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manifests {
    Own,
    None,
}

impl Builder {
    /// Starts with this binary, or with the one `TARN_TESTKIT_AGENT` names.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        let binary = std::env::var_os("TARN_TESTKIT_AGENT").map_or_else(|| binary.into(), PathBuf::from);
        Self {
            binary,
            args: Vec::new(),
            env: Vec::new(),
            through: Vec::new(),
            data: None,
            settings: Settings::Flags,
            manifests: Manifests::Own,
        }
    }

    /// The binary that is started.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Adds a flag or value to the command line.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds `--mirror URL`.
    #[must_use]
    pub fn mirror(self, url: &str) -> Self {
        self.arg("--mirror").arg(url)
    }

    /// Adds `--allow-file-upstreams`.
    #[must_use]
    pub fn file_upstreams(self) -> Self {
        self.arg("--allow-file-upstreams")
    }

    /// Adds the flags and credentials for the test server's bucket, below `prefix`, at `endpoint`: the server's
    /// own, or that of a proxy in front of it.
    #[must_use]
    pub fn bucket(self, prefix: &str, endpoint: &str) -> Self {
        self.arg("--store")
            .arg(format!("s3://{}/{prefix}", S3Server::BUCKET))
            .arg("--s3-endpoint")
            .arg(endpoint)
            .arg("--s3-region")
            .arg(S3Server::REGION)
            .arg("--s3-path-style")
            .env("AWS_ACCESS_KEY_ID", S3Server::ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET_KEY)
    }

    /// Sets an environment variable; the agent's is otherwise empty but for PATH and an empty HOME.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Starts this program with these arguments, the agent's binary and its flags; the agent must take the program's place.
    #[must_use]
    pub fn through(mut self, program: &str, args: impl IntoIterator<Item = OsString>) -> Self {
        self.through = std::iter::once(program.into()).chain(args).collect();
        self
    }

    /// Uses this data directory instead of a new one; it stays when the agent goes.
    #[must_use]
    pub fn data(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data = Some(dir.into());
        self
    }

    /// Tells the agent its data directory and addresses by environment variables, and no manifests directory.
    #[must_use]
    pub fn through_environment(mut self) -> Self {
        self.settings = Settings::Environment;
        self.without_manifests()
    }

    /// Starts without `--manifests`; the caller may add one.
    #[must_use]
    pub fn without_manifests(mut self) -> Self {
        self.manifests = Manifests::None;
        self
    }

    /// Runs it as a pod of this name, with the GitMirrors that the API server of this kubeconfig has for a cache.
    #[must_use]
    pub fn in_cluster(self, kubeconfig: &Path, cache: &str, pod: &str) -> Self {
        self.without_manifests()
            .arg("--in-cluster")
            .arg("--cache")
            .arg(cache)
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", pod)
            .env("POD_NAMESPACE", crate::apiserver::NAMESPACE)
            .env("POD_UID", format!("uid-of-{pod}"))
    }

    /// Starts the agent with new directories and waits until it serves.
    pub async fn start(self) -> Result<Agent> {
        self.start_with(&[]).await
    }

    /// As [`Builder::start`], with these manifests (file name, YAML) already there.
    pub async fn start_with(self, manifests: &[(&str, &str)]) -> Result<Agent> {
        let home = home()?;
        let data = self.data.clone().unwrap_or_else(|| home.path().join("data"));
        let log = home.path().join("agent.log");
        let mut agent = Agent { builder: self, home, data, log, running: None };
        for (name, yaml) in manifests {
            agent.write_manifest(name, yaml)?;
        }
        agent.start_again().await?;
        Ok(agent)
    }

    /// Runs the agent for cases in which it must end by itself, and gives back how it did.
    pub async fn run_to_end(self) -> Result<Output> {
        let home = home()?;
        let data = self.data.clone().unwrap_or_else(|| home.path().join("data"));
        run(self.command(home.path(), &data), b"", PATIENCE).await
    }

    /// Runs the binary with nothing but the added flags and variables, for commands other than `serve`.
    pub async fn run_alone(self) -> Result<Output> {
        let home = home()?;
        let mut alone = self.bare(home.path());
        alone.args(&self.args);
        run(alone, b"", PATIENCE).await
    }

    fn bare(&self, home: &Path) -> std::process::Command {
        let mut words = self.through.iter().map(OsString::as_os_str).chain([self.binary.as_os_str()]);
        let mut agent = command(words.next().unwrap_or_default());
        agent.args(words);
        agent.env_clear().env("PATH", path());
        agent.env("HOME", home.join("home")).env("RUST_BACKTRACE", "1");
        if !rustix::process::geteuid().is_root() {
            // Tests look into its open files, which root may always do.
            agent.env("TARN_AGENT_DEBUGGABLE", "true");
        }
        agent.envs(self.env.iter().map(|(key, value)| (key, value)));
        agent.current_dir(home);
        agent
    }

    /// `tarn-agent serve` on free ports.
    fn command(&self, home: &Path, data: &Path) -> std::process::Command {
        let mut agent = self.bare(home);
        agent.arg("serve");
        let free = "127.0.0.1:0";
        match self.settings {
            Settings::Flags => {
                agent.arg("--data").arg(data).args(["--listen", free, "--admin-listen", free]);
            }
            Settings::Environment => {
                agent.env("TARN_AGENT_DATA", data);
                agent.env("TARN_AGENT_LISTEN", free).env("TARN_AGENT_ADMIN_LISTEN", free);
            }
        }
        let manifests = home.join("manifests");
        if self.manifests == Manifests::Own {
            agent.arg("--manifests").arg(manifests);
        }
        agent.args(&self.args);
        agent
    }
}

/// Where the agent finds git: in the directory that `TARN_TEST_GIT` names, which tries it with another version, or where this
/// program finds its own.
fn path() -> OsString {
    let mut path = std::env::var_os("TARN_TEST_GIT").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// What programs on the agent's machine call it: its admin port answers no page in a browser.
pub const LOCAL: (&str, &str) = ("Host", "localhost");

/// An agent with its directories; both go when this is dropped, with every process it left.
#[derive(Debug)]
pub struct Agent {
    builder: Builder,
    home: tempfile::TempDir,
    data: PathBuf,
    log: PathBuf,
    running: Option<Running>,
}

/// The process while there is one.
#[derive(Debug)]
struct Running {
    child: Child,
    git: SocketAddr,
    admin: SocketAddr,
}

impl Agent {
    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.home.path().join("manifests")
    }

    /// Where git clients connect.
    pub fn git_address(&self) -> Result<SocketAddr> {
        Ok(self.running()?.git)
    }

    /// Where the admin port listens.
    pub fn admin_address(&self) -> Result<SocketAddr> {
        Ok(self.running()?.admin)
    }

    /// The URL of a mirrored repository (`host/path`, see [`repo_id`]) for a git client.
    pub fn git_url(&self, repo: &str) -> Result<String> {
        Ok(format!("http://{}/git/{repo}", self.git_address()?))
    }

    /// GET on the git port, on a connection of its own.
    pub async fn get(&self, target: &str) -> Result<Answer> {
        wire::get(self.git_address()?, target).await
    }

    /// GET on the admin port.
    pub async fn admin(&self, target: &str) -> Result<Answer> {
        Connection::open(self.admin_address()?).await?.ask("GET", target, &[LOCAL], b"").await
    }

    /// The document at `/status`.
    pub async fn status(&self) -> Result<Value> {
        let answer = self.admin("/status").await?;
        ensure!(answer.status == 200, "/status answered {}: {}", answer.status, answer.text());
        serde_json::from_slice(&answer.body).context("/status is not JSON")
    }

    /// One mirror's part of `/status`, by its repository.
    pub async fn mirror_status(&self, repo: &str) -> Result<Value> {
        let status = self.status().await?;
        let mirrors = status.get("mirrors").and_then(Value::as_array).context("/status without mirrors")?;
        let found = mirrors.iter().find(|mirror| mirror.get("repo").and_then(Value::as_str) == Some(repo));
        found.cloned().with_context(|| format!("no mirror {repo} in {status}"))
    }

    /// Waits until a mirror's status fits, and gives it back.
    pub async fn wait_status(&self, repo: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(PATIENCE, &format!("{repo}: {what}"), async || {
            let status = self.mirror_status(repo).await?;
            ensure!(fits(&status), "{status}");
            Ok(status)
        })
        .await
    }

    /// Waits until a mirror is in this phase.
    pub async fn wait_phase(&self, repo: &str, phase: &str) -> Result<Value> {
        self.wait_status(repo, &format!("phase {phase}"), |status| {
            status.get("phase").and_then(Value::as_str) == Some(phase)
        })
        .await
    }

    /// Waits until all these mirrors are ready.
    pub async fn wait_ready(&self, repos: &[&str]) -> Result<()> {
        for repo in repos {
            self.wait_phase(repo, "Ready").await?;
        }
        Ok(())
    }

    /// POST on the admin port.
    pub async fn post(&self, target: &str) -> Result<Answer> {
        Connection::open(self.admin_address()?).await?.ask("POST", target, &[LOCAL], b"").await
    }

    /// Asks for a fetch now.
    pub async fn fetch_now(&self, repo: &str) -> Result<Answer> {
        self.post(&format!("/mirrors/{repo}/fetch")).await
    }

    /// The text at `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        let answer = self.admin("/metrics").await?;
        ensure!(answer.status == 200, "/metrics answered {}", answer.status);
        Ok(answer.text())
    }

    /// One of them, such as `tarn_packs_lookups_total{result="hit"}`; zero where it is missing, as before its first event.
    pub async fn metric<T: FromStr + Default>(&self, sample: &str) -> Result<T> {
        sample_of(&self.metrics().await?, sample)
    }

    /// What the agent has written to standard error so far, over all its starts.
    pub fn logs(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// Adds or replaces a manifest, in one instant.
    pub fn write_manifest(&self, name: &str, yaml: &str) -> Result<()> {
        let staged = self.home.path().join("manifest");
        std::fs::write(&staged, yaml)?;
        std::fs::rename(&staged, self.manifests().join(name)).context("place a manifest")
    }

    /// Removes a manifest.
    pub fn remove_manifest(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.manifests().join(name)).context("remove a manifest")
    }

    /// The agent's process id.
    pub fn pid(&self) -> Result<u32> {
        self.running()?.child.id().context("the agent has ended")
    }

    /// Every process below the agent, those that ended and were not waited for included.
    pub fn children(&self) -> Result<Vec<Process>> {
        Ok(processes::below(self.pid()?))
    }

    /// Every living process but the agent whose command line, environment or directory names the data
    /// directory: its children, and those a killed agent left.
    pub fn strays(&self) -> Vec<Process> {
        let agent = self.running.as_ref().and_then(|running| running.child.id());
        processes::naming(&self.data).into_iter().filter(|process| Some(process.pid) != agent).collect()
    }

    /// Waits until no process works for the agent.
    pub async fn wait_idle(&self) -> Result<()> {
        eventually(PATIENCE, "no children", async || {
            let children = self.children()?;
            ensure!(children.is_empty(), "{children:?}");
            Ok(())
        })
        .await
    }

    /// Waits until no process has worked for the agent for so long.
    pub async fn wait_calm(&self, quiet: Duration) -> Result<()> {
        let (began, mut since) = (Instant::now(), Instant::now());
        while since.elapsed() < quiet {
            if !self.children()?.is_empty() {
                since = Instant::now();
            }
            ensure!(began.elapsed() < CALM, "the agent is never idle");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until a ready mirror has its first snapshot, and nothing more is done that nobody asked for.
    pub async fn wait_settled(&self, repo: &str) -> Result<()> {
        self.wait_status(repo, "a snapshot", |status| status.pointer("/snapshot/commit").is_some()).await?;
        // Upkeep begins half a second after it is due.
        self.wait_calm(Duration::from_secs(2)).await
    }

    /// Ends the agent with SIGKILL, which its children survive.
    pub async fn kill9(&mut self) -> Result<()> {
        let mut running = self.running.take().context("the agent does not run")?;
        running.child.kill().await.context("kill the agent")
    }

    /// Ends the agent with SIGTERM and gives its exit code back.
    pub async fn stop(&mut self) -> Result<i32> {
        let pid = i32::try_from(self.pid()?)?;
        kill_process(Pid::from_raw(pid).context("no process id")?, Signal::TERM)?;
        let mut running = self.running.take().context("the agent does not run")?;
        match tokio::time::timeout(PATIENCE, running.child.wait()).await {
            Ok(status) => status?.code().context("the agent was ended by a signal"),
            Err(_) => {
                self.running = Some(running);
                bail!("the agent did not stop within {PATIENCE:?} of SIGTERM")
            }
        }
    }

    /// Stops the agent if it runs, and starts it on the same directories; its ports are new.
    pub async fn restart(&mut self) -> Result<()> {
        if self.running.is_some() {
            self.stop().await?;
        }
        self.start_again().await
    }

    /// Starts the agent on the same directories after [`Agent::kill9`] or [`Agent::stop`].
    pub async fn start_again(&mut self) -> Result<()> {
        let mut agent = self.builder.command(self.home.path(), &self.data);
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        agent.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child =
            tokio::process::Command::from(agent).kill_on_drop(true).spawn().with_context(|| {
                format!(
                    "start {}; build it, or name it with TARN_TESTKIT_AGENT",
                    self.builder.binary.display()
                )
            })?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let first = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let Some(line) = first.context("the agent said nothing on stdout")?? else {
            let status = child.wait().await?;
            bail!("the agent ended with {status}: {}", self.logs()?);
        };
        let (git, admin) = addresses(&line).with_context(|| format!("not the listening line: {line:?}"))?;
        // Whatever it says later is read, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.running = Some(Running { child, git, admin });
        Ok(())
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the agent does not run")
    }
}

/// One sample of the text at `/metrics`; zero where it is missing.
pub fn sample_of<T: FromStr + Default>(metrics: &str, sample: &str) -> Result<T> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(Ok(T::default()), |value| {
        value.trim().parse().ok().with_context(|| format!("{sample} is {value}"))
    })
}

impl Drop for Agent {
    #[expect(clippy::print_stderr, reason = "the test runner shows it for failed tests only")]
    fn drop(&mut self) {
        let mut left = self.children().unwrap_or_default();
        if let Some(running) = self.running.as_mut() {
            // It may have ended by itself.
            let _ = running.child.start_kill();
        }
        left.extend(self.strays());
        for process in left {
            process.kill();
        }
        eprintln!("--- agent's log\n{}---", self.logs().unwrap_or_default());
    }
}

/// A directory with an empty HOME and an empty directory of manifests.
fn home() -> Result<tempfile::TempDir> {
    let home = tempfile::tempdir().context("create a directory for the agent")?;
    for dir in ["home", "manifests"] {
        std::fs::create_dir(home.path().join(dir))?;
    }
    Ok(home)
}

/// Reads `listening git=ADDR admin=ADDR`.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (git, admin) = line.strip_prefix("listening git=")?.split_once(" admin=")?;
    Some((git.parse().ok()?, admin.trim().parse().ok()?))
}

/// The agent's name for an upstream URL: `host[:port]/path` without `.git`, `localhost` for `file://`.
pub fn repo_id(url: &str) -> String {
    let plain = url.strip_suffix(".git").unwrap_or(url);
    if let Some(path) = plain.strip_prefix("file://") {
        return format!("localhost{path}");
    }
    plain.split_once("://").map_or(plain, |(_, rest)| rest).to_owned()
}

/// A GitMirror manifest with further lines of the spec, such as `freshness: {maxStaleness: 10s}`.
pub fn manifest(name: &str, url: &str, spec: &[&str]) -> String {
    let mut yaml = format!(
        "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nmetadata:\n  name: {name}\nspec:\n  url: {url}\n"
    );
    for line in spec {
        yaml.push_str("  ");
        yaml.push_str(line);
        yaml.push('\n');
    }
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_line_names_both_ports() {
        let (git, admin) = addresses("listening git=127.0.0.1:80 admin=127.0.0.1:81").unwrap();
        assert_eq!((git.port(), admin.port()), (80, 81));
        assert!(addresses("listening on port 80").is_none());
    }

    #[test]
    fn a_repository_is_named_by_host_and_path() {
        assert_eq!(repo_id("http://127.0.0.1:4567/x.git"), "127.0.0.1:4567/x");
        assert_eq!(repo_id("file:///a/b.git"), "localhost/a/b");
    }
}
