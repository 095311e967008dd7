//! An upstream says that something was pushed, and `kubectl get` shows it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ring::hmac;
use serde_json::json;
use tarn_crds::v1alpha1::GitMirrorStatus;
use tarn_e2e::play::{note, play_alone};
use tarn_e2e::scene::{PATIENCE, Scene, until};

/// What the fixtures' Secret of webhooks holds.
const SECRET: &str = "canary-of-the-webhooks";

/// How long nothing happened before the push: an agent tells of a mirror at once, and then for so long no more.
const QUIET: Duration = Duration::from_secs(11);

/// From the answer to the webhook to a status that everybody sees.
const PROMISED: Duration = Duration::from_secs(2);

// Alone, because it measures: by the last of the files' names, when most others are over.
#[tokio::test]
async fn kubectl_shows_a_push_within_two_seconds_of_its_webhook() -> Result<()> {
    play_alone("webhooks", async |scene| {
        // Only a webhook can have an agent look.
        scene.with_quiet_mirror("app").await?;
        scene.until_published("app").await?;
        for round in 1..=2 {
            until_quiet(scene).await?;
            let before = shown(scene).await?;
            let pushed = scene.push("app").await?;
            let revision = format!("main@{}", pushed.get(..12).context("no commit")?);
            ensure!(shown(scene).await? == before && before != revision, "a look came before the webhook");
            ensure!(post(scene, "not-the-secret").await.is_err(), "a wrong signature was taken");
            ensure!(shown(scene).await? == before, "a look came of a wrong signature");

            post(scene, SECRET).await?;
            let answered = Instant::now();
            until(PATIENCE, "the push in kubectl get", async || {
                let now = shown(scene).await?;
                ensure!(now == revision, "{now} instead of {revision}");
                Ok(())
            })
            .await?;
            let took = answered.elapsed();
            note(&format!("webhook {round}: kubectl get shows the push after {:.2} s", took.as_secs_f64()));
            ensure!(took < PROMISED, "it took {took:?}");
            // The agent that did not hear it was told by the one that did.
            let all = |status: &GitMirrorStatus| {
                status.replicas.len() == 2
                    && status.replicas.iter().all(|entry| entry.head.as_deref() == Some(&pushed))
            };
            scene.until_status("app", "every pod to have looked", all).await?;
        }
        Ok(())
    })
    .await
}

/// What `kubectl get` shows as the mirror's HEAD.
async fn shown(scene: &Scene) -> Result<String> {
    let table = scene.kubectl(&["get", "gitmirror", "app", "--no-headers"]).await?;
    Ok(table.split_whitespace().nth(3).context("no such column")?.to_owned())
}

/// Waits until nobody has written to the mirror for a while.
async fn until_quiet(scene: &Scene) -> Result<()> {
    let version = ["get", "gitmirror", "app", "--output=jsonpath={.metadata.resourceVersion}"];
    let mut last = (scene.kubectl(&version).await?, Instant::now());
    until(PATIENCE, "quiet", async || {
        let now = scene.kubectl(&version).await?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        ensure!(last.1.elapsed() >= QUIET, "written to {:?} ago", last.1.elapsed());
        Ok(())
    })
    .await
}

/// Says to the Service that the upstream's repository was pushed to, as a pod of the cluster.
async fn post(scene: &Scene, secret: &str) -> Result<()> {
    let body = json!({"url": scene.upstream_url("app")}).to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, body.as_bytes());
    let signature: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let url = format!("http://default.{}/hooks/generic", scene.namespace);
    let header = format!("--header='Tarn-Signature: sha256={signature}'");
    scene.shell("client", &format!("wget -qO- {header} --post-data='{body}' {url}")).await.map(drop)
}
