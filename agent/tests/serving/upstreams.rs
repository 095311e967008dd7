//! Every kind of upstream: old servers, repositories that moved, were replaced, or changed their nature.

use std::time::Duration;

use anyhow::{Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{ObjectFormat, Repo};
use tarn_testkit::upstream::{Fault, Habits, Operation, Upstream};

use crate::scene::Scene;

#[tokio::test]
async fn a_server_that_speaks_the_first_protocol_only_is_mirrored_and_followed() -> Result<()> {
    let scene = Scene::prepared(&[], async |upstream, origin| {
        upstream.behave(Habits::Old);
        origin.annotated_tag("v1", "main").await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    for round in 0..5 {
        let pushed = scene.origin.commit("main", &[("round", &round.to_string())]).await?;
        scene.origin.tag("moving", &pushed).await?;
        scene.expect_upstream_refs().await?;
        let clone = scene.clone(&format!("clone-{round}"), &["--mirror"]).await?;
        assert_eq!(clone.rev_parse("HEAD").await?, pushed);
        clone.fsck().await?;
    }
    let root = scene.origin.rev_parse("v1^{commit}").await?;
    scene.origin.set_ref("refs/heads/main", &root).await?;
    assert_eq!(scene.expect_upstream_refs().await?["HEAD"], root);
    // Partial clones are Tarn's own doing.
    let clone = scene.clone("partial", &["--filter=blob:none"]).await?;
    clone.fsck().await
}

#[tokio::test]
async fn refs_that_move_between_look_and_fetch_are_caught_up_with() -> Result<()> {
    for habits in [Habits::Modern, Habits::Old] {
        let scene = Scene::ready().await?;
        scene.upstream.behave(habits);
        let root = scene.origin.rev_parse("main").await?;
        scene.origin.commit("main", &[("f", "lost")]).await?;
        scene.upstream.fault_on(Operation::Fetch, Fault::Hold);
        let (refs, moved) = tokio::join!(scene.clone("during", &["--mirror"]), async {
            eventually(Duration::from_secs(10), "the fetch", async || {
                let fetches = scene.upstream.count("a.git", Operation::Fetch);
                ensure!(fetches > 1, "{fetches}");
                Ok(())
            })
            .await?;
            // What the look named is gone, objects and all, when the fetch asks for it.
            scene.origin.set_ref("refs/heads/main", &root).await?;
            let pushed = scene.origin.commit("main", &[("f", "kept")]).await?;
            scene.origin.git(&["reflog", "expire", "--expire=now", "--all"]).await?;
            scene.origin.git(&["prune", "--expire=now"]).await?;
            scene.upstream.mend();
            anyhow::Ok(pushed)
        });
        let pushed = moved?;
        // The clone that came in between may have failed or got the new state, but nothing half.
        if let Ok(clone) = refs {
            clone.fsck().await?;
        }
        assert_eq!(scene.expect_upstream_refs().await?["HEAD"], pushed);
        let clone = scene.clone("after", &["--mirror"]).await?;
        assert_eq!(clone.rev_parse("HEAD").await?, pushed);
        clone.fsck().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_repository_that_moved_on_its_own_host_is_followed() -> Result<()> {
    let scene = Scene::prepared(&[], async |upstream, _| {
        let new = Upstream::root(upstream).join("new");
        std::fs::create_dir(&new)?;
        std::os::unix::fs::symlink("../a.git", new.join("a.git"))?;
        upstream.fault_in("a.git", Fault::Redirect(upstream.url("new")));
        Ok(())
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    assert_eq!(scene.refs().await?["HEAD"], pushed);
    scene.clone("clone", &[]).await?.fsck().await
}

#[tokio::test]
async fn a_repository_replaced_by_an_unrelated_one_is_mirrored_anew() -> Result<()> {
    for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
        let scene = Scene::ready().await?;
        scene.clone("before", &[]).await?;
        std::fs::remove_dir_all(scene.origin.path())?;
        scene.upstream.fault(Fault::Status(404));
        let old = scene.refs().await?;
        assert!(!old.is_empty(), "served stale while it is away");
        let new = Repo::init(scene.origin.path(), format).await?;
        let pushed = new.commit("main", &[("unrelated", "yes")]).await?;
        new.annotated_tag("v2", &pushed).await?;
        scene.upstream.mend();
        eventually(Duration::from_secs(20), "the new repository", async || {
            let refs = scene.refs().await?;
            ensure!(refs == new.refs().await?, "{refs:?}");
            Ok(())
        })
        .await?;
        // Until the mirror in the new format is there, a clone that comes too early may fail.
        let clone = match format {
            ObjectFormat::Sha1 => scene.clone("after", &["--mirror"]).await?,
            ObjectFormat::Sha256 => {
                let clone = async || scene.clone("after", &["--mirror"]).await;
                eventually(Duration::from_secs(20), "a clone in the new format", clone).await?
            }
        };
        assert_eq!(clone.rev_parse("HEAD").await?, pushed, "{format:?}");
        clone.fsck().await?;
        scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_push_of_many_refs_at_once_is_fetched_whole() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.origin.grow("source", 2000, 50, 3).await?;
    let commits = scene.origin.git(&["rev-list", "source"]).await?;
    let moves: Vec<_> = commits
        .lines()
        .enumerate()
        .map(|(number, oid)| (format!("refs/tags/t{number}"), oid.to_owned()))
        .collect();
    scene.origin.move_refs_atomically(&moves).await?;
    assert!(scene.expect_upstream_refs().await?.len() > 2000);
    let clone = scene.clone("clone", &["--mirror"]).await?;
    assert_eq!(clone.refs().await?, scene.origin.refs().await?);
    clone.fsck().await
}

#[tokio::test]
async fn a_shallow_upstream_is_refused_with_the_remedy_and_mirrored_once_it_is_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = tarn_testkit::git::Repo::seeded(dir.path().join("whole.git")).await?;
    whole.commit("main", &[("f", "2")]).await?;
    let git = tarn_testkit::git::Git::new()?;
    let place = dir.path().join("a.git");
    let shallow = git.clone_repo(&whole.file_url(), &place, &["--bare", "--depth", "1"]).await?;
    let agent = crate::scene::agent().file_upstreams().mirror(&shallow.file_url()).start().await?;
    let repo = tarn_testkit::agent::repo_id(&shallow.file_url());
    let told = |status: &serde_json::Value| crate::scene::message(status).contains("--unshallow");
    agent.wait_status(&repo, "the remedy", told).await?;
    shallow.git(&["fetch", "--quiet", "--unshallow", "origin", "main"]).await?;
    agent.wait_phase(&repo, "Ready").await?;
    let clone = git.clone_repo(&agent.git_url(&repo)?, &dir.path().join("clone"), &[]).await?;
    clone.fsck().await
}

#[tokio::test]
async fn a_server_that_dies_of_what_it_has_not_offered_is_mirrored_and_followed() -> Result<()> {
    let scene = Scene::prepared(&[], async |upstream, origin| {
        upstream.behave(Habits::Strict);
        // While the mirror is made, clients' requests go to the upstream as they are.
        upstream.fault_on(Operation::Fetch, Fault::Throttle(50_000));
        origin.grow("main", 4, 50_000, 1).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Cloning").await?;
    scene.clone("cold", &[]).await?.fsck().await?;
    scene.upstream.mend();
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    assert_eq!(scene.expect_upstream_refs().await?["HEAD"], pushed);
    scene.clone("clone", &["--mirror"]).await?.fsck().await
}

#[tokio::test]
async fn an_upstream_that_has_moved_to_another_port_is_named_where_its_users_see_it() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.upstream.fault(Fault::Redirect("https://127.0.0.1:9443".into()));
    scene.refs().await?;
    let told = "redirects to https://127.0.0.1:9443/a.git (HTTP 302): write that URL into spec.url";
    let says = |status: &serde_json::Value| crate::scene::message(status).contains(told);
    scene.agent.wait_status(&scene.repo(), "the new place", says).await.map(drop)
}

#[tokio::test]
async fn an_upstream_that_asks_for_fewer_requests_is_left_alone_as_long_as_it_says() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    scene.upstream.fault(Fault::Limited(60));
    scene.upstream.clear_log();
    for _ in 0..10 {
        let (git, url) = (scene.git.clone(), scene.url()?);
        let five = (0..5).map(|_| git.ls_remote(&url));
        futures_util::future::try_join_all(five).await?;
    }
    let freshness = scene.freshness().await?;
    assert!(freshness.starts_with("stale; age="), "{freshness}");
    assert!(scene.upstream.log().len() <= 2, "50 clients cost {} requests", scene.upstream.log().len());
    let told = |status: &serde_json::Value| crate::scene::message(status).starts_with("RateLimited");
    scene.agent.wait_status(&scene.repo(), "the limit", told).await.map(drop)
}

#[tokio::test]
async fn an_upstream_that_was_left_alone_is_asked_again_when_the_time_is_over() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.upstream.fault(Fault::Limited(2));
    scene.refs().await?;
    scene.upstream.mend();
    let pushed = scene.origin.commit("main", &[("f", "2")]).await?;
    eventually(Duration::from_secs(20), "the push", async || {
        let refs = scene.refs().await?;
        ensure!(refs.get("HEAD") == Some(&pushed), "{refs:?}");
        Ok(())
    })
    .await?;
    assert_eq!(scene.freshness().await?, "verified");
    Ok(())
}

#[tokio::test]
async fn a_slow_upstream_is_waited_for_and_not_called_down() -> Result<()> {
    let scene = Scene::with(&["freshness: {lookTimeout: 4s}"]).await?;
    scene.upstream.fault(Fault::Delay(Duration::from_millis(2_500)));
    // The second one comes while the first one's look runs, and waits longer than one look may take.
    let second = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        scene.freshness().await
    };
    let (first, second) = tokio::join!(scene.freshness(), second);
    assert_eq!((first?.as_str(), second?.as_str()), ("verified", "verified"));
    Ok(())
}
