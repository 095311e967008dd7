//! When the snapshot cannot be used: `git clone` through Tarn, then from the upstream.

use anyhow::Result;
use tarn_testkit::git::ObjectFormat;
use tarn_testkit::git::Repo;
use tarn_testkit::proxy::{HttpFault, Select, When};

use crate::scene::Scene;

#[tokio::test]
async fn without_a_snapshot_git_clones_through_tarn() -> Result<()> {
    let scene = Scene::without_snapshot(async |_| Ok(())).await?;
    scene.upstream.clear_log();
    let url = scene.url();
    let output = scene.tarn(&[&url, "a", "--json"]).await?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["how"], "git-through-tarn");
    assert_eq!(report["fallback_reasons"], serde_json::json!(["snapshot: 404 Not Found: no snapshot"]));
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert!(
        output.stderr.contains("no snapshot; falling back to git clone through Tarn"),
        "{}",
        output.stderr
    );
    scene.expect_clone(&Repo::open(scene.git.clone(), scene.work().join("a"))).await
}

#[tokio::test]
async fn with_tarn_down_git_clones_from_the_upstream() -> Result<()> {
    let scene = Scene::small().await?;
    scene.proxy.add(Select::default(), When::Always, HttpFault::Answer(502, "Down"));
    let (report, clone) = scene.clone_somehow("broken", &[]).await?;
    assert_eq!(report["how"], "upstream");
    assert_eq!(report["fallback_reasons"].as_array().unwrap().len(), 2);
    scene.expect_clone(&clone).await?;
    let (report, clone) = scene.clone_somehow("refused", &["--server", "http://127.0.0.1:1"]).await?;
    assert_eq!(report["how"], "upstream");
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn each_way_checks_out_what_was_asked_for() -> Result<()> {
    let scene = Scene::without_snapshot(async |origin| {
        origin.commit("main", &[("README", "newer\n")]).await?;
        origin.commit("side", &[("side", "side\n")]).await?;
        Ok(())
    })
    .await?;
    let (tip, old) = (scene.tip("side").await?, scene.origin.rev_parse("refs/heads/main~1").await?);
    for server in [scene.proxy.url(), "http://127.0.0.1:1".to_owned()] {
        let name = |what: &str| format!("{what}-{}", server.len());
        let (report, clone) =
            scene.clone_somehow(&name("branch"), &["--ref", "side", "--server", &server]).await?;
        assert_eq!((&report["branch"], &report["commit"]), (&"side".into(), &tip.clone().into()));
        scene.expect_clone(&clone).await?;
        let (report, clone) =
            scene.clone_somehow(&name("commit"), &["--commit", &old, "--server", &server]).await?;
        assert_eq!((&report["branch"], &report["commit"]), (&serde_json::Value::Null, &old.clone().into()));
        scene.expect_clone(&clone).await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_fallback_the_reason_is_the_end() -> Result<()> {
    let scene = Scene::without_snapshot(async |_| Ok(())).await?;
    let url = scene.url();
    let output = scene.tarn(&[&url, "--no-fallback", "--json"]).await?;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr, "git-tarn: snapshot: 404 Not Found: no snapshot\n");
    assert!(output.stdout.is_empty() && scene.left()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn when_every_way_fails_nothing_is_left() -> Result<()> {
    let scene = Scene::small().await?;
    scene.proxy.add(Select::default(), When::Always, HttpFault::Answer(502, "Down"));
    scene.upstream.down().await;
    let url = scene.url();
    let output = scene.tarn(&[&url, "--quiet"]).await?;
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.starts_with("git-tarn: git clone: fatal: "), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1);
    assert!(scene.left()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_tarn_has_no_name_for_is_cloned_from_where_it_is() -> Result<()> {
    let scene = Scene::small().await?;
    Repo::init(scene.dir.path().join("empty.git"), ObjectFormat::Sha1).await?;
    for (url, name) in [("../upstream/a.git", "a"), ("../empty.git", "empty")] {
        let output = scene.tarn(&[url]).await?;
        assert!(output.status.success(), "{}", output.stderr);
        assert!(scene.work().join(name).join(".git/HEAD").exists());
    }
    Ok(())
}
