//! `git http-backend` as a CGI program, streaming both ways.

use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result, bail};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader, ReadBuf};
use tokio::process::{Child, ChildStdout};

use super::{Body, Habits};
use crate::git::isolate;
use crate::process::{Group, command};

/// Pushing is allowed (the test decides who may), and nothing happens behind the test's back.
const ALWAYS: [(&str, &str); 2] = [("http.receivepack", "true"), ("receive.autogc", "false")];

/// What the public hosts allow besides.
const MODERN: [(&str, &str); 2] =
    [("uploadpack.allowFilter", "true"), ("uploadpack.allowAnySHA1InWant", "true")];

/// Runs the backend for one request of somebody from whom these refs are hidden. Dropping the answer ends the backend and its children.
pub(super) async fn run(
    root: &Path,
    habits: Habits,
    hidden: &[String],
    parts: &http::request::Parts,
    body: Body,
) -> Result<Response<Body>> {
    let mut git = command("git");
    isolate(&mut git, root);
    git.arg("http-backend");
    git.env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1");
    git.env("REQUEST_METHOD", parts.method.as_str()).env("PATH_INFO", parts.uri.path());
    git.env("QUERY_STRING", parts.uri.query().unwrap_or_default()).env("REMOTE_ADDR", "127.0.0.1");
    let headers = [
        (CONTENT_TYPE, "CONTENT_TYPE"),
        (CONTENT_LENGTH, "CONTENT_LENGTH"),
        (CONTENT_ENCODING, "HTTP_CONTENT_ENCODING"),
        (HeaderName::from_static("git-protocol"), "GIT_PROTOCOL"),
    ];
    for (header, variable) in headers {
        if let Some(value) = parts.headers.get(header) {
            git.env(variable, value.to_str()?);
        }
    }
    let mut config = ALWAYS.to_vec();
    let hook;
    match habits {
        Habits::Modern | Habits::Strict => config.extend(MODERN),
        Habits::Thinking { millis, keepalives } => {
            config.extend(MODERN);
            hook = format!("sleep {}; exec", f64::from(millis) / 1000.0);
            config.push(("uploadpack.packObjectsHook", &hook));
            config.push(("uploadpack.keepAlive", if keepalives { "1" } else { "0" }));
        }
        Habits::Old => {
            git.env_remove("GIT_PROTOCOL");
        }
    }
    config.extend(hidden.iter().map(|name| ("uploadpack.hideRefs", name.as_str())));
    git.env("GIT_CONFIG_COUNT", config.len().to_string());
    for (number, (key, value)) in config.iter().enumerate() {
        git.env(format!("GIT_CONFIG_KEY_{number}"), key).env(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    git.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = tokio::process::Command::from(git).spawn().context("start git http-backend")?;
    let group = Group::of(&child);
    let (stdin, stdout) =
        (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
    let feed = tokio::spawn(feed(stdin, body));
    let mut backend =
        Backend { stdout: BufReader::with_capacity(64 * 1024, stdout), feed, _group: group, _child: child };
    let (status, headers) = head(&mut backend.stdout).await?;
    let mut answer = Response::new(());
    *answer.status_mut() = status;
    answer.headers_mut().extend(headers);
    Ok(answer.map(|()| {
        let stream = tokio_util::io::ReaderStream::with_capacity(backend, 64 * 1024);
        let frames = futures_util::StreamExt::map(stream, |read| Ok(Frame::data(read?)));
        StreamBody::new(frames).boxed_unsync()
    }))
}

/// Passes the request's body on. A backend that stops reading has its reasons, and says them in its answer.
async fn feed(mut stdin: tokio::process::ChildStdin, mut body: Body) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        if stdin.write_all(&data).await.is_err() {
            return;
        }
    }
}

/// Reads the CGI header.
async fn head(stdout: &mut BufReader<ChildStdout>) -> Result<(StatusCode, Vec<(HeaderName, HeaderValue)>)> {
    let (mut status, mut headers) = (StatusCode::OK, Vec::new());
    loop {
        let mut line = String::new();
        if stdout.read_line(&mut line).await? == 0 {
            bail!("git http-backend ended within its header");
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line.split_once(": ").with_context(|| format!("not a header: {line:?}"))?;
        if name.eq_ignore_ascii_case("status") {
            status = value.get(..3).unwrap_or(value).parse()?;
        } else {
            headers.push((name.parse()?, value.parse()?));
        }
    }
}

/// The backend's output; owns the backend.
struct Backend {
    stdout: BufReader<ChildStdout>,
    feed: tokio::task::JoinHandle<()>,
    // In this order: the group is killed while its leader has not been waited for.
    _group: Group,
    _child: Child,
}

impl AsyncRead for Backend {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(context, buffer)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.feed.abort();
    }
}
