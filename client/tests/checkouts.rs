//! `--ref` and `--commit`.

use anyhow::Result;

use crate::scene::Scene;

#[tokio::test]
async fn a_branch_asked_for_is_checked_out_as_it_is_now() -> Result<()> {
    let scene = Scene::small().await?;
    let tip = scene.origin.commit("side", &[("side", "side\n")]).await?;
    for (name, reference) in [("short", "side"), ("full", "refs/heads/side")] {
        let (report, clone) = scene.clone(name, &["--ref", reference]).await?;
        assert_eq!((&report["branch"], &report["commit"]), (&"side".into(), &tip.clone().into()));
        assert_eq!(clone.git(&["rev-parse", "--abbrev-ref", "@{upstream}"]).await?, "origin/side");
        assert_eq!(clone.git(&["branch", "--format=%(refname)"]).await?, "refs/heads/side");
        scene.expect_clone(&clone).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_tag_asked_for_is_checked_out_detached() -> Result<()> {
    let scene = Scene::small().await?;
    let old = scene.origin.rev_parse("refs/heads/main~1").await?;
    scene.origin.annotated_tag("old", &old).await?;
    let (report, clone) = scene.clone("a", &["--ref", "old"]).await?;
    assert_eq!((&report["branch"], &report["commit"]), (&serde_json::Value::Null, &old.into()));
    scene.expect_clone(&clone).await
}

#[tokio::test]
async fn a_commit_asked_for_is_checked_out_detached_even_if_no_ref_leads_to_it() -> Result<()> {
    let scene = Scene::small().await?;
    let old = scene.origin.rev_parse("refs/heads/main~1").await?;
    let lost = scene.origin.commit("gone", &[("lost", "lost\n")]).await?;
    scene.origin.delete_ref("refs/heads/gone").await?;
    for (name, commit) in [("old", &old), ("lost", &lost)] {
        let (report, clone) = scene.clone(name, &["--commit", commit]).await?;
        assert_eq!(
            (&report["branch"], &report["commit"]),
            (&serde_json::Value::Null, &commit.clone().into())
        );
        assert_eq!(clone.rev_parse("main").await?, scene.tip("main").await?);
        scene.expect_clone(&clone).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_ref_or_commit_that_nobody_has_is_named_and_leaves_nothing() -> Result<()> {
    let scene = Scene::small().await?;
    let (url, nobody) = (scene.url(), "1234567890".repeat(4));
    for (asked, says) in [(["--ref", "no-such"], "no-such"), (["--commit", &nobody], nobody.as_str())] {
        let output = scene.tarn(&[&asked[..], &[&url, "a"]].concat()).await?;
        assert_eq!(output.status.code(), Some(1), "{}", output.stderr);
        assert!(output.stderr.contains(says), "{}", output.stderr);
        assert!(scene.left()?.is_empty());
    }
    Ok(())
}
