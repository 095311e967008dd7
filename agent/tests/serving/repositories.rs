//! Every kind of repository, served as it is.

use anyhow::{Result, ensure};
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::git::{Git, ObjectFormat, Repo};
use tarn_testkit::upstream::Upstream;

use crate::scene::{Scene, agent};

/// An upstream with a repository that `prepare` makes, mirrored; the seed commit is there already.
async fn mirrored(prepare: impl AsyncFnOnce(&Repo) -> Result<()>) -> Result<Scene> {
    let scene = Scene::prepared(&[], async |_, origin| prepare(origin).await).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(scene)
}

/// With every protocol, Tarn lists what the upstream lists, and a mirror clone holds it soundly.
async fn expect_equal(scene: &Scene) -> Result<()> {
    for version in ["0", "1", "2"] {
        let git = scene.git.clone().with_config("protocol.version", version);
        // Bytes, not text: a ref's name need not be UTF-8.
        let through = git.run(["ls-remote", "--symref", &scene.url()?]).await?.stdout;
        let direct = git.run(["ls-remote", "--symref", &scene.upstream.url("a.git")]).await?.stdout;
        ensure!(
            through == direct,
            "protocol {version}:\n{}---\n{}",
            String::from_utf8_lossy(&through),
            String::from_utf8_lossy(&direct)
        );
        let place = scene.place(&format!("mirror-{version}"));
        let clone = git.clone_repo(&scene.url()?, &place, &["--mirror"]).await?;
        clone.fsck().await?;
        let cloned = git.run(["ls-remote", &place.to_string_lossy()]).await?.stdout;
        let listed = git.run(["ls-remote", &scene.upstream.url("a.git")]).await?.stdout;
        ensure!(cloned == listed, "protocol {version}: the clone differs");
    }
    Ok(())
}

#[tokio::test]
async fn an_empty_repository_is_cloned_and_filled_later() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let origin = Repo::init_bare(dir.path().join("a.git")).await?;
    let repo = repo_id(&upstream.url("a.git"));
    let agent = agent().start_with(&[("a.yaml", &manifest("a", &upstream.url("a.git"), &[]))]).await?;
    let status = agent.wait_phase(&repo, "Ready").await?;
    assert_eq!(status["refCount"], 0, "{status}");
    let git = Git::new()?;
    let clone = git.clone_repo(&agent.git_url(&repo)?, &dir.path().join("clone"), &[]).await?;
    assert!(git.ls_remote(&agent.git_url(&repo)?).await?.is_empty());
    let pushed = origin.commit("main", &[("f", "1")]).await?;
    clone.fetch(&["origin"]).await?;
    assert_eq!(clone.rev_parse("origin/main").await?, pushed);
    assert_eq!(git.ls_remote(&agent.git_url(&repo)?).await?, origin.refs().await?);
    Ok(())
}

#[tokio::test]
async fn an_unborn_head_names_the_branch_of_a_new_clone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let origin = Repo::init_bare(dir.path().join("a.git")).await?;
    origin.git(&["symbolic-ref", "HEAD", "refs/heads/trunk"]).await?;
    let repo = repo_id(&upstream.url("a.git"));
    let agent = agent().start_with(&[("a.yaml", &manifest("a", &upstream.url("a.git"), &[]))]).await?;
    agent.wait_phase(&repo, "Ready").await?;
    let git = Git::new()?.with_config("protocol.version", "2");
    let clone = git.clone_repo(&agent.git_url(&repo)?, &dir.path().join("clone"), &[]).await?;
    assert_eq!(clone.git(&["symbolic-ref", "HEAD"]).await?, "refs/heads/trunk");
    Ok(())
}

#[tokio::test]
async fn an_unborn_head_beside_other_branches_is_served() -> Result<()> {
    let scene = mirrored(async |origin| origin.set_head("refs/heads/none").await).await?;
    expect_equal(&scene).await
}

#[tokio::test]
async fn a_detached_head_is_served() -> Result<()> {
    let scene = mirrored(async |origin| {
        let old = origin.rev_parse("main").await?;
        origin.commit("main", &[("f", "2")]).await?;
        origin.detach_head(&old).await
    })
    .await?;
    expect_equal(&scene).await?;
    let clone = scene.clone("clone", &[]).await?;
    assert_eq!(clone.rev_parse("HEAD").await?, scene.origin.rev_parse("HEAD").await?);
    Ok(())
}

#[tokio::test]
async fn a_detached_head_that_no_branch_reaches_is_served() -> Result<()> {
    let scene = mirrored(async |origin| {
        let lost = origin.commit("lost", &[("f", "lost")]).await?;
        origin.detach_head(&lost).await?;
        origin.delete_ref("refs/heads/lost").await
    })
    .await?;
    expect_equal(&scene).await
}

#[tokio::test]
async fn a_sha256_repository_is_cloned_and_followed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let origin = Repo::init(dir.path().join("a.git"), ObjectFormat::Sha256).await?;
    let first = origin.commit("main", &[("f", "1")]).await?;
    origin.annotated_tag("v1", &first).await?;
    let repo = repo_id(&upstream.url("a.git"));
    let agent = agent().start_with(&[("a.yaml", &manifest("a", &upstream.url("a.git"), &[]))]).await?;
    agent.wait_phase(&repo, "Ready").await?;
    for version in ["0", "1", "2"] {
        let git = Git::new()?.with_config("protocol.version", version);
        let clone = git.clone_repo(&agent.git_url(&repo)?, &dir.path().join(version), &["--depth=1"]).await?;
        assert_eq!(clone.git(&["rev-parse", "--show-object-format"]).await?, "sha256");
        let pushed = origin.commit("main", &[("f", version)]).await?;
        assert_eq!(git.ls_remote(&agent.git_url(&repo)?).await?, origin.refs().await?);
        clone.fetch(&["--unshallow", "origin"]).await?;
        assert_eq!(clone.rev_parse("origin/main").await?, pushed);
        clone.fsck().await?;
    }
    Ok(())
}

#[tokio::test]
async fn twenty_thousand_refs_are_served_and_followed() -> Result<()> {
    let scene = mirrored(async |origin| {
        let first = origin.rev_parse("main").await?;
        let second = origin.commit("main", &[("f", "2")]).await?;
        let tag = origin.annotated_tag("v1", &second).await?;
        let mut moves = Vec::new();
        for number in 0..10_000 {
            let oid = if number % 2 == 0 { &first } else { &second };
            moves.push((format!("refs/heads/branch/{:02}/{number}", number % 100), oid.clone()));
            moves.push((
                format!("refs/tags/release-{number}"),
                if number % 3 == 0 { &tag } else { oid }.clone(),
            ));
        }
        origin.move_refs_atomically(&moves).await
    })
    .await?;
    let refs = scene.expect_upstream_refs().await?;
    assert!(refs.len() > 20_000);
    let pushed = scene.origin.commit("main", &[("f", "3")]).await?;
    scene.origin.move_refs_atomically(&[("refs/heads/branch/07/7".into(), pushed.clone())]).await?;
    let refs = scene.expect_upstream_refs().await?;
    assert_eq!((&refs["HEAD"], &refs["refs/heads/branch/07/7"]), (&pushed, &pushed));
    let clone = scene.clone("clone", &["--single-branch"]).await?;
    assert_eq!(clone.rev_parse("HEAD").await?, pushed);
    let git = scene.git.clone().with_config("protocol.version", "0");
    assert_eq!(git.ls_remote(&scene.url()?).await?, refs);
    Ok(())
}

#[tokio::test]
async fn odd_names_of_refs_are_served_byte_for_byte() -> Result<()> {
    let scene = mirrored(async |origin| {
        let main = origin.rev_parse("main").await?;
        let tag = origin.annotated_tag("plain", &main).await?;
        let mut stdin = Vec::new();
        let long = format!("refs/heads/{}", ["x".repeat(120), "y".repeat(120)].join("/"));
        let names: [&[u8]; 19] = [
            b"refs/heads/-dash",
            b"refs/heads/--upload-pack=touch",
            "refs/heads/\u{fc}mlaut/\u{1f995}".as_bytes(),
            b"refs/heads/not-utf8-\xff\xfe",
            b"refs/heads/$(touch${IFS}x)`id`",
            b"refs/heads/quote'double\"",
            b"refs/heads/a;b|c&d!e#f%2e%2e",
            b"refs/heads/with,comma=equals+plus",
            b"refs/heads/{brace}(paren)<angle>",
            b"refs/heads/@at",
            b"refs/heads/HEAD",
            b"refs/heads/refs/heads/main",
            b"refs/heads/a.b-c_d/e.f",
            b"refs/heads/1234567890123456789012345678901234567890",
            b"refs/notes/commits",
            b"refs/replace-not/x",
            b"refs/tags/heads/main",
            b"refs/zzz",
            long.as_bytes(),
        ];
        for name in names {
            stdin.extend_from_slice(b"create ");
            stdin.extend_from_slice(name);
            stdin.extend_from_slice(format!(" {main}\n").as_bytes());
        }
        stdin.extend_from_slice(format!("create refs/tags/copy {tag}\n").as_bytes());
        origin.git_with(&["update-ref", "--stdin"], &stdin).await.map(drop)
    })
    .await?;
    expect_equal(&scene).await
}

#[tokio::test]
async fn tags_of_trees_blobs_and_tags_are_served_and_peeled() -> Result<()> {
    let scene = mirrored(async |origin| {
        origin.tag("a-tree", &origin.rev_parse("main^{tree}").await?).await?;
        origin.tag("a-blob", &origin.rev_parse("main:README").await?).await?;
        let inner = origin.annotated_tag("inner", "main").await?;
        origin.annotated_tag("outer", &inner).await?;
        origin.annotated_tag("of-a-blob", &origin.rev_parse("main:README").await?).await.map(drop)
    })
    .await?;
    expect_equal(&scene).await
}

#[tokio::test]
async fn refs_that_the_manifest_leaves_out_are_not_served_and_others_are() -> Result<()> {
    let spec = ["refs: {include: ['refs/heads/*', 'refs/changes/*'], exclude: ['refs/heads/wip/*']}"];
    let scene = Scene::prepared(&spec, async |_, origin| {
        let main = origin.rev_parse("main").await?;
        for name in
            ["refs/heads/wip/1", "refs/heads/ok", "refs/tags/v1", "refs/changes/1", "refs/pull/1/head"]
        {
            origin.set_ref(name, &main).await?;
        }
        Ok(())
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    for version in ["0", "2"] {
        let git = scene.git.clone().with_config("protocol.version", version);
        let refs = git.ls_remote(&scene.url()?).await?;
        let names: Vec<_> = refs.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["HEAD", "refs/changes/1", "refs/heads/main", "refs/heads/ok"],
            "protocol {version}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn pull_requests_are_left_out_unless_asked_for() -> Result<()> {
    let scene = mirrored(async |origin| {
        let main = origin.rev_parse("main").await?;
        origin.set_ref("refs/pull/1/head", &main).await?;
        origin.set_ref("refs/changes/01/1/1", &main).await
    })
    .await?;
    let refs = scene.refs().await?;
    assert_eq!(refs.keys().collect::<Vec<_>>(), ["HEAD", "refs/heads/main"]);
    Ok(())
}
