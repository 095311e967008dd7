//! A mirror that is not there yet: the upstream answers through Tarn, once for all who ask the same.

use anyhow::{Result, ensure};
use tarn_crds::repo::RepoId;
use tarn_testkit::upstream::{Fault, Operation};

use crate::scene::Scene;

/// The agent's own clone takes long; whoever comes meanwhile is served from the upstream.
async fn cloning() -> Result<Scene> {
    let scene = Scene::prepared(&[], async |upstream, origin| {
        origin.grow("main", 40, 50_000, 1).await?;
        upstream.fault_on(Operation::Fetch, Fault::Throttle(400_000));
        Ok(())
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Cloning").await?;
    Ok(scene)
}

#[tokio::test]
async fn clients_of_a_mirror_in_the_making_share_one_answer_of_the_upstream() -> Result<()> {
    let scene = cloning().await?;
    let one = async |number: usize| scene.clone(&format!("clone-{number}"), &[]).await;
    let clones = futures_util::future::try_join_all((0..6).map(one)).await?;
    let wanted = scene.origin.refs().await?;
    for clone in &clones {
        clone.fsck().await?;
        ensure!(Some(&clone.rev_parse("HEAD").await?) == wanted.get("refs/heads/main"));
    }
    // One for the mirror, one for the six clients; a client that came late may have needed another.
    let fetches = scene.upstream.count("a.git", Operation::Fetch);
    ensure!(fetches <= 3, "{fetches} downloads from the upstream");
    scene.upstream.mend();
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.expect_upstream_refs().await?;
    Ok(())
}

#[tokio::test]
async fn older_protocols_and_shallow_clones_are_passed_through_too() -> Result<()> {
    let scene = cloning().await?;
    for version in ["0", "1", "2"] {
        let git = scene.git.clone().with_config("protocol.version", version);
        let place = scene.place(&format!("shallow-{version}"));
        let clone = git.clone_repo(&scene.url()?, &place, &["--depth", "1"]).await?;
        ensure!(clone.git(&["rev-list", "--count", "HEAD"]).await?.trim() == "1", "protocol {version}");
    }
    Ok(())
}

#[tokio::test]
async fn a_refusal_of_the_upstream_reaches_the_client_in_words() -> Result<()> {
    let scene = cloning().await?;
    scene.upstream.fault_on(Operation::Fetch, Fault::Status(403));
    let output = scene
        .git
        .attempt(["clone", &scene.url()?, scene.place("refused").to_str().unwrap_or_default()])
        .await?;
    let told = &output.stderr;
    ensure!(!output.status.success() && told.contains("HTTP 403"), "{told}");
    Ok(())
}

#[tokio::test]
async fn what_a_mirror_cannot_fetch_comes_straight_from_the_upstream() -> Result<()> {
    let scene = Scene::ready().await?;
    // Whatever git is asked to do there now fails.
    let id = RepoId::from_route(&scene.repo())?;
    std::fs::write(scene.agent.data().join("mirrors").join(id.dir()).join("config"), "[nonsense")?;
    let pushed = scene.origin.commit("main", &[("new.txt", "new")]).await?;
    let clone = scene.clone("clone", &[]).await?;
    clone.fsck().await?;
    ensure!(clone.rev_parse("HEAD").await? == pushed, "an old commit");
    Ok(())
}

#[tokio::test]
async fn an_answer_that_the_upstream_ends_politely_in_the_middle_is_an_error_and_spoils_no_other()
-> Result<()> {
    for fault in [Fault::EndAfter(300_000), Fault::GiveUp] {
        let scene = Scene::prepared(&[], async |upstream, origin| {
            origin.grow("main", 10, 50_000, 1).await?;
            upstream.fault_on(Operation::Fetch, fault.clone());
            Ok(())
        })
        .await?;
        let place = scene.place("broken");
        let broken = scene.git.attempt(["clone", &scene.url()?, place.to_str().unwrap_or_default()]).await?;
        ensure!(!broken.status.success(), "a part was taken for the whole");
        scene.upstream.mend();
        // While it is passed through as well as from the mirror.
        scene.clone("passed", &[]).await?.fsck().await?;
        scene.agent.wait_phase(&scene.repo(), "Ready").await?;
        scene.clone("mirrored", &[]).await?.fsck().await?;
    }
    Ok(())
}
