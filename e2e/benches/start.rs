//! How soon a pod with an empty disk serves a large mirror, on the cluster that KUBECONFIG names: `make bench-cluster`.
//!
//! One cache pod, a bucket with the checkpoint and the snapshot of the benchmarks' repository, no other pod, and an
//! upstream that is gone. Each round deletes the pod, and times from the moment at which the scheduler has placed the
//! next one: until the load client has the last byte of a full pack, and until `git tarn clone` has ended in a pod.
//! A figure that exceeds its bound is an error.

#![expect(clippy::print_stdout, reason = "a table for whoever runs it")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use tarn_e2e::scene::{Scene, until};
use tarn_e2e::{release, settings, tool};
use tarn_testkit::load::{Ask, Check, Client, Depth};
use tokio::time::sleep;

const ROUNDS: usize = 5;

/// Between two looks at the API server, and between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// For a first clone and a snapshot of some hundred megabytes.
const PATIENCE: Duration = Duration::from_secs(600);

/// A pack that has not come by then will not come.
const LATE: Duration = Duration::from_secs(60);

const POD: &str = "default-0";
const MIRROR: &str = "repo";

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test --all-targets` runs benchmarks too, without a cluster.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    release::ensure_installed().await?;
    let scene = Scene::create("start").await?;
    let done = measure(&scene).await;
    if !settings::keep() {
        scene.remove().await?;
    }
    done
}

async fn measure(scene: &Scene) -> Result<()> {
    prepare(scene).await?;
    let (mut packs, mut clones) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        packs.push(full_pack(scene).await?);
        clones.push(git_tarn_clone(scene).await?);
    }
    println!("\nfrom the moment a pod is scheduled, {ROUNDS} rounds, seconds, median (range)");
    let late =
        [line("a full pack, last byte", &mut packs, 5.0), line("git tarn clone has ended", &mut clones, 8.0)];
    ensure!(!late.contains(&true), "a bound is exceeded");
    Ok(())
}

/// Prints a figure; whether it exceeds its bound.
fn line(what: &str, times: &mut [Duration], bound: f64) -> bool {
    times.sort_unstable();
    let seconds = |at: usize| times.get(at).map_or(f64::NAN, Duration::as_secs_f64);
    let median = seconds(times.len() / 2);
    println!("{what}: {median:.2} ({:.2}-{:.2}); bound {bound}", seconds(0), seconds(times.len() - 1));
    median > bound
}

/// One cache pod, the mirror's checkpoint and snapshot in the bucket, and then no upstream.
async fn prepare(scene: &Scene) -> Result<()> {
    scene.with_cache().await?;
    scene.kubectl(&["scale", "gitcache/default", "--replicas=1"]).await?;
    let repository = tarn_testkit::generate::kept()?;
    let upload = format!(
        "tar --create --directory '{}' . | kubectl --namespace {} exec --stdin deployment/upstream -- \
         sh -c 'mkdir /data/{MIRROR}.git && tar -x -f - -C /data/{MIRROR}.git'",
        repository.display(),
        scene.namespace,
    );
    tool::output("sh", ["-c", &upload], "").await?;
    scene.apply(&scene.mirror_manifest(MIRROR, "")).await?;
    let status = until(PATIENCE, "checkpoint and snapshot", async || {
        let manifests =
            "cd /data/buckets/tarn && find . -name '*.json' | grep -E '/(checkpoints|snapshots)/'";
        let found = scene.shell("deployment/s3", manifests).await.unwrap_or_default();
        ensure!(found.contains("/checkpoints/") && found.contains("/snapshots/"), "there are {found:?}");
        let status = scene.status(MIRROR).await?;
        ensure!(status.ready_replicas == Some(1) && status.desired_replicas == Some(1), "two pods still");
        ensure!(status.snapshot.is_some(), "status does not know the snapshot yet");
        Ok(status)
    })
    .await?;
    println!(
        "mirror of {}, snapshot of {} MiB",
        status.size.context("no size")?,
        status.snapshot.map_or(0, |snapshot| snapshot.bytes) >> 20
    );
    scene.scale("upstream", 0).await
}

/// Deletes the pod, and waits until the next one is scheduled.
async fn scheduled(scene: &Scene) -> Result<Instant> {
    let before = scene.uid(POD).await?;
    scene.kubectl(&["delete", "pod", POD, "--wait=false"]).await?;
    loop {
        if let Some(pod) = scene.api::<Pod>().get_opt(POD).await?
            && pod.metadata.uid.as_deref() != Some(before.as_str())
            && pod.spec.is_some_and(|spec| spec.node_name.is_some())
        {
            return Ok(Instant::now());
        }
        sleep(PAUSE).await;
    }
}

async fn full_pack(scene: &Scene) -> Result<Duration> {
    let service: Service = scene.get("default").await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("a Service without an address")?;
    let url = format!("http://{address}:80/git/{}/{MIRROR}", scene.upstream_host());
    let ask = Ask { depth: Depth::Full, check: Check::Trailer, wants: None };
    let began = scheduled(scene).await?;
    loop {
        // Nobody listens at first, then the answer is that there is no mirror yet.
        match Client::new(&url)?.clone(&ask).await {
            Ok(_) => break,
            Err(error) if began.elapsed() > LATE => return Err(error.context("no pack in time")),
            Err(_) => sleep(PAUSE).await,
        }
    }
    let took = began.elapsed();
    let restored = scene.metric(POD, r#"tarn_checkpoint_restores_total{outcome="ok"}"#).await?;
    ensure!(restored >= 1.0, "the pack is not from a restored mirror");
    Ok(took)
}

async fn git_tarn_clone(scene: &Scene) -> Result<Duration> {
    let (server, url) = (format!("http://default.{}", scene.namespace), scene.upstream_url(MIRROR));
    let began = scheduled(scene).await?;
    let script = format!(
        "rm -rf /tmp/c; until git tarn clone --server {server} {url} /tmp/c 2>/tmp/error; do sleep 0.05; done"
    );
    scene.shell("client", &script).await?;
    let took = began.elapsed();
    let status = scene.shell("client", "git -C /tmp/c status --porcelain && rm -rf /tmp/c").await?;
    ensure!(status.is_empty(), "the clone is not clean: {status}");
    Ok(took)
}
