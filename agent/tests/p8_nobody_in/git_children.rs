//! What an upstream can tell a `git fetch`: to take objects, bundles and packs from elsewhere. It asks nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http_body_util::BodyExt as _;
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::trap::Trap;
use tarn_testkit::upstream::Upstream;
use tarn_testkit::wire::{Connection, pkt};

use crate::scene::agent;

/// What git is told instead of the truth; the agent's own looks hear the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// The upstream speaks no git, and says where else objects are.
    Dumb,
    /// Bundles and packs are elsewhere.
    Uris,
    /// All is elsewhere.
    Redirect,
}

#[derive(Clone)]
struct Forger {
    lie: Lie,
    upstream: SocketAddr,
    elsewhere: String,
    main: String,
    told: Arc<AtomicUsize>,
}

async fn answer(State(forger): State<Forger>, request: Request) -> Response {
    forger.tell(request).await.unwrap_or_else(|error| {
        let mut answer = Response::new(Body::from(format!("{error:#}")));
        *answer.status_mut() = http::StatusCode::BAD_GATEWAY;
        answer
    })
}

impl Forger {
    async fn tell(self, request: Request) -> Result<Response> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let agent = parts.headers.get("user-agent").map_or("", |agent| agent.to_str().unwrap_or_default());
        let (path, child) = (parts.uri.path(), !agent.contains("tarn/"));
        if child {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        let text = |text: String| {
            Ok(Response::builder().header("content-type", "text/plain").body(Body::from(text))?)
        };
        match self.lie {
            Lie::Dumb if child && path.ends_with("/info/refs") => {
                return text(format!("{}\trefs/heads/main\n", self.main));
            }
            Lie::Dumb if child && path.ends_with("alternates") => {
                return text(format!("{}/objects\n", self.elsewhere));
            }
            Lie::Dumb if child => {
                return Ok(Response::builder().status(404).body(Body::empty())?);
            }
            Lie::Redirect if child => {
                let location = format!("{}{path}", self.elsewhere);
                return Ok(Response::builder()
                    .status(302)
                    .header("location", location)
                    .body(Body::empty())?);
            }
            _ => {}
        }
        let mut headers = Vec::new();
        for name in ["content-type", "git-protocol", "content-encoding"] {
            if let Some(value) = parts.headers.get(name) {
                headers.push((name, value.to_str()?));
            }
        }
        let target = parts.uri.path_and_query().context("no path")?.as_str();
        let mut upstream = Connection::open(self.upstream).await?;
        let truth = upstream.ask(parts.method.as_str(), target, &headers, &body).await?;
        let mut told = truth.body.clone();
        if self.lie == Lie::Uris && child {
            let insert = |told: &[u8], before: &[u8], what: Vec<u8>| {
                let at = told.windows(before.len()).position(|part| part == before);
                at.map(|at| [&told[..at], &what, &told[at..]].concat())
            };
            let offered = [pkt("bundle-uri\n"), pkt("packfile-uris\n")].concat();
            told = insert(&told, &pkt("object-format=sha1\n"), offered).unwrap_or(told);
            let pack = [
                pkt("packfile-uris\n"),
                pkt(&format!("{} {}/pack\n", self.main, self.elsewhere)),
                b"0001".to_vec(),
            ];
            told = insert(&told, b"000dpackfile\n", pack.concat()).unwrap_or(told);
        }
        let kind = truth.header("content-type").unwrap_or("text/plain");
        Ok(Response::builder().status(truth.status).header("content-type", kind).body(Body::from(told))?)
    }
}

#[tokio::test]
async fn alternates_bundles_packs_by_uri_and_redirects_take_git_nowhere_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let origin = upstream.seed("a.git").await?;
    let main = origin.rev_parse("main").await?;
    for lie in [Lie::Dumb, Lie::Uris, Lie::Redirect] {
        let trap = Trap::start(None)?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/a.git", listener.local_addr()?);
        let told = Arc::<AtomicUsize>::default();
        let (elsewhere, main) = (trap.url(""), main.clone());
        let forger = Forger { lie, upstream: upstream.address(), elsewhere, main, told: Arc::clone(&told) };
        let app = axum::Router::new().fallback(answer).with_state(forger);
        // Ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, app).await });
        let agent = agent().start_with(&[("a.yaml", &manifest("a", &url, &[]))]).await?;
        // Of bundles git takes no notice; a pack's URI that it did not ask for is a failure like the others.
        let ended = |status: &serde_json::Value| status["phase"] == "Backoff" || status["phase"] == "Ready";
        agent.wait_status(&repo_id(&url), "an end", ended).await?;
        ensure!(told.load(Ordering::Relaxed) > 0, "{lie:?}: git was told nothing");
        ensure!(trap.heard().is_empty(), "{lie:?}: {:?}", trap.heard());
    }
    Ok(())
}
