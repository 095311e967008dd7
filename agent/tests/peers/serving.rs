//! What a cold agent serves through a warm one.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation};
use tarn_testkit::wire::Connection;

use super::{clone, cold, proxied, warm};

#[tokio::test]
async fn a_cold_agent_clones_through_a_warm_one_and_not_from_the_upstream() -> Result<()> {
    let scene = warm().await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::Hold);
    let cold = cold(&scene, &[scene.agent.git_address()?]).await?;
    // Its own clone has been asked for, and is held.
    let fetches = || scene.upstream.count("a.git", Operation::Fetch);
    let before = eventually(Duration::from_secs(20), "its clone", async || {
        ensure!(fetches() >= 2, "not yet");
        Ok(fetches())
    })
    .await?;
    for version in ["0", "1", "2"] {
        let git = scene.git.clone().with_config("protocol.version", version);
        let place = scene.place(&format!("clone-{version}"));
        let clone = git.clone_repo(&cold.git_url(&scene.repo())?, &place, &[]).await?;
        clone.fsck().await?;
        ensure!(
            clone.rev_parse("HEAD").await? == scene.origin.rev_parse("main").await?,
            "protocol {version}"
        );
    }
    ensure!(fetches() == before, "the upstream was asked for objects");
    ensure!(proxied(&cold, "served").await? == 7, "{}", cold.metrics().await?);
    // The peer does its own look, so that what it shows is as fresh as the cold one's would be.
    scene.origin.commit("main", &[("new.txt", "new")]).await?;
    let seen = scene.git.ls_remote(&cold.git_url(&scene.repo())?).await?;
    ensure!(seen == scene.origin.refs().await?, "{seen:?}");
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    let answer = cold.get(&target).await?;
    ensure!(answer.header("tarn-freshness") == Some("verified"), "{:?}", answer.headers);
    ensure!(answer.header("tarn-peer").is_none(), "clients are told what is between agents");
    // Once the mirror is here, nobody else is asked.
    scene.upstream.mend();
    cold.wait_phase(&scene.repo(), "Ready").await?;
    let served = proxied(&cold, "served").await?;
    clone(&scene, &cold, "own").await?;
    ensure!(proxied(&cold, "served").await? == served, "a warm agent asks others");
    Ok(())
}

#[tokio::test]
async fn a_cold_agent_serves_stale_answers_through_a_warm_one_while_the_upstream_is_down() -> Result<()> {
    let scene = warm().await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::Hold);
    let cold = cold(&scene, &[scene.agent.git_address()?]).await?;
    scene.upstream.fault(Fault::Status(500));
    clone(&scene, &cold, "clone").await?;
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    let answer = cold.get(&target).await?;
    ensure!(
        answer.header("tarn-freshness").is_some_and(|how| how.starts_with("stale")),
        "{:?}",
        answer.headers
    );
    Ok(())
}

#[tokio::test]
async fn snapshots_and_bundles_come_from_a_peer_where_there_is_no_store() -> Result<()> {
    let scene = warm().await?;
    let built = |status: &serde_json::Value| status["snapshot"]["commit"].is_string();
    scene.agent.wait_status(&scene.repo(), "a snapshot", built).await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::Hold);
    let cold = cold(&scene, &[scene.agent.git_address()?]).await?;
    let target = format!("{}/snapshot.tar.zst", scene.path());
    let (own, through) = (scene.agent.get(&target).await?, cold.get(&target).await?);
    ensure!(through.status == 200 && through.body == own.body, "{}", through.status);
    for name in ["etag", "x-cachew-snapshot-commit", "x-cachew-bundle-url", "content-length", "last-modified"]
    {
        ensure!(through.header(name).is_some() && through.header(name) == own.header(name), "{name}");
    }
    let mut connection = Connection::open(cold.git_address()?).await?;
    let part = connection.ask("GET", &target, &[("Range", "bytes=10-19")], b"").await?;
    ensure!(part.status == 206 && Some(part.body.as_slice()) == own.body.get(10..20), "{}", part.status);
    let etag = own.header("etag").unwrap_or_default().to_owned();
    let same = connection.ask("GET", &target, &[("If-None-Match", &etag)], b"").await?;
    ensure!(same.status == 304, "{}", same.status);
    let head = connection.ask("HEAD", &target, &[], b"").await?;
    ensure!((head.status, head.header("content-length")) == (200, own.header("content-length")), "{head:?}");

    let root = scene.origin.git(&["rev-list", "--max-parents=0", "main"]).await?;
    let tip = scene.origin.rev_parse("main").await?;
    for (base, status) in
        [(root.trim(), 200), (tip.as_str(), 204), ("f".repeat(40).as_str(), 404), ("x", 400)]
    {
        let answer = cold.get(&format!("{}/snapshot.bundle?base={base}", scene.path())).await?;
        ensure!(answer.status == status, "{base}: {} {}", answer.status, answer.text());
    }
    ensure!(proxied(&cold, "served").await? == 7, "{}", cold.metrics().await?);
    Ok(())
}
