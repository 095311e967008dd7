//! `git upload-pack` as a child: one request in, one response streamed out; and what it can do.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{MissedTickBehavior, interval},
};
use tokio_util::task::AbortOnDropHandle;

use super::command::{Child, Command, Git, GitError, failure, read_stderr};

/// Read from the pipe at once; a Linux pipe holds 64 KiB.
const CHUNK: usize = 64 * 1024;

/// What a served repository permits, the same for the probe at start and for every request, so that the
/// advertisement says exactly what the child accepts.
const SETTINGS: &[&str] = &["uploadpack.allowFilter=true", "uploadpack.allowAnySHA1InWant=true"];

/// From this version on git copies from all packs under a multi-pack index, and not from one alone.
const MULTI_PACK_REUSE: (u32, u32) = (2, 48);

/// The versions of git's wire protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// The first: refs at once, no version line.
    V0,
    /// As the first, after a version line.
    V1,
    /// Commands.
    V2,
}

impl ProtocolVersion {
    /// The highest version named in a `Git-Protocol` header or variable; colon-separated `key=value`.
    pub fn from_header(header: &str) -> Self {
        header
            .split(':')
            .filter_map(|item| match item {
                "version=2" => Some(Self::V2),
                "version=1" => Some(Self::V1),
                _ => None,
            })
            .fold(Self::V0, |best, found| match (best, found) {
                (Self::V2, _) | (_, Self::V2) => Self::V2,
                (_, other) => other,
            })
    }

    /// The value of the `Git-Protocol` header, or of `GIT_PROTOCOL`, that asks for it.
    pub fn env(self) -> &'static str {
        match self {
            Self::V0 => "version=0",
            Self::V1 => "version=1",
            Self::V2 => "version=2",
        }
    }
}

/// One request to `git upload-pack`.
#[derive(Clone, Debug)]
pub struct Job {
    /// The repository.
    pub repository: PathBuf,
    /// The protocol version the client speaks.
    pub version: ProtocolVersion,
    /// The request's body.
    pub request: Bytes,
    /// How git is to look for deltas.
    pub tuning: Tuning,
    /// Nobody waits for it: one thread has to do.
    pub idle: bool,
}

/// What makes a pack cheap depends on what is asked for (docs/decisions/0006).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// Git's own choice: bitmaps where there are any.
    #[default]
    Plain,
    /// The client is a few commits behind: bitmaps would switch thin packs off.
    NearHaves,
    /// A shallow request to a repository with a seed pack, which a multi-pack index would hide.
    Seeded,
    /// A shallow request without a seed: the search for deltas costs more than it saves.
    Unseeded,
}

impl Tuning {
    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::NearHaves => &["pack.useBitmaps=false"],
            // What the seed lacks is sent whole: with a search for deltas the few such objects cost more
            // than all others together (2.4 s against 0.9 s where they lie in the mirror's largest pack).
            Self::Seeded => &["core.multiPackIndex=false", "pack.window=0"],
            Self::Unseeded => &["pack.window=0"],
        }
    }
}

impl Job {
    fn command(&self, git: &Git) -> Command {
        let mut command = git.command("upload-pack").env("GIT_PROTOCOL", self.version.env());
        for setting in SETTINGS.iter().chain(self.tuning.settings()) {
            command = command.config(setting);
        }
        if self.idle {
            command = command.config("pack.threads=1");
        }
        if git.at_least(MULTI_PACK_REUSE) {
            command = command.config("pack.allowPackReuse=multi");
        }
        command.args(["--stateless-rpc"]).arg(&self.repository)
    }

    fn feed(&self, child: &mut Child) -> AbortOnDropHandle<()> {
        let (stdin, request) = (child.inner.stdin.take(), self.request.clone());
        // The child reads its request while it answers; whoever waits for one before the other locks up.
        AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(&request).await;
            }
        }))
    }

    /// Runs `git upload-pack` and streams its answer.
    ///
    /// The first item tells whether it answers at all: a child that ends with an error before it said
    /// anything is an error there. An error later on means that the answer is cut short. Dropping the
    /// stream kills the child.
    ///
    /// # Errors
    /// The child cannot be started.
    pub fn stream(
        &self,
        git: &Git,
    ) -> Result<impl Stream<Item = Result<Bytes, GitError>> + Send + use<>, GitError> {
        let mut child = self.command(git).spawn()?;
        let feed = self.feed(&mut child);
        let stdout = child.inner.stdout.take();
        let errors = AbortOnDropHandle::new(tokio::spawn(read_stderr(child.inner.stderr.take(), None)));
        let state = Answer { child, stdout, _feed: feed, errors: Some(errors) };
        Ok(stream::try_unfold(Some(state), |state| async move {
            let Some(mut state) = state else { return Ok(None) };
            let chunk = state.next().await?;
            Ok(chunk.map(|chunk| (chunk, Some(state))))
        }))
    }

    /// Runs `git upload-pack` with its output appended to `file`, telling `grown` its length as it grows.
    /// Returns the whole length. Dropping the future kills the child.
    ///
    /// # Errors
    /// The child cannot be started or fails; the file then holds part of an answer, or nothing.
    pub async fn spool(&self, git: &Git, file: fs::File, grown: impl Fn(u64)) -> Result<u64, GitError> {
        let io_error = |source| GitError::Io { verb: "upload-pack".into(), source };
        let seen = file.try_clone().map_err(io_error)?;
        let length = || seen.metadata().map(|meta| meta.len()).map_err(io_error);
        let mut child = self.command(git).output_to(file).spawn()?;
        let _feed = self.feed(&mut child);
        let errors = AbortOnDropHandle::new(tokio::spawn(read_stderr(child.inner.stderr.take(), None)));
        // Nobody tells of a file's growth as cheaply as a look at its length does.
        let mut tick = interval(POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let status = loop {
            tokio::select! {
                status = child.inner.wait() => break status.map_err(io_error)?,
                _ = tick.tick() => grown(length()?),
            }
        };
        if status.success() {
            length()
        } else {
            Err(failure("upload-pack", status, &errors.await.unwrap_or_default()))
        }
    }
}

/// How often the length of a growing answer is looked at: less than a client notices, and at most 500
/// system calls per second and child.
const POLL: Duration = Duration::from_millis(2);

struct Answer {
    child: Child,
    stdout: Option<tokio::process::ChildStdout>,
    _feed: AbortOnDropHandle<()>,
    errors: Option<AbortOnDropHandle<String>>,
}

impl Answer {
    async fn next(&mut self) -> Result<Option<Bytes>, GitError> {
        let io_error = |source| GitError::Io { verb: "upload-pack".into(), source };
        if let Some(stdout) = &mut self.stdout {
            let mut chunk = Vec::with_capacity(CHUNK);
            if stdout.read_buf(&mut chunk).await.map_err(io_error)? > 0 {
                return Ok(Some(chunk.into()));
            }
        }
        self.stdout = None;
        let status = self.child.inner.wait().await.map_err(io_error)?;
        let stderr = match self.errors.take() {
            Some(errors) => errors.await.unwrap_or_default(),
            None => String::new(),
        };
        if status.success() { Ok(None) } else { Err(failure("upload-pack", status, &stderr)) }
    }
}

/// Asks git which capabilities it advertises for `repository`, which must have no refs: the raw
/// advertisement, without a `# service` line.
///
/// # Errors
/// Git fails.
pub async fn advertise(git: &Git, repository: &Path, version: ProtocolVersion) -> Result<Vec<u8>, GitError> {
    let mut command = git.command("upload-pack").env("GIT_PROTOCOL", version.env());
    for setting in SETTINGS {
        command = command.config(setting);
    }
    let command = command.args(["--stateless-rpc", "--http-backend-info-refs"]).arg(repository);
    Ok(command.run(Duration::from_secs(30)).await?.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_asked_for_is_spoken() {
        for (header, version) in [
            ("", ProtocolVersion::V0),
            ("version=1", ProtocolVersion::V1),
            ("version=2", ProtocolVersion::V2),
            ("version=2:side=1", ProtocolVersion::V2),
            ("version=1:version=2", ProtocolVersion::V2),
            ("version=3", ProtocolVersion::V0),
        ] {
            assert_eq!(ProtocolVersion::from_header(header), version, "{header}");
        }
    }
}
