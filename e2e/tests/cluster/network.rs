//! What NetworkPolicies leave: to agents, of what they reach, and to others, of the agents' admin port.

use anyhow::{Result, ensure};
use tarn_e2e::play::play;
use tarn_e2e::scene::{PATIENCE, Scene, is_true, until};
use tarn_e2e::settings;

/// The policy that docs/security.md recommends.
const EGRESS: &str = include_str!("../../../examples/kubernetes/network-policy-egress.yaml");

/// A git server inside the cluster that nothing allows: no `app: upstream`.
const INSIDE: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: inside
  labels: {app: inside}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: inside
    image: tarn.local/tarn:e2e
    command: [sh, -ec, "git init -q --bare -b main /tmp/r/app.git; exec upstream --root /tmp/r --listen 0.0.0.0:8080"]
    env: [{name: HOME, value: /tmp}]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata:
  name: inside
spec:
  selector: {app: inside}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

/// Asks from a pod for what git asks for first, for some seconds; whether an answer comes.
async fn reaches(scene: &Scene, pod: &str, host: &str) -> Result<bool> {
    let url = format!("http://{host}/app.git/info/refs?service=git-upload-pack");
    let script = format!("if timeout 5 wget -qO /dev/null '{url}'; then echo yes; else echo no; fi");
    Ok(scene.shell(pod, &script).await?.trim() == "yes")
}

#[tokio::test]
async fn an_egress_policy_leaves_the_upstream_and_takes_the_rest() -> Result<()> {
    play("egress", async |scene| {
        scene.with_mirror("app").await?;
        scene.apply(&settings::with_image(INSIDE)).await?;
        scene.kubectl(&["wait", "--for=condition=Ready", "pod/inside", "--timeout=120s"]).await?;
        until(PATIENCE, "a server inside", async || {
            ensure!(reaches(scene, "default-0", "inside").await?, "it does not answer");
            Ok(())
        })
        .await?;
        scene.apply(EGRESS).await?;
        until(PATIENCE, "the policy", async || {
            ensure!(!reaches(scene, "default-0", "inside").await?, "it answers still");
            Ok(())
        })
        .await?;
        ensure!(reaches(scene, "client", "inside").await?, "other pods are not meant");
        ensure!(reaches(scene, "default-0", "upstream").await?, "the upstream");
        // Looks, fetches, the store, the API server and DNS are left.
        let pushed = scene.push("app").await?;
        ensure!(scene.clone_head(&scene.tarn_url("app")).await? == pushed);
        scene.until_published("app").await?;
        let shown = |status: &tarn_crds::v1alpha1::GitMirrorStatus| {
            status.head.as_ref().is_some_and(|head| head.sha.as_deref() == Some(&pushed))
        };
        scene.until_status("app", "the push, as pods tell the API server", shown).await?;
        // A GitMirror fetches nothing from inside.
        let inside = scene
            .mirror_manifest("app", "")
            .replace("upstream.", "inside.")
            .replace("name: app}", "name: inside}");
        scene.apply(&inside).await?;
        scene
            .until_status("inside", "a look that fails", |status| is_true(status, "FetchFailed"))
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
async fn strangers_see_no_names_on_the_admin_port_and_a_policy_keeps_them_out() -> Result<()> {
    play("admin-port", async |scene| {
        scene.with_cache().await?;
        scene.create_upstream("app").await?;
        scene.apply(&scene.mirror_manifest("app", "access: RBAC\nprewarm: Always")).await?;
        scene.until_held("app", 2).await?;
        // There is no TLS, and callers have tokens.
        scene.until_status("app", "a warning", |status| is_true(status, "InsecureTransport")).await?;
        let warned = "jsonpath={.status.conditions[?(@.type==\"InsecureTransport\")].reason}";
        ensure!(scene.kubectl(&["get", "gitcache", "default", "-o", warned]).await? == "NoTls");
        let admin = "http://default-0.default-pods:8081";
        let ask = |path: &str| format!("timeout 5 wget -qO- '{admin}{path}' 2>&1 || true");
        let repo = format!("{}/app", scene.upstream_host());
        until(PATIENCE, "metrics without names", async || {
            let metrics = scene.shell("client", &ask("/metrics")).await?;
            ensure!(metrics.contains("tarn_mirror_ready{mirror=\"hidden-"), "{metrics}");
            ensure!(!metrics.contains(&repo), "{metrics}");
            Ok(())
        })
        .await?;
        let status = scene.shell("client", &ask("/status")).await?;
        ensure!(status.contains("401") && !status.contains(&repo), "{status}");
        // Who may run programs in the pod may ask.
        let own = scene.shell("default-0", "wget -qO- http://127.0.0.1:8081/status").await?;
        ensure!(own.contains(&repo), "{own}");
        let nobody = r#"{"spec": {"networkPolicy": {"metricsFrom": []}}}"#;
        scene.kubectl(&["patch", "gitcache", "default", "--type=merge", "-p", nobody]).await?;
        until(PATIENCE, "the port to be closed", async || {
            let probe = scene.shell("client", &ask("/healthz")).await?;
            ensure!(!probe.contains("ok"), "{probe}");
            Ok(())
        })
        .await?;
        // Kubelets probe all the same: the pods, which are replaced for it, become ready.
        scene.kubectl(&["rollout", "status", "statefulset/default", "--timeout=180s"]).await?;
        let metrics = scene.shell("default-1", "wget -qO- http://127.0.0.1:8081/metrics").await?;
        ensure!(metrics.contains("tarn_mirror_ready"), "{metrics}");
        Ok(())
    })
    .await
}
