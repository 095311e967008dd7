//! Bodies of requests: what they take in memory has a limit, of one client and of all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::measure::peak_rss;
use tarn_testkit::wire::{Connection, pkt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::from;
use crate::scene::Scene;

/// The longest body that is announced.
const LONGEST: usize = 16 << 20;

/// Enough for bytes that are there already.
const PEEK: Duration = Duration::from_millis(50);

/// Begins a request for objects whose body has this length.
async fn begin(scene: &Scene, client: [u8; 4], length: usize) -> Result<TcpStream> {
    let mut stream = from(client, scene.agent.git_address()?).await?;
    let head = format!(
        "POST {}/git-upload-pack HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-git-upload-pack-request\r\nGit-Protocol: version=2\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        scene.path()
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

async fn answer(mut stream: TcpStream) -> Result<String> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn long_bodies_of_one_client_wait_for_each_other_and_not_others_for_them() -> Result<()> {
    let scene = Scene::ready().await?;
    let one = [127, 0, 0, 7];
    // Two have room; which of the three are read first, nobody knows.
    let (mut waiting, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        waiting.push(begin(&scene, one, LONGEST).await?);
    }
    eventually(Duration::from_secs(30), "one to be refused", async || {
        let mut byte = [0];
        for at in 0..waiting.len() {
            if timeout(PEEK, waiting[at].peek(&mut byte)).await.is_ok() {
                refused.push(answer(waiting.remove(at)).await?);
                break;
            }
        }
        ensure!(!refused.is_empty(), "none");
        Ok(())
    })
    .await?;
    let third = &refused[0];
    ensure!(third.starts_with("HTTP/1.1 429") && third.contains("bytes of your request bodies"), "{third}");
    ensure!(third.to_lowercase().contains("retry-after"), "{third}");
    // Short ones need no room, and other clients have their own.
    let flush = b"0000".as_slice();
    for (client, body) in [(one, flush), ([127, 0, 0, 8], flush)] {
        let mut stream = begin(&scene, client, body.len()).await?;
        stream.write_all(body).await?;
        let answer = answer(stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{client:?}: {answer}");
    }
    let other = begin(&scene, [127, 0, 0, 8], LONGEST).await?;
    let refused = timeout(Duration::from_secs(8), other.peek(&mut [0])).await;
    ensure!(refused.is_err(), "another client is answered before its body has come");
    Ok(())
}

#[tokio::test]
async fn many_bodies_that_swell_take_no_more_memory_than_a_few() -> Result<()> {
    let scene = Scene::ready().await?;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // A request as long as may be, in which one id stands again and again.
    let have = pkt(&format!("have {}\n", "1".repeat(40)));
    std::io::Write::write_all(&mut packed, &pkt("command=fetch"))?;
    std::io::Write::write_all(&mut packed, b"0001")?;
    for _ in 0..300_000 {
        std::io::Write::write_all(&mut packed, &have)?;
    }
    std::io::Write::write_all(&mut packed, b"0000")?;
    let packed = packed.finish()?;
    let before = peak_rss(scene.agent.pid()?)?;
    let target = format!("{}/git-upload-pack", scene.path());
    let headers = [
        ("Content-Type", "application/x-git-upload-pack-request"),
        ("Content-Encoding", "gzip"),
        ("Git-Protocol", "version=2"),
    ];
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (address, target, packed) = (scene.agent.git_address()?, target.clone(), packed.clone());
        asked.spawn(
            async move { Connection::open(address).await?.ask("POST", &target, &headers, &packed).await },
        );
    }
    let mut statuses = Vec::new();
    while let Some(answer) = asked.join_next().await {
        statuses.push(answer.context("a client")??.status);
    }
    ensure!(statuses.iter().all(|status| [200, 400, 429, 503].contains(status)), "{statuses:?}");
    let grown = peak_rss(scene.agent.pid()?)?.saturating_sub(before) >> 20;
    println!("40 bodies of 15 MiB: {grown} MiB more");
    ensure!(grown < 250, "{grown} MiB for 40 bodies of one client");
    scene.expect_upstream_refs().await.map(drop)
}
