//! A namespace of a test's own: with an upstream, an S3 server, a client pod, and what the test puts there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::api::DeleteParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tarn_crds::v1alpha1::{GitMirror, GitMirrorStatus, Replica};
use tarn_testkit::agent::sample_of;
use tarn_testkit::eventually::eventually_every;

use crate::{settings, tool};

/// Between two questions to the API server: a person would not see the difference.
const PAUSE: Duration = Duration::from_millis(250);
/// For whatever a cluster takes its time for: pods to start or end, failed looks to be tried again.
pub const PATIENCE: Duration = Duration::from_secs(180);

const SERVICES: &str = include_str!("../fixtures/services.yaml");
const CACHE: &str = include_str!("../fixtures/cache.yaml");

/// Waits until the probe says yes.
pub async fn until<T>(timeout: Duration, what: &str, probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    eventually_every(PAUSE, timeout, what, probe).await
}

/// A namespace, and the way to what is in it.
#[derive(Clone)]
pub struct Scene {
    /// Its name.
    pub namespace: String,
    /// The cluster.
    pub client: Client,
}

impl Scene {
    /// Makes the namespace. It admits only pods of the restricted Pod Security Standard.
    pub async fn create(name: &str) -> Result<Self> {
        // The first one wins; there is but one provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_default().await.context("reach the cluster that KUBECONFIG names")?;
        let namespace = format!("e2e-{name}");
        let scene = Self { namespace, client };
        tool::kubectl(&["delete", "namespace", &scene.namespace, "--ignore-not-found"]).await?;
        tool::kubectl(&["create", "namespace", &scene.namespace]).await?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        tool::kubectl(&["label", "namespace", &scene.namespace, label]).await?;
        Ok(scene)
    }

    /// Removes the namespace and all that is in it, in the background.
    pub async fn remove(&self) -> Result<()> {
        tool::kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await.map(drop)
    }

    /// Starts upstream, S3 server and client.
    pub async fn with_services(&self) -> Result<()> {
        self.apply(&settings::with_image(SERVICES)).await?;
        self.kubectl(&["rollout", "status", "deployment/upstream", "--timeout=120s"]).await?;
        self.kubectl(&["rollout", "status", "deployment/s3", "--timeout=120s"]).await?;
        self.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=120s"]).await.map(drop)
    }

    /// The same, and a GitCache of two agents, whose pods are ready.
    pub async fn with_cache(&self) -> Result<()> {
        self.with_cache_of(CACHE).await
    }

    /// The same, of a GitCache `default` of this manifest.
    pub async fn with_cache_of(&self, manifest: &str) -> Result<()> {
        self.apply(manifest).await?;
        self.with_services().await?;
        self.kubectl(&["wait", "--for=condition=Ready", "gitcache/default", "--timeout=180s"]).await.map(drop)
    }

    /// The same, with a repository of that name at the upstream and a GitMirror of it, which all agents hold.
    pub async fn with_mirror(&self, name: &str) -> Result<()> {
        self.with_cache().await?;
        self.hold(name, &self.mirror_manifest(name, "")).await
    }

    /// The same, but of its own accord no agent looks at the upstream again within the hour.
    pub async fn with_quiet_mirror(&self, name: &str) -> Result<()> {
        self.with_cache().await?;
        self.hold(name, &self.mirror_manifest(name, "").replace("interval: 10s", "interval: 1h")).await
    }

    /// Has two agents hold a new repository at the upstream, by this manifest of its GitMirror.
    pub async fn hold(&self, name: &str, manifest: &str) -> Result<()> {
        self.create_upstream(name).await?;
        self.apply(manifest).await?;
        self.until_held(name, 2).await
    }

    /// Objects of one kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Runs kubectl in the namespace; it must succeed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(args, "").await
    }

    /// The same, with text on its standard input.
    pub async fn kubectl_with(&self, args: &[&str], stdin: &str) -> Result<String> {
        let place = ["--namespace", self.namespace.as_str()];
        tool::output("kubectl", place.iter().chain(args), stdin).await
    }

    /// Applies manifests as a user does.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], manifests).await.map(drop)
    }

    /// Runs a shell script in a pod, or in one of `deployment/NAME`; it must succeed.
    pub async fn shell(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-ec", script]).await
    }

    /// A GitMirror of the upstream's repository of that name, which looks and publishes often; `more` is added to its
    /// spec, a line for each field.
    pub fn mirror_manifest(&self, name: &str, more: &str) -> String {
        let url = self.upstream_url(name);
        let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
        format!(
            "apiVersion: tarn.dev/v1alpha1\nkind: GitMirror\nmetadata: {{name: {name}}}\nspec:\n  url: {url}\n  \
             interval: 10s\n  checkpoint: {{interval: 5s}}\n{more}"
        )
    }

    /// The URL of a repository at the upstream.
    pub fn upstream_url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.upstream_host())
    }

    /// The upstream's host, as every pod of the cluster may call it.
    pub fn upstream_host(&self) -> String {
        format!("upstream.{}", self.namespace)
    }

    /// The URL by which pods of all namespaces clone through Tarn.
    pub fn tarn_url(&self, name: &str) -> String {
        format!("http://default.{}/git/{}/{name}", self.namespace, self.upstream_host())
    }

    /// Creates a repository with one commit at the upstream.
    pub async fn create_upstream(&self, name: &str) -> Result<()> {
        let create = format!("git init --quiet --bare --initial-branch=main /data/{name}.git");
        self.shell("deployment/upstream", &create).await?;
        // The pod is ready before every packet finds its way to it.
        until(PATIENCE, "a push", async || self.push(name).await.map(drop)).await
    }

    /// Pushes a commit to the upstream, and returns its id.
    pub async fn push(&self, name: &str) -> Result<String> {
        self.push_to(&self.upstream_url(name), name).await
    }

    /// The same with another URL, such as one with credentials.
    pub async fn push_to(&self, url: &str, name: &str) -> Result<String> {
        // Half a megabyte that does not compress: there is something to send, and to restore.
        let script = format!(
            "[ -d /tmp/work/{name} ] || git clone --quiet {url} /tmp/work/{name} 2>/dev/null
             cd /tmp/work/{name}
             head -c 500000 /dev/urandom > data
             git add data
             git commit --quiet --message \"$(date)\"
             git push --quiet {url} HEAD:main
             git rev-parse HEAD"
        );
        self.shell("client", &script).await
    }

    /// Clones from the client's pod, and returns the commit of HEAD.
    pub async fn clone_head(&self, url: &str) -> Result<String> {
        let script = format!(
            "rm -rf /tmp/c; git clone --quiet {url} /tmp/c; git -C /tmp/c fsck; git -C /tmp/c rev-parse HEAD"
        );
        let said = self.shell("client", &script).await?;
        Ok(said.lines().last().unwrap_or_default().to_owned())
    }

    /// An object as it is now.
    pub async fn get<K>(&self, name: &str) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        self.api::<K>().get(name).await.with_context(|| format!("get {name}"))
    }

    /// The status of a GitMirror as it is now.
    pub async fn status(&self, mirror: &str) -> Result<GitMirrorStatus> {
        let mirror: GitMirror = self.get(mirror).await?;
        mirror.status.context("no status yet")
    }

    /// Waits until a GitMirror's status is as the probe wants it.
    pub async fn until_status(
        &self,
        mirror: &str,
        what: &str,
        probe: impl Fn(&GitMirrorStatus) -> bool,
    ) -> Result<GitMirrorStatus> {
        until(PATIENCE, what, async || {
            let status = self.status(mirror).await?;
            ensure!(probe(&status), "{}", serde_json::to_string(&status)?);
            Ok(status)
        })
        .await
    }

    /// Waits until the mirror is ready, and so many pods hold it.
    pub async fn until_held(&self, mirror: &str, pods: i32) -> Result<()> {
        let held = |status: &GitMirrorStatus| {
            let ready = condition(status, "Ready").is_some_and(|ready| ready.status == "True");
            ready && status.ready_replicas == Some(pods) && status.desired_replicas == Some(pods)
        };
        self.until_status(mirror, "every pod to hold the mirror", held).await.map(drop)
    }

    /// Waits until a checkpoint of the mirror is in the store.
    pub async fn until_published(&self, mirror: &str) -> Result<()> {
        self.until_status(mirror, "a checkpoint", |status| status.checkpoint.is_some()).await.map(drop)
    }

    /// The unique id of a pod, once there is one that is not on its way out.
    pub async fn uid(&self, pod: &str) -> Result<String> {
        let pod: Pod = self.get(pod).await?;
        ensure!(pod.metadata.deletion_timestamp.is_none(), "it is on its way out");
        pod.metadata.uid.context("a pod without uid")
    }

    /// Deletes a pod as `kubectl delete` does, and waits until another one of its name is there.
    pub async fn replace(&self, pod: &str) -> Result<String> {
        let before = self.uid(pod).await?;
        self.api::<Pod>().delete(pod, &DeleteParams::default()).await?;
        until(PATIENCE, "the next pod", async || {
            let now = self.uid(pod).await?;
            ensure!(now != before, "it is the old one still");
            Ok(now)
        })
        .await
    }

    /// Waits until this very pod says that it holds the mirror.
    pub async fn until_pod_holds(&self, mirror: &str, uid: &str) -> Result<()> {
        let holds = |entry: &Replica| {
            entry.pod_uid.as_deref() == Some(uid)
                && entry.phase.is_some_and(tarn_crds::v1alpha1::Phase::is_ready)
        };
        let probe = |status: &GitMirrorStatus| status.replicas.iter().any(holds);
        self.until_status(mirror, "the new pod to hold the mirror", probe).await.map(drop)
    }

    /// A metric of an agent, such as `tarn_checkpoint_restores_total{outcome="ok"}`; zero where it is missing.
    pub async fn metric(&self, pod: &str, metric: &str) -> Result<f64> {
        sample_of(&self.shell(pod, "wget -qO- http://127.0.0.1:8081/metrics").await?, metric)
    }

    /// Runs this many pods of a Deployment from now on, and waits until it is so.
    pub async fn scale(&self, deployment: &str, replicas: i32) -> Result<()> {
        let (name, number) = (format!("deployment/{deployment}"), format!("--replicas={replicas}"));
        self.kubectl(&["scale", &name, &number]).await?;
        self.kubectl(&["rollout", "status", &name, "--timeout=120s"]).await?;
        let selector = format!("app={deployment}");
        until(PATIENCE, "the pods to be gone or there", async || {
            let pods = self.kubectl(&["get", "pods", "--selector", &selector, "--output=name"]).await?;
            let wanted = usize::try_from(replicas).unwrap_or_default();
            ensure!(pods.lines().count() == wanted, "there are: {pods}");
            Ok(())
        })
        .await
    }
}

/// A condition of a GitMirror.
pub fn condition<'a>(status: &'a GitMirrorStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition is there and true.
pub fn is_true(status: &GitMirrorStatus, kind: &str) -> bool {
    condition(status, kind).is_some_and(|condition| condition.status == "True")
}

/// The commit that a status names as HEAD's.
pub fn head(status: &GitMirrorStatus) -> Option<&str> {
    status.head.as_ref()?.sha.as_deref()
}
