//! Every way in which refs change, seen by the next client.

use anyhow::Result;

use crate::scene::Scene;

#[tokio::test]
async fn force_pushed_branch_is_seen_by_the_next_clone_and_fetch() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.origin.commit("main", &[("doomed", "1")]).await?;
    let clone = scene.clone("before", &[]).await?;
    let root = scene.origin.rev_parse("main~1").await?;
    scene.origin.set_ref("refs/heads/main", &root).await?;
    let rewritten = scene.origin.commit("main", &[("instead", "2")]).await?;
    assert_eq!(scene.clone("after", &[]).await?.rev_parse("HEAD").await?, rewritten);
    clone.fetch(&["origin"]).await?;
    assert_eq!(clone.rev_parse("origin/main").await?, rewritten);
    clone.fsck().await
}

#[tokio::test]
async fn branch_moved_back_to_an_older_commit_is_seen() -> Result<()> {
    let scene = Scene::ready().await?;
    scene.origin.commit("main", &[("f", "1")]).await?;
    scene.expect_upstream_refs().await?;
    let older = scene.origin.rev_parse("main~1").await?;
    scene.origin.set_ref("refs/heads/main", &older).await?;
    assert_eq!(scene.expect_upstream_refs().await?["HEAD"], older);
    assert_eq!(scene.clone("clone", &[]).await?.rev_parse("HEAD").await?, older);
    Ok(())
}

#[tokio::test]
async fn deleted_branch_and_tag_are_gone_from_the_next_answer() -> Result<()> {
    let scene = Scene::ready().await?;
    let main = scene.origin.rev_parse("main").await?;
    scene.origin.set_ref("refs/heads/topic", &main).await?;
    scene.origin.annotated_tag("v1", &main).await?;
    assert!(scene.expect_upstream_refs().await?.contains_key("refs/tags/v1^{}"));
    let clone = scene.clone("clone", &[]).await?;
    scene.origin.delete_ref("refs/heads/topic").await?;
    scene.origin.delete_ref("refs/tags/v1").await?;
    let refs = scene.expect_upstream_refs().await?;
    assert_eq!(refs.keys().collect::<Vec<_>>(), ["HEAD", "refs/heads/main"]);
    clone.fetch(&["--prune", "--prune-tags", "origin"]).await?;
    assert_eq!(clone.git(&["tag", "--list"]).await?, "");
    Ok(())
}

#[tokio::test]
async fn moved_tag_is_seen_by_the_next_clone() -> Result<()> {
    let scene = Scene::ready().await?;
    let first = scene.origin.rev_parse("main").await?;
    scene.origin.tag("light", &first).await?;
    scene.origin.annotated_tag("heavy", &first).await?;
    scene.clone("before", &[]).await?;
    let second = scene.origin.commit("main", &[("f", "2")]).await?;
    scene.origin.tag("light", &second).await?;
    let heavy = scene.origin.annotated_tag("heavy", &second).await?;
    let clone = scene.clone("after", &[]).await?;
    assert_eq!(clone.rev_parse("light").await?, second);
    assert_eq!(clone.rev_parse("heavy").await?, heavy);
    assert_eq!(clone.rev_parse("heavy^{}").await?, second);
    Ok(())
}

#[tokio::test]
async fn tag_that_becomes_annotated_without_a_move_is_seen() -> Result<()> {
    let scene = Scene::ready().await?;
    let main = scene.origin.rev_parse("main").await?;
    scene.origin.tag("v1", &main).await?;
    scene.expect_upstream_refs().await?;
    let tag = scene.origin.annotated_tag("v1", &main).await?;
    let refs = scene.expect_upstream_refs().await?;
    assert_eq!((&refs["refs/tags/v1"], &refs["refs/tags/v1^{}"]), (&tag, &main));
    Ok(())
}

#[tokio::test]
async fn renamed_head_is_the_default_branch_of_the_next_clone() -> Result<()> {
    let scene = Scene::ready().await?;
    let trunk = scene.origin.commit("trunk", &[("f", "trunk")]).await?;
    scene.origin.set_head("refs/heads/trunk").await?;
    let clone = scene.clone("clone", &[]).await?;
    assert_eq!(clone.git(&["symbolic-ref", "HEAD"]).await?, "refs/heads/trunk");
    assert_eq!(clone.rev_parse("HEAD").await?, trunk);
    // And once more, when only HEAD changes and no ref moves.
    scene.origin.set_head("refs/heads/main").await?;
    assert_eq!(scene.git.remote_head(&scene.url()?).await?.as_deref(), Some("refs/heads/main"));
    Ok(())
}

#[tokio::test]
async fn head_that_becomes_detached_or_unborn_is_seen() -> Result<()> {
    let scene = Scene::ready().await?;
    let old = scene.origin.rev_parse("main").await?;
    scene.origin.commit("main", &[("f", "2")]).await?;
    scene.origin.detach_head(&old).await?;
    assert_eq!(scene.expect_upstream_refs().await?["HEAD"], old);
    assert_eq!(scene.git.remote_head(&scene.url()?).await?, None);
    scene.origin.git(&["symbolic-ref", "HEAD", "refs/heads/unborn"]).await?;
    assert!(!scene.expect_upstream_refs().await?.contains_key("HEAD"));
    scene.origin.commit("unborn", &[("f", "3")]).await?;
    assert_eq!(scene.git.remote_head(&scene.url()?).await?.as_deref(), Some("refs/heads/unborn"));
    Ok(())
}

#[tokio::test]
async fn branch_that_gives_way_to_a_directory_of_branches_is_seen() -> Result<()> {
    let scene = Scene::ready().await?;
    let main = scene.origin.rev_parse("main").await?;
    scene.origin.set_ref("refs/heads/topic", &main).await?;
    scene.expect_upstream_refs().await?;
    scene.origin.delete_ref("refs/heads/topic").await?;
    scene.origin.set_ref("refs/heads/topic/one", &main).await?;
    scene.expect_upstream_refs().await?;
    scene.origin.delete_ref("refs/heads/topic/one").await?;
    scene.origin.set_ref("refs/heads/topic", &main).await?;
    scene.expect_upstream_refs().await?;
    scene.clone("clone", &[]).await?.fsck().await
}

#[tokio::test]
async fn last_branch_deleted_leaves_an_empty_answer_and_comes_back() -> Result<()> {
    let scene = Scene::ready().await?;
    let main = scene.origin.rev_parse("main").await?;
    scene.origin.delete_ref("refs/heads/main").await?;
    assert!(scene.refs().await?.is_empty());
    scene.origin.set_ref("refs/heads/main", &main).await?;
    scene.expect_upstream_refs().await?;
    assert_eq!(scene.clone("clone", &[]).await?.rev_parse("HEAD").await?, main);
    Ok(())
}
