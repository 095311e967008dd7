//! Equal requests share one answer, and nobody can tell.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::wire::{Answer, Connection};

use super::{fetch_request, post};
use crate::scene::Scene;

/// Large enough that a client which reads nothing holds its answer up.
const LARGE: usize = 2_000_000;

/// Six commits, each with a file of this size.
async fn scene(bytes: usize) -> Result<Scene> {
    let scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 6, bytes, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    Ok(scene)
}

async fn send(scene: &Scene, wants: &[&str], arguments: &[&str]) -> Result<Connection> {
    let mut client = scene.connect().await?;
    client.send(&post(&scene.path(), "git-upload-pack", &fetch_request(wants, arguments))).await?;
    Ok(client)
}

/// The pack within a sideband answer.
fn pack(answer: &Answer) -> Result<Vec<u8>> {
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let lines = tarn_testkit::wire::pkts(&answer.body)?;
    let data = lines.into_iter().flatten().filter(|line| line.first() == Some(&1));
    let pack: Vec<u8> = data.flat_map(|line| line.into_iter().skip(1)).collect();
    ensure!(pack.starts_with(b"PACK"), "no pack in {} bytes", answer.body.len());
    Ok(pack)
}

#[tokio::test]
async fn equal_requests_at_once_are_answered_by_few_children() -> Result<()> {
    let scene = scene(LARGE).await?;
    let head = scene.origin.rev_parse("main").await?;
    let mut clients = Vec::new();
    for _ in 0..16 {
        // Without ofs-delta: such an answer is git's to make.
        clients.push(send(&scene, &[&head], &["done"]).await?);
    }
    let mut most = 0;
    let (answers, ()) =
        tokio::join!(futures_util::future::try_join_all(clients.iter_mut().map(Connection::answer)), async {
            while most == 0 {
                most = most.max(scene.agent.children().map_or(0, |children| children.len()));
                tokio::task::yield_now().await;
            }
        });
    let packs = answers?.iter().map(pack).collect::<Result<Vec<_>>>()?;
    let first = packs.first().context("no answers")?;
    assert!(packs.iter().all(|pack| pack == first), "one answer for all");
    // upload-pack and its pack-objects.
    assert!(most <= 4, "{most} children for 16 equal requests");
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_takes_nothing_from_those_that_follow_it() -> Result<()> {
    let scene = scene(LARGE).await?;
    let head = scene.origin.rev_parse("main").await?;
    let leader = send(&scene, &[&head], &["done"]).await?;
    eventually(Duration::from_secs(10), "a child", async || {
        ensure!(!scene.agent.children()?.is_empty(), "none");
        Ok(())
    })
    .await?;
    let mut follower = send(&scene, &[&head], &["done"]).await?;
    drop(leader);
    pack(&follower.answer().await?)?;
    // And the next, when all have gone.
    let mut next = send(&scene, &[&head], &["done"]).await?;
    pack(&next.answer().await?)?;
    scene.agent.wait_idle().await
}

#[tokio::test]
async fn a_client_that_reads_slowly_holds_up_nobody() -> Result<()> {
    let scene = scene(LARGE).await?;
    let head = scene.origin.rev_parse("main").await?;
    let mut slow = send(&scene, &[&head], &["done"]).await?;
    for _ in 0..3 {
        let mut quick = send(&scene, &[&head], &["done"]).await?;
        pack(&tokio::time::timeout(Duration::from_secs(20), quick.answer()).await??)?;
    }
    // The slow one gets the same in the end.
    pack(&slow.answer().await?)?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_waits_for_objects_hears_signs_of_life_before_the_pack() -> Result<()> {
    let scene = scene(1000).await?;
    scene.upstream.fault_on(tarn_testkit::upstream::Operation::Fetch, tarn_testkit::upstream::Fault::Hold);
    let pushed = scene.origin.commit("main", &[("new.txt", "new")]).await?;
    // The clone shows the agent the new tip.
    let clone = scene.clone("clone", &[]);
    let wire = async {
        eventually(Duration::from_secs(20), "the new tip", async || {
            ensure!(scene.refs().await?.values().any(|oid| *oid == pushed), "an old one");
            Ok(())
        })
        .await?;
        let mut client = send(&scene, &[&pushed], &["ofs-delta", "done"]).await?;
        client.until(b"000dpackfile\n").await?;
        client.until(b"0005\x010005\x01").await?;
        scene.upstream.mend();
        client.until(b"PACK").await?;
        client.until(b"\r\n0\r\n\r\n").await?;
        anyhow::Ok(())
    };
    let (clone, ()) = tokio::try_join!(clone, wire)?;
    ensure!(clone.rev_parse("HEAD").await? == pushed, "an old commit");
    clone.fsck().await
}

#[tokio::test]
async fn requests_that_differ_get_different_answers() -> Result<()> {
    let scene = scene(200_000).await?;
    let head = scene.origin.rev_parse("main").await?;
    let parent = scene.origin.rev_parse("main~1").await?;
    let ask = async |wants: &[&str], arguments: &[&str]| {
        let answer = send(&scene, wants, arguments).await?.answer().await?;
        anyhow::Ok(pack(&answer)?.len())
    };
    for _ in 0..2 {
        let full = ask(&[&head], &["done"]).await?;
        let older = ask(&[&parent], &["done"]).await?;
        let shallow = ask(&[&head], &["deepen 1", "done"]).await?;
        let blobless = ask(&[&head], &["filter blob:none", "done"]).await?;
        let step = ask(&[&head], &[&format!("have {parent}"), "done"]).await?;
        ensure!(full > 1_200_000 && older > 1_000_000 && older < full, "{full}, {older}");
        ensure!(shallow > 1_200_000 && shallow < full, "every file, fewer commits: {shallow} of {full}");
        ensure!(blobless < 10_000, "{blobless}");
        ensure!((200_000..300_000).contains(&step), "{step}");
    }
    Ok(())
}

#[tokio::test]
async fn a_new_tag_of_an_old_commit_comes_with_the_next_clone() -> Result<()> {
    let scene = scene(200_000).await?;
    scene.clone("before", &["--single-branch"]).await?;
    let tag = scene.origin.annotated_tag("v1", "main").await?;
    let clone = scene.clone("with", &["--single-branch"]).await?;
    assert_eq!(clone.rev_parse("v1").await?, tag);
    let moved = scene.origin.annotated_tag("v1", "main~1").await?;
    let clone = scene.clone("moved", &["--single-branch"]).await?;
    assert_eq!(clone.rev_parse("v1").await?, moved);
    scene.origin.delete_ref("refs/tags/v1").await?;
    let clone = scene.clone("without", &["--single-branch"]).await?;
    assert_eq!(clone.git(&["tag", "--list"]).await?, "");
    clone.fsck().await
}

#[tokio::test]
async fn answers_are_the_same_after_a_restart() -> Result<()> {
    let mut scene = scene(200_000).await?;
    for round in 0..3 {
        let clone = scene.clone(&format!("full-{round}"), &["--mirror"]).await?;
        clone.fsck().await?;
        let clone = scene.clone(&format!("shallow-{round}"), &["--depth=1"]).await?;
        clone.fsck().await?;
        scene.agent.kill9().await?;
        scene.agent.start_again().await?;
    }
    Ok(())
}
