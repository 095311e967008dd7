//! Looks are shared, but only by requests that arrived before the look began.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation};

use crate::scene::Scene;

/// Looks the upstream has been asked for.
fn looks(scene: &Scene) -> usize {
    scene.upstream.count("a.git", Operation::LsRefs)
}

async fn wait_for_looks(scene: &Scene, wanted: usize) -> Result<()> {
    eventually(Duration::from_secs(10), "looks", async || {
        let seen = looks(scene);
        ensure!(seen >= wanted, "{seen} of {wanted}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_look_that_began_before_a_request_does_not_answer_it() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.upstream.clear_log();
    scene.upstream.fault_on(Operation::LsRefs, Fault::HoldAnswer);
    let early = scene.refs();
    let (early, late) = tokio::join!(early, async {
        // The first look has its answer in hand, which does not know what is pushed now.
        eventually(Duration::from_secs(10), "the first look's answer", async || {
            let log = scene.upstream.log();
            let held = log.iter().any(|seen| seen.operation == Operation::LsRefs && seen.status.is_some());
            held.then_some(()).ok_or("not there")
        })
        .await?;
        let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
        let (late, ()) = tokio::join!(scene.refs(), async {
            // The late request has arrived when its answer waits for a second look, or at the latest after a
            // second, if it (rightly) waits for the first look to end before it begins one.
            let second = async {
                while looks(&scene) < 2 {
                    tokio::task::yield_now().await;
                }
            };
            // Whether it came in time is judged by the answer.
            let _ = tokio::time::timeout(Duration::from_secs(1), second).await;
            scene.upstream.mend();
        });
        ensure!(late?["HEAD"] == pushed, "the late request got the early look's answer");
        Ok(())
    });
    late?;
    early.map(drop)
}

#[tokio::test]
async fn forty_requests_at_once_share_a_few_looks() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.upstream.clear_log();
    scene.upstream.fault_on(Operation::LsRefs, Fault::Hold);
    let target = format!("{}/git-upload-pack", scene.path());
    let body = [b"0014command=ls-refs\n".as_slice(), b"0001", b"0000"].concat();
    let ask = async || {
        let headers =
            [("Content-Type", "application/x-git-upload-pack-request"), ("Git-Protocol", "version=2")];
        scene.connect().await?.ask("POST", &target, &headers, &body).await
    };
    let requests = futures_util::future::join_all((0..40).map(|_| ask()));
    let (answers, released) = tokio::join!(requests, async {
        wait_for_looks(&scene, 1).await?;
        scene.upstream.mend();
        anyhow::Ok(())
    });
    released?;
    for answer in answers {
        let answer = answer?;
        assert_eq!((answer.status, answer.header("tarn-freshness")), (200, Some("verified")));
    }
    // One that was under way, one for those that arrived meanwhile, and some slack for slow starters.
    assert!(looks(&scene) <= 8, "{} looks for 40 requests", looks(&scene));
    Ok(())
}

#[tokio::test]
async fn an_answer_is_reused_for_as_long_as_the_user_allows() -> Result<()> {
    let scene = Scene::with(&["freshness: {maxStaleness: 1h}"]).await?;
    let before = scene.refs().await?;
    scene.upstream.clear_log();
    scene.origin.commit("main", &[("f", "2")]).await?;
    for _ in 0..5 {
        assert_eq!(scene.refs().await?, before);
    }
    assert_eq!(looks(&scene), 0);
    let freshness = scene.freshness().await?;
    assert!(freshness.starts_with("reused; age="), "{freshness}");
    Ok(())
}

#[tokio::test]
async fn an_answer_older_than_the_user_allows_is_not_reused() -> Result<()> {
    let scene = Scene::with(&["freshness: {maxStaleness: 1s}"]).await?;
    scene.refs().await?;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    // At the latest a second after the push, the next answer has it.
    eventually(Duration::from_millis(2500), "the push to be seen", async || {
        let head = scene.refs().await?.remove("HEAD");
        ensure!(head.as_ref() == Some(&pushed), "{head:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_verified_answer_says_so_with_every_protocol() -> Result<()> {
    let scene = Scene::ready().await?;
    assert_eq!(scene.freshness().await?, "verified");
    let target = format!("{}/info/refs?service=git-upload-pack", scene.path());
    for version in ["version=1", "version=2"] {
        let answer = scene.connect().await?.ask("GET", &target, &[("Git-Protocol", version)], b"").await?;
        assert_eq!(answer.status, 200);
        // Protocol v2 tells no refs here, so it may rest on nothing.
        if version == "version=1" {
            assert_eq!(answer.header("tarn-freshness"), Some("verified"));
        }
    }
    Ok(())
}
