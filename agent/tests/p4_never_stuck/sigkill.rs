//! SIGKILL at any point, then a start.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation};

use super::{files, leftovers, mirror_dir};
use crate::scene::Scene;

/// Slow enough to be killed in the middle, and so large that it does not end by itself meanwhile.
const BYTES: usize = 12_000_000;
const RATE: u64 = 500_000;

/// Waits until objects arrive, so that the kill hits git with a half pack in its hands.
async fn wait_for_half_a_pack(scene: &Scene) -> Result<()> {
    eventually(Duration::from_secs(20), "a half pack on disk", async || {
        let half = files(scene.agent.data())?.into_iter().any(|path| {
            let temporary =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tmp_pack"));
            temporary && std::fs::metadata(&path).is_ok_and(|data| data.len() > 100_000)
        });
        ensure!(half, "{:?}", scene.status().await?["phase"]);
        Ok(())
    })
    .await
}

/// Nothing of the killed agent is left, neither processes nor files, and the mirror is whole.
async fn expect_clean_and_ready(scene: &Scene, old: &[u32]) -> Result<()> {
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    let strays = scene.agent.strays();
    ensure!(!strays.iter().any(|stray| old.contains(&stray.pid)), "still running: {strays:?}");
    // What a kill left stays for ever; a lock of the maintenance that runs now does not.
    eventually(Duration::from_secs(10), "no leftovers", async || {
        let left = [leftovers(scene.agent.data())?, files(&scene.agent.data().join("staging"))?].concat();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
    .await?;
    scene.expect_upstream_refs().await?;
    scene.clone("clone", &["--mirror"]).await?.fsck().await?;
    scene.git.run(["-C", &mirror_dir(&scene.agent)?.to_string_lossy(), "fsck", "--full"]).await?;
    Ok(())
}

#[tokio::test]
async fn killed_during_a_clone_it_starts_over_and_leaves_nothing_behind() -> Result<()> {
    let mut scene = Scene::prepared(&[], async |upstream, origin| {
        origin.grow("main", 3, BYTES / 3, 1).await?;
        upstream.fault_on(Operation::Fetch, Fault::Throttle(RATE));
        Ok(())
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Cloning").await?;
    wait_for_half_a_pack(&scene).await?;
    let children: Vec<_> = scene.agent.children()?.iter().map(|child| child.pid).collect();
    assert!(!children.is_empty(), "a clone without a child");
    scene.agent.kill9().await?;
    scene.upstream.mend();
    scene.agent.start_again().await?;
    expect_clean_and_ready(&scene, &children).await
}

#[tokio::test]
async fn killed_during_a_fetch_it_catches_up_and_leaves_nothing_behind() -> Result<()> {
    let mut scene = Scene::ready().await?;
    let before = scene.refs().await?;
    scene.origin.grow("main", 3, BYTES / 3, 1).await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::Throttle(RATE));
    // The answer may wait for the fetch, which this test does not.
    let _ = tokio::time::timeout(Duration::from_millis(500), scene.agent.fetch_now(&scene.repo())).await;
    scene.agent.wait_phase(&scene.repo(), "Fetching").await?;
    wait_for_half_a_pack(&scene).await?;
    let children: Vec<_> = scene.agent.children()?.iter().map(|child| child.pid).collect();
    scene.agent.kill9().await?;
    // The old state is still whole on disk.
    let mirror = mirror_dir(&scene.agent)?;
    let on_disk = scene.git.ls_remote(&tarn_testkit::git::file_url(&mirror)).await?;
    assert_eq!(on_disk, before);
    scene.upstream.mend();
    scene.agent.start_again().await?;
    expect_clean_and_ready(&scene, &children).await
}

#[tokio::test]
async fn killed_again_and_again_at_any_moment_it_still_gets_there() -> Result<()> {
    let mut scene = Scene::prepared(&[], async |upstream, origin| {
        origin.grow("main", 3, BYTES / 12, 1).await?;
        upstream.fault_on(Operation::Fetch, Fault::Throttle(RATE * 8));
        Ok(())
    })
    .await?;
    for round in 0..8_u64 {
        // Moments spread over start, look, clone and fetch: the time itself is what varies.
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        scene.agent.kill9().await?;
        scene.origin.commit("main", &[("round", &round.to_string())]).await?;
        scene.agent.start_again().await?;
    }
    scene.upstream.mend();
    expect_clean_and_ready(&scene, &[]).await
}

#[tokio::test]
async fn killed_while_serving_its_children_are_ended_at_the_next_start() -> Result<()> {
    let mut scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 4, 3_000_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_idle().await?;
    // A client that asks for everything and reads nothing keeps its upload-pack alive.
    let head = scene.origin.rev_parse("main").await?;
    let mut client = scene.connect().await?;
    let body = crate::serving::fetch_request(&[&head], &["done"]);
    client.send(&crate::serving::post(&scene.path(), "git-upload-pack", &body)).await?;
    let serving = eventually(Duration::from_secs(10), "a child", async || {
        let children = scene.agent.children()?;
        ensure!(!children.is_empty(), "none");
        Ok(children)
    })
    .await?;
    scene.agent.kill9().await?;
    scene.agent.start_again().await?;
    let old: Vec<_> = serving.iter().map(|child| child.pid).collect();
    expect_clean_and_ready(&scene, &old).await
}

#[tokio::test]
async fn stale_locks_and_temporary_files_are_removed_at_the_start() -> Result<()> {
    let mut scene = Scene::ready().await?;
    scene.agent.stop().await?;
    let mirror = mirror_dir(&scene.agent)?;
    for name in [
        "packed-refs.lock",
        "HEAD.lock",
        "config.lock",
        "shallow.lock",
        "objects/pack/tmp_pack_1f2e3d",
        "objects/pack/tmp_idx_1f2e3d",
        "objects/info/commit-graph.lock",
        "objects/pack/multi-pack-index.lock",
    ] {
        let path = mirror.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&mirror))?;
        std::fs::write(path, "left by a kill")?;
    }
    let half = scene.agent.data().join("staging/7/objects/pack");
    std::fs::create_dir_all(&half)?;
    std::fs::write(half.join("tmp_pack_abc"), "half")?;
    scene.origin.commit("main", &[("f", "2")]).await?;
    scene.agent.start_again().await?;
    expect_clean_and_ready(&scene, &[]).await
}

#[tokio::test]
async fn a_stop_ends_every_child_and_does_not_wait_for_a_hung_upstream() -> Result<()> {
    let mut scene = Scene::prepared(&[], async |upstream, origin| {
        origin.grow("main", 1, BYTES, 1).await?;
        upstream.fault_on(Operation::Fetch, Fault::Throttle(RATE));
        Ok(())
    })
    .await?;
    wait_for_half_a_pack(&scene).await?;
    let start = std::time::Instant::now();
    assert_eq!(scene.agent.stop().await?, 0);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    eventually(Duration::from_secs(5), "no process left", async || {
        let strays = scene.agent.strays();
        ensure!(strays.is_empty(), "{strays:?}");
        Ok(())
    })
    .await
}
