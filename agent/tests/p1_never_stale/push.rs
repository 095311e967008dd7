//! What was pushed is there for whoever asks next.

use anyhow::{Result, ensure};

use crate::scene::Scene;

#[tokio::test]
async fn a_push_is_seen_by_the_very_next_ls_remote_and_clone_a_hundred_times() -> Result<()> {
    let scene = Scene::ready().await?;
    let work = scene.git.clone_repo(&scene.origin.file_url(), &scene.place("work"), &[]).await?;
    for round in 0..100 {
        work.git(&["commit", "--quiet", "--allow-empty", "--message", &format!("round {round}")]).await?;
        let head = work.rev_parse("HEAD").await?;
        // In turn: the default branch, a new branch, a moved branch, a moved light tag, a moved annotated tag.
        let pushed = match round % 5 {
            0 => "refs/heads/main".to_owned(),
            1 => format!("refs/heads/new-{round}"),
            2 => "refs/heads/moving".to_owned(),
            3 => "refs/tags/light".to_owned(),
            _ => "refs/tags/annotated".to_owned(),
        };
        let source = if pushed.ends_with("annotated") {
            work.annotated_tag("annotated", "HEAD").await?
        } else {
            head.clone()
        };
        scene
            .git
            .run([
                "-C",
                work.path().to_str().unwrap_or_default(),
                "push",
                "--quiet",
                "--force",
                "origin",
                &format!("{source}:{pushed}"),
            ])
            .await?;
        let refs = scene.refs().await?;
        ensure!(refs.get(&pushed) == Some(&source), "round {round}: {pushed} is {:?}", refs.get(&pushed));
        let clone = scene.clone(&format!("clone-{round}"), &["--mirror"]).await?;
        ensure!(clone.rev_parse(&pushed).await? == source, "round {round}: a clone with the old {pushed}");
        ensure!(clone.rev_parse(&format!("{pushed}^{{commit}}")).await? == head);
        std::fs::remove_dir_all(clone.path())?;
    }
    scene.expect_upstream_refs().await?;
    Ok(())
}

#[tokio::test]
async fn a_push_is_seen_with_the_older_protocols_too() -> Result<()> {
    let scene = Scene::ready().await?;
    for version in ["0", "1", "0", "1"] {
        let pushed = scene.origin.commit("main", &[("f", version)]).await?;
        let git = scene.git.clone().with_config("protocol.version", version);
        assert_eq!(git.ls_remote(&scene.url()?).await?.get("refs/heads/main"), Some(&pushed));
        let pushed = scene.origin.commit("main", &[("g", version)]).await?;
        let place = tempfile::tempdir_in(scene.dir.path())?;
        let clone = git.clone_repo(&scene.url()?, &place.path().join("clone"), &[]).await?;
        assert_eq!(clone.rev_parse("HEAD").await?, pushed, "protocol {version}");
    }
    Ok(())
}

#[tokio::test]
async fn a_push_is_seen_by_the_next_fetch_into_an_old_clone() -> Result<()> {
    let scene = Scene::ready().await?;
    let clone = scene.clone("clone", &[]).await?;
    for round in 0..10 {
        let pushed = scene.origin.commit("main", &[("round", &round.to_string())]).await?;
        clone.fetch(&["origin"]).await?;
        assert_eq!(clone.rev_parse("origin/main").await?, pushed, "round {round}");
    }
    clone.fsck().await
}

#[tokio::test]
async fn a_push_is_seen_through_a_mirror_of_a_file_url() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let origin = tarn_testkit::git::Repo::seeded(dir.path().join("a.git")).await?;
    let url = origin.file_url();
    let agent = crate::scene::agent().file_upstreams().mirror(&url).start().await?;
    let repo = tarn_testkit::agent::repo_id(&url);
    agent.wait_phase(&repo, "Ready").await?;
    let git = tarn_testkit::git::Git::new()?;
    for round in 0..10 {
        origin.commit("main", &[("round", &round.to_string())]).await?;
        assert_eq!(git.ls_remote(&agent.git_url(&repo)?).await?, origin.refs().await?, "round {round}");
    }
    let clone = git.clone_repo(&agent.git_url(&repo)?, &dir.path().join("clone"), &[]).await?;
    assert_eq!(clone.rev_parse("HEAD").await?, origin.rev_parse("main").await?);
    clone.fsck().await
}
