//! What the token of an agent's pod opens, should somebody take it over: the pod's own entry, and no more.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tarn_crds::v1alpha1::GitMirror;
use tarn_e2e::play::play;
use tarn_e2e::scene::Scene;

#[tokio::test]
async fn an_agents_token_writes_its_own_entry_and_reads_no_foreign_secret() -> Result<()> {
    play("rights", async |scene| {
        scene.with_mirror("app").await?;
        scene.kubectl(&["create", "secret", "generic", "foreign", "--from-literal=password=x"]).await?;
        let agent = as_pod(scene, "default-0").await?;
        let mirrors: Api<GitMirror> = Api::namespaced(agent.clone(), &scene.namespace);
        let write = async |status: Value| {
            let manifest = json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitMirror", "status": status});
            // Not to be confused with what the pods themselves write meanwhile.
            let params = PatchParams::apply("e2e").force();
            mirrors.patch_status("app", &params, &Patch::Apply(&manifest)).await
        };
        let entry = |pod: &str| json!({"replicas": [{"pod": pod, "message": "written by a test"}]});
        write(entry("default-0")).await.context("its own entry")?;
        let condition = json!({"conditions": [{"type": "Stalled", "status": "True", "reason": "Lie", "message": "a lie",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        for (what, status) in
            [("another's entry", entry("default-1")), ("an invented pod's", entry("x")), ("a condition", condition)]
        {
            let refused = write(status).await.err().with_context(|| format!("{what} could be written"))?;
            ensure!(refused.to_string().contains("ValidatingAdmissionPolicy"), "{what}: {refused}");
        }
        let secrets: Api<Secret> = Api::namespaced(agent, &scene.namespace);
        for name in ["foreign", "s3"] {
            let refused = secrets.get(name).await.err().with_context(|| format!("{name} could be read"))?;
            ensure!(matches!(&refused, kube::Error::Api(answer) if answer.code == 403), "{name}: {refused}");
        }
        Ok(())
    })
    .await
}

/// A client with the token of a pod, as whoever takes the pod over has it.
async fn as_pod(scene: &Scene, pod: &str) -> Result<Client> {
    let token = "cat /var/run/secrets/kubernetes.io/serviceaccount/token";
    let token = scene.shell(pod, token).await?;
    let mut config = Config::infer().await?;
    config.auth_info = serde_json::from_value(json!({"token": token}))?;
    Client::try_from(config).context("a client with the pod's token")
}
