//! One hop and no more, and nothing in it that is not for the peer.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tarn_testkit::agent::repo_id;
use tarn_testkit::apiserver::ApiServer;
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation};
use tarn_testkit::wire::Connection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{clone, cold, proxied, warm};
use crate::scene::agent;

const MARK: (&str, &str) = ("Tarn-Proxied-By", "default-7");

#[tokio::test]
async fn a_cold_agent_tells_another_so_at_once_and_asks_nobody() -> Result<()> {
    let scene = warm().await?;
    let cold = cold(&scene, &[scene.agent.git_address()?]).await?;
    let before = scene.upstream.count("a.git", Operation::LsRefs);
    let mut connection = Connection::open(cold.git_address()?).await?;
    let base = "a".repeat(40);
    let of = |verb: &str| format!("{}/{verb}", scene.path());
    let undeclared = "/git/example.org/none/info/refs?service=git-upload-pack".to_owned();
    for target in [
        of("info/refs?service=git-upload-pack"),
        of("snapshot.tar.zst"),
        of("lfs-snapshot.tar.zst"),
        of(&format!("snapshot.bundle?base={base}")),
        undeclared,
    ] {
        let answer = connection.ask("GET", &target, &[MARK], b"").await?;
        ensure!((answer.status, answer.header("tarn-peer")) == (503, Some("cold")), "{target}: {answer:?}");
    }
    let kind = ("Content-Type", "application/x-git-upload-pack-request");
    let answer = connection.ask("POST", &of("git-upload-pack"), &[MARK, kind], b"0000").await?;
    ensure!((answer.status, answer.header("tarn-peer")) == (503, Some("cold")), "{answer:?}");
    ensure!(proxied(&cold, "served").await? == 0, "a second hop");
    ensure!(scene.upstream.count("a.git", Operation::LsRefs) == before, "the upstream was asked");
    // The warm one answers, and says that the answer may be passed on.
    let mut connection = Connection::open(scene.agent.git_address()?).await?;
    let answer = connection.ask("GET", &of("info/refs?service=git-upload-pack"), &[MARK], b"").await?;
    ensure!((answer.status, answer.header("tarn-peer")) == (200, Some("warm")), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn nothing_of_the_caller_goes_to_a_peer_but_the_request() -> Result<()> {
    let scene = warm().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let cold = cold(&scene, &[listener.local_addr()?]).await?;
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            ensure!(stream.read_buf(&mut request).await? > 0, "cut short");
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nno!").await?;
        Ok(String::from_utf8(request)?.to_ascii_lowercase())
    });
    let mut connection = Connection::open(cold.git_address()?).await?;
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    let headers = [
        ("Authorization", "Basic Y2FuYXJ5"),
        ("Cookie", "canary=1"),
        ("X-Forwarded-For", "canary"),
        ("Connection", "keep-alive, X-Canary"),
        ("X-Canary", "1"),
        ("Git-Protocol", "version=2"),
    ];
    let answer = connection.ask("GET", &target, &headers, b"").await?;
    // Whoever does not say that it is an agent with the mirror is not believed.
    ensure!(answer.status == 200 && answer.text().contains("version 2"), "{answer:?}");
    ensure!(proxied(&cold, "refused").await? == 1, "{}", cold.metrics().await?);
    let heard = heard.await??;
    ensure!(
        heard.contains("tarn-proxied-by: tarn-agent") && heard.contains("git-protocol: version=2"),
        "{heard}"
    );
    for secret in ["canary", "authorization", "cookie", "y2fuyxj5", "forwarded"] {
        ensure!(!heard.contains(secret), "{secret} in {heard}");
    }
    Ok(())
}

/// Pods find each other by EndpointSlices: two that are cold and know each other, and then one that is warm.
#[tokio::test]
async fn two_cold_pods_that_know_each_other_ask_each_other_once_and_then_the_upstream() -> Result<()> {
    let scene = warm().await?;
    // Nobody gets the objects from the upstream.
    scene.upstream.fault_on(Operation::Fetch, Fault::Hold);
    let api = ApiServer::start()?;
    let kubeconfig = api.kubeconfig(scene.dir.path())?;
    let url = scene.upstream.url("a.git");
    api.mirror("a", "default", json!({"url": url}));
    let pod = |name| {
        let pod = agent().in_cluster(&kubeconfig, "default", name);
        pod.env("TARN_AGENT_LOG", "info,tarn_agent=debug").start()
    };
    let (one, two) = (pod("default-0").await?, pod("default-1").await?);
    for (name, agent) in [("default-0", &one), ("default-1", &two)] {
        agent.wait_phase(&repo_id(&url), "Cloning").await?;
        api.endpoint("default-pods", name, agent.git_address()?);
        // Another Service's pods are not asked.
        api.endpoint("default", "elsewhere", "127.0.0.1:1".parse()?);
    }
    let known = |count: u32| format!("the cache's other ready pods peers={count}");
    for agent in [&one, &two] {
        eventually(Duration::from_secs(20), "the other pod", async || {
            ensure!(agent.logs()?.contains(&known(1)), "not yet");
            Ok(())
        })
        .await?;
    }
    let seen = scene.git.ls_remote(&one.git_url(&scene.repo())?).await?;
    ensure!(seen == scene.origin.refs().await?, "{seen:?}");
    let asked = proxied(&one, "cold").await?;
    ensure!(asked == 2 && proxied(&one, "unreachable").await? == 0, "{asked}: {}", one.metrics().await?);
    ensure!(proxied(&two, "cold").await? == 0 && proxied(&two, "served").await? == 0, "asked back");

    // A third pod comes that is warm.
    api.endpoint("default-pods", "default-2", scene.agent.git_address()?);
    eventually(Duration::from_secs(20), "the warm pod", async || {
        ensure!(one.logs()?.contains(&known(2)), "not yet");
        Ok(())
    })
    .await?;
    clone(&scene, &one, "clone").await?;
    ensure!(proxied(&one, "served").await? >= 2, "{}", one.metrics().await?);
    // It goes, and nobody asks it any more.
    api.delete("endpointslices", "default-pods-default-2");
    let told = |text: &str| text.matches(&known(1)).count() == 2;
    eventually(Duration::from_secs(20), "it to be forgotten", async || {
        ensure!(told(&one.logs()?), "not yet");
        Ok(())
    })
    .await?;
    one.metrics().await.map(drop).context("still alive")
}
