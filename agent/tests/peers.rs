//! A mirror that is cold on one agent and warm on another: the cold one answers through the warm one, and through the
//! upstream where that fails (P5). All agents are real; what breaks between them is the test kit's.

mod faults;
mod hops;
mod serving;

use std::net::SocketAddr;

use anyhow::Result;
use tarn_testkit::agent::{Agent, manifest};
use tarn_testkit::git::Repo;
use tarn_testkit::upstream::{Fault, Operation};

use crate::scene::{Scene, agent};

/// An agent that has the mirror; from now on a clone from the upstream takes seconds.
async fn warm() -> Result<Scene> {
    let scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 40, 50_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::Throttle(300_000));
    Ok(scene)
}

/// An agent that has just begun to clone, and asks those at `peers` meanwhile.
async fn cold(scene: &Scene, peers: &[SocketAddr]) -> Result<Agent> {
    let builder = peers.iter().fold(agent(), |agent, peer| agent.arg("--peer").arg(format!("http://{peer}")));
    let builder = builder.env("TARN_AGENT_LOG", "info,tarn_agent=debug");
    let yaml = manifest("a", &scene.upstream.url("a.git"), &[]);
    let agent = builder.start_with(&[("a.yaml", &yaml)]).await?;
    agent.wait_phase(&scene.repo(), "Cloning").await?;
    Ok(agent)
}

/// Clones through an agent.
async fn clone(scene: &Scene, agent: &Agent, place: &str) -> Result<Repo> {
    let clone = scene.git.clone_repo(&agent.git_url(&scene.repo())?, &scene.place(place), &[]).await?;
    clone.fsck().await?;
    Ok(clone)
}

/// How many requests to peers ended so.
async fn proxied(agent: &Agent, outcome: &str) -> Result<u64> {
    agent.metric(&format!("tarn_serve_proxied_total{{outcome=\"{outcome}\"}}")).await
}
