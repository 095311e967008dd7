//! Trouble on the way.

use std::time::Duration;

use anyhow::Result;
use http::Method;
use tarn_testkit::proxy::{HttpFault, Select, When};

use crate::scene::Scene;

fn snapshots() -> Select {
    Select { method: Some(Method::GET), path: Some("snapshot.tar.zst".into()) }
}

#[tokio::test]
async fn a_range_that_breaks_off_goes_on_where_it_stopped() -> Result<()> {
    let scene = Scene::large().await?;
    for (number, cut) in [0, 1, 100_000, 8_388_607].into_iter().enumerate() {
        scene.proxy.add(snapshots(), When::Nth(2), HttpFault::Truncate(cut));
        scene.proxy.add(snapshots(), When::Nth(3), HttpFault::LoseAnswer);
        let (_, clone) = scene.clone(&number.to_string(), &[]).await?;
        clone.fsck().await?;
        scene.proxy.mend();
    }
    let (_, total) = scene.proxy.bytes(&Method::GET);
    let archive = scene.proxy.seen().iter().filter(|seen| seen.range.is_some()).count();
    assert!(archive > 4 && total > 0);
    Ok(())
}

#[tokio::test]
async fn the_first_range_may_break_off_too() -> Result<()> {
    let scene = Scene::large().await?;
    scene.proxy.add(snapshots(), When::Nth(1), HttpFault::Truncate(1_000_000));
    let (_, clone) = scene.clone("a", &[]).await?;
    clone.fsck().await?;
    let ranges: Vec<_> = scene.proxy.seen().into_iter().filter_map(|seen| seen.range).collect();
    let rest = |range: &String| range.ends_with("-8388607") && !range.starts_with("bytes=0-");
    assert!(ranges.iter().any(rest), "{ranges:?}");
    Ok(())
}

#[tokio::test]
async fn a_range_that_comes_late_keeps_its_place() -> Result<()> {
    let scene = Scene::large().await?;
    scene.proxy.add(snapshots(), When::Nth(2), HttpFault::Delay(Duration::from_secs(2)));
    let (_, clone) = scene.clone("a", &[]).await?;
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn errors_that_pass_are_waited_out() -> Result<()> {
    let scene = Scene::large().await?;
    scene.proxy.add(snapshots(), When::First(2), HttpFault::Answer(503, "SlowDown"));
    scene.proxy.add(snapshots(), When::Nth(4), HttpFault::Answer(500, "InternalError"));
    let (_, clone) = scene.clone("a", &[]).await?;
    clone.fsck().await
}

#[tokio::test]
async fn a_snapshot_that_is_replaced_meanwhile_is_downloaded_anew() -> Result<()> {
    let scene = Scene::large().await?;
    scene.proxy.add(snapshots(), When::Nth(3), HttpFault::Answer(412, "PreconditionFailed"));
    let (_, clone) = scene.clone("a", &[]).await?;
    clone.fsck().await?;
    assert_eq!(scene.left()?, ["a"]);
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_is_replaced_again_and_again_is_given_up() -> Result<()> {
    let scene = Scene::large().await?;
    scene.proxy.add(snapshots(), When::Ratio(0.99, 1), HttpFault::Answer(412, "PreconditionFailed"));
    let (report, clone) = scene.clone_somehow("a", &[]).await?;
    assert_eq!(report["how"], "git-through-tarn");
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn a_flipped_bit_never_reaches_the_clone_unnoticed() -> Result<()> {
    let scene = Scene::small().await?;
    // In zstd's frame header, and in its first block, which holds the tar's first header.
    for (number, at) in [1, 12].into_iter().enumerate() {
        scene.proxy.add(snapshots(), When::Always, HttpFault::FlipBit(at));
        let (report, clone) = scene.clone_somehow(&number.to_string(), &[]).await?;
        assert_eq!(report["how"], "git-through-tarn", "{report}");
        scene.expect_clone(&clone).await?;
        scene.proxy.mend();
    }
    Ok(())
}

#[tokio::test]
async fn a_bundle_that_cannot_be_had_is_fetched_instead() -> Result<()> {
    let scene = Scene::small().await?;
    scene.origin.commit("main", &[("README", "newer\n")]).await?;
    let bundles = || Select { method: Some(Method::GET), path: Some("snapshot.bundle".into()) };
    for (name, fault) in [
        ("unknown", HttpFault::Answer(404, "UnknownBase")),
        ("warming", HttpFault::Answer(503, "Warming")),
        ("cut", HttpFault::Truncate(10)),
        ("damaged", HttpFault::FlipBit(5)),
    ] {
        scene.proxy.add(bundles(), When::Always, fault);
        let (report, clone) = scene.clone(name, &[]).await?;
        assert_eq!(report["commit"], scene.tip("main").await?);
        scene.expect_clone(&clone).await?;
        scene.proxy.mend();
    }
    Ok(())
}
