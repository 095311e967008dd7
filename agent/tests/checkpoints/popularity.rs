//! What clients take is counted in the store, for all agents and over restarts.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tarn_testkit::load::{Client, Download};

use super::{Kind, Stage, files, on_both_stores};

on_both_stores!(what_clients_take_is_counted_for_all_agents);

async fn what_clients_take_is_counted_for_all_agents(kind: Kind) -> Result<()> {
    let stage = Stage::new(kind).await?;
    let clone = stage.dir.path().join("clone");
    for _ in 0..2 {
        let mut agent = stage.ready().await?;
        let url = agent.git_url(&stage.repo())?;
        let place = stage.dir.path().join(format!("clone-{}", agent.git_address()?.port()));
        stage.git.run(["clone", "--quiet", &url, &place.display().to_string()]).await?;
        if !clone.exists() {
            std::fs::rename(&place, &clone)?;
            // What a partial clone brings later is none.
            stage.origin.commit("main", &[("next.txt", "next")]).await?;
            stage.git.run(["-C", &clone.display().to_string(), "fetch", "--quiet", &url]).await?;
        }
        let target = format!("/git/{}/snapshot.tar.zst?wait=30s", stage.repo());
        Client::new(&format!("http://{}", agent.git_address()?))?
            .download(Download::File(&target), |_| Ok(()))
            .await?;
        agent.stop().await?;
    }
    let days: Vec<PathBuf> = std::fs::read_dir(stage.store().join("v1/_clones"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    let mut sum = [0, 0, 0];
    for day in days {
        for file in files(&day, "json")? {
            let day: Value = serde_json::from_slice(&std::fs::read(file)?)?;
            let uses = day["mirrors"][stage.repo().as_str()].as_object().context("the mirror")?;
            for (at, what) in ["clones", "fetches", "snapshots"].into_iter().enumerate() {
                sum[at] += uses[what].as_u64().context("a number")?;
            }
        }
    }
    ensure!(sum[0] == 2 && sum[1] >= 1 && sum[2] == 2, "{sum:?}");
    // Another agent, on an empty disk of its own, knows.
    let agent = stage.ready().await?;
    let known = json!({ "clones": sum[0], "fetches": sum[1], "snapshots": sum[2] });
    agent.wait_status(&stage.repo(), "the counts", |status| status["uses"] == known).await?;
    Ok(())
}
