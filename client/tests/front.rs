//! In front of the agent: it answers requests for snapshots and bundles from files made by the test, and passes all
//! else on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{CONTENT_RANGE, ETAG, IF_MATCH, RANGE};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tarn_testkit::listening::Listening;
use tarn_testkit::process::{command, run};
use tokio::net::TcpStream;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, anyhow::Error>;

/// A snapshot as it is served.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) archive: Bytes,
    pub(crate) commit: String,
    pub(crate) etag: String,
}

/// What is served, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Served {
    pub(crate) snapshot: Option<Snapshot>,
    /// Answers ranges with the whole, as a server may.
    pub(crate) ignores_ranges: bool,
}

/// The server.
pub(crate) struct Front {
    served: Arc<Mutex<Served>>,
    listening: Listening,
}

impl Front {
    /// Stands in front of the agent; bundles are made from `repository`.
    pub(crate) fn start(agent: SocketAddr, repository: &Path) -> Result<Self> {
        let served: Arc<Mutex<Served>> = Arc::default();
        let (shared, repository) = (Arc::clone(&served), repository.to_owned());
        let listening = Listening::start("front", SocketAddr::from(([127, 0, 0, 1], 0)), move |client| {
            let (served, repository) = (Arc::clone(&shared), repository.clone());
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let served = served.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let repository = repository.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    if path.ends_with("/snapshot.tar.zst") {
                        snapshot(&request, &served)
                    } else if path.ends_with("/snapshot.bundle") {
                        bundle(&request, &repository).await
                    } else {
                        forward(agent, request).await
                    }
                }
            });
            async move {
                // A client that goes away is what some tests are for.
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(client), service).await;
            }
        })?;
        Ok(Self { served, listening })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Served)) {
        change(&mut self.served.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn answer(status: u16, body: &Bytes) -> http::response::Builder {
    Response::builder().status(status).header("Content-Length", body.len())
}

fn plain(status: u16, text: &'static str) -> Result<Response<Body>> {
    let body = Bytes::from_static(text.as_bytes());
    Ok(answer(status, &body).body(full(body))?)
}

fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

fn snapshot(request: &Request<Incoming>, served: &Served) -> Result<Response<Body>> {
    let Some(Snapshot { archive, commit, etag }) = &served.snapshot else {
        return plain(404, "no snapshot\n");
    };
    if request.headers().get(IF_MATCH).is_some_and(|wanted| wanted.as_bytes() != etag.as_bytes()) {
        return plain(412, "another snapshot\n");
    }
    let range = request.headers().get(RANGE).filter(|_| !served.ignores_ranges);
    let (status, body, range) = match range {
        None => (200, archive.clone(), None),
        Some(range) => {
            let text = range.to_str()?.strip_prefix("bytes=").context("not a range")?;
            let (first, last) = text.split_once('-').context("not a range")?;
            let (first, last) = (first.parse::<usize>()?, last.parse::<usize>()?.min(archive.len() - 1));
            (206, archive.slice(first..=last), Some(format!("bytes {first}-{last}/{}", archive.len())))
        }
    };
    let mut answer = answer(status, &body)
        .header(ETAG, etag)
        .header("X-Cachew-Snapshot-Commit", commit)
        .header("Tarn-Snapshot-Age", "60");
    if let Some(range) = range {
        answer = answer.header(CONTENT_RANGE, range);
    }
    Ok(answer.body(full(body))?)
}

async fn bundle(request: &Request<Incoming>, repository: &PathBuf) -> Result<Response<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let base = query.strip_prefix("base=").context("a bundle without base")?;
    let mut git = command("git");
    git.arg("-C").arg(repository).args([
        "bundle",
        "create",
        "--quiet",
        "-",
        &format!("{base}..refs/heads/main"),
    ]);
    let made = run(git, b"", std::time::Duration::from_secs(60)).await?;
    match (made.status.code(), made.stderr.contains("empty bundle")) {
        (Some(0), _) => {
            let body = Bytes::from(made.stdout);
            Ok(answer(200, &body).body(full(body))?)
        }
        (_, true) => plain(204, ""),
        (_, false) => plain(404, "unknown base\n"),
    }
}

async fn forward(agent: SocketAddr, request: Request<Incoming>) -> Result<Response<Body>> {
    let server = TcpStream::connect(agent).await?;
    server.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(server)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
}
