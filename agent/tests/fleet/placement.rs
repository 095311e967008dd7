//! Mirrors that only some of the pods keep.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tarn_testkit::agent::Agent;
use tarn_testkit::apiserver::ApiServer;
use tarn_testkit::eventually::eventually;

use super::Repositories;
use crate::scene::agent;

/// Which pods have the mirror on their disk.
async fn holders(pods: &[Agent], repo: &str) -> Result<Vec<usize>> {
    let mut holders = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        if pod.mirror_status(repo).await?["bytes"] != 0 {
            holders.push(number);
        }
    }
    Ok(holders)
}

#[tokio::test]
async fn each_mirror_is_on_one_pod_and_all_pods_serve_it_while_it_moves_too() -> Result<()> {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let plain: &[&str] = &[];
    let scene = Repositories::new(&NAMES.map(|name| (name, plain))).await?;
    let api = ApiServer::start()?;
    let kubeconfig = api.kubeconfig(scene.dir.path())?;
    for name in NAMES {
        api.mirror(name, "default", json!({"url": scene.upstream.url(&format!("{name}.git"))}));
    }
    let start = |number: usize| {
        let pod = agent().in_cluster(&kubeconfig, "default", &format!("default-{number}"));
        pod.arg("--replication").arg("1").start()
    };
    let mut pods = vec![start(0).await?, start(1).await?, start(2).await?];
    for (number, pod) in pods.iter().enumerate() {
        api.endpoint("default-pods", &format!("default-{number}"), pod.git_address()?);
    }
    let patience = Duration::from_secs(90);
    // Before all know each other, each mirror may be on one pod by chance, and move.
    for pod in &pods {
        eventually(patience, "the pods to know each other", async || {
            ensure!(pod.logs()?.contains("members=3"), "not yet");
            Ok(())
        })
        .await?;
    }
    let placed = async |pods: &[Agent]| {
        eventually(patience, "each mirror on one pod", async || {
            let mut places = Vec::new();
            for name in NAMES {
                let found = holders(pods, &scene.repo(name)).await?;
                ensure!(found.len() == 1, "{name} is on {found:?}");
                places.extend(found);
            }
            Ok(places)
        })
        .await
    };
    let before = placed(&pods).await?;
    for (number, pod) in pods.iter().enumerate() {
        scene.clone(pod, "a", &format!("a-{number}")).await?;
    }
    ensure!(placed(&pods).await? == before, "who asks elsewhere moves nothing");
    pods.push(start(3).await?);
    api.endpoint("default-pods", "default-3", pods[3].git_address()?);
    // While mirrors move, all pods serve all of them.
    for (number, pod) in pods.iter().enumerate() {
        for name in NAMES {
            scene.clone(pod, name, &format!("{name}-moving-{number}")).await?;
        }
    }
    eventually(patience, "the new pod's mirrors to be there alone", async || {
        let after = placed(&pods).await?;
        for (name, (old, new)) in NAMES.iter().zip(before.iter().zip(&after)) {
            ensure!(new == old || *new == 3, "{name} moved from {old} to {new}");
        }
        Ok(())
    })
    .await
}
