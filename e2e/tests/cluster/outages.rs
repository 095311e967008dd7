//! What a mirror rests on goes away and comes back: the store, the upstream.

use anyhow::{Result, ensure};
use tarn_crds::v1alpha1::GitMirrorStatus;
use tarn_e2e::cloner::{Cloner, Habit};
use tarn_e2e::play::play;
use tarn_e2e::scene::{PATIENCE, head, is_true, until};

#[tokio::test]
async fn without_the_store_pods_start_clones_go_on_and_status_says_so() -> Result<()> {
    play("store", async |scene| {
        scene.with_mirror("app").await?;
        scene.until_published("app").await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::PushAndClone).await?;
        scene.scale("s3", 0).await?;
        let told = |status: &GitMirrorStatus| is_true(status, "StoreFailed");
        let status = scene.until_status("app", "StoreFailed", told).await?;
        ensure!(is_true(&status, "Ready"), "serving needs no store: {:?}", status.conditions);
        // With nothing to restore from, a new pod clones.
        let uid = scene.replace("default-1").await?;
        scene.until_pod_holds("app", &uid).await?;
        cloner.until_more(5).await?;
        let known = |status: &GitMirrorStatus| status.checkpoint.as_ref().map_or(0, |known| known.generation);
        let before = known(&scene.status("app").await?);
        scene.scale("s3", 1).await?;
        let mended = |status: &GitMirrorStatus| !is_true(status, "StoreFailed") && known(status) > before;
        scene.until_status("app", "a new checkpoint", mended).await?;
        cloner.until_more(2).await?;
        cloner.without_failure().await.map(drop)
    })
    .await
}

#[tokio::test]
async fn without_the_upstream_clones_go_on_and_status_says_so() -> Result<()> {
    play("upstream", async |scene| {
        scene.with_mirror("app").await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::Clone).await?;
        scene.scale("upstream", 0).await?;
        cloner.until_more(5).await?;
        let told = |status: &GitMirrorStatus| is_true(status, "Stale") && is_true(status, "FetchFailed");
        let status = scene.until_status("app", "Stale and FetchFailed", told).await?;
        ensure!(!is_true(&status, "Ready"), "not as fresh as asked for: {:?}", status.conditions);
        scene.scale("upstream", 1).await?;
        // The pod is ready before every packet finds its way to it.
        let pushed = until(PATIENCE, "a push", async || scene.push("app").await).await?;
        let mended =
            |status: &GitMirrorStatus| is_true(status, "Ready") && head(status) == Some(pushed.as_str());
        scene.until_status("app", "the push after the outage", mended).await?;
        let cloned = scene.clone_head(&scene.tarn_url("app")).await?;
        ensure!(cloned == pushed, "{cloned} instead of {pushed}");
        cloner.without_failure().await.map(drop)
    })
    .await
}
