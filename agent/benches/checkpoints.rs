//! Restoring from a real S3 server beside a raw download of the same bytes and beside a clone, and what a thousand
//! publishings of one commit each upload. `make bench-checkpoints`; docs/benchmarks.md says what it means.

#![expect(clippy::print_stdout, reason = "its results are what it is for")]
#![expect(clippy::indexing_slicing, reason = "a missing field of a JSON answer is a null")]

#[expect(dead_code, reason = "other benchmarks need more of it")]
mod shared;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use shared::{RANGE, SHAPED, builder, client, median, mib, shown};
use tarn_agent::checkpoint::lineage::Lineage;
use tarn_agent::checkpoint::manifest::{FileKind, Keys, Manifest};
use tarn_agent::checkpoint::publish::Publish;
use tarn_agent::generations::keyring::Keyring;
use tarn_agent::git::{Git as AgentGit, ObjectFormat, RefSet};
use tarn_agent::store::{S3Options, SharedStore, StoreLocation, list_all, open};
use tarn_agent::upstream::provenance::Provenance;
use tarn_crds::repo::RepoId;
use tarn_testkit::agent::{Agent, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::generate::kept;
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::measure::peak_rss;
use tarn_testkit::proxy::{FaultProxy, Trouble};
use tarn_testkit::s3::S3Server;

const ROUNDS: usize = 5;
/// As many ranges at once as a restore has.
const AT_ONCE: usize = 16;
const PUBLISHES: usize = 1000;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime.block_on(async {
        // cargo bench adds a flag of its own.
        let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
        let all = [Part::Restore, Part::Publish, Part::Fetch, Part::Large];
        for part in all.into_iter().filter(|part| only.as_deref().is_none_or(|only| only == part.name())) {
            match part {
                Part::Restore => restores().await?,
                Part::Publish => publishes().await?,
                Part::Fetch => fetches_beside_a_publish().await?,
                Part::Large => large().await?,
            }
        }
        Ok(())
    })
}

/// What can be measured alone: `make bench-checkpoints BENCH=large`.
#[derive(Clone, Copy)]
enum Part {
    Restore,
    Publish,
    Fetch,
    Large,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Publish => "publish",
            Self::Fetch => "fetch",
            Self::Large => "large",
        }
    }
}

/// A repository that one agent has published, and a line to the store that can be narrowed.
struct Published {
    url: String,
    id: RepoId,
    s3: S3Server,
    line: FaultProxy,
}

impl Published {
    async fn new(repository: &Path) -> Result<Self> {
        let url = tarn_testkit::git::file_url(repository);
        let (s3, id) = (S3Server::start().await?, RepoId::from_route(&repo_id(&url))?);
        let line = FaultProxy::start(s3.address())?;
        let mut publisher = builder(&s3.endpoint()).mirror(&url).start().await?;
        wait_checkpoint(&publisher, &id.to_string()).await?;
        publisher.stop().await?;
        Ok(Self { url, id, s3, line })
    }
}

/// Waits for the first checkpoint, for as long as gigabytes take.
async fn wait_checkpoint(agent: &Agent, repo: &str) -> Result<()> {
    eventually(Duration::from_secs(600), "a checkpoint", async || {
        let status = agent.mirror_status(repo).await?;
        ensure!(status["checkpoint"]["generation"] == 1, "{status}");
        Ok(())
    })
    .await
}

/// A mirror of more than 2 GB, over the shaped line.
async fn large() -> Result<()> {
    // Not in /tmp, which is memory on some machines.
    let work = tempfile::tempdir_in("/var/tmp")?;
    let origin = Repo::init_bare(work.path().join("large.git")).await?;
    for key in ["core.compression", "pack.compression"] {
        origin.git(&["config", key, "0"]).await?;
    }
    for part in 0..21 {
        // 2,100 files of 1 MiB of noise in all.
        origin.grow("main", 100, 1 << 20, part).await?;
    }
    let published = Published::new(origin.path()).await?;
    drop(origin);
    side_by_side(&published, &[("2 Gbit/s", Some(SHAPED))], 3).await
}

async fn restores() -> Result<()> {
    let (repository, git) = (kept()?, Git::new()?.with_config("safe.directory", "*"));
    let work = tempfile::tempdir()?;
    let published = Published::new(&repository).await?;
    side_by_side(&published, &[("unshaped", None), ("2 Gbit/s", Some(SHAPED))], ROUNDS).await?;
    let Published { url, id, s3, line } = &published;
    let mut clones = Vec::new();
    for round in 0..ROUNDS.min(3) {
        let place = work.path().join(format!("clone-{round}"));
        let began = Instant::now();
        git.run(["clone", "--quiet", "--mirror", "--no-local", url, &place.display().to_string()]).await?;
        clones.push(began.elapsed());
        std::fs::remove_dir_all(&place)?;
    }
    line.set(Trouble::default());
    let mut restored = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let agent = builder(&s3.endpoint()).mirror(url).start().await?;
        wait_ready(&agent, &id.to_string()).await?;
        restored.push(began.elapsed());
    }
    println!(
        "git clone --mirror of the local upstream {}  cold start to Ready {}",
        shown(&clones),
        shown(&restored)
    );
    println!("ratio {:.1} (bound 15)", median(&clones) / median(&restored));
    Ok(())
}

/// Raw downloads and restores in turns, over each of these lines.
async fn side_by_side(published: &Published, lines: &[(&str, Option<u64>)], rounds: usize) -> Result<()> {
    let Published { url, id, s3, line } = published;
    let work = tempfile::tempdir_in("/var/tmp")?;
    let endpoint = format!("http://{}", line.address());
    let objects = s3.bucket_dir().join("bench/v1").join(id.store_prefix()).join("packs");
    let bytes: u64 = std::fs::read_dir(&objects)?.map(|e| Ok(e?.metadata()?.len())).sum::<Result<u64>>()?;
    println!("restore of {:.0} MiB, {rounds} rounds, median (range); seconds", mib(bytes));
    let store = client(&endpoint)?;
    for (name, bandwidth) in lines {
        line.set(Trouble { bandwidth: *bandwidth, ..Trouble::default() });
        let (mut raw, mut restored, mut rss) = (Vec::new(), Vec::new(), 0);
        for round in 0..rounds {
            let place = work.path().join(format!("raw-{name}-{round}").replace(['/', ' '], "-"));
            raw.push(download(&store, &Keys::of(id).packs(), &place).await?);
            std::fs::remove_dir_all(&place)?;
            let began = Instant::now();
            let agent = builder(&endpoint).mirror(url).start().await?;
            wait_ready(&agent, &id.to_string()).await?;
            restored.push(began.elapsed());
            let status = agent.mirror_status(&id.to_string()).await?;
            ensure!(status["checkpoint"]["generation"] == 1, "it was not restored: {status}");
            rss = rss.max(peak_rss(agent.pid()?)? >> 20);
        }
        let (raw_s, restored_s) = (median(&raw), median(&restored));
        println!("{name}: raw {}  start to Ready {}", shown(&raw), shown(&restored));
        println!(
            "{name}: restore - raw = {:.2} s, restore / raw = {:.2}, agent's peak RSS {rss} MiB",
            restored_s - raw_s,
            restored_s / raw_s
        );
        println!("{name}: within 1.05 raw + 0.5 s: {}", restored_s <= 1.05 * raw_s + 0.5);
    }
    Ok(())
}

/// By how much a running publication of a base delays a fetch: one commit each, pushed and waited for, in turns
/// without and with one.
async fn fetches_beside_a_publish() -> Result<()> {
    const FETCHES: usize = 9;
    let (work, git) = (tempfile::tempdir_in("/var/tmp")?, Git::new()?.with_config("safe.directory", "*"));
    let path = work.path().join("origin.git");
    git.run(["clone", "--quiet", "--mirror", &kept()?.display().to_string(), &path.display().to_string()])
        .await?;
    let origin = Repo::open(git, path);
    let published = Published::new(origin.path()).await?;
    let Published { url, id, s3, .. } = &published;
    let (repo, store) = (id.to_string(), s3.bucket_dir().join("bench/v1").join(id.store_prefix()));
    let agent = builder(&s3.endpoint()).mirror(url).start().await?;
    wait_ready(&agent, &repo).await?;
    // The first move after a start is published at once, the next ones after an interval or on demand.
    fetch(&origin, &agent, &repo).await?;
    agent.wait_status(&repo, "an increment", |status| status["checkpoint"]["generation"] == 2).await?;
    let (mut alone, mut beside, mut round) = (Vec::new(), Vec::new(), 0);
    while beside.len() < FETCHES {
        round += 1;
        ensure!(round < 5 * FETCHES, "publications end too soon to measure beside them");
        let quiet = fetch(&origin, &agent, &repo).await?;
        // Without any checkpoint the next one has a base.
        std::fs::remove_dir_all(&store)?;
        agent.post(&format!("/mirrors/{repo}/checkpoint")).await?;
        eventually(Duration::from_secs(30), "the publication", async || {
            let staging = std::fs::read_dir(agent.data().join("staging"))?.flatten();
            let begun = staging.into_iter().any(|entry| entry.path().join("view.git").exists());
            ensure!(begun, "it has not begun");
            Ok(())
        })
        .await?;
        let busy = fetch(&origin, &agent, &repo).await?;
        // Else the publication was over before the fetch was.
        if !store.join("checkpoints").exists() {
            alone.push(quiet);
            beside.push(busy);
        }
        eventually(Duration::from_secs(60), "the end of the publication", async || {
            Ok::<_, anyhow::Error>(std::fs::metadata(store.join("checkpoints"))?)
        })
        .await?;
    }
    println!("a push until it is served, {FETCHES} rounds, median (range); seconds");
    println!("alone {}  beside the publication of a base {}", shown(&alone), shown(&beside));
    println!("delay {:.0} ms (bound 100)", 1000.0 * (median(&beside) - median(&alone)));
    Ok(())
}

/// The time from the order to fetch until what was pushed before is served.
async fn fetch(origin: &Repo, agent: &Agent, repo: &str) -> Result<Duration> {
    let head = origin.rev_parse("HEAD").await?;
    let tip = origin.git(&["commit-tree", "-p", &head, "-m", "next", &format!("{head}^{{tree}}")]).await?;
    let tip = tip.trim();
    origin.git(&["update-ref", "HEAD", tip]).await?;
    let began = Instant::now();
    agent.fetch_now(repo).await?;
    while agent.mirror_status(repo).await?["head"]["sha"] != tip {
        ensure!(began.elapsed() < Duration::from_secs(60), "it never came");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(began.elapsed())
}

/// Downloads all objects below `prefix` in parallel ranges into preallocated files, and syncs them.
async fn download(store: &SharedStore, prefix: &str, place: &Path) -> Result<Duration> {
    std::fs::create_dir(place)?;
    let began = Instant::now();
    let mut ranges = Vec::new();
    let mut files = Vec::new();
    for meta in list_all(&**store, prefix).await? {
        let file = Arc::new(File::create_new(place.join(meta.key.replace('/', "-")))?);
        file.set_len(meta.bytes)?;
        for start in (0..meta.bytes).step_by(usize::try_from(RANGE)?) {
            ranges.push((meta.key.clone(), start..(start + RANGE).min(meta.bytes), file.clone()));
        }
        files.push(file);
    }
    stream::iter(ranges.into_iter().map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(AT_ONCE, |(key, range, file)| async move {
            let mut at = range.start;
            let mut body = store.get_range(&key, range, None).await?;
            while let Some(chunk) = body.next().await {
                let chunk = chunk?;
                file.write_all_at(&chunk, at)?;
                at += chunk.len() as u64;
            }
            Ok(())
        })
        .await?;
    for file in files {
        tokio::task::spawn_blocking(move || file.sync_data()).await??;
    }
    Ok(began.elapsed())
}

async fn wait_ready(agent: &Agent, repo: &str) -> Result<()> {
    loop {
        let status: Value = agent.mirror_status(repo).await?;
        if status["phase"] == "Ready" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A thousand commits, each published: what is uploaded, beside each commit's own pack.
async fn publishes() -> Result<()> {
    let work = tempfile::tempdir()?;
    let path = |name: &str| work.path().join(name);
    let origin = Repo::seeded(path("origin.git")).await?;
    let mut script = Vec::new();
    for file in 0..2000 {
        script.extend_from_slice(format!("file-{file}\n").repeat(40).as_bytes());
    }
    origin.commit("main", &[("large.txt", &String::from_utf8(script)?)]).await?;
    let tip = origin.rev_parse("main").await?;
    for branch in 0..1000 {
        // 1,000 refs, as a checkpoint's list of refs is to be measured with.
        origin.set_ref(&format!("refs/tags/t{branch}"), &tip).await?;
    }
    std::fs::create_dir(path("home"))?;
    let git = AgentGit::detect(&path("home"), work.path().as_os_str(), true).await?;
    let store = open(&StoreLocation::Directory(path("store")), S3Options::default())?;
    let keys = Keys::of(&RepoId::from_route("example.org/bench")?);
    let lineage = Lineage { store, keys, keyring: Keyring::default() };
    let (mut uploaded, mut indices, mut alone, mut meta, mut most) = (0_u64, 0_u64, 0_u64, 0_u64, 0);
    for round in 0..=PUBLISHES {
        let before = origin.rev_parse("main").await?;
        if round > 0 {
            let (name, text) =
                (format!("dir-{}/file-{}.txt", round % 37, round % 211), format!("{round}\n").repeat(20));
            origin.commit("main", &[(&name, &text)]).await?;
        }
        origin.git(&["pack-refs", "--all"]).await?;
        origin.git(&["repack", "-d", "-q"]).await?;
        let refs = Arc::new(RefSet::read(&origin.git_dir(), ObjectFormat::Sha1)?);
        let publish = Publish {
            git: git.clone(),
            lineage: lineage.clone(),
            agent: "bench".into(),
            dir: origin.git_dir(),
            work: path("work"),
            refs,
            packs: Arc::default(),
            lease: None,
            provenance: Provenance::Public,
        };
        let made = publish.run().await?;
        std::fs::remove_dir_all(path("work"))?;
        if round == 0 {
            continue;
        }
        let manifest: Manifest = lineage.manifest(made.generation).await?;
        let overhead = manifest.refs.bytes + manifest.to_json().len() as u64;
        (meta, most) = (meta.max(overhead), most.max(manifest.packs.len()));
        let newest = manifest.packs.last().context("a pack")?;
        for file in &newest.files {
            *if file.kind == FileKind::Pack { &mut uploaded } else { &mut indices } += file.bytes;
        }
        let own = origin
            .git_with(
                &["pack-objects", "--revs", "-q", path("own").to_str().unwrap_or_default()],
                format!("main\n^{before}\n").as_bytes(),
            )
            .await?;
        alone += std::fs::metadata(path(&format!("own-{}.pack", own.trim())))?.len();
    }
    println!(
        "{PUBLISHES} publishes of one commit: packs uploaded / the commits' own packs = {:.2} (bound 2); with indices {:.2}",
        uploaded as f64 / alone as f64,
        (uploaded + indices) as f64 / alone as f64
    );
    println!(
        "refs and manifest: at most {:.1} KiB a publish (bound 64); packs in a manifest: at most {most} (bound 12)",
        meta as f64 / 1024.0
    );
    Ok(())
}
