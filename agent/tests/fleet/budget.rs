//! A disk that is too small for all that is declared.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tarn_testkit::agent::PATIENCE;
use tarn_testkit::eventually::eventually;
use tarn_testkit::wire::Connection;

use super::Repositories;
use crate::p4_never_stuck::SmallDisk;
use crate::scene::agent;
use crate::serving::{fetch_request, post};

const MEGABYTE: usize = 1_000_000;

#[tokio::test]
async fn the_mirror_that_was_not_used_longest_leaves_and_comes_back_when_it_is_asked_for() -> Result<()> {
    let scene = Repositories::large(&["a", "b", "c"], MEGABYTE).await?;
    // With its snapshot each takes two megabytes.
    let agent = agent().arg("--prewarm-most-cloned").arg("0").arg("--disk-budget").arg("5Mi");
    let agent = agent.start_with(&[("all.yaml", &scene.yaml)]).await?;
    for name in ["b", "a", "c"] {
        scene.clone(&agent, name, name).await?;
        agent.wait_phase(&scene.repo(name), "Ready").await?;
        // Last uses are told apart by the second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    agent.wait_phase(&scene.repo("b"), "OnDemand").await?;
    ensure!(agent.mirror_status(&scene.repo("b")).await?["bytes"] == 0, "nothing is left");
    for name in ["a", "c"] {
        ensure!(agent.mirror_status(&scene.repo(name)).await?["phase"] == "Ready", "{name} stays");
    }
    let disk = agent.status().await?["disk"].clone();
    ensure!(disk["budget"] == 5 << 20 && disk["used"].as_u64() > Some(0), "{disk}");
    ensure!(agent.metric::<u64>("tarn_disk_evictions_total{work=\"mirror\"}").await? >= 1, "counted");
    scene.clone(&agent, "b", "again").await?;
    agent.wait_phase(&scene.repo("b"), "Ready").await?;
    agent.wait_phase(&scene.repo("a"), "OnDemand").await?;
    Ok(())
}

#[tokio::test]
async fn mirrors_that_push_each_other_out_are_held_off_and_served_all_the_same() -> Result<()> {
    let scene = Repositories::large(&["a", "b"], MEGABYTE).await?;
    // With its snapshot each takes two megabytes: there is room for one.
    let agent = agent().arg("--prewarm-most-cloned").arg("0").arg("--disk-budget").arg("3Mi");
    let agent = agent.start_with(&[("all.yaml", &scene.yaml)]).await?;
    // The name of a mirror that is held off.
    let held = || -> Result<Option<&str>> {
        let logs = agent.logs()?;
        let line = logs.lines().find(|line| line.contains("leaves the disk and comes back again and again"));
        Ok(line.map(|line| if line.contains(&scene.repo("a")) { "a" } else { "b" }))
    };
    let reaches = async |name: &str, phase: &str| {
        eventually(PATIENCE, &format!("{name} to be {phase}"), async || {
            let status = agent.mirror_status(&scene.repo(name)).await?;
            ensure!(status["phase"] == phase || held()?.is_some(), "{status}");
            Ok::<_, anyhow::Error>(())
        })
        .await
    };
    let mut round = 0;
    let held = loop {
        let (asked, other) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        scene.clone(&agent, asked, &round.to_string()).await?;
        reaches(asked, "Ready").await?;
        reaches(other, "OnDemand").await?;
        if let Some(held) = held()? {
            break held;
        }
        round += 1;
        ensure!(round < 10, "nobody notices that each pushes the other out");
    };
    // For a minute: requests are answered by the upstream.
    let pushed = scene.origin(held).commit("main", &[("new.txt", "new")]).await?;
    scene.clone(&agent, held, "held-off").await?;
    let refs = scene.git.ls_remote(&agent.git_url(&scene.repo(held))?).await?;
    ensure!(refs["HEAD"] == pushed, "{refs:?}");
    let status = agent.mirror_status(&scene.repo(held)).await?;
    ensure!(status["phase"] == "OnDemand" && status["bytes"] == 0, "it was brought again: {status}");
    // And then it comes again.
    eventually(3 * PATIENCE, "it to be brought again", async || {
        scene.git.ls_remote(&agent.git_url(&scene.repo(held))?).await?;
        let status = agent.mirror_status(&scene.repo(held)).await?;
        ensure!(status["phase"] == "Ready", "{status}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_mirror_that_is_nowhere_else_stays() -> Result<()> {
    let scene = Repositories::large(&["a"], MEGABYTE).await?;
    let agent = agent().arg("--disk-budget").arg("1Ki").start_with(&[("all.yaml", &scene.yaml)]).await?;
    agent.wait_phase(&scene.repo("a"), "Ready").await?;
    scene.upstream.down().await;
    scene.git.ls_remote(&agent.git_url(&scene.repo("a"))?).await?;
    eventually(PATIENCE, "the full budget to be named", async || {
        ensure!(agent.logs()?.contains("nothing more may go"), "not yet");
        Ok(())
    })
    .await?;
    // Longer than the last use protects it.
    tokio::time::sleep(Duration::from_secs(11)).await;
    scene.clone(&agent, "a", "stale").await?;
    scene.upstream.up().await;
    agent.fetch_now(&scene.repo("a")).await?;
    agent.wait_phase(&scene.repo("a"), "OnDemand").await?;
    scene.clone(&agent, "a", "fresh").await
}

#[tokio::test]
async fn a_mirror_leaves_while_its_answer_is_read_and_the_reader_gets_all() -> Result<()> {
    // More than the sockets between hold.
    let scene = Repositories::large(&["a"], 32 * MEGABYTE).await?;
    let old = scene.origin("a").rev_parse("main^").await?;
    scene.origin("a").tag("old", &old).await?;
    let agent = agent().arg("--disk-budget").arg("1Mi").start_with(&[("all.yaml", &scene.yaml)]).await?;
    scene.clone(&agent, "a", "first").await?;
    agent.wait_phase(&scene.repo("a"), "Ready").await?;
    let head = scene.origin("a").rev_parse("main").await?;
    // An answer that is not kept, of a child that keeps the mirror's files while it makes it.
    let body = fetch_request(&[&head], &["deepen-not refs/tags/old", "no-progress", "done"]);
    let mut reader = Connection::open(agent.git_address()?).await?;
    reader.send(&post(&format!("/git/{}", scene.repo("a")), "git-upload-pack", &body)).await?;
    agent.wait_phase(&scene.repo("a"), "OnDemand").await?;
    let answer = reader.answer().await?;
    ensure!(answer.status == 200 && answer.body.len() > 32 * MEGABYTE, "{} bytes", answer.body.len());
    ensure!(answer.body.ends_with(b"0000"), "all of it");
    Ok(())
}

#[tokio::test]
async fn data_that_nobody_declares_go_first() -> Result<()> {
    let scene = Repositories::large(&["a", "b"], MEGABYTE).await?;
    let data = scene.place("data");
    let mut first = agent().data(&data).start_with(&[("all.yaml", &scene.yaml)]).await?;
    first.wait_ready(&[&scene.repo("a"), &scene.repo("b")]).await?;
    first.stop().await?;
    let only_a = scene.yaml.split("---\n").next().unwrap_or_default();
    let place = |name: &str| data.join("mirrors").join(scene.id(name).dir());
    let (a, b) = (place("a"), place("b"));
    let stays = agent().data(&data).start_with(&[("all.yaml", only_a)]).await?;
    stays.wait_phase(&scene.repo("a"), "Ready").await?;
    ensure!(b.exists(), "while there is room, it stays: {}", b.display());
    drop(stays);
    let second = agent().data(&data).arg("--disk-budget").arg("2500k");
    let second = second.start_with(&[("all.yaml", only_a)]).await?;
    eventually(PATIENCE, "b to leave", async || {
        ensure!(!b.exists(), "still there: {}", second.logs()?);
        Ok(())
    })
    .await?;
    ensure!(a.exists(), "a is declared, and there is room for it");
    Ok(())
}

#[tokio::test]
async fn a_disk_that_others_fill_makes_room_for_itself_and_heals() -> Result<()> {
    let Some(disk) = SmallDisk::mount("24m").await? else {
        return Ok(());
    };
    let scene = Repositories::large(&["a", "b"], MEGABYTE).await?;
    let agent = agent().data(disk.path().join("data")).arg("--prewarm-most-cloned").arg("0");
    let agent = agent.start_with(&[("all.yaml", &scene.yaml)]).await?;
    for name in ["a", "b"] {
        scene.clone(&agent, name, name).await?;
        agent.wait_phase(&scene.repo(name), "Ready").await?;
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let (filler, here) =
        (disk.path().join("filler"), disk.path().join("data/mirrors").join(scene.id("a").dir()));
    let mut file = std::fs::File::create(&filler)?;
    let gone = eventually(PATIENCE, "a to leave", async || {
        let status = agent.mirror_status(&scene.repo("a")).await?;
        if status["phase"] == "OnDemand" {
            return Ok(());
        }
        // All of it, to the last block, and what softer things set free besides; but not the room that a makes as it leaves,
        // for then nothing would be left to serve anybody with.
        while here.exists() && file.write_all(&[1; 16 << 10]).is_ok() {}
        bail!("{status}")
    });
    gone.await?;
    // Who clones now is served, and correctly.
    scene.origin("b").commit("main", &[("new.txt", "new")]).await?;
    scene.clone(&agent, "b", "while-full").await?;
    drop(file);
    std::fs::remove_file(filler)?;
    scene.clone(&agent, "a", "later").await?;
    agent.wait_ready(&[&scene.repo("a")]).await?;
    scene.clone(&agent, "b", "b-later").await
}
