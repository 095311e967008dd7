//! P7: memory, children and queues have limits; a child dies with its client.

mod queue;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Builder, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Repo;
use tarn_testkit::measure::peak_rss;
use tarn_testkit::upstream::{Fault, Operation, Upstream};
use tarn_testkit::wire::{Connection, pkt};

use crate::scene::{Scene, agent};
use crate::serving::{fetch_request, post};

/// More than the buffers between upload-pack and a client that reads nothing can take.
const LARGE: usize = 16_000_000;

async fn large() -> Result<Scene> {
    let scene =
        Scene::prepared(&[], async |_, origin: &Repo| origin.grow("main", 4, LARGE / 4, 1).await.map(drop))
            .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_idle().await?;
    Ok(scene)
}

/// A client that asks for everything and reads nothing.
async fn stalled_client(scene: &Scene, head: &str) -> Result<Connection> {
    let mut client = scene.connect().await?;
    client.send(&post(&scene.path(), "git-upload-pack", &fetch_request(&[head], &["done"]))).await?;
    Ok(client)
}

#[tokio::test]
async fn a_child_dies_with_its_client() -> Result<()> {
    let scene = large().await?;
    let head = scene.origin.rev_parse("main").await?;
    let client = stalled_client(&scene, &head).await?;
    eventually(Duration::from_secs(10), "a child", async || {
        ensure!(!scene.agent.children()?.is_empty(), "none");
        Ok(())
    })
    .await?;
    drop(client);
    eventually(Duration::from_secs(5), "no child", async || {
        let children = scene.agent.children()?;
        ensure!(children.is_empty(), "{children:?}");
        // A killed grandchild is nobody's child for the moment it takes to die.
        let strays = scene.agent.strays();
        ensure!(strays.is_empty(), "{strays:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn children_do_not_grow_with_clients_and_others_are_served_meanwhile() -> Result<()> {
    let scene = large().await?;
    let head = scene.origin.rev_parse("main").await?;
    let mut clients = Vec::new();
    for _ in 0..120 {
        clients.push(stalled_client(&scene, &head).await?);
    }
    eventually(Duration::from_secs(20), "children", async || {
        ensure!(scene.agent.children()?.len() >= 2, "few");
        Ok(())
    })
    .await?;
    // Refs are answered although all places for children may be taken.
    scene.expect_upstream_refs().await?;
    let children = scene.agent.children()?.len();
    assert!(children < 120, "{children} children for 120 stalled clients");
    drop(clients);
    scene.agent.wait_idle().await?;
    scene.clone("clone", &[]).await?.fsck().await
}

#[tokio::test]
async fn slow_readers_of_every_protocol_version_hold_up_no_child() -> Result<()> {
    let scene = large().await?;
    let head = scene.origin.rev_parse("main").await?;
    scene.origin.set_ref("refs/heads/old", "main~3").await?;
    scene.expect_upstream_refs().await?;
    let readers = 8 * std::thread::available_parallelism().map_or(1, usize::from);
    let mut clients = Vec::new();
    for number in 0..readers {
        let old = |version| {
            let mut body = pkt(&format!("want {head} side-band-64k ofs-delta agent=reader/{number}\n"));
            body.extend([b"0000".to_vec(), pkt("done\n")].concat());
            (version, body)
        };
        let filter = format!("filter blob:limit={}", 1_000_000_000 + number);
        let (version, body) = match number % 4 {
            0 => old("version=0"),
            1 => old("version=1"),
            2 => ("version=2", fetch_request(&[&head], &["deepen-not refs/heads/old", &filter, "done"])),
            _ => ("version=2", fetch_request(&[&head], &[&filter, "done"])),
        };
        let head = format!(
            "POST {}/git-upload-pack HTTP/1.1\r\nHost: test\r\nGit-Protocol: {version}\r\nContent-Type: \
             application/x-git-upload-pack-request\r\nContent-Length: {}\r\n\r\n",
            scene.path(),
            body.len()
        );
        let mut client = scene.connect().await?;
        client.send(&[head.into_bytes(), body].concat()).await?;
        clients.push(client);
    }
    // Another, with a request of its own, is served while none of them has read anything.
    let clone = scene.clone("clone", &["--depth=3"]).await?;
    ensure!(clone.git(&["rev-list", "--count", "HEAD"]).await?.trim() == "3", "another depth");
    scene.agent.wait_idle().await?;
    for client in &mut clients {
        client.until(b"PACK").await?;
    }
    Ok(())
}

#[tokio::test]
async fn kept_answers_keep_no_descriptors() -> Result<()> {
    let scene = Scene::ready().await?;
    let head = scene.origin.rev_parse("main").await?;
    scene.agent.wait_idle().await?;
    let pid = scene.agent.pid()?;
    let open = || Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count());
    let before = open()?;
    let mut client = scene.connect().await?;
    for number in 0..100 {
        let filter = format!("filter blob:limit={}", 1000 + number);
        let body = fetch_request(&[&head], &[&filter, "done"]);
        client.send(&post(&scene.path(), "git-upload-pack", &body)).await?;
        ensure!(client.answer().await?.status == 200, "{number}");
    }
    let kept: usize = scene.agent.metric("tarn_spool_files{spool=\"packs\",part=\"kept\"}").await?;
    ensure!(kept >= 99, "{kept} are kept");
    eventually(Duration::from_secs(10), "closed files", async || {
        let now = open()?;
        ensure!(now < before + 20, "{now} open files, {before} before");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn memory_does_not_grow_with_the_repository() -> Result<()> {
    let scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 8, 6_000_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let head = scene.origin.rev_parse("main").await?;
    // Four whole packs of 48 MB at once.
    let download = async || {
        let mut client = stalled_client(&scene, &head).await?;
        let answer = client.answer().await?;
        ensure!(answer.status == 200 && answer.body.len() > 48_000_000, "{} bytes", answer.body.len());
        Ok(())
    };
    tokio::try_join!(download(), download(), download(), download())?;
    let peak = peak_rss(scene.agent.pid()?)? >> 10;
    assert!(peak < 120_000, "the agent alone took {peak} kB");
    Ok(())
}

#[tokio::test]
async fn a_compressed_body_that_swells_is_refused_before_it_fills_the_memory() -> Result<()> {
    let scene = Scene::ready().await?;
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![b'0'; 1 << 20];
    for _ in 0..96 {
        std::io::Write::write_all(&mut bomb, &zeros)?;
    }
    let bomb = bomb.finish()?;
    let target = format!("{}/git-upload-pack", scene.path());
    let headers = [
        ("Content-Type", "application/x-git-upload-pack-request"),
        ("Content-Encoding", "gzip"),
        ("Git-Protocol", "version=2"),
    ];
    let send = async || {
        let answer = scene.connect().await?.ask("POST", &target, &headers, &bomb).await?;
        ensure!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
        Ok(())
    };
    tokio::try_join!(send(), send(), send(), send())?;
    let peak = peak_rss(scene.agent.pid()?)? >> 10;
    assert!(peak < 200_000, "the agent took {peak} kB");
    Ok(())
}

#[tokio::test]
async fn idle_connections_do_not_keep_others_out() -> Result<()> {
    let scene = Scene::ready().await?;
    let mut idle = Vec::new();
    for _ in 0..300 {
        let mut connection = scene.connect().await?;
        connection.send(b"GET /git/half").await?;
        idle.push(connection);
    }
    scene.expect_upstream_refs().await?;
    Ok(())
}

#[tokio::test]
async fn running_out_of_file_descriptors_is_survived() -> Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let scene = Scene::ready().await?;
    scene.agent.wait_idle().await?;
    let pid = scene.agent.pid()?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    let process = Pid::from_raw(i32::try_from(pid)?);
    // The hard limit, inherited from here, stays, so that the soft one can be raised again.
    let hard = getrlimit(Resource::Nofile).maximum;
    let scarce = Rlimit { current: Some(open + 10), maximum: hard };
    let before = prlimit(process, Resource::Nofile, scarce)?;
    let mut idle = Vec::new();
    for _ in 0..50 {
        // Taken by the kernel, whether or not the agent can take them.
        idle.push(scene.connect().await?);
    }
    // Nobody can be served now; nothing but patience is asked for.
    let _ = tokio::time::timeout(Duration::from_millis(500), scene.refs()).await;
    drop(idle);
    prlimit(process, Resource::Nofile, before)?;
    eventually(Duration::from_secs(15), "an answer", async || scene.expect_upstream_refs().await).await?;
    scene.clone("clone", &[]).await?.fsck().await
}

#[tokio::test]
async fn many_mirrors_at_once_start_a_bounded_number_of_children() -> Result<()> {
    const MIRRORS: usize = 60;
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let seed = upstream.seed("seed.git").await?;
    let names: Vec<_> = (0..MIRRORS).map(|number| format!("{number}.git")).collect();
    for name in &names {
        // One repository under many names.
        std::os::unix::fs::symlink(seed.path(), dir.path().join(name))?;
    }
    upstream.fault_on(Operation::Fetch, Fault::Hold);
    let yaml: Vec<_> = names
        .iter()
        .map(|name| manifest(&format!("m{}", name.trim_end_matches(".git")), &upstream.url(name), &[]))
        .collect();
    let agent = agent().arg("--prewarm-most-cloned").arg(MIRRORS.to_string());
    let agent = agent.start_with(&[("all.yaml", &yaml.join("---\n"))]).await?;
    eventually(Duration::from_secs(20), "clones under way", async || {
        let fetches = upstream.log().iter().filter(|seen| seen.operation == Operation::Fetch).count();
        ensure!(fetches >= 2, "{fetches}");
        Ok(())
    })
    .await?;
    // As many more as would start; the phase of each is told either way.
    let most = async || {
        let mut most = 0;
        for _ in 0..50 {
            most = most.max(agent.children()?.len());
            agent.status().await?;
        }
        anyhow::Ok(most)
    };
    let most = most().await?;
    assert!(most < MIRRORS, "{most} children for {MIRRORS} clones");
    upstream.mend();
    for name in &names {
        agent.wait_phase(&repo_id(&upstream.url(name)), "Ready").await?;
    }
    agent.wait_idle().await
}

/// Has fetches of three mirrors killed in the middle, each with its helpers, and waits until nothing is left of them.
async fn killed_fetches_leave_nothing(binary: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.fault_on(Operation::Fetch, Fault::Hang);
    let mut yaml = Vec::new();
    for name in ["one", "two", "three"] {
        upstream.seed(&format!("{name}.git")).await?;
        yaml.push(manifest(name, &upstream.url(&format!("{name}.git")), &["timeout: 10s"]));
    }
    let agent = Builder::new(binary).arg("--prewarm-most-cloned").arg("3");
    let agent = agent.start_with(&[("all.yaml", &yaml.join("---\n"))]).await?;
    let seen = || upstream.log().iter().filter(|seen| seen.operation == Operation::Fetch).count();
    eventually(Duration::from_secs(60), "fetches that were killed", async || {
        ensure!(seen() >= 4, "{} fetches", seen());
        Ok(())
    })
    .await?;
    upstream.mend();
    for name in ["one", "two", "three"] {
        agent.wait_phase(&repo_id(&upstream.url(&format!("{name}.git"))), "Ready").await?;
    }
    eventually(Duration::from_secs(20), "no child that has ended", async || {
        let ended: Vec<_> = agent.children()?.into_iter().filter(|child| child.state == 'Z').collect();
        ensure!(ended.is_empty(), "{} have ended and nobody waits for them: {ended:?}", ended.len());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_killed_children_leave_is_waited_for() -> Result<()> {
    killed_fetches_leave_nothing(Path::new(env!("CARGO_BIN_EXE_tarn-agent"))).await
}

#[tokio::test]
async fn what_killed_children_leave_is_waited_for_by_the_first_process_of_a_container() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("agent");
    let agent = Builder::new(env!("CARGO_BIN_EXE_tarn-agent"));
    let binary = agent.binary().display();
    let unshare = "unshare --user --map-root-user --pid --fork --kill-child --mount-proc";
    std::fs::write(&script, format!("#!/bin/sh\nexec {unshare} '{binary}' \"$@\"\n"))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    killed_fetches_leave_nothing(&script).await
}
