//! Pods come and go: restarts, kills, updates, another number of them, drained nodes.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tarn_crds::v1alpha1::{GitCache, GitMirrorStatus};
use tarn_e2e::cloner::{Cloner, Habit, Outcome};
use tarn_e2e::play::{note, play};
use tarn_e2e::scene::{PATIENCE, Scene, until};
use tarn_e2e::tool;

const RESTORED: &str = r#"tarn_checkpoint_restores_total{outcome="ok"}"#;

#[tokio::test]
async fn a_deleted_pod_comes_back_from_the_store_and_no_clone_fails() -> Result<()> {
    play("deleted", async |scene| {
        scene.with_mirror("app").await?;
        scene.until_published("app").await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::Clone).await?;
        for pod in ["default-0", "default-1"] {
            let uid = scene.replace(pod).await?;
            scene.until_pod_holds("app", &uid).await?;
            let restores = scene.metric(pod, RESTORED).await?;
            ensure!(restores >= 1.0, "{pod} holds the mirror, and has not restored it");
            scene.until_held("app", 2).await?;
        }
        cloner.until_more(5).await?;
        let attempts = cloner.without_failure().await?;
        note(&format!("{} clones, none failed", attempts.len()));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_killed_agent_breaks_what_is_under_way_and_every_retry_succeeds() -> Result<()> {
    play("killed", async |scene| {
        scene.with_mirror("app").await?;
        let cloners = [
            Cloner::start(scene, "cloner-a", "app", Habit::Retry).await?,
            Cloner::start(scene, "cloner-b", "app", Habit::Retry).await?,
        ];
        for pod in ["default-0", "default-1"] {
            let before = restarts(scene, pod).await?;
            scene.shell(pod, "kill -9 $(pidof tarn-agent)").await.or_else(ended_with_it)?;
            until(PATIENCE, "the agent to be started again", async || {
                ensure!(restarts(scene, pod).await? > before, "it has not been");
                Ok(())
            })
            .await?;
            scene
                .kubectl(&["wait", "--for=condition=Ready", "--timeout=120s", &format!("pod/{pod}")])
                .await?;
            for cloner in &cloners {
                cloner.until_more(5).await?;
            }
        }
        for cloner in &cloners {
            let attempts = cloner.without_failure().await?;
            let broken = attempts.iter().filter(|attempt| attempt.outcome == Outcome::Broken);
            let broken: Vec<_> = broken.map(|attempt| attempt.text.as_str()).collect();
            note(&format!("{} of {} attempts broke: {broken:?}", broken.len(), attempts.len()));
            // One under way for each kill, and those that reach the dead pod before it is out of the Service.
            ensure!(broken.len() <= 8, "{broken:?}");
        }
        scene.until_held("app", 2).await
    })
    .await
}

/// The shell that sent the signal ends with the container it runs in.
fn ended_with_it(error: anyhow::Error) -> Result<String> {
    if format!("{error:#}").contains("137") { Ok(String::new()) } else { Err(error) }
}

async fn restarts(scene: &Scene, pod: &str) -> Result<i32> {
    let pod: Pod = scene.get(pod).await?;
    let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
    Ok(containers.first().context("no container")?.restart_count)
}

#[tokio::test]
async fn a_rolling_update_fails_no_clone() -> Result<()> {
    play("update", async |scene| {
        scene.with_mirror("app").await?;
        scene.until_published("app").await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::Clone).await?;
        let before = [scene.uid("default-0").await?, scene.uid("default-1").await?];
        let patch = r#"{"spec":{"podTemplate":{"metadata":{"annotations":{"updated":"yes"}}}}}"#;
        scene.kubectl(&["patch", "gitcache", "default", "--type=merge", "--patch", patch]).await?;
        until(PATIENCE, "both pods to be replaced", async || {
            let now = [scene.uid("default-0").await?, scene.uid("default-1").await?];
            let [old, new] = [&before, &now];
            ensure!(old.iter().zip(new).all(|(old, new)| old != new), "not yet");
            Ok(())
        })
        .await?;
        scene.kubectl(&["wait", "--for=condition=Ready", "gitcache/default", "--timeout=120s"]).await?;
        scene.until_held("app", 2).await?;
        cloner.until_more(5).await?;
        let attempts = cloner.without_failure().await?;
        note(&format!("{} clones, none failed", attempts.len()));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn pods_are_added_and_taken_away_and_no_clone_fails() -> Result<()> {
    play("scaled", async |scene| {
        scene.with_mirror("app").await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::Clone).await?;
        for replicas in [1, 3, 1] {
            let number = format!("--replicas={replicas}");
            scene.kubectl(&["scale", "gitcache/default", &number]).await?;
            scene.until_held("app", replicas).await?;
            let entries = usize::try_from(replicas)?;
            let only = |status: &GitMirrorStatus| status.replicas.len() == entries;
            let status = scene.until_status("app", "departed pods' entries to be gone", only).await?;
            ensure!(status.pods == Some(format!("{replicas}/{replicas}")), "{:?}", status.pods);
            // Pods on their way out count there until they are gone.
            until(PATIENCE, "the cache's status to have so many pods", async || {
                let cache: GitCache = scene.get("default").await?;
                let seen = cache.status.context("no status")?;
                ensure!(seen.replicas == Some(replicas) && seen.ready_replicas == Some(replicas), "{seen:?}");
                Ok(())
            })
            .await?;
            cloner.until_more(3).await?;
        }
        let attempts = cloner.without_failure().await?;
        note(&format!("{} clones, none failed", attempts.len()));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn evictions_take_one_pod_at_a_time() -> Result<()> {
    play("evicted", async |scene| {
        scene.with_mirror("app").await?;
        scene.until_published("app").await?;
        let cloner = Cloner::start(scene, "cloner", "app", Habit::Clone).await?;
        let before = scene.uid("default-1").await?;
        ensure!(evict(scene, "default-0").await?, "the first eviction was refused, with both pods ready");
        ensure!(
            !evict(scene, "default-1").await?,
            "the second pod could be evicted while the first was away"
        );
        until(PATIENCE, "the second eviction to be admitted", async || {
            ensure!(evict(scene, "default-1").await?, "it is not");
            Ok(())
        })
        .await?;
        until(PATIENCE, "the second pod to be replaced", async || {
            ensure!(scene.uid("default-1").await? != before, "it is the old one still");
            Ok(())
        })
        .await?;
        scene.until_held("app", 2).await?;
        cloner.until_more(5).await?;
        cloner.without_failure().await.map(drop)
    })
    .await
}

/// Whether a pod may be evicted, which it then is. By kubectl, for the kube client asks again by itself.
async fn evict(scene: &Scene, pod: &str) -> Result<bool> {
    let namespace = &scene.namespace;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
    let metadata = json!({"name": pod, "namespace": namespace});
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}).to_string();
    let done = tool::attempt("kubectl", ["create", "--raw", &path, "-f", "-"], &body).await?;
    let refused = done.stderr.contains("disruption budget");
    ensure!(refused || done.status.success(), "evict {pod}: {}", done.stderr);
    Ok(!refused)
}
