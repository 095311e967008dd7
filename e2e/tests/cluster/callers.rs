//! A CI pod with a projected token, and the Role that lets it clone, or none.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::json;
use tarn_crds::v1alpha1::Access;
use tarn_e2e::play::play;
use tarn_e2e::scene::{PATIENCE, Scene, until};
use tarn_e2e::{settings, tool};

/// Stock git, with a helper that reads the pod's token.
const HELPER: &str = "!f() { test \"$1\" = get && echo username=tarn && echo \"password=$(cat /var/run/secrets/tarn.dev/token)\"; }; f";

#[tokio::test]
async fn a_ci_pod_clones_with_the_role_and_without_it_git_shows_the_reason() -> Result<()> {
    play("access", async |scene| {
        scene.with_cache().await?;
        scene.create_upstream("app").await?;
        scene.apply(&scene.mirror_manifest("app", "access: RBAC")).await?;
        scene.until_held("app", 2).await?;
        let in_force = |status: &tarn_crds::v1alpha1::GitMirrorStatus| status.access == Some(Access::Rbac);
        scene.until_status("app", "the access in force", in_force).await?;
        let binding = ["get", "clusterrolebinding", "tarn-operator-token-reviewers", "-o", "yaml"];
        until(PATIENCE, "the agents to be bound", async || {
            let bound = scene.kubectl(&binding).await?;
            ensure!(bound.contains(&format!("namespace: {}", scene.namespace)), "{bound}");
            Ok(())
        })
        .await?;
        job(scene).await?;

        let without = clone(scene, "").await?;
        ensure!(without.contains("could not read Username"), "without a token: {without}");
        // The agents' right to ask whose a token is has just been granted.
        until(PATIENCE, "the reason", async || {
            let refused = clone(scene, HELPER).await?;
            ensure!(refused.contains("remote: AccessDenied: "), "{refused}");
            ensure!(refused.contains("may not get gitmirrors/clone \"app\""), "{refused}");
            Ok(())
        })
        .await?;
        scene
            .kubectl(&[
                "create",
                "role",
                "clone-app",
                "--verb=get",
                "--resource=gitmirrors.tarn.dev/clone",
                "--resource-name=app",
            ])
            .await?;
        let account = format!("--serviceaccount={}:ci", scene.namespace);
        scene.kubectl(&["create", "rolebinding", "clone-app", "--role=clone-app", &account]).await?;
        let head = scene.clone_head(&scene.upstream_url("app")).await?;
        until(PATIENCE, "a clone", async || {
            let cloned = clone(scene, HELPER).await?;
            ensure!(cloned.trim().ends_with(&head), "{cloned}");
            Ok(())
        })
        .await?;
        // Outside of pods, kubectl has the API server make a token of the account.
        let token = requested(scene).await?;
        let with_token = "!f() { echo username=tarn && echo \"password=$(cat /tmp/token)\"; }; f";
        scene
            .kubectl_with(&["exec", "--stdin", "job", "--", "sh", "-ec", "cat > /tmp/token"], &token)
            .await?;
        let cloned = clone(scene, with_token).await?;
        ensure!(cloned.trim().ends_with(&head), "{cloned}");
        // What is taken back opens nothing after a minute.
        scene.kubectl(&["delete", "rolebinding", "clone-app"]).await?;
        until(PATIENCE, "the right to be gone", async || {
            let refused = clone(scene, HELPER).await?;
            ensure!(refused.contains("AccessDenied"), "{refused}");
            Ok(())
        })
        .await
    })
    .await
}

/// The token that `git tarn credential` has kubectl make, on the machine that runs the tests. The Service's name says whom it
/// is for.
async fn requested(scene: &Scene) -> Result<String> {
    let server = format!("http://default.{}.svc", scene.namespace);
    let place = ["--service-account", "ci", "--namespace", &scene.namespace];
    let args = [&["credential", "--server", &server][..], &place, &["get"]].concat();
    let question = format!("protocol=http\nhost=default.{}.svc\n\n", scene.namespace);
    let answer = tool::output(settings::client(), args, &question).await?;
    let token = answer.lines().find_map(|line| line.strip_prefix("password="));
    Ok(token.context("no token")?.to_owned())
}

/// A pod of the ServiceAccount `ci` with a token for Tarn, and with git.
async fn job(scene: &Scene) -> Result<()> {
    let (repository, tag) = settings::image();
    let audience = tarn_crds::audience(&scene.namespace, "default");
    scene.kubectl(&["create", "serviceaccount", "ci"]).await?;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "job"},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "serviceAccountName": "ci",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "job",
                "image": format!("{repository}:{tag}"),
                "command": ["sleep", "3600"],
                "env": [{"name": "HOME", "value": "/tmp"}, {"name": "GIT_TERMINAL_PROMPT", "value": "0"}],
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "token", "mountPath": "/var/run/secrets/tarn.dev", "readOnly": true},
                ],
            }],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "token", "projected": {"sources": [
                    {"serviceAccountToken": {"audience": audience, "expirationSeconds": 600, "path": "token"}},
                ]}},
            ],
        },
    }))?;
    scene.api::<Pod>().create(&PostParams::default(), &pod).await?;
    scene.kubectl(&["wait", "--for=condition=Ready", "pod/job", "--timeout=120s"]).await.map(drop)
}

/// Clones in that pod; gives back git's words and, where it could, the commit.
async fn clone(scene: &Scene, helper: &str) -> Result<String> {
    let url = scene.tarn_url("app");
    let script = format!(
        "rm -rf /tmp/c; git -c credential.helper='{helper}' clone --quiet {url} /tmp/c 2>&1 && git -C /tmp/c rev-parse HEAD; true"
    );
    scene.shell("job", &script).await
}
