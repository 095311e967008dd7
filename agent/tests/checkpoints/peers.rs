//! Several agents share a store: one of them publishes a mirror, and another one when that is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;
use tarn_testkit::agent::{Agent, manifest};
use tarn_testkit::eventually::eventually;

use super::{Kind, Stage, files, on_both_stores, packs};
use crate::scene::agent;

on_both_stores!(
    of_two_agents_one_publishes,
    of_five_agents_one_publishes,
    a_killed_publisher_is_replaced,
    a_publisher_that_stops_is_replaced_at_once,
    a_publisher_that_lives_and_publishes_nothing_is_replaced,
    a_checkpoint_on_demand_is_published_by_whoever_is_asked,
);

/// As many agents as `count`, each with an empty disk, who all know each other; the owner of the mirror is first.
async fn company(stage: &Stage, count: usize) -> Result<Vec<Agent>> {
    let start = || stage.start(stage.with_store(agent().arg("--heartbeat").arg("1"), None));
    let mut agents = try_join_all((0..count).map(|_| start())).await?;
    for agent in &agents {
        agent.wait_phase(&stage.repo(), "Ready").await?;
        wait_company(agent, count).await?;
    }
    // What they publish before they know each other is not what these tests are about: all of it is over.
    for agent in &agents {
        stage.published(agent).await?;
        let known = |status: &Value| !status["checkpoint"]["generation"].is_null();
        agent.wait_status(&stage.repo(), "the checkpoint", known).await?;
    }
    let owner = publisher(stage, &agents[0]).await?;
    for at in 0..count {
        ensure!(publisher(stage, &agents[at]).await? == owner, "they disagree");
        if name(&agents[at]).await? == owner {
            agents.swap(0, at);
        }
    }
    Ok(agents)
}

async fn wait_company(agent: &Agent, count: usize) -> Result<()> {
    eventually(Duration::from_secs(30), "the others to be known", async || {
        let status = agent.status().await?;
        let known = status["store"]["agents"].as_array().map_or(0, Vec::len);
        ensure!(known == count, "{known} of {count}");
        Ok(())
    })
    .await
}

async fn name(agent: &Agent) -> Result<String> {
    Ok(agent.status().await?["store"]["agent"].as_str().context("a name")?.to_owned())
}

async fn publisher(stage: &Stage, agent: &Agent) -> Result<String> {
    let status = agent.mirror_status(&stage.repo()).await?;
    Ok(status["publisher"].as_str().context("a publisher")?.to_owned())
}

/// Pushes a commit that all agents fetch, waits for a checkpoint of it that nobody has asked for, and returns who
/// made it.
async fn push(stage: &Stage, agents: &[Agent], file: &str) -> Result<String> {
    let before = stage.newest()?.map_or(Value::Null, |newest| newest["generation"].clone());
    let tip = stage.origin.commit("main", &[(file, "text")]).await?;
    try_join_all(agents.iter().map(async |agent| {
        agent.fetch_now(&stage.repo()).await?;
        agent.wait_status(&stage.repo(), "the push", |status| status["head"]["sha"] == tip).await
    }))
    .await?;
    eventually(Duration::from_secs(40), "a checkpoint", async || {
        let newest = stage.newest()?.context("none")?;
        ensure!(newest["generation"] != before, "no new one");
        newest["writer"]["agent"].as_str().context("a writer").map(str::to_owned)
    })
    .await
}

async fn uploaded(agent: &Agent) -> Result<u64> {
    let metrics = agent.metrics().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("tarn_checkpoint_uploaded_bytes_total "));
    Ok(line.context("the metric")?.parse()?)
}

async fn of_two_agents_one_publishes(kind: Kind) -> Result<()> {
    one_publishes(kind, 2).await
}

async fn of_five_agents_one_publishes(kind: Kind) -> Result<()> {
    one_publishes(kind, 5).await
}

async fn one_publishes(kind: Kind, count: usize) -> Result<()> {
    let mut stage = Stage::new(kind).await?;
    // The others wait for twice as long, which a loaded machine must not take.
    stage.spec = vec!["interval: 10s", "checkpoint: {interval: 10s, keep: 3}"];
    let agents = company(&stage, count).await?;
    let owner = name(&agents[0]).await?;
    let before = try_join_all(agents.iter().map(uploaded)).await?;
    let packs_before = files(&stage.objects().join("packs"), "pack")?.len();
    for round in 0..2 {
        let writer = push(&stage, &agents, &format!("file-{round}")).await?;
        ensure!(writer == owner, "{writer} published, not {owner}");
    }
    let after = try_join_all(agents.iter().map(uploaded)).await?;
    ensure!(after[0] > before[0] && after[1..] == before[1..], "uploads {before:?} {after:?}");
    ensure!(files(&stage.objects().join("packs"), "pack")?.len() <= packs_before + 2, "uploaded twice");
    let named: BTreeSet<String> = stage.manifests()?.iter().flat_map(packs).collect();
    ensure!(named.len() >= packs_before.min(1) + 2, "{named:?}");
    Ok(())
}

async fn a_killed_publisher_is_replaced(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let mut agents = company(&stage, 3).await?;
    let owner = name(&agents[0]).await?;
    agents.remove(0).kill9().await?;
    let writer = push(&stage, &agents, "after").await?;
    ensure!(writer != owner, "the dead publish");
    for agent in &agents {
        wait_company(agent, 2).await?;
        ensure!(publisher(&stage, agent).await? != owner, "status names the dead");
    }
    Ok(())
}

async fn a_publisher_that_stops_is_replaced_at_once(kind: Kind) -> Result<()> {
    let mut stage = Stage::new(kind).await?;
    // Nobody takes over for its silence within this test.
    stage.spec = vec!["interval: 10s", "checkpoint: {interval: 60s, keep: 3}"];
    let mut agents = company(&stage, 2).await?;
    let owner = name(&agents[0]).await?;
    agents.remove(0).stop().await?;
    let heartbeat = stage.store().join("v1/_agents").join(&owner);
    ensure!(!heartbeat.exists(), "its heartbeat is still there");
    wait_company(&agents[0], 1).await?;
    ensure!(publisher(&stage, &agents[0]).await? == name(&agents[0]).await?, "nobody owns it");
    Ok(())
}

async fn a_publisher_that_lives_and_publishes_nothing_is_replaced(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let agents = company(&stage, 2).await?;
    let suspended =
        manifest("a", &stage.upstream.url("a.git"), &[&stage.spec[..], &["suspend: true"]].concat());
    agents[0].write_manifest("a.yaml", &suspended)?;
    let suspended = |status: &Value| status["conditions"].to_string().contains("Suspended");
    agents[0].wait_status(&stage.repo(), "suspended", suspended).await?;
    let writer = push(&stage, &agents[1..], "after").await?;
    ensure!(writer == name(&agents[1]).await?, "{writer}");
    ensure!(
        publisher(&stage, &agents[1]).await? == name(&agents[0]).await?,
        "it is alive, and owns the mirror"
    );
    Ok(())
}

async fn a_checkpoint_on_demand_is_published_by_whoever_is_asked(kind: Kind) -> Result<()> {
    let mut stage = Stage::new(kind).await?;
    stage.spec = vec!["interval: 10s", "checkpoint: {interval: 60s, keep: 3}"];
    let agents = company(&stage, 2).await?;
    stage.origin.commit("main", &[("now.txt", "now")]).await?;
    stage.published(&agents[1]).await?;
    let newest = stage.newest()?.context("a checkpoint")?;
    ensure!(newest["writer"]["agent"] == name(&agents[1]).await?.as_str(), "{newest}");
    Ok(())
}
