//! An upstream that means harm: names of refs that climb or forge lines, ids that are none, messages that
//! paint on terminals, and noise without end.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http_body_util::BodyExt as _;
use tarn_testkit::agent::{Agent, PATIENCE, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::measure::peak_rss;
use tarn_testkit::upstream::Upstream;
use tarn_testkit::wire::{Connection, pkt};

use crate::p4_never_stuck::files;
use crate::scene::{agent, message};

/// What is answered instead of what the upstream says; none: the upstream's own answer.
#[derive(Clone, Default)]
struct Lies {
    ls_refs: Option<Vec<u8>>,
    fetch: Option<Fetch>,
}

#[derive(Clone)]
enum Fetch {
    /// This body.
    Body(Vec<u8>),
    /// Messages for the terminal, as many bytes of them, and then no pack.
    Noise(usize),
}

/// A server that tells a real upstream's truth, but for the lies.
struct Liar {
    address: SocketAddr,
    lies: Arc<Mutex<Lies>>,
    origin: Repo,
    _upstream: Upstream,
    dir: tempfile::TempDir,
}

impl Liar {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("upstream");
        std::fs::create_dir(&root)?;
        let upstream = Upstream::start(&root)?;
        let origin = upstream.seed("a.git").await?;
        let lies = Arc::new(Mutex::new(Lies::default()));
        let app = axum::Router::new().fallback(pass).with_state((upstream.address(), Arc::clone(&lies)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        // Ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, lies, origin, _upstream: upstream, dir })
    }

    fn url(&self) -> String {
        format!("http://{}/a.git", self.address)
    }

    fn repo(&self) -> String {
        repo_id(&self.url())
    }

    fn tell(&self, lies: Lies) {
        *self.lies.lock().unwrap_or_else(PoisonError::into_inner) = lies;
    }

    async fn mirrored(&self) -> Result<Agent> {
        let spec = ["freshness: {lookTimeout: 2s}"];
        agent().start_with(&[("a.yaml", &manifest("a", &self.url(), &spec))]).await
    }
}

/// Answers one request: with a lie, or with what the upstream answers.
async fn pass(State((upstream, lies)): State<(SocketAddr, Arc<Mutex<Lies>>)>, request: Request) -> Response {
    let answer = async {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let lies = lies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let has = |needle: &[u8]| body.windows(needle.len()).any(|window| window == needle);
        let result = Response::builder().header("content-type", "application/x-git-upload-pack-result");
        if let (true, Some(lie)) = (has(b"command=ls-refs"), lies.ls_refs) {
            return anyhow::Ok(result.body(Body::from(lie))?);
        }
        match lies.fetch.filter(|_| has(b"command=fetch")) {
            Some(Fetch::Body(lie)) => return Ok(result.body(Body::from(lie))?),
            Some(Fetch::Noise(bytes)) => {
                let piece = bytes::Bytes::from(pkt(&format!("\x02{}\n", "noise ".repeat(5000))));
                let pieces = std::iter::repeat_n(piece.clone(), bytes / piece.len());
                let start = bytes::Bytes::from(pkt("packfile\n"));
                let all = std::iter::once(start).chain(pieces).map(Ok::<_, std::convert::Infallible>);
                return Ok(result.body(Body::from_stream(futures_util::stream::iter(all)))?);
            }
            None => {}
        }
        let mut headers = Vec::new();
        for name in ["content-type", "git-protocol", "content-encoding"] {
            if let Some(value) = parts.headers.get(name) {
                headers.push((name, value.to_str()?));
            }
        }
        let target = parts.uri.path_and_query().context("no path")?.as_str();
        let truth =
            Connection::open(upstream).await?.ask(parts.method.as_str(), target, &headers, &body).await?;
        let kind = truth.header("content-type").unwrap_or("text/plain");
        Ok(Response::builder()
            .status(truth.status)
            .header("content-type", kind)
            .body(Body::from(truth.body))?)
    };
    answer.await.unwrap_or_else(|error: anyhow::Error| {
        let mut answer = Response::new(Body::from(format!("{error:#}")));
        *answer.status_mut() = http::StatusCode::BAD_GATEWAY;
        answer
    })
}

#[tokio::test]
async fn refs_with_forged_names_and_ids_are_never_served_nor_written() -> Result<()> {
    let liar = Liar::start().await?;
    let main = liar.origin.rev_parse("main").await?;
    let agent = liar.mirrored().await?;
    agent.wait_phase(&liar.repo(), "Ready").await?;
    let truth = liar.origin.refs().await?;
    let around = agent.data().parent().context("no parent")?.to_owned();
    let names = [
        "refs/heads/x\n0123456789012345678901234567890123456789 refs/heads/injected",
        "refs/heads/x\r\ny",
        "refs/heads/nul\0symref=HEAD:refs/heads/injected",
        "refs/heads/../../../../injected",
        "../injected",
        "/injected",
        "injected",
        "refs/heads/.injected",
        "refs/heads/injected.lock",
        "refs/heads//injected",
        "refs/heads/injected/",
        "refs/heads/in jected",
        "refs/heads/in\x1b[31mjected",
        "refs/heads/in\x7fjected",
        "refs/heads/inject~ed",
        "refs/heads/inject^{}",
        "refs/heads/in..jected",
        "refs/heads/inject@{ed",
        "refs/heads/in\\jected",
        "refs/heads/in*jected",
        "",
    ];
    let mut answers: Vec<Vec<u8>> = names.iter().map(|name| pkt(&format!("{main} {name}\n"))).collect();
    for id in
        ["", "xyz", "0123", &main.to_uppercase(), &format!("{main}00"), "../../../injected", &"0".repeat(40)]
    {
        answers.push(pkt(&format!("{id} refs/heads/injected\n")));
    }
    answers.push(pkt(&format!("{main} refs/heads/injected peeled:nonsense\n")));
    answers.push(pkt(&format!("{main} HEAD symref-target:../injected\n")));
    answers.push(pkt(&format!("{main} HEAD symref-target:refs/heads/x\ninjected\n")));
    answers.push(b"fff1injected".to_vec());
    answers.push(b"0003".to_vec());
    let git = Git::new()?;
    let staging = agent.data().join("staging");
    for lie in answers {
        let honest = pkt(&format!("{main} HEAD symref-target:refs/heads/main\n"));
        let body =
            [honest, pkt(&format!("{main} refs/heads/main\n")), lie.clone(), b"0000".to_vec()].concat();
        liar.tell(Lies { ls_refs: Some(body), fetch: None });
        let lie = String::from_utf8_lossy(&lie).into_owned();
        // An answer, if there is one, holds nothing but what is true.
        let output = git.run(["ls-remote", &agent.git_url(&liar.repo())?]).await;
        let seen = output.map(|output| output.text()).unwrap_or_default();
        ensure!(!seen.contains("jected") && !seen.contains("inject"), "{lie:?} came through: {seen}");
        for file in files(&around)? {
            let name = file.to_string_lossy().into_owned();
            ensure!(!name.contains("jected"), "{lie:?} made {name}");
            if file.ends_with("packed-refs") || file.ends_with("HEAD") {
                // What is being made comes and goes; a mirror's own files never do.
                let content = match std::fs::read(&file) {
                    Err(error) if error.kind() == ErrorKind::NotFound && file.starts_with(&staging) => {
                        continue;
                    }
                    content => String::from_utf8_lossy(&content?).into_owned(),
                };
                ensure!(
                    !content.contains("jected") && !content.contains("inject"),
                    "{lie:?} is in {name}: {content}"
                );
            }
        }
        let status = agent.status().await?.to_string();
        ensure!(!status.contains('\u{1b}') && !status.contains("\\u001b"), "{lie:?} paints: {status}");
    }
    liar.tell(Lies::default());
    // The upstream repents, and all is well.
    let pushed = liar.origin.commit("main", &[("f", "2")]).await?;
    eventually(PATIENCE, "the truth", async || {
        let seen = git.ls_remote(&agent.git_url(&liar.repo())?).await?;
        ensure!(seen.get("HEAD") == Some(&pushed), "{seen:?}");
        Ok(())
    })
    .await?;
    assert_eq!(truth.len(), 2);
    git.clone_repo(&agent.git_url(&liar.repo())?, &liar.dir.path().join("clone"), &["--mirror"])
        .await?
        .fsck()
        .await
}

#[tokio::test]
async fn messages_of_an_upstream_reach_status_and_log_as_plain_text_on_one_line() -> Result<()> {
    let liar = Liar::start().await?;
    let evil = "ERR \x1b[2J\x1b]0;owned\x07go\r\nmirror declared repo=forged\n";
    liar.tell(Lies { ls_refs: Some(pkt(evil)), fetch: None });
    let agent = liar.mirrored().await?;
    let status = agent.wait_phase(&liar.repo(), "Backoff").await?;
    let told = message(&status);
    assert!(!told.is_empty() && !told.contains(['\u{1b}', '\u{7}', '\n', '\r']), "{told:?}");
    let logs = agent.logs()?;
    assert!(!logs.contains('\u{1b}') || !logs.contains("\u{1b}]0;"), "{logs:?}");
    assert!(!logs.lines().any(|line| line.starts_with("mirror declared repo=forged")), "{logs}");
    liar.tell(Lies { ls_refs: None, fetch: Some(Fetch::Body(pkt(evil))) });
    let failing = |status: &serde_json::Value| status["phase"] == "Backoff" && message(status).contains("go");
    let status = agent.wait_status(&liar.repo(), "the fetch's failure", failing).await?;
    let told = message(&status);
    assert!(!told.contains(['\u{1b}', '\u{7}', '\n', '\r']), "{told:?}");
    liar.tell(Lies::default());
    agent.wait_phase(&liar.repo(), "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn a_damaged_pack_is_refused_and_the_next_one_taken() -> Result<()> {
    let liar = Liar::start().await?;
    let damaged =
        [pkt("packfile\n"), pkt("\x01PACK\0\0\0\x02\0\0\0\x03garbage garbage garbage"), b"0000".to_vec()];
    liar.tell(Lies { ls_refs: None, fetch: Some(Fetch::Body(damaged.concat())) });
    let agent = liar.mirrored().await?;
    let status = agent.wait_phase(&liar.repo(), "Backoff").await?;
    assert!(!message(&status).is_empty() && status["refCount"] == 0, "{status}");
    liar.tell(Lies::default());
    agent.wait_phase(&liar.repo(), "Ready").await?;
    // The same with a good mirror to lose.
    let before = liar.origin.refs().await?;
    let pushed = liar.origin.commit("main", &[("f", "2")]).await?;
    liar.tell(Lies { ls_refs: None, fetch: Some(Fetch::Body(damaged.concat())) });
    let _ = tokio::time::timeout(Duration::from_millis(500), agent.fetch_now(&liar.repo())).await;
    let status = agent.wait_status(&liar.repo(), "a reason", |status| !message(status).is_empty()).await?;
    assert_eq!(status["head"]["sha"], before["HEAD"].as_str(), "{status}");
    liar.tell(Lies::default());
    agent.wait_status(&liar.repo(), "the commit", |status| status["head"]["sha"] == pushed.as_str()).await?;
    Ok(())
}

#[tokio::test]
async fn noise_without_end_does_not_fill_the_memory() -> Result<()> {
    let liar = Liar::start().await?;
    liar.tell(Lies { ls_refs: None, fetch: Some(Fetch::Noise(200_000_000)) });
    let agent = liar.mirrored().await?;
    let status = agent.wait_phase(&liar.repo(), "Backoff").await?;
    assert!(message(&status).len() < 2000, "{status}");
    let peak = peak_rss(agent.pid()?)? >> 10;
    assert!(peak < 100_000, "the agent took {peak} kB");
    let logged = agent.logs()?.len();
    assert!(logged < 1_000_000, "{logged} bytes of log");
    liar.tell(Lies::default());
    agent.wait_phase(&liar.repo(), "Ready").await?;
    Ok(())
}
