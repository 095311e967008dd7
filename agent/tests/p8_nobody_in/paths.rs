//! Paths that try to leave the data directory.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::p4_never_stuck::files;
use crate::scene::Scene;

#[tokio::test]
async fn paths_that_climb_hide_or_overflow_are_refused_and_touch_nothing() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    // Everything the agent could reach by climbing: its own directory, and the upstream's beside it.
    let seen = || -> Result<BTreeSet<_>> {
        let around = scene.agent.data().parent().unwrap_or(scene.agent.data());
        Ok(files(around)?.into_iter().chain(files(scene.dir.path())?).collect())
    };
    let before = seen()?;
    let (host, long) = (scene.upstream.address(), "x".repeat(300));
    let very_long = "y/".repeat(5000);
    let repositories: Vec<String> = vec![
        format!("{host}/../a"),
        format!("{host}/x/../a"),
        format!("{host}/./a"),
        format!("{host}/a/.."),
        "../../etc/passwd".into(),
        "..".into(),
        format!("{host}/%2e%2e/a"),
        format!("{host}/%2E%2E%2Fa"),
        format!("{host}/x%2F..%2Fa"),
        format!("{host}%2Fa"),
        format!("{host}/x%2Fa"),
        format!("{host}/x%5Ca"),
        format!("{host}/..%5Ca"),
        format!("{host}/a%00"),
        format!("{host}/a%00.git"),
        format!("{host}/%00"),
        format!("{host}/a%0Ab"),
        format!("{host}/a%0D%0AX-Evil:1"),
        format!("{host}/a%7F"),
        format!("{host}/a%1B[31m"),
        format!("{host}/a%zz"),
        format!("{host}/a%"),
        format!("{host}/a%c3%28"),
        format!("{host}//a"),
        format!("{host}/a//b"),
        format!("{host}/{long}"),
        format!("{host}/{very_long}a"),
        format!("{long}.example/a"),
        format!("{host}/a.git/b"),
        format!("{host}/.git"),
        "bad host/a".replace(' ', "%20"),
        "%2e%2e/a".into(),
        "host:99999/a".into(),
        "host:port/a".into(),
        "user@host/a".into(),
        "user:password@host/a".into(),
        "[::1/a".into(),
    ];
    let mut connection = scene.connect().await?;
    for repository in &repositories {
        for (method, service) in [("GET", "info/refs?service=git-upload-pack"), ("POST", "git-upload-pack")] {
            let target = format!("/git/{repository}/{service}");
            let headers = [("Content-Type", "application/x-git-upload-pack-request")];
            let answer = connection.ask(method, &target, &headers, b"").await?;
            // A path with a slash too many may also be none that anything is served under.
            ensure!(answer.status == 400, "{target}: {} {}", answer.status, answer.text());
            let text = answer.text();
            ensure!(!text.trim_end().contains(['\n', '\r', '\0', '\x1b']), "{target}: {text:?}");
            ensure!(!text.contains("password"), "{target}: {text}");
        }
    }
    // Bytes that no path may hold are the HTTP layer's to refuse; the connection may go with them.
    for raw in [
        b"GET /git/h/a\0b/info/refs HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(),
        b"GET /git/h/a\x01b/info/refs HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /git/h/a\x7fb/info/refs HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut connection = scene.connect().await?;
        connection.send(raw).await?;
        let answer = connection.answer().await;
        ensure!(answer.as_ref().map_or(true, |answer| answer.status == 400), "{answer:?}");
    }
    scene.agent.wait_idle().await?;
    assert_eq!(seen()?, before);
    scene.expect_upstream_refs().await.map(drop)
}

#[tokio::test]
async fn the_admin_port_takes_no_such_path_either() -> Result<()> {
    let scene = Scene::ready().await?;
    for repository in ["..%2f..%2fetc", "../../etc/passwd", "h/..", "h/%00", "h/x%2Fy"] {
        let answer = scene.agent.fetch_now(repository).await?;
        ensure!((400..500).contains(&answer.status), "{repository}: {} {}", answer.status, answer.text());
    }
    Ok(())
}
