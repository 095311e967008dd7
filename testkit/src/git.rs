//! Real git for tests: a client that knows nobody's configuration, and repositories it works on.

mod repo;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use self::repo::{ObjectFormat, Repo};
use crate::process::{self, Output};

/// Refs as `git ls-remote` shows them: HEAD, full names, and `name^{}` for what an annotated tag points at.
pub type Refs = BTreeMap<String, String>;

/// Longer than any test's git command takes on a loaded machine; a test that hangs should say where.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A git client with an empty home of its own: no user or system configuration, a fixed identity, no prompts.
#[derive(Debug, Clone)]
pub struct Git {
    home: Arc<tempfile::TempDir>,
    config: Vec<(String, String)>,
    env: Vec<(OsString, OsString)>,
    timeout: Duration,
}

impl Git {
    /// Creates a client.
    pub fn new() -> Result<Self> {
        let home = Arc::new(tempfile::tempdir().context("create a home for git")?);
        Ok(Self { home, config: Vec::new(), env: Vec::new(), timeout: TIMEOUT })
    }

    /// The same client with one more setting (`-c key=value`).
    #[must_use]
    pub fn with_config(mut self, key: &str, value: &str) -> Self {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The same client with one more environment variable, such as `GIT_TRACE_PACKET`.
    #[must_use]
    pub fn with_env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// The same client that gives up sooner or later than after two minutes.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Prepares `git …` in this client's environment, for callers that want the process itself.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> std::process::Command {
        let mut git = process::command("git");
        isolate(&mut git, self.home.path());
        git.current_dir(self.home.path());
        git.envs(self.env.iter().map(|(key, value)| (key, value)));
        for (key, value) in &self.config {
            git.arg("-c").arg(format!("{key}={value}"));
        }
        git.args(args);
        git
    }

    /// Runs git to its end, however it ends.
    pub async fn attempt<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.attempt_with(args, b"").await
    }

    /// As [`Git::attempt`], with bytes on standard input.
    pub async fn attempt_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Result<Output> {
        process::run(self.command(args), stdin, self.timeout).await
    }

    /// Runs git, which must succeed, and gives its output back.
    pub async fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        self.run_with(args, b"").await
    }

    /// As [`Git::run`], with bytes on standard input.
    pub async fn run_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Result<Output> {
        let command = self.command(args);
        let what: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let output = process::run(command, stdin, self.timeout).await?;
        ensure!(
            output.status.success(),
            "git {} ended with {}: {}",
            what.join(" "),
            output.status,
            output.stderr.trim_end()
        );
        Ok(output)
    }

    /// Lists the refs at a URL or path.
    pub async fn ls_remote(&self, url: &str) -> Result<Refs> {
        parse_refs(&self.run(["ls-remote", url]).await?.text())
    }

    /// Names the branch that HEAD stands for at a URL or path; none when HEAD is detached or unborn.
    pub async fn remote_head(&self, url: &str) -> Result<Option<String>> {
        let text = self.run(["ls-remote", "--symref", url, "HEAD"]).await?.text();
        Ok(text.lines().find_map(|line| Some(line.strip_prefix("ref: ")?.strip_suffix("\tHEAD")?.to_owned())))
    }

    /// Clones into `dir` with further options such as `--mirror` or `--depth=1`.
    pub async fn clone_repo(&self, url: &str, dir: &Path, options: &[&str]) -> Result<Repo> {
        let args = [OsStr::new("clone"), OsStr::new("--quiet")];
        let options = options.iter().map(OsStr::new);
        let ends = [OsStr::new(url), dir.as_os_str()];
        self.run(args.into_iter().chain(options).chain(ends)).await?;
        Ok(Repo::open(self.clone(), dir))
    }
}

/// Gives a prepared git process an environment of its own: empty but for what makes it repeatable.
pub fn isolate(command: &mut std::process::Command, home: &Path) {
    command.env_clear();
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let settings: [(&str, &OsStr); 14] = [
        ("PATH", &path),
        ("HOME", home.as_os_str()),
        ("LC_ALL", OsStr::new("C")),
        ("TZ", OsStr::new("UTC")),
        ("GIT_CONFIG_GLOBAL", OsStr::new("/dev/null")),
        ("GIT_CONFIG_NOSYSTEM", OsStr::new("1")),
        ("GIT_TERMINAL_PROMPT", OsStr::new("0")),
        ("GIT_ADVICE", OsStr::new("0")),
        ("GIT_AUTHOR_NAME", OsStr::new("Ada Author")),
        ("GIT_AUTHOR_EMAIL", OsStr::new("ada@example.com")),
        ("GIT_AUTHOR_DATE", OsStr::new("1700000000 +0000")),
        ("GIT_COMMITTER_NAME", OsStr::new("Carl Committer")),
        ("GIT_COMMITTER_EMAIL", OsStr::new("carl@example.com")),
        ("GIT_COMMITTER_DATE", OsStr::new("1700000000 +0000")),
    ];
    command.envs(settings);
}

/// Reads the output of `git ls-remote`.
fn parse_refs(text: &str) -> Result<Refs> {
    text.lines()
        .map(|line| {
            let (oid, name) = line.split_once('\t').with_context(|| format!("not a ref line: {line:?}"))?;
            Ok((name.to_owned(), oid.to_owned()))
        })
        .collect()
}

/// A path as text for a git argument or a `file://` URL; the kit's own temporary paths are plain.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("the kit's temporary directories have plain names")
}

/// The `file://` URL of a local repository.
pub fn file_url(path: &Path) -> String {
    format!("file://{}", text(path))
}
