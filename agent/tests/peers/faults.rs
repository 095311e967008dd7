//! Peers that are away, die, hang or cannot: the upstream answers, and nobody takes a part for the whole.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tarn_testkit::proxy::{FaultProxy, Trouble};

use super::{clone, cold, proxied, warm};

#[tokio::test]
async fn the_upstream_answers_where_no_peer_can_be_reached() -> Result<()> {
    let scene = warm().await?;
    let line = FaultProxy::start(scene.agent.git_address()?)?;
    line.refuse().await;
    // One refuses connections, the other's address answers nothing at all.
    let silent = "192.0.2.1:9".parse()?;
    let cold = cold(&scene, &[line.address(), silent]).await?;
    let began = Instant::now();
    clone(&scene, &cold, "clone").await?;
    ensure!(began.elapsed() < Duration::from_secs(25), "it took {:?}", began.elapsed());
    let failed = proxied(&cold, "unreachable").await?;
    ensure!(failed >= 2 && proxied(&cold, "served").await? == 0, "{failed}");
    Ok(())
}

#[tokio::test]
async fn a_peer_that_breaks_before_the_first_byte_is_passed_over() -> Result<()> {
    let scene = warm().await?;
    let line = FaultProxy::start(scene.agent.git_address()?)?;
    line.set(Trouble { cut_after: Some(20), ..Trouble::default() });
    let cold = cold(&scene, &[line.address()]).await?;
    clone(&scene, &cold, "clone").await?;
    ensure!(proxied(&cold, "unreachable").await? >= 1, "{}", cold.metrics().await?);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_taken_for_whole_and_the_next_attempt_succeeds() -> Result<()> {
    let scene = warm().await?;
    let line = FaultProxy::start(scene.agent.git_address()?)?;
    // More than the capabilities and the refs, less than the pack.
    line.set(Trouble { cut_after: Some(300_000), ..Trouble::default() });
    let cold = cold(&scene, &[line.address()]).await?;
    let place = scene.place("broken");
    let url = cold.git_url(&scene.repo())?;
    let broken = scene.git.attempt(["clone", &url, place.to_str().unwrap_or_default()]).await?;
    ensure!(!broken.status.success(), "half a pack was taken for a whole one");
    ensure!(proxied(&cold, "broken").await? == 1, "{}", cold.metrics().await?);
    line.set(Trouble::default());
    clone(&scene, &cold, "again").await?;
    Ok(())
}

#[tokio::test]
async fn a_peer_that_dies_while_it_answers_is_passed_over_by_the_next_attempt() -> Result<()> {
    let mut scene = warm().await?;
    let line = FaultProxy::start(scene.agent.git_address()?)?;
    line.set(Trouble { bandwidth: Some(200_000), ..Trouble::default() });
    let cold = cold(&scene, &[line.address()]).await?;
    let (place, url) = (scene.place("broken"), cold.git_url(&scene.repo())?);
    let git = scene.git.clone();
    let cloning =
        tokio::spawn(async move { git.attempt(["clone", &url, place.to_str().unwrap_or_default()]).await });
    tarn_testkit::eventually::eventually(Duration::from_secs(20), "some of the pack", async || {
        ensure!(line.traffic().down > 100_000, "{:?}", line.traffic());
        Ok(())
    })
    .await?;
    scene.agent.kill9().await?;
    // What the line holds still would arrive.
    line.refuse().await;
    ensure!(!cloning.await??.status.success(), "half a pack was taken for a whole one");
    clone(&scene, &cold, "again").await?;
    Ok(())
}

#[tokio::test]
async fn peers_that_hang_are_passed_over_within_seconds_and_then_left_alone() -> Result<()> {
    let scene = warm().await?;
    let mut lines = Vec::new();
    for _ in 0..3 {
        let line = FaultProxy::start(scene.agent.git_address()?)?;
        line.set(Trouble { blackhole: true, ..Trouble::default() });
        lines.push(line);
    }
    let addresses: Vec<_> = lines.iter().map(FaultProxy::address).collect();
    let cold = cold(&scene, &addresses).await?;
    let began = Instant::now();
    clone(&scene, &cold, "clone").await?;
    // A minute for each of them and each request, once.
    ensure!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    ensure!(proxied(&cold, "unreachable").await? >= 3, "{}", cold.metrics().await?);
    Ok(())
}
