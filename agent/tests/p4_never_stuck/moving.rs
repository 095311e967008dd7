//! An upstream that moves faster than it can be fetched: whoever waits is not made to wait for a lull.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tarn_testkit::upstream::{Fault, Operation};
use tarn_testkit::wire::pkt;

use crate::scene::Scene;

/// Fetches that have ended well.
async fn fetches(scene: &Scene) -> Result<u64> {
    scene.agent.metric("tarn_mirror_fetches_total{outcome=\"ok\"}").await
}

/// Runs `victim` while the upstream moves all the time, every move is seen at once, and each fetch takes long enough for
/// another move. Gives up after two minutes, which ends the moves.
async fn while_moving<T>(scene: &Scene, victim: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    scene.upstream.fault_on(Operation::Fetch, Fault::Delay(Duration::from_millis(600)));
    let over = Arc::new(AtomicBool::new(false));
    let moves = async {
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            number += 1;
            scene.origin.commit("main", &[("f", &number.to_string())]).await?;
            scene.refs().await?;
        }
        anyhow::Ok(())
    };
    let victim = async {
        let result = tokio::time::timeout(Duration::from_secs(120), victim()).await;
        over.store(true, Ordering::Relaxed);
        result.context("it waits for a lull")?
    };
    let (moved, result) = tokio::join!(moves, victim);
    moved?;
    result
}

/// Asks for a pack with this commit alone.
async fn fetch(scene: &Scene, want: &str) -> Result<Vec<u8>> {
    let (want, shallow) = (format!("want {want}\n"), "deepen 1\n");
    let lines = [pkt("command=fetch\n"), b"0001".to_vec(), pkt(&want), pkt(shallow), pkt("done\n")];
    let body = [lines.concat(), b"0000".to_vec()].concat();
    let headers = [("Content-Type", "application/x-git-upload-pack-request"), ("Git-Protocol", "version=2")];
    let target = format!("{}/git-upload-pack", scene.path());
    let answer = scene.connect().await?.ask("POST", &target, &headers, &body).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer.body)
}

#[tokio::test]
async fn a_tip_that_was_shown_is_served_after_the_first_fetch_that_begins_later() -> Result<()> {
    let scene = Scene::ready().await?;
    let waited = while_moving(&scene, async || {
        let mut waited = Vec::new();
        for _ in 0..4 {
            // Shown through Tarn, and passed by at once.
            let shown = scene.refs().await?["refs/heads/main"].clone();
            while scene.refs().await?["refs/heads/main"] == shown {}
            let before = fetches(&scene).await?;
            let pack = fetch(&scene, &shown).await?;
            ensure!(pack.windows(4).any(|part| part == b"PACK"), "{}", String::from_utf8_lossy(&pack));
            waited.push(fetches(&scene).await? - before);
        }
        Ok(waited)
    })
    .await?;
    // The one that ran, the first that began later, and one on each side between the request and its counting.
    ensure!(waited.iter().all(|ended| *ended <= 4), "fetches that ended before each answer: {waited:?}");
    Ok(())
}

#[tokio::test]
async fn objects_by_id_come_between_the_fetches_of_an_upstream_that_always_moves() -> Result<()> {
    let scene = Scene::ready().await?;
    let hidden = scene.origin.commit("hidden", &[("h", "1")]).await?;
    scene.origin.delete_ref("refs/heads/hidden").await?;
    let answer: Value = while_moving(&scene, async || {
        let target = format!("{}/ensure-refs", scene.path());
        let body = json!({ "commits": [hidden] }).to_string();
        let headers = [("Content-Type", "application/json")];
        let answer = scene.connect().await?.ask("POST", &target, &headers, body.as_bytes()).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        Ok(serde_json::from_str(&answer.text())?)
    })
    .await?;
    assert_eq!(answer["missing_commits"], json!([]));
    Ok(())
}
