//! The only place where processes are started.
//!
//! Every child is a git command with a clean environment (no user or system configuration, no prompt,
//! English messages, an allow-list of transports), in a process group of its own, and carries a mark in
//! its environment by which the next start finds it should this agent be killed (docs/decisions/0002).
//! Dropping a [`Child`] kills its whole group.

use std::{
    ffi::{OsStr, OsString},
    fmt, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process,
    sync::watch,
    time::timeout,
};

pub use super::error::{GitError, MINIMUM_VERSION, failure};
use super::{
    error::STDOUT_KEPT,
    orphans::{self, MARK, Own},
    pulse::silent,
    stderr::{OTHERS, plain, redact},
};
use crate::{authorities, files};

/// How much of a child's standard error is kept: its last lines tell why it failed.
const STDERR_KEPT: usize = 16 * 1024;

/// How much sooner than the agent the kernel ends a child where memory is short, of 1,000 (proc(5)): a repack can be run
/// again, and the agent's end is the end of all answers.
const OOM_SCORE_ADJ: &str = "500";

/// Variables that children inherit; everything else is dropped. They say where programs and certificates
/// are.
const INHERITED: &[&str] = &["PATH", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Variables that say how to reach a proxy; children inherit them, but for those that need none.
const PROXIES: &[&str] =
    &["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];

/// The only configuration file children read. A command-line setting does not reach the `upload-pack` that
/// a fetch from a file:// upstream starts, this file does.
const CONFIG: &str = ".gitconfig";

/// The authorities that git trusts as the agent does, whichever TLS library it has.
const AUTHORITIES: &str = "authorities.pem";

/// The lines of a configuration by which git trusts the authorities of `file`.
pub fn trusting(file: &Path) -> String {
    let path = file.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("[http]\n\tsslCAInfo = \"{path}\"\n")
}

/// The installed git, ready to run commands for one data directory. Cheap to clone.
#[derive(Clone)]
pub struct Git {
    shared: Arc<Shared>,
}

struct Shared {
    version: String,
    home: PathBuf,
    mark: OsString,
    allow_file: bool,
}

impl Git {
    /// Finds git and checks its version. `home` is a directory of its own that stands in for the user's;
    /// `mark` tells this agent's children apart from others'; `allow_file` admits local upstreams.
    ///
    /// # Errors
    /// Git is missing or too old.
    pub async fn detect(home: &Path, mark: &OsStr, allow_file: bool) -> Result<Self, GitError> {
        let io_error = |source| GitError::Io { verb: "config".into(), source };
        // A volume may come back under another user id, and a file:// upstream is admitted by a flag.
        let mut config = "[safe]\n\tdirectory = *\n".to_owned();
        let authorities = authorities::pem(None).unwrap_or_default();
        // Where the agent knows of none, git has its own way of finding them.
        if !authorities.is_empty() {
            let file = home.join(AUTHORITIES);
            files::replace(&file, authorities.as_bytes()).map_err(io_error)?;
            config.push_str(&trusting(&file));
        }
        std::fs::write(home.join(CONFIG), config).map_err(io_error)?;
        let shared = Shared { version: String::new(), home: home.into(), mark: mark.into(), allow_file };
        let mut git = Self { shared: Arc::new(shared) };
        let output =
            git.command("version").run(Duration::from_secs(10)).await.map_err(|error| match error {
                GitError::Io { source, .. } => GitError::Missing { source },
                other => other,
            })?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if parse_version(&text).is_none_or(|version| version < MINIMUM_VERSION) {
            return Err(GitError::TooOld { found: text });
        }
        let shared = Shared { version: text, home: home.into(), mark: mark.into(), allow_file };
        git.shared = Arc::new(shared);
        Ok(git)
    }

    /// What `git --version` printed.
    pub fn version(&self) -> &str {
        &self.shared.version
    }

    /// Whether it is of this version or newer.
    pub fn at_least(&self, version: (u32, u32)) -> bool {
        parse_version(&self.shared.version).is_some_and(|own| own >= version)
    }

    /// Starts building the command `git VERB`.
    pub fn command(&self, verb: &str) -> Command {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
        let mut inner = process::Command::new("git");
        inner.env_clear();
        for name in INHERITED.iter().chain(PROXIES) {
            if let Some(value) = std::env::var_os(name) {
                inner.env(name, value);
            }
        }
        let transports = if self.shared.allow_file { "http:https:ssh:file" } else { "http:https:ssh" };
        inner
            .env("HOME", &self.shared.home)
            .env("XDG_CONFIG_HOME", &self.shared.home)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.shared.home.join(CONFIG))
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            // An upstream's refs/replace/ are refs as others: what is packed and listed is what the names stand for.
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_ASKPASS", "true")
            .env("GIT_ALLOW_PROTOCOL", transports)
            .env("LC_ALL", "C")
            .env(MARK, &self.shared.mark)
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // gc.auto and maintenance.auto: the agent alone decides when packs change.
        for setting in [
            "gc.auto=0",
            "maintenance.auto=false",
            "protocol.version=2",
            "core.hooksPath=/dev/null",
            "advice.detachedHead=false",
            // A shell function stands before ssh, of which git would have to find out what it is.
            "ssh.variant=ssh",
        ] {
            inner.args(["-c", setting]);
        }
        // Not by GIT_SSH_COMMAND, which would win over the one that names a Secret's key. Keys come of Secrets alone,
        // never of the user that the agent happens to run as.
        let ssh = "ssh -F none -oBatchMode=yes -oIdentitiesOnly=yes -oIdentityFile=none -oIdentityAgent=none";
        inner.arg("-c").arg(format!("core.sshCommand={}", aside(ssh)));
        Command {
            inner,
            verb: verb.to_owned(),
            verb_given: false,
            input: Some(Vec::new()),
            progress: None,
            silence: None,
        }
    }
}

/// Shell text that runs `program` with the arguments behind it and marks each line of its standard error as the other
/// side's: what ssh prints is the far git's words as well, which would read like those of git here.
pub fn aside(program: &str) -> String {
    let mark = OTHERS[1];
    format!("t() {{ {{ {program} \"$@\" 2>&1 >&3 3>&- | sed -u 's/^/{mark} /' >&2 3>&-; }} 3>&1; }}; t")
}

impl fmt::Debug for Git {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Git({})", self.shared.version)
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("git version ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A git command that is being built.
pub struct Command {
    inner: process::Command,
    verb: String,
    verb_given: bool,
    /// `None` where a file stands for it.
    input: Option<Vec<u8>>,
    progress: Option<Arc<watch::Sender<Option<String>>>>,
    silence: Option<Duration>,
}

/// What a finished command printed.
#[derive(Debug)]
pub struct Output {
    /// Standard output, whole.
    pub stdout: Vec<u8>,
    /// The end of standard error, redacted.
    pub stderr: String,
}

impl Command {
    /// Adds a setting (`-c name=value`). Must come before the first [`Command::arg`]; never a secret.
    pub fn config(mut self, setting: impl AsRef<OsStr>) -> Self {
        self.inner.arg("-c").arg(setting);
        self
    }

    /// Adds an argument of the verb.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.name_verb();
        self.inner.arg(arg);
        self
    }

    /// Adds arguments of the verb.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.name_verb();
        self.inner.args(args);
        self
    }

    /// Runs in the repository `dir`.
    pub fn git_dir(mut self, dir: &Path) -> Self {
        self.inner.env("GIT_DIR", dir);
        self
    }

    /// Sets an environment variable; never a secret.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Withholds the environment's proxies.
    pub fn without_proxies(mut self) -> Self {
        for name in PROXIES {
            self.inner.env_remove(name);
        }
        self
    }

    /// Feeds `input` to standard input.
    pub fn input(mut self, input: Vec<u8>) -> Self {
        self.input = Some(input);
        self
    }

    /// Has the child read `file` as its standard input.
    pub fn input_from(mut self, file: std::fs::File) -> Self {
        self.inner.stdin(file);
        self.input = None;
        self
    }

    /// Sends standard output to `file` instead of a pipe: the child writes, the agent copies nothing.
    pub fn output_to(mut self, file: std::fs::File) -> Self {
        self.inner.stdout(file);
        self
    }

    /// Reports the latest progress line ("Receiving objects:  43% (…)") to `sender`.
    pub fn progress(mut self, sender: Arc<watch::Sender<Option<String>>>) -> Self {
        self.progress = Some(sender);
        self
    }

    /// Ends the command when it has shown no sign of life for `limit` (see `git::pulse`).
    pub fn silence(mut self, limit: Duration) -> Self {
        self.silence = Some(limit);
        self
    }

    fn name_verb(&mut self) {
        if !self.verb_given {
            self.inner.arg(&self.verb);
            self.verb_given = true;
        }
    }

    /// Starts the command with standard input, output and error piped, as far as no file stands for them.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(mut self) -> Result<Child, GitError> {
        self.name_verb();
        if self.input.is_some() {
            self.inner.stdin(Stdio::piped());
        }
        let verb = self.verb;
        let started = orphans::start(&mut self.inner);
        let (child, own) = started.map_err(|source| GitError::Io { verb: verb.clone(), source })?;
        if let Some(pid) = child.id() {
            // What it starts inherits it. Best effort: it may have ended.
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ);
        }
        tracing::trace!(verb, pid = child.id(), "child started");
        Ok(Child { inner: child, own, verb })
    }

    /// Runs the command to its end, or kills it after `limit`. A dropped future kills it too.
    ///
    /// # Errors
    /// It cannot be started, ends with an error, prints too much, or takes too long.
    pub async fn run(mut self, limit: Duration) -> Result<Output, GitError> {
        let started = std::time::Instant::now();
        let input = self.input.as_mut().map(std::mem::take).unwrap_or_default();
        let (progress, silence) = (self.progress.take(), self.silence);
        let mut child = self.spawn()?;
        let verb = child.verb.clone();
        let io_error = |source| GitError::Io { verb: verb.clone(), source };
        let died = silent(child.own.and_then(Own::group), silence);
        let (stdin, stdout, stderr) =
            (child.inner.stdin.take(), child.inner.stdout.take(), child.inner.stderr.take());
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A child that ends early closes the pipe; its exit status tells why.
                let _ = stdin.write_all(&input).await;
            }
        };
        let collected = collect(stdout, STDOUT_KEPT);
        let work = async {
            let ((), bytes, tail) = tokio::join!(feed, collected, read_stderr(stderr, progress));
            let status = child.inner.wait().await?;
            Ok::<_, io::Error>((bytes?, tail, status))
        };
        let finished = tokio::select! {
            finished = timeout(limit, work) => finished,
            silence = died => return Err(GitError::Silent { verb, silence }),
        };
        let (stdout, stderr, status) = match finished {
            Ok(finished) => finished.map_err(io_error)?,
            Err(_) => return Err(GitError::TimedOut { verb, limit }),
        };
        // Of a child that prints on, the pipe is closed, and its status says no more than that.
        let stdout = stdout.ok_or_else(|| GitError::TooMuch { verb: verb.clone() })?;
        let millis = started.elapsed().as_millis();
        tracing::debug!(verb, millis, status = status.code(), bytes = stdout.len(), "git command ended");
        if status.success() { Ok(Output { stdout, stderr }) } else { Err(failure(&verb, status, &stderr)) }
    }
}

/// Reads standard output to its end; `None` where it is longer than `limit`.
async fn collect(stdout: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if let Some(stdout) = stdout {
        stdout.take(limit + 1).read_to_end(&mut bytes).await?;
    }
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Reads standard error to its end, keeping the last [`STDERR_KEPT`] bytes, redacted; progress lines go
/// to `progress` and are not kept.
pub async fn read_stderr(
    stderr: Option<impl AsyncRead + Unpin>,
    progress: Option<Arc<watch::Sender<Option<String>>>>,
) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let (mut kept, mut line, mut chunk) = (String::new(), Vec::new(), [0_u8; 4096]);
    let mut finish_line = |line: &mut Vec<u8>| {
        let text = redact(&String::from_utf8_lossy(line));
        line.clear();
        if is_progress(&text) {
            if let Some(sender) = &progress {
                sender.send_replace(Some(plain(&text)));
            }
        } else if !text.trim().is_empty() {
            kept.push_str(&text);
            kept.push('\n');
            if kept.len() > STDERR_KEPT {
                let cut = kept.len() - STDERR_KEPT;
                let cut = (cut..kept.len()).find(|at| kept.is_char_boundary(*at)).unwrap_or(kept.len());
                kept.drain(..cut);
            }
        }
    };
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        for byte in chunk.iter().take(count) {
            match byte {
                b'\n' | b'\r' => finish_line(&mut line),
                // A line longer than what is kept anyway is cut here, to stay bounded.
                _ if line.len() >= STDERR_KEPT => finish_line(&mut line),
                _ => line.push(*byte),
            }
        }
    }
    finish_line(&mut line);
    if let Some(sender) = &progress {
        sender.send_replace(None);
    }
    kept
}

/// Progress as progress.c prints it: a title, a percentage or a bare count.
fn is_progress(line: &str) -> bool {
    const TITLES: &[&str] = &[
        "Receiving objects:",
        "Resolving deltas:",
        "Counting objects:",
        "Compressing objects:",
        "Enumerating objects:",
        "Checking connectivity:",
        "Writing objects:",
    ];
    let line = line.trim_start_matches("remote: ");
    TITLES.iter().any(|title| line.starts_with(title)) || line.starts_with("Total ")
}

/// A running child. Dropping it kills its process group.
pub struct Child {
    /// The process, for its pipes.
    pub inner: process::Child,
    own: Option<Own>,
    /// The git command.
    pub verb: String,
}

impl Drop for Child {
    fn drop(&mut self) {
        // After a regular end the group may live on only in grandchildren, which are to end as well.
        // The id cannot have been reused while the child is unreaped or members of the group exist; once
        // all are gone and reaped, `id()` is `None` and nothing is sent.
        // What its members leave is adopted by the agent, and waited for.
        match (self.own, self.inner.id()) {
            (Some(own), Some(_)) => drop(own.group().map(|group| kill_process_group(group, Signal::KILL))),
            (Some(own), None) => own.ended(),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_builds_are_understood() {
        assert_eq!(parse_version("git version 2.39.5"), Some((2, 39)));
        assert_eq!(parse_version("git version 2.51.0.rc1"), Some((2, 51)));
        assert_eq!(parse_version("git version 2.39.3 (Apple Git-146)"), Some((2, 39)));
        assert_eq!(parse_version("hub version 2"), None);
        assert!((2, 9) < MINIMUM_VERSION && (3, 0) > MINIMUM_VERSION);
    }

    #[tokio::test]
    async fn progress_is_reported_and_not_kept() {
        let (sender, receiver) = watch::channel(None);
        let sender = Arc::new(sender);
        let text = b"remote: Counting objects: 50% (1/2)\rReceiving objects:  43% (3/7)\rfatal: https://u:pw@h/ gone\n";
        let (reading, mut writing) = tokio::io::duplex(8);
        let write = async move {
            writing.write_all(text).await.unwrap();
        };
        let watched = async {
            let mut seen = Vec::new();
            let mut receiver = receiver;
            while receiver.changed().await.is_ok() {
                let value = receiver.borrow_and_update().clone();
                let end = value.is_none();
                seen.extend(value);
                if end {
                    break;
                }
            }
            seen
        };
        let (kept, (), seen) = tokio::join!(read_stderr(Some(reading), Some(sender)), write, watched);
        assert_eq!(kept, "fatal: https://***@h/ gone\n");
        assert!(seen.iter().any(|line| line.starts_with("Receiving objects:")), "{seen:?}");
    }

    #[tokio::test]
    async fn output_that_is_too_long_is_never_taken_for_the_whole() {
        assert_eq!(collect(Some(&b"1234"[..]), 4).await.unwrap().as_deref(), Some(&b"1234"[..]));
        // The child has ended well: what is left fits into the pipe.
        assert_eq!(collect(Some(&b"12345"[..]), 4).await.unwrap(), None);
    }

    #[tokio::test]
    async fn where_memory_is_short_children_end_before_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::detect(dir.path(), OsStr::new("test"), false).await.unwrap();
        let child = git.command("nap").config("alias.nap=!sleep 30").spawn().unwrap();
        let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        let own: i32 = score("self").trim().parse().unwrap();
        assert!(own < 500, "{own}");
        assert_eq!(score(&child.inner.id().unwrap().to_string()).trim(), OOM_SCORE_ADJ);
    }

    #[tokio::test]
    async fn a_command_that_takes_too_long_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::detect(dir.path(), OsStr::new("test"), false).await.unwrap();
        let sleeper = git.command("nap").config("alias.nap=!sleep 30");
        let error = sleeper.run(Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.kind(), super::super::stderr::FailureKind::TimedOut);
    }
}
