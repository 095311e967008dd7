//! The operator with thousands of GitMirrors and simulated agents, on the API server that KUBECONFIG names:
//!
//! ```text
//! KUBECONFIG=… cargo bench -p tarn-operator --bench scale -- --mirrors 5000
//! ```
//!
//! Applies the CRDs, makes a namespace with a GitCache and its GitMirrors, and starts the operator of this build. The
//! GitCache's pods are never scheduled; this program writes what their agents would, each with a field manager and a Lease
//! of its own. What is measured is printed as a table, each line with what it must not exceed; a line that does is an error.

#![expect(clippy::print_stdout, reason = "a table for whoever runs it")]

use std::{
    collections::BTreeMap,
    error::Error,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use tarn_crds::v1alpha1::{GitCache, GitMirror};
use tokio::time::{sleep, timeout};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const CACHE: &str = "default";

/// Writes in flight at once.
const AT_ONCE: usize = 16;

/// How long the world must be silent before silence is measured, and how long it is.
const QUIET: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Flags {
    /// How many GitMirrors
    #[arg(long, default_value_t = 5000)]
    mirrors: usize,
    /// How many simulated agents
    #[arg(long, default_value_t = 3)]
    pods: usize,
    /// How many changes are timed
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Made for this, and deleted afterwards
    #[arg(long, default_value = "tarn-scale")]
    namespace: String,
    /// Leave the namespace there
    #[arg(long)]
    keep: bool,
    /// Cargo's own
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a TLS provider is there")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::try_default().await?;
        let world = Arc::new(World { client, flags });
        let done = measure(&world).await;
        if !world.flags.keep {
            world.remove().await?;
        }
        done
    })
}

async fn measure(world: &Arc<World>) -> Result<()> {
    let Flags { mirrors, pods, .. } = world.flags;
    world.prepare().await?;
    println!("{mirrors} GitMirrors, {pods} simulated agents");
    let mut table = Table::default();

    let mut operator = Operator::start(&world.flags.namespace)?;
    let uids = world.pods().await?;
    let _leases = tokio::spawn(world.clone().renew(uids.keys().cloned().collect()));
    let began = Instant::now();
    let all = (0..mirrors).flat_map(|at| uids.iter().map(move |(pod, uid)| (at, pod.clone(), uid.clone())));
    let writes = stream::iter(all).map(|(at, pod, uid)| async move { world.tell(at, &pod, &uid, 1).await });
    writes.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    world.wait_summed(Duration::from_secs(300)).await?;
    table.info("first entries of all, summed up", format!("{:.0} s", began.elapsed().as_secs_f64()));

    world.wait_silent().await?;
    let (before, versions) = (world.requests().await?, world.versions().await?);
    sleep(QUIET).await;
    let sent = world.requests().await? - before;
    let moved = world.versions().await?.iter().filter(|(name, at)| versions.get(*name) != Some(at)).count();
    table.line("operator writes in 30 s of silence", sent, 0.0, "");
    table.line("objects that changed meanwhile", moved as f64, 0.0, "");
    table.line("operator RSS", operator.memory("VmRSS")?, 150.0, "MB");
    table.info("its peak", format!("{:.0} MB", operator.memory("VmHWM")?));

    operator.stop()?;
    let (before, began) = (world.requests().await?, Instant::now());
    let mut operator = Operator::start(&world.flags.namespace)?;
    operator.wait_reconciled(mirrors).await?;
    table.line("full resync after a restart", began.elapsed().as_secs_f64(), 60.0, "s");
    world.wait_silent().await?;
    table.line("writes of that", world.requests().await? - before, 0.0, "");
    table.line("operator RSS after it", operator.memory("VmRSS")?, 150.0, "MB");
    table.info("its peak", format!("{:.0} MB", operator.memory("VmHWM")?));

    let (mut latencies, mut most) = (Vec::new(), 0);
    for change in 0..world.flags.changes {
        // A mirror that nobody has touched for ten seconds at least.
        let at = (change * 37) % mirrors;
        let (latency, writes) = world.change(at, &uids, change + 2).await?;
        latencies.push(latency.as_secs_f64());
        most = most.max(writes);
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies.get(((latencies.len() - 1) as f64 * share) as usize).copied();
    table.info("a changed entry in the summed status, median", format!("{:.2} s", at(0.5).unwrap_or(0.0)));
    table.line("the slowest", at(1.0).unwrap_or(0.0), 2.0, "s");
    table.line("API writes for one change of a mirror", most as f64, (pods + 1) as f64, "");
    operator.stop()?;
    table.print()
}

struct World {
    client: Client,
    flags: Flags,
}

fn apply(manager: &str) -> PatchParams {
    PatchParams::apply(manager).force()
}

fn mirror_name(at: usize) -> String {
    format!("m{at:05}")
}

impl World {
    fn mirrors(&self) -> Api<GitMirror> {
        Api::namespaced(self.client.clone(), &self.flags.namespace)
    }

    async fn prepare(&self) -> Result<()> {
        let crds: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for file in ["gitcaches.yaml", "gitmirrors.yaml"] {
            let path = format!("{}/../charts/tarn/files/crds/{file}", env!("CARGO_MANIFEST_DIR"));
            let crd: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path)?)?;
            let name = crd.pointer("/metadata/name").and_then(Value::as_str).ok_or("a CRD without a name")?;
            crds.patch(name, &apply("tarn-scale"), &Patch::Apply(&crd)).await?;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let name = &self.flags.namespace;
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        namespaces.patch(name, &apply("tarn-scale"), &Patch::Apply(&body)).await?;
        let caches: Api<GitCache> = Api::namespaced(self.client.clone(), name);
        // Pods that no node takes: who they are is all that matters.
        let template = json!({"spec": {"nodeSelector": {"tarn.dev/scale": "nowhere"}}});
        let cache = json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitCache", "metadata": {"name": CACHE},
            "spec": {"replicas": self.flags.pods, "podTemplate": template}});
        // The API server may need a moment until it serves a new kind.
        let mut made = caches.patch(CACHE, &apply("tarn-scale"), &Patch::Apply(&cache)).await;
        for _ in 0..30 {
            if made.is_ok() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
            made = caches.patch(CACHE, &apply("tarn-scale"), &Patch::Apply(&cache)).await;
        }
        made?;
        let mirrors = self.mirrors();
        let made = stream::iter(0..self.flags.mirrors).map(|at| {
            let mirrors = mirrors.clone();
            async move {
                let name = mirror_name(at);
                let body = json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitMirror",
                    "metadata": {"name": name},
                    "spec": {"url": format!("https://git.example.com/organisation/repository-{at}.git")}});
                mirrors.patch(&name, &apply("tarn-scale"), &Patch::Apply(&body)).await.map(drop)
            }
        });
        Ok(made.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await.map(drop)?)
    }

    /// The pods' names and UIDs: those that the StatefulSet makes, or, where nobody makes them, made here.
    async fn pods(&self) -> Result<BTreeMap<String, String>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.flags.namespace);
        let labelled = ListParams::default().labels(&format!("{}={CACHE}", tarn_crds::CACHE_LABEL));
        for wait in 0..30 {
            let found = pods.list(&labelled).await?.items;
            if found.len() == self.flags.pods {
                return Ok(found.into_iter().filter_map(|pod| Some((pod.name_any(), pod.uid()?))).collect());
            }
            if wait == 20 {
                for at in 0..self.flags.pods {
                    let body = json!({"apiVersion": "v1", "kind": "Pod",
                        "metadata": {"name": format!("{CACHE}-{at}"), "labels": {tarn_crds::CACHE_LABEL: CACHE}},
                        "spec": {"nodeSelector": {"tarn.dev/scale": "nowhere"},
                            "containers": [{"name": "agent", "image": "none.invalid/none"}]}});
                    let name = format!("{CACHE}-{at}");
                    pods.patch(&name, &apply("tarn-scale"), &Patch::Apply(&body)).await?;
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
        Err("the GitCache's pods do not come".into())
    }

    /// Keeps the pods' Leases, as agents do.
    async fn renew(self: Arc<Self>, pods: Vec<String>) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.flags.namespace);
        loop {
            for pod in &pods {
                let name = tarn_operator::context::lease_name(pod);
                let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::now());
                let body = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": name, "labels": {tarn_crds::CACHE_LABEL: CACHE}},
                    "spec": {"holderIdentity": pod, "leaseDurationSeconds": 40, "renewTime": now}});
                let manager = format!("tarn-agent.{pod}");
                if let Err(error) = leases.patch(&name, &apply(&manager), &Patch::Apply(&body)).await {
                    println!("a Lease is not renewed: {error}");
                }
            }
            sleep(Duration::from_secs(10)).await;
        }
    }

    /// Writes a pod's entry, as an agent does whose mirror has fetched a state.
    async fn tell(&self, at: usize, pod: &str, uid: &str, state: usize) -> Result<()> {
        let now = Timestamp::from_second(Timestamp::now().as_second())?.to_string();
        let entry = json!({"pod": pod, "podUID": uid, "phase": "Ready", "head": sha(at, state),
            "headRef": "refs/heads/main", "refCount": 1016, "refsDigest": sha(at, state + 1),
            "lastCheckTime": now, "lastFetchTime": now, "checkpointTime": now, "snapshotTime": now,
            "checkpoint": {"generation": state, "time": now, "bytes": 318_000_000},
            "snapshot": {"commit": sha(at, state), "time": now, "bytes": 380_000_000, "digest": sha(at, 0)},
            "bytes": 318_000_000});
        let body = json!({"apiVersion": "tarn.dev/v1alpha1", "kind": "GitMirror",
            "metadata": {"name": mirror_name(at)}, "status": {"replicas": [entry]}});
        let parameters = apply(&format!("tarn-agent.{pod}"));
        Ok(self
            .mirrors()
            .patch_status(&mirror_name(at), &parameters, &Patch::Apply(&body))
            .await
            .map(drop)?)
    }

    async fn wait_summed(&self, patience: Duration) -> Result<()> {
        let wanted = format!("{0}/{0}", self.flags.pods);
        let began = Instant::now();
        loop {
            let all = self.mirrors().list(&ListParams::default()).await?;
            let pods = |mirror: &GitMirror| mirror.status.as_ref().and_then(|status| status.pods.clone());
            let left = all.iter().filter(|mirror| pods(mirror).as_deref() != Some(wanted.as_str())).count();
            if left == 0 {
                return Ok(());
            }
            if began.elapsed() > patience {
                return Err(format!("{left} GitMirrors are not summed up").into());
            }
            sleep(Duration::from_secs(2)).await;
        }
    }

    /// The resourceVersion of every mirror and of the cache.
    async fn versions(&self) -> Result<BTreeMap<String, Option<String>>> {
        let mirrors = self.mirrors().list_metadata(&ListParams::default()).await?;
        let caches: Api<GitCache> = Api::namespaced(self.client.clone(), &self.flags.namespace);
        let caches = caches.list_metadata(&ListParams::default()).await?;
        let mirrors = mirrors.items.into_iter().map(|it| (it.name_any(), it.resource_version()));
        let caches =
            caches.items.into_iter().map(|it| (format!("cache {}", it.name_any()), it.resource_version()));
        Ok(mirrors.chain(caches).collect())
    }

    /// Waits until nothing has been written for a while.
    async fn wait_silent(&self) -> Result<()> {
        for _ in 0..30 {
            let before = self.requests().await?;
            sleep(Duration::from_secs(5)).await;
            if self.requests().await? == before {
                return Ok(());
            }
        }
        Err("there is no end of writing".into())
    }

    /// Writing requests for GitCaches and GitMirrors, StatefulSets, Services and what else the operator makes, as the API
    /// server has counted them: those that change nothing, too. Nobody else writes such objects here.
    async fn requests(&self) -> Result<f64> {
        let page = self.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        let kinds = [
            "gitmirrors",
            "gitcaches",
            "statefulsets",
            "services",
            "networkpolicies",
            "poddisruptionbudgets",
            "serviceaccounts",
            "roles",
            "rolebindings",
        ];
        let counts = page.lines().filter(|line| {
            let has = |key: &str, values: &[&str]| {
                values.iter().any(|value| line.contains(&format!("{key}=\"{value}\"")))
            };
            line.starts_with("apiserver_request_total{")
                && has("verb", &["APPLY", "PATCH", "POST", "PUT", "DELETE"])
                && has("resource", &kinds)
                && (has("resource", &kinds[..2]) || has("scope", &["resource"]))
        });
        Ok(counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    /// All pods tell of a new state of a mirror; answers how long it took from the first word to the summed status, and
    /// how often the object was written until it was quiet.
    async fn change(
        &self,
        at: usize,
        uids: &BTreeMap<String, String>,
        state: usize,
    ) -> Result<(Duration, usize)> {
        let name = mirror_name(at);
        let field = format!("metadata.name={name}");
        // The version of the list: the object's own may be older than what the API server remembers.
        let listed = self.mirrors().list_metadata(&ListParams::default().fields(&field)).await?;
        let from = listed.metadata.resource_version.ok_or("no version")?;
        let parameters = WatchParams::default().fields(&field);
        let mirrors = self.mirrors();
        let mut events = std::pin::pin!(mirrors.watch(&parameters, &from).await?);
        let began = Instant::now();
        for (pod, uid) in uids {
            self.tell(at, pod, uid, state).await?;
        }
        let (mut seen, mut writes) = (None, 0);
        // Whatever follows from it has come five seconds later.
        while let Ok(Some(event)) = timeout(Duration::from_secs(5), events.next()).await {
            let mirror = match event? {
                WatchEvent::Modified(mirror) => mirror,
                WatchEvent::Error(status) => return Err(format!("the watch ends: {}", status.message).into()),
                _ => continue,
            };
            writes += 1;
            let head = mirror.status.and_then(|status| status.head?.sha);
            if seen.is_none() && head.as_deref() == Some(sha(at, state).as_str()) {
                seen = Some(began.elapsed());
            }
        }
        Ok((seen.ok_or("the change was never summed up")?, writes))
    }

    async fn remove(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.flags.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn sha(at: usize, state: usize) -> String {
    format!("{at:08x}{state:032x}")
}

/// The operator of this build.
struct Operator {
    child: Child,
    listen: String,
}

impl Operator {
    fn start(namespace: &str) -> Result<Self> {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let listen = free.to_string();
        #[expect(clippy::disallowed_methods, reason = "what is measured is the operator as a process")]
        let mut command = Command::new(env!("CARGO_BIN_EXE_tarn-operator"));
        let log = std::fs::File::create(std::env::temp_dir().join("tarn-operator-scale.log"))?;
        let child = command
            .args(["--agent-image", "none.invalid/none", "--namespace", namespace, "--listen", &listen])
            .env("POD_NAME", "scale")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { child, listen })
    }

    /// A line of its status, in MB.
    fn memory(&self, name: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()).ok_or("no such line")?;
        Ok(kibibytes.parse::<f64>()? * 1024.0 / 1e6)
    }

    /// Waits until as many GitMirrors have been reconciled since the start.
    async fn wait_reconciled(&mut self, mirrors: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            let done: f64 = self
                .page()
                .await
                .unwrap_or_default()
                .lines()
                .filter_map(|line| {
                    let of = line.starts_with("tarn_operator_reconciliations_total{")
                        && line.contains("GitMirror");
                    of.then(|| line.rsplit_once(' ')?.1.parse::<f64>().ok()).flatten()
                })
                .sum();
            if done >= mirrors as f64 {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(300) {
                return Err(format!("only {done} reconciliations").into());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn page(&self) -> Result<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.listen).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut page = String::new();
        stream.take(1 << 20).read_to_string(&mut page).await?;
        Ok(page)
    }

    fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have been stopped already.
        let _ = self.stop();
    }
}

/// What was measured, and what it may be at most.
#[derive(Default)]
struct Table {
    rows: Vec<[String; 3]>,
    exceeded: Vec<String>,
}

impl Table {
    fn info(&mut self, what: &str, value: String) {
        self.rows.push([what.to_owned(), value, String::new()]);
    }

    fn line(&mut self, what: &str, value: f64, most: f64, unit: &str) {
        let text = |number: f64| match unit {
            "s" => format!("{number:.2} s"),
            _ => format!("{number:.0} {unit}").trim_end().to_owned(),
        };
        self.rows.push([what.to_owned(), text(value), text(most)]);
        if value > most {
            self.exceeded.push(what.to_owned());
        }
    }

    fn print(self) -> Result<()> {
        println!("\n| | measured | at most |\n| --- | --- | --- |");
        for [what, value, most] in &self.rows {
            println!("| {what} | {value} | {most} |");
        }
        if self.exceeded.is_empty() { Ok(()) } else { Err(self.exceeded.join("; ").into()) }
    }
}
