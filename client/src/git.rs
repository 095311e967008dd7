//! Git as a child process: the only place of the client that starts git.
//!
//! Children have the caller's configuration and environment, as `git clone` would, but for what would point them at
//! another repository, start a daemon in a directory that is about to be renamed, or run a hook.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process;

use crate::source::Login;

/// The longest any child may take: a clone of the largest repositories over a slow line.
const LIMIT: Duration = Duration::from_secs(6 * 3600);

/// How much of what a child prints is kept: refs and messages, never content.
const KEPT: usize = 1024 * 1024;

/// Variables by which a hook or an alias, in which this may run, points git at its own repository.
const ELSEWHERE: &[&str] = &[
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// Settings of every command. Upkeep and the file-system monitor would go on after the command, in a directory that
/// is renamed; a low-speed limit ends what hangs.
const SETTINGS: &[&str] = &[
    "gc.auto=0",
    "maintenance.auto=false",
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "advice.detachedHead=false",
    "fetch.recurseSubmodules=false",
    "submodule.recurse=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
];

/// Settings of comparisons: nothing that the user, the machine or a file of the worktree says changes what git reads. Files
/// of a snapshot are as in the repository, so filters have no part in them.
const EXACT: &[&str] = &[
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "core.checkStat=default",
    "core.excludesFile=/dev/null",
    "core.ignoreStat=false",
    "core.sparseCheckout=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "filter.lfs.clean=",
    "filter.lfs.process=",
    "filter.lfs.required=false",
    "index.sparse=false",
];

/// Why a git command gave no result.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The process could not be started or talked to.
    #[error("cannot run git: {source}")]
    Start {
        /// What the operating system said.
        #[from]
        source: io::Error,
    },
    /// Git ended with an error.
    #[error("git {verb}: {message}")]
    Failed {
        /// The git command.
        verb: String,
        /// Its last words.
        message: String,
    },
    /// Git took too long and was ended.
    #[error("git {verb} took longer than {}s", LIMIT.as_secs())]
    TimedOut {
        /// The git command.
        verb: String,
    },
}

impl GitError {
    /// Whether git found no room on the disk.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Failed { message, .. } if message.contains("No space left on device"))
    }
}

/// The user's git.
#[derive(Clone, Debug, Default)]
pub struct Git {
    login: Option<(String, PathBuf)>,
    /// Whose credentials which helper knows, besides those that the user has configured.
    helper: Option<(String, String)>,
    terminal: bool,
}

impl Git {
    /// Git that shows its progress on the terminal, where it is told to.
    #[must_use]
    pub fn on_terminal(mut self, terminal: bool) -> Self {
        self.terminal = terminal;
        self
    }

    /// Git that logs in to the login's host with what `file` says, and nowhere else.
    #[must_use]
    pub fn with_login(mut self, login: &Login, file: &Path) -> Self {
        self.login = Some((login.scope().to_owned(), file.to_owned()));
        self
    }

    /// Git that asks this helper first for credentials of `scope`, and for those of nobody else.
    #[must_use]
    pub fn with_helper(mut self, scope: String, helper: String) -> Self {
        self.helper = Some((scope, helper));
        self
    }

    /// Starts building a command on the repository with its worktree at `dir`, and on no other: git is not to look
    /// for one around it, should what an archive left there be none.
    pub fn within(&self, dir: &Path) -> Command {
        let mut command = self.anywhere();
        command.inner.current_dir(dir).env("GIT_DIR", dir.join(".git")).env("GIT_WORK_TREE", dir);
        command
    }

    /// As [`Self::within`], to find out what the repository holds, whatever is configured.
    pub fn exactly(&self, dir: &Path) -> Command {
        let mut command = self.within(dir);
        for setting in EXACT {
            command.inner.args(["-c", setting]);
        }
        command.inner.env("GIT_NO_REPLACE_OBJECTS", "1").env("GIT_ATTR_NOSYSTEM", "1");
        command
    }

    /// Starts building a command in the current directory.
    pub fn anywhere(&self) -> Command {
        #[expect(clippy::disallowed_methods, reason = "this is the client's one place that starts git")]
        let mut inner = process::Command::new("git");
        for name in ELSEWHERE {
            inner.env_remove(name);
        }
        for setting in SETTINGS {
            inner.args(["-c", setting]);
        }
        if let Some((scope, file)) = &self.login {
            // The empty helper forgets the user's own: the URL named whom to log in as.
            inner.args(["-c", "credential.helper=", "-c"]);
            inner.arg(format!(
                "credential.{scope}.helper=!f() {{ test \"$1\" = get && cat \"$GIT_TARN_LOGIN\"; }}; f"
            ));
            inner.env("GIT_TARN_LOGIN", file);
        }
        if let Some((scope, helper)) = &self.helper {
            inner.arg("-c").arg(format!("credential.{scope}.helper={helper}"));
        }
        inner.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        Command { inner, verb: None, terminal: false, may_show: self.terminal }
    }
}

/// A git command that is being built.
#[derive(Debug)]
pub struct Command {
    inner: process::Command,
    verb: Option<String>,
    terminal: bool,
    may_show: bool,
}

impl Command {
    /// Adds the verb and its arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            let arg: OsString = arg.as_ref().to_owned();
            self.verb.get_or_insert_with(|| arg.to_string_lossy().into_owned());
            self.inner.arg(arg);
        }
        self
    }

    /// Shows git's progress if there is a terminal; the verb must know `--progress` and come before.
    pub fn progress(mut self) -> Self {
        self.terminal = self.may_show;
        self.inner.arg(if self.terminal { "--progress" } else { "--quiet" });
        self
    }

    /// Never asks at the terminal: the server is Tarn, which the user has no password for.
    pub fn unattended(mut self) -> Self {
        self.inner.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "true");
        self
    }

    /// Runs to the end and gives back the first record of standard output, ended by the byte `end`, that is not `fit`;
    /// nothing more is read then.
    ///
    /// # Errors
    /// Git cannot be run, or fails, or takes too long.
    pub async fn find_unfit(
        mut self,
        end: u8,
        fit: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>, GitError> {
        let verb = self.verb.take().unwrap_or_default();
        let mut child = self.inner.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take().ok_or(io::Error::from(io::ErrorKind::BrokenPipe))?;
        let work = async {
            match first_unfit(stdout, end, fit).await? {
                Some(unfit) => Ok((Some(unfit), None)),
                None => Ok::<_, io::Error>((None, Some(child.wait().await?))),
            }
        };
        match tokio::time::timeout(LIMIT, work).await {
            Err(_) => Err(GitError::TimedOut { verb }),
            Ok(done) => match done? {
                (None, Some(status)) if !status.success() => {
                    Err(GitError::Failed { verb, message: status.to_string() })
                }
                (unfit, _) => Ok(unfit),
            },
        }
    }

    /// Runs to the end and gives back standard output without its last line break.
    ///
    /// Dropped early, the child is killed.
    ///
    /// # Errors
    /// Git cannot be run, fails, or takes too long.
    pub async fn run(mut self) -> Result<String, GitError> {
        let verb = self.verb.take().unwrap_or_default();
        let mut child = self.inner.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let shown = self.terminal;
        let work = async {
            let (said, complained) = tokio::try_join!(gather(stdout, false), gather(stderr, shown))?;
            Ok::<_, io::Error>((child.wait().await?, said, complained))
        };
        let Ok(done) = tokio::time::timeout(LIMIT, work).await else {
            return Err(GitError::TimedOut { verb });
        };
        let (status, said, complained) = done?;
        if status.success() {
            return Ok(said.trim_end_matches('\n').to_owned());
        }
        Err(GitError::Failed {
            verb,
            message: telling_line(&complained).unwrap_or_else(|| status.to_string()),
        })
    }
}

/// Reads records that end in the byte `end`; gives back the first that is not `fit`.
async fn first_unfit(
    mut from: impl AsyncRead + Unpin,
    end: u8,
    fit: impl Fn(&[u8]) -> bool,
) -> io::Result<Option<Vec<u8>>> {
    let (mut pending, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            return Ok(Some(pending).filter(|rest| !rest.is_empty()));
        }
        pending.extend_from_slice(chunk.get(..count).unwrap_or_default());
        let whole = pending.iter().rposition(|byte| *byte == end).map_or(0, |last| last + 1);
        let records = pending.get(..whole).unwrap_or_default().split_inclusive(|byte| *byte == end);
        for record in records.map(|record| record.strip_suffix(&[end]).unwrap_or(record)) {
            if !fit(record) {
                return Ok(Some(record.to_vec()));
            }
        }
        pending.drain(..whole);
        if pending.len() > KEPT {
            return Ok(Some(pending));
        }
    }
}

/// Reads to the end; keeps the last [`KEPT`] bytes, and shows all of it where that is wanted.
pub(crate) async fn gather(from: Option<impl AsyncRead + Unpin>, shown: bool) -> io::Result<String> {
    let (mut kept, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
    let Some(mut from) = from else { return Ok(String::new()) };
    loop {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            return Ok(String::from_utf8_lossy(&kept).into_owned());
        }
        let read = chunk.get(..count).unwrap_or_default();
        if shown {
            // A terminal that is gone is no reason to fail.
            let _ = io::stderr().lock().write_all(read);
        }
        kept.extend_from_slice(read);
        if kept.len() > KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
}

/// The line that says most about a failure: the last that starts as git's errors do, else the last of all. A full
/// disk is told several lines earlier.
pub(crate) fn telling_line(text: &str) -> Option<String> {
    let lines = || text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty());
    let error = |line: &&str| ["fatal: ", "error: "].iter().any(|start| line.starts_with(start));
    let full = lines().find(|line| line.contains("No space left on device"));
    full.or_else(|| lines().rfind(error)).or_else(|| lines().next_back()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_telling_line_is_the_last_error_or_the_full_disk() {
        let text = "Cloning into 'x'...\nfatal: write error: No space left on device\nfatal: early EOF\n";
        assert_eq!(telling_line(text).unwrap(), "fatal: write error: No space left on device");
        assert_eq!(telling_line("error: a\nfatal: b\nhint: c\n").unwrap(), "fatal: b");
        assert_eq!(telling_line("x\ry\n").unwrap(), "y");
        assert_eq!(telling_line(""), None);
    }

    #[tokio::test]
    async fn a_failure_names_the_verb_and_the_reason() {
        let error =
            Git::default().anywhere().args(["rev-parse", "--verify", "no-such"]).run().await.unwrap_err();
        assert!(error.to_string().starts_with("git rev-parse: fatal: "), "{error}");
    }
}
