//! What clients may cost: connections, requests, bodies and bytes a second are limited, and silence ends a connection.

mod bodies;
mod connections;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Agent, PATIENCE, manifest};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation};
use tarn_testkit::wire::Connection;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::scene::{Scene, agent};

/// An agent with these flags and the scene's mirror, which is ready.
async fn limited(scene: &Scene, flags: &[&str]) -> Result<Agent> {
    let yaml = manifest("a", &scene.upstream.url("a.git"), &[]);
    let builder = flags.iter().fold(agent(), |agent, flag| agent.arg(*flag));
    let agent = builder.start_with(&[("a.yaml", &yaml)]).await?;
    agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(agent)
}

/// A connection from this address of the loopback.
async fn from(ip: [u8; 4], to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::from(ip), 0))?;
    Ok(socket.connect(to).await?)
}

/// Whether the other side ends the connection within `limit`, whatever it says before.
async fn ends(mut stream: TcpStream, limit: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(limit, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_client_that_says_nothing_or_half_a_head_is_let_go() -> Result<()> {
    let scene = Scene::ready().await?;
    let agent = limited(&scene, &["--client-timeout", "1"]).await?;
    let address = agent.git_address()?;
    let silent = TcpStream::connect(address).await?;
    let half = TcpStream::connect(address).await?;
    half.writable().await?;
    half.try_write(b"GET /git/x HTTP/1.1\r\nHost: t\r\nX-Slow: ")?;
    // One that had an answer already, and keeps its connection.
    let mut answered = Connection::open(address).await?;
    answered.ask("GET", "/nothing", &[], b"").await?;
    let limit = Duration::from_secs(5);
    ensure!(ends(silent, limit).await, "a silent client is kept");
    ensure!(ends(half, limit).await, "a client with half a head is kept");
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(answered.ask("GET", "/nothing", &[], b"").await.is_err(), "an idle connection is kept");
    Ok(())
}

#[tokio::test]
async fn one_client_has_so_many_requests_under_way_and_no_more() -> Result<()> {
    let scene = Scene::ready().await?;
    let agent = limited(&scene, &["--max-requests-per-client", "2", "--max-requests", "3"]).await?;
    // Each waits for a look as long as a look may take.
    scene.upstream.fault_on(Operation::LsRefs, Fault::Hang);
    let target = format!("/git/{}/info/refs?service=git-upload-pack", scene.repo());
    let request = format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n");
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut connection = Connection::open(agent.git_address()?).await?;
        connection.send(request.as_bytes()).await?;
        waiting.push(connection);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answer = agent.get(&target).await?;
    ensure!(answer.status == 429, "the third: {} {}", answer.status, answer.text());
    ensure!(
        answer.header("retry-after").is_some() && answer.text().contains("TooManyRequests"),
        "{}",
        answer.text()
    );
    // Another client has room for one, and then all is full.
    let another = from([127, 0, 0, 2], agent.git_address()?).await?;
    another.writable().await?;
    another.try_write(request.as_bytes())?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut third = from([127, 0, 0, 3], agent.git_address()?).await?;
    third.writable().await?;
    third.try_write(b"GET /nothing HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    third.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 503") && answer.contains("Busy"), "{answer}");
    ensure!(agent.admin("/readyz").await?.status == 200, "probes have to wait");
    scene.upstream.mend();
    for connection in &mut waiting {
        connection.answer().await?;
    }
    ensure!(agent.get("/nothing").await?.status == 404, "there is no room again");
    Ok(())
}

#[tokio::test]
async fn where_all_places_are_taken_a_git_that_can_waits_and_another_is_told() -> Result<()> {
    let scene = Scene::ready().await?;
    let agent = limited(&scene, &["--max-requests", "1"]).await?;
    scene.upstream.fault_on(Operation::LsRefs, Fault::Hang);
    let target = format!("/git/{}/info/refs?service=git-upload-pack", scene.repo());
    // Without protocol version 2, this takes a look.
    let looks = scene.upstream.count("a.git", Operation::LsRefs);
    let mut waiting = Connection::open(agent.git_address()?).await?;
    waiting.send(format!("GET {target} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()).await?;
    eventually(PATIENCE, "the only place to be taken", async || {
        ensure!(scene.upstream.count("a.git", Operation::LsRefs) > looks, "no look");
        Ok(())
    })
    .await?;
    ensure!(agent.get("/nothing").await?.status == 503, "there is a second place");
    let refused = agent.get(&target).await?;
    ensure!(refused.status == 429 && refused.header("retry-after") == Some("5"), "{}", refused.status);
    ensure!(refused.text().contains("Busy"), "{}", refused.text());
    let knows = scene.git.run(["help", "--config"]).await?.text().contains("http.maxRetries");
    let url = agent.git_url(&scene.repo())?;
    let place = scene.place("clone").to_string_lossy().into_owned();
    let clone = scene.git.run(["-c", "http.maxRetries=9", "clone", "-q", &url, &place]);
    if !knows {
        let error = clone.await.expect_err("there is no room").to_string();
        ensure!(error.contains("429"), "{error}");
        return Ok(());
    }
    let count = "tarn_serve_requests_total{route=\"other\",status=\"429\"}";
    let room = async {
        eventually(PATIENCE, "git to be turned away", async || {
            let refused: u64 = agent.metric(count).await?;
            ensure!(refused >= 2, "{refused}");
            Ok(())
        })
        .await?;
        scene.upstream.mend();
        waiting.answer().await.map(drop)
    };
    let (cloned, room) = tokio::join!(clone, room);
    room?;
    cloned.map(drop)
}

#[tokio::test]
async fn a_client_gets_no_more_bytes_a_second_than_it_may() -> Result<()> {
    let scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 4, 1_000_000, 1).await.map(drop)).await?;
    let agent = limited(&scene, &["--max-rate-per-client", "1000000"]).await?;
    let url = agent.git_url(&scene.repo())?;
    let began = Instant::now();
    scene.git.clone_repo(&url, &scene.place("clone"), &[]).await?.fsck().await?;
    let took = began.elapsed();
    // Four megabytes that do not compress.
    ensure!(took > Duration::from_secs(3), "four megabytes took {took:?}");
    ensure!(took < Duration::from_secs(20), "four megabytes took {took:?}");
    Ok(())
}

#[tokio::test]
async fn the_audit_log_has_a_line_for_each_clone_fetch_and_snapshot() -> Result<()> {
    let scene = Scene::ready().await?;
    let url = scene.url()?;
    let clone = scene.git.clone_repo(&url, &scene.place("one"), &[]).await?;
    scene.git.clone_repo(&url, &scene.place("two"), &[]).await?;
    scene.origin.commit("main", &[("more", "more")]).await?;
    clone.git(&["fetch", "--quiet"]).await?;
    for version in ["0", "1"] {
        let git = scene.git.clone().with_config("protocol.version", version);
        let clone = git.clone_repo(&url, &scene.place(version), &[]).await?;
        scene.origin.commit("main", &[("more", version)]).await?;
        // Rounds of negotiation leave no line, the pack in the end does.
        clone.git(&["-c", &format!("protocol.version={version}"), "fetch", "--quiet"]).await?;
    }
    let snapshot = scene.agent.get(&format!("{}/snapshot.tar.zst?wait=60s", scene.path())).await?;
    ensure!(snapshot.status == 200, "{}", snapshot.text());
    let logs = scene.agent.logs()?;
    let lines: Vec<&str> = logs.lines().filter(|line| line.contains("tarn_agent::audit")).collect();
    let repo = format!("repo={}", scene.repo());
    let wants = format!("wants=\"{}\"", snapshot.header("x-cachew-snapshot-commit").unwrap_or_default());
    ensure!(lines.iter().any(|line| line.contains(&wants)), "{wants} is not in {lines:#?}");
    let has = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
    let bytes = format!("bytes={}", snapshot.body.len());
    for words in [
        [repo.as_str(), r#"what="clone""#, r#"cache="miss""#, "by=\"anonymous\""],
        [&repo, r#"what="clone""#, r#"cache="hit""#, "whole=true"],
        [&repo, r#"what="fetch""#, "status=200", "client=127.0.0.1"],
        [&repo, r#"what="snapshot""#, &bytes, "seconds="],
    ] {
        ensure!(has(&words), "{words:?} is not in {lines:#?}");
    }
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    ensure!(count("what=\"clone\"") == 4 && count("what=\"fetch\"") == 3, "{lines:#?}");
    ensure!(lines.len() == 8, "{lines:#?}");
    Ok(())
}
