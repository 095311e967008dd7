//! Credentials of the upstream: used, changed, and seen by nobody.

use anyhow::{Result, ensure};
use tarn_crds::v1alpha1::GitMirrorStatus;
use tarn_e2e::play::play;
use tarn_e2e::scene::{Scene, condition, head, is_true};
use tarn_e2e::{release, tool};

/// Found nowhere but in Secrets; those of the store and of webhooks are in the fixtures.
const PASSWORDS: [&str; 4] =
    ["canary-one-4b1c", "canary-two-9f2e", "canary-of-the-store", "canary-of-the-webhooks"];

#[tokio::test]
async fn a_changed_secret_takes_effect_without_a_restart_and_is_seen_nowhere() -> Result<()> {
    play("secret", async |scene| {
        let [first, second, ..] = PASSWORDS;
        scene.with_cache().await?;
        scene.create_upstream("app").await?;
        require(scene, first).await?;
        scene.apply(&secret(scene, first)).await?;
        scene.apply(&scene.mirror_manifest("app", "secretRef: {name: upstream}\naccess: Anonymous")).await?;
        scene.until_held("app", 2).await?;
        let before = [scene.uid("default-0").await?, scene.uid("default-1").await?];

        require(scene, second).await?;
        let refused = |status: &GitMirrorStatus| {
            condition(status, "FetchFailed").is_some_and(|failed| failed.reason == "AuthenticationFailed")
        };
        scene.until_status("app", "the old password to be refused", refused).await?;
        scene.apply(&secret(scene, second)).await?;
        let url = scene.upstream_url("app").replace("//", &format!("//tarn:{second}@"));
        let pushed = scene.push_to(&url, "app").await?;
        let mended = |status: &GitMirrorStatus| is_true(status, "Ready") && head(status) == Some(&pushed);
        scene.until_status("app", "the new password to be used", mended).await?;
        let cloned = scene.clone_head(&scene.tarn_url("app")).await?;
        ensure!(cloned == pushed, "{cloned} instead of {pushed}");
        let after = [scene.uid("default-0").await?, scene.uid("default-1").await?];
        ensure!(before == after, "pods were replaced");
        seen_nowhere(scene).await
    })
    .await
}

/// The upstream asks for this password from now on.
async fn require(scene: &Scene, password: &str) -> Result<()> {
    let script = format!("echo tarn:{password} > /data/credentials; kill -HUP 1");
    scene.shell("deployment/upstream", &script).await.map(drop)
}

fn secret(scene: &Scene, password: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: upstream\n  labels: {{tarn.dev/credentials: \"true\"}}\n  \
         annotations: {{tarn.dev/hosts: 'http://{}'}}\nstringData: {{username: tarn, password: {password}}}\n",
        scene.upstream_host()
    )
}

/// Looks for the passwords in every object but Secrets, in every log of Tarn's, and in the agents' processes.
async fn seen_nowhere(scene: &Scene) -> Result<()> {
    let kinds = "all,events,gitmirrors,gitcaches,leases,roles,rolebindings,configmaps,endpointslices";
    let mut places = vec![
        ("objects", scene.kubectl(&["get", kinds, "--output=yaml", "--show-managed-fields"]).await?),
        ("operator", release::operator_log(&scene.client).await?),
    ];
    let events = ["get", "events", "--all-namespaces", "--output=yaml"];
    places.push(("events", tool::kubectl(&events).await?));
    for pod in ["default-0", "default-1"] {
        places.push((pod, scene.kubectl(&["logs", pod, "--all-containers"]).await?));
        places.push((pod, scene.shell(pod, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?));
        places.push((pod, scene.shell(pod, "wget -qO- http://127.0.0.1:8081/status").await?));
    }
    for (place, text) in &places {
        ensure!(!text.is_empty(), "nothing to search: {place}");
        for password in PASSWORDS {
            ensure!(!text.contains(password), "{password} is in {place}");
        }
    }
    Ok(())
}
