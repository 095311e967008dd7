//! Downloads: once for all, right or not at all, and from the disk while the upstream is down.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use tarn_testkit::agent::{PATIENCE, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation, Upstream, lfs};

use super::{
    ATTRIBUTES, TOKEN, cloned, expect_content, json_of, noise, object, post, scene, transfers, wanted,
};
use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_clone_costs_the_upstream_no_lfs_download() -> Result<()> {
    let content = noise(300_000);
    let scene = scene(&content).await?;
    expect_content(&cloned(&scene, "one").await?, &content).await?;
    ensure!(transfers(&scene) == 1, "{} downloads", transfers(&scene));
    scene.upstream.clear_log();
    expect_content(&cloned(&scene, "two").await?, &content).await?;
    ensure!(transfers(&scene) == 0, "{} downloads", transfers(&scene));
    ensure!(scene.upstream.count("a.git", Operation::LfsBatch) == 0, "the upstream was asked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_at_once_share_one_lfs_download() -> Result<()> {
    let content = noise(2_000_000);
    let scene = scene(&content).await?;
    scene.upstream.fault_on(Operation::LfsObject, Fault::Throttle(4_000_000));
    let clones = (0..6).map(async |number| {
        expect_content(&cloned(&scene, &format!("clone{number}")).await?, &content).await
    });
    try_join_all(clones).await?;
    ensure!(transfers(&scene) == 1, "{} downloads", transfers(&scene));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_the_upstream_spoilt_is_refused_and_not_kept() -> Result<()> {
    let content = noise(300_000);
    let scene = scene(&content).await?;
    // The mirror's own archive must not bring it first.
    let fresh = noise(200_001);
    let oid = lfs::oid(&fresh);
    let mut spoilt = fresh.clone();
    spoilt[200_000] ^= 1;
    for wrong in [spoilt, fresh[..100_000].to_vec(), [fresh.clone(), vec![0]].concat()] {
        scene.upstream.lfs().corrupt("a.git", &oid, &wrong);
        let answer = scene.agent.get(&object(&scene, &fresh)).await;
        ensure!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 502), "it was served");
        let range = [("Range", "bytes=0-9")];
        let part = scene.connect().await?.ask("GET", &object(&scene, &fresh), &range, b"").await?;
        ensure!(part.status == 502, "{} {}", part.status, part.text());
        let kept = format!("{}/info/lfs/objects/{oid}", scene.path());
        ensure!(scene.agent.get(&kept).await?.status == 404, "it was kept");
    }
    scene.upstream.lfs().put("a.git", &fresh);
    let answer = scene.agent.get(&object(&scene, &fresh)).await?;
    ensure!(answer.status == 200 && answer.body == fresh, "{}", answer.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_is_not_taken_for_whole() -> Result<()> {
    let scene = scene(&noise(1000)).await?;
    let fresh = noise(500_000);
    scene.upstream.lfs().put("a.git", &fresh);
    scene.upstream.fault_on(Operation::LfsObject, Fault::CutAfter(200_000));
    ensure!(scene.agent.get(&object(&scene, &fresh)).await.is_err(), "a part was served as the whole");
    scene.upstream.mend();
    ensure!(scene.agent.get(&object(&scene, &fresh)).await?.body == fresh, "another content");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_objects_are_served_while_the_upstream_is_down_and_after_a_restart() -> Result<()> {
    let content = noise(300_000);
    let mut scene = scene(&content).await?;
    let whole = scene.agent.get(&object(&scene, &content)).await?;
    ensure!(whole.header("content-length") == Some("300000") && whole.body == content, "{}", whole.status);
    scene.upstream.down().await;
    expect_content(&cloned(&scene, "down").await?, &content).await?;
    // What is not here is named, beside what is.
    let absent = lfs::oid(b"absent");
    let asked = wanted(&[(&lfs::oid(&content), content.len()), (&absent, 6)]);
    let answer = json_of(&post(&scene, &scene.path(), &[], &asked).await?)?;
    ensure!(answer["objects"][0]["actions"]["download"]["href"].is_string(), "{answer}");
    ensure!(answer["objects"][1]["error"]["code"] == 503, "{answer}");
    let failed = post(&scene, &scene.path(), &[], &wanted(&[(&absent, 6)])).await?;
    ensure!(failed.status == 503 && failed.header("retry-after").is_some(), "{}", failed.status);
    scene.agent.restart().await?;
    expect_content(&cloned(&scene, "restarted").await?, &content).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_an_object_make_the_whole() -> Result<()> {
    let content = noise(100_000);
    let scene = scene(&content).await?;
    let mut parts = Vec::new();
    for range in ["bytes=0-39999", "bytes=40000-"] {
        let target = object(&scene, &content);
        let part = scene.connect().await?.ask("GET", &target, &[("Range", range)], b"").await?;
        ensure!(part.status == 206, "{}", part.status);
        parts.extend(part.body);
    }
    ensure!(parts == content, "another content");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_no_object_from_the_others() -> Result<()> {
    let scene = scene(&noise(1000)).await?;
    let fresh = noise(1_000_000);
    scene.upstream.lfs().put("a.git", &fresh);
    scene.upstream.fault_on(Operation::LfsObject, Fault::Throttle(2_000_000));
    let target = object(&scene, &fresh);
    let hasty = tokio::time::timeout(Duration::from_millis(100), scene.agent.get(&target));
    let (left, stayed) = tokio::join!(hasty, scene.agent.get(&target));
    ensure!(left.is_err() && stayed?.body == fresh, "another content");
    let count = scene.upstream.log();
    let count = count.iter().filter(|seen| seen.operation == Operation::LfsObject).count();
    ensure!(count <= 2, "{count} downloads");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_length_costs_the_upstream_no_second_download() -> Result<()> {
    let content = noise(1000);
    let scene = scene(&content).await?;
    scene.agent.get(&object(&scene, &content)).await?;
    let fresh = noise(300_000);
    scene.upstream.lfs().put("a.git", &fresh);
    scene.upstream.clear_log();
    for size in [1, 299_999, 300_001, 9_000_000, 300_000] {
        let target = format!("{}/info/lfs/objects/{}?size={size}", scene.path(), lfs::oid(&fresh));
        let answer = scene.agent.get(&target).await?;
        ensure!(answer.status == 200 && answer.body == fresh, "{size}: {}", answer.status);
    }
    ensure!(transfers(&scene) == 1, "{} downloads", transfers(&scene));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_lfs_is_named() -> Result<()> {
    let scene = Scene::ready().await?;
    let answer = post(&scene, &scene.path(), &[], &wanted(&[(&lfs::oid(b"x"), 1)])).await?;
    let message = json_of(&answer)?["message"].as_str().context("a message")?.to_owned();
    ensure!(answer.status == 404 && message.contains("has no LFS"), "{} {message}", answer.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_object_that_the_disk_damaged_is_found_and_fetched_again() -> Result<()> {
    let content = noise(300_000);
    let builder = crate::scene::agent().arg("--scrub-interval").arg("1");
    let scene = Scene::of(builder, &[], async |upstream, origin| {
        upstream.lfs().enable(TOKEN);
        let pointer = upstream.lfs().put("a.git", &content);
        origin.commit("main", &[(".gitattributes", ATTRIBUTES), ("big.bin", &pointer)]).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let answer = scene.agent.get(&object(&scene, &content)).await?;
    ensure!(answer.status == 200 && answer.body == content, "{}", answer.status);
    // It gets its name once it is whole, which is after its last byte was given out.
    let file =
        tarn_testkit::eventually::eventually(Duration::from_secs(30), "the object is kept", async || {
            let files = crate::p4_never_stuck::files(&scene.agent.data().join("lfs"))?;
            files.into_iter().find(|path| path.ends_with(lfs::oid(&content))).context("no such file")
        })
        .await?;
    tarn_testkit::damage::flip(&file, 200_000)?;
    tarn_testkit::eventually::eventually(Duration::from_secs(30), "the damage is found", async || {
        let found: u64 = scene.agent.metric(r#"tarn_integrity_damages_total{what="lfs"}"#).await?;
        ensure!(found == 1, "{found}");
        Ok(())
    })
    .await?;
    let answer = scene.agent.get(&object(&scene, &content)).await?;
    ensure!(answer.status == 200 && answer.body == content, "{}", answer.status);
    Ok(())
}

#[tokio::test]
async fn clients_are_told_for_how_long_the_upstream_wants_to_be_left_alone() -> Result<()> {
    let content = noise(1000);
    let scene = scene(&content).await?;
    scene.upstream.fault_on(Operation::LfsBatch, Fault::Limited(77));
    scene.upstream.clear_log();
    let body = wanted(&[(&lfs::oid(&content), content.len())]).to_string();
    for _ in 0..3 {
        let mut connection = scene.connect().await?;
        let target = format!("{}/info/lfs/objects/batch", scene.path());
        let headers =
            [("content-type", "application/vnd.git-lfs+json"), ("accept", "application/vnd.git-lfs+json")];
        let answer = connection.ask("POST", &target, &headers, body.as_bytes()).await?;
        ensure!(answer.status == 429, "{} {}", answer.status, answer.text());
        let seconds: u64 = answer.header("retry-after").unwrap_or_default().parse()?;
        ensure!((60..=77).contains(&seconds), "{seconds}");
    }
    ensure!(scene.upstream.count("a.git", Operation::LfsBatch) == 1, "asked again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_holds_its_downloads_keeps_no_other_host_waiting() -> Result<()> {
    let content = noise(50_000);
    let scene = scene(&content).await?;
    let dir = tempfile::tempdir()?;
    let slow = Upstream::start(dir.path())?;
    slow.seed("a.git").await?;
    slow.lfs().enable(TOKEN);
    scene.agent.write_manifest("slow.yaml", &manifest("slow", &slow.url("a.git"), &[]))?;
    let repo = repo_id(&slow.url("a.git"));
    scene.agent.wait_phase(&repo, "Ready").await?;
    slow.fault_on(Operation::LfsObject, Fault::Hang);
    // More than there are places for downloads.
    let held: Vec<_> = (0_usize..40)
        .map(|number| {
            let wanted = noise(1000 + number);
            slow.lfs().put("a.git", &wanted);
            let target = format!("/git/{repo}/info/lfs/objects/{}?size={}", lfs::oid(&wanted), wanted.len());
            let address = scene.agent.git_address();
            tokio::spawn(async move { tarn_testkit::wire::get(address?, &target).await })
        })
        .collect();
    eventually(PATIENCE, "all that may be held to be held", async || {
        let running: u64 = scene.agent.metric("tarn_queue_running{work=\"object\"}").await?;
        let waiting: u64 = scene.agent.metric("tarn_queue_waiting{work=\"object\"}").await?;
        ensure!(running + waiting == 40 && running == 16, "{running} run, {waiting} wait");
        Ok(())
    })
    .await?;
    ensure!(slow.count("a.git", Operation::LfsObject) <= 16, "more than half of the places");
    let fresh = noise(60_000);
    scene.upstream.lfs().put("a.git", &fresh);
    let answer = scene.agent.get(&object(&scene, &fresh)).await?;
    ensure!(answer.status == 200 && answer.body == fresh, "{}", answer.status);
    held.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}
