//! What was pushed since a snapshot, as a bundle.

use anyhow::{Context, Result, ensure};
use tarn_testkit::upstream::{Fault, Operation};

use super::{current, download, expect_clean, published, stage};
use crate::checkpoints::{Kind, Stage};

fn bundle(stage: &Stage, base: &str) -> String {
    format!("/git/{}/snapshot.bundle?base={base}", stage.repo())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_brings_a_snapshot_to_what_was_pushed_a_moment_ago() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    stage.origin.grow("main", 5, 200_000, 3).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let snapshot = download(&stage, &agent).await?;
    let url = snapshot.header("x-cachew-bundle-url").context("a bundle")?.to_owned();
    let base = stage.origin.rev_parse("HEAD").await?;
    ensure!(agent.get(&url).await?.status == 204, "there is nothing new");
    for number in 0..3 {
        stage.origin.commit("main", &[("next.txt", &format!("{number}"))]).await?;
        let clone = expect_clean(&stage, &snapshot.body, &format!("clone-{number}")).await?;
        let answer = agent.get(&url).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        ensure!(answer.header("tarn-freshness") == Some("verified"), "{:?}", answer.headers);
        ensure!(answer.body.len() < 50_000, "{} bytes for a line", answer.body.len());
        let file = stage.dir.path().join(format!("{number}.bundle"));
        std::fs::write(&file, &answer.body)?;
        let file = file.to_str().context("a path")?.to_owned();
        clone.git(&["fetch", &file, "refs/heads/main:refs/remotes/origin/main"]).await?;
        clone.git(&["merge", "--ff-only", "-q", "origin/main"]).await?;
        ensure!(clone.rev_parse("HEAD").await? == stage.origin.rev_parse("HEAD").await?, "behind");
    }
    let sent: usize = agent.metric("tarn_serve_sent_bytes_total").await?;
    ensure!(sent > 3 * 100, "bundles are not counted: {sent} bytes");
    // Who is ahead of, or at, the branch needs nothing.
    let head = stage.origin.rev_parse("HEAD").await?;
    stage.origin.set_ref("refs/heads/ahead", &head).await?;
    stage.origin.set_ref("refs/heads/main", &base).await?;
    ensure!(agent.get(&bundle(&stage, &head)).await?.status == 204, "the branch went back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_force_push_the_bundle_holds_the_new_branch() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let root = stage.origin.rev_parse("HEAD").await?;
    let base = stage.origin.commit("main", &[("gone.txt", "gone")]).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let snapshot = download(&stage, &agent).await?;
    stage.origin.set_ref("refs/heads/main", &root).await?;
    let head = stage.origin.commit("main", &[("instead.txt", "instead")]).await?;
    let answer = agent.get(&bundle(&stage, &base)).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    let clone = expect_clean(&stage, &snapshot.body, "clone").await?;
    let file = stage.dir.path().join("x.bundle");
    std::fs::write(&file, &answer.body)?;
    let file = file.to_str().context("a path")?.to_owned();
    clone.git(&["fetch", &file, "+refs/heads/main:refs/remotes/origin/main"]).await?;
    ensure!(clone.rev_parse("origin/main").await? == head, "another branch");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_no_commit_here_is_refused() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    stage.origin.commit("main", &[("next.txt", "next")]).await?;
    let tree = stage.origin.rev_parse("main^{tree}").await?;
    let blob = stage.origin.rev_parse("main:next.txt").await?;
    for (base, status) in [
        ("0123456789012345678901234567890123456789", 404),
        (tree.as_str(), 404),
        (blob.as_str(), 404),
        ("", 400),
        ("main", 400),
        ("..%2f..%2fetc%2fpasswd", 400),
        ("--output=/tmp/x", 400),
        ("HEAD", 400),
        ("012345678901234567890123456789012345678", 400),
    ] {
        let answer = agent.get(&bundle(&stage, base)).await?;
        ensure!(answer.status == status, "{base}: {} {}", answer.status, answer.text());
    }
    let none = agent.get(&format!("/git/{}/snapshot.bundle", stage.repo())).await?;
    ensure!(none.status == 400, "{}", none.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_holds_the_tip_that_it_was_asked_for_wherever_the_branch_is_by_then() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let base = stage.origin.rev_parse("HEAD").await?;
    let tip = stage.origin.commit("main", &[("next.txt", "next")]).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    // What a fetch would write that finds the branch reset, a moment after it was looked up.
    let id = tarn_crds::repo::RepoId::from_route(&stage.repo())?;
    let refs = agent.data().join("mirrors").join(id.dir()).join("packed-refs");
    std::fs::write(&refs, std::fs::read_to_string(&refs)?.replace(&tip, &base))?;
    let answer = agent.get(&bundle(&stage, &base)).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let file = stage.dir.path().join("x.bundle");
    std::fs::write(&file, &answer.body)?;
    let heads = stage.origin.git(&["bundle", "list-heads", file.to_str().context("a path")?]).await?;
    ensure!(heads.trim() == format!("{tip} refs/heads/main"), "{heads}");
    stage.origin.git(&["bundle", "verify", "--quiet", file.to_str().context("a path")?]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_bundles_are_made_once() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    let agent = stage.ready().await?;
    current(&stage, &agent).await?;
    let base = stage.origin.rev_parse("HEAD").await?;
    stage.origin.grow("main", 20, 50_000, 3).await?;
    agent.fetch_now(&stage.repo()).await?;
    let target = bundle(&stage, &base);
    let answers = futures_util::future::try_join_all((0..8).map(|_| agent.get(&target))).await?;
    ensure!(answers.iter().all(|answer| answer.status == 200), "not all are served");
    ensure!(answers.windows(2).all(|two| two[0].body == two[1].body), "they differ");
    let metrics = agent.metrics().await?;
    ensure!(metrics.contains("tarn_packs_lookups_total{result=\"miss\"} 1"), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_agent_answers_for_the_bundle_once_its_mirror_is_there() -> Result<()> {
    let stage = published(Kind::Directory).await?;
    let base = stage.origin.rev_parse("HEAD").await?;
    stage.origin.commit("main", &[("next.txt", "next")]).await?;
    let agent = stage.agent().await?;
    let answer = agent.get(&bundle(&stage, &base)).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_cannot_be_made_delays_a_bundle_for_a_bounded_time() -> Result<()> {
    let stage = stage(Kind::Directory).await?;
    stage.upstream.fault_on(Operation::Fetch, Fault::Hang);
    let agent = stage.agent().await?;
    let began = std::time::Instant::now();
    let answer = agent.get(&bundle(&stage, &"1".repeat(40))).await?;
    ensure!(answer.status == 503 && answer.header("retry-after").is_some(), "{}", answer.status);
    ensure!(began.elapsed().as_secs() < 30, "it took {:?}", began.elapsed());
    Ok(())
}
