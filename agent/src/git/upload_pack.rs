//! `git upload-pack` as a child: one request in, one response streamed out; and what it can do.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::command::{Child, Git, GitError, failure, read_stderr};

/// Read from the pipe at once; a Linux pipe holds 64 KiB.
const CHUNK: usize = 64 * 1024;

/// What a served repository permits, the same for the probe at start and for every request, so that the
/// advertisement says exactly what the child accepts.
const SETTINGS: &[&str] = &["uploadpack.allowFilter=true", "uploadpack.allowAnySHA1InWant=true"];

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

    fn env(self) -> &'static str {
        match self {
            Self::V0 => "version=0",
            Self::V1 => "version=1",
            Self::V2 => "version=2",
        }
    }
}

/// Starts `git upload-pack` on `repository`, feeds it `request`, and streams its answer.
///
/// The first item tells whether it answers at all: a child that ends with an error before it said
/// anything is an error there. An error later on means that the answer is cut short. Dropping the stream
/// kills the child.
///
/// # Errors
/// The child cannot be started.
pub fn serve(
    git: &Git,
    repository: &Path,
    version: ProtocolVersion,
    request: Bytes,
) -> Result<impl Stream<Item = Result<Bytes, GitError>> + Send + use<>, GitError> {
    let mut command = git.command("upload-pack").env("GIT_PROTOCOL", version.env());
    for setting in SETTINGS {
        command = command.config(setting);
    }
    let mut child = command.args(["--stateless-rpc"]).arg(repository).spawn()?;
    let stdin = child.inner.stdin.take();
    let stdout = child.inner.stdout.take();
    // The child reads its request while it answers; whoever waits for one before the other locks up.
    let feed = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&request).await;
        }
    });
    let errors = tokio::spawn(read_stderr(child.inner.stderr.take(), None));
    let state = Answer { child, stdout, feed, errors: Some(errors) };
    Ok(stream::try_unfold(Some(state), |state| async move {
        let Some(mut state) = state else { return Ok(None) };
        let chunk = state.next().await?;
        Ok(chunk.map(|chunk| (chunk, Some(state))))
    }))
}

struct Answer {
    child: Child,
    stdout: Option<tokio::process::ChildStdout>,
    feed: tokio::task::JoinHandle<()>,
    errors: Option<tokio::task::JoinHandle<String>>,
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

impl Drop for Answer {
    fn drop(&mut self) {
        self.feed.abort();
        if let Some(errors) = &self.errors {
            errors.abort();
        }
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
