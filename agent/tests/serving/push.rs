//! Pushes go through Tarn to the upstream, with the caller's own credentials.

use anyhow::{Result, ensure};
use tarn_testkit::upstream::{Auth, Operation};

use crate::scene::Scene;

#[tokio::test]
async fn a_push_through_tarn_reaches_the_upstream_and_the_next_reader() -> Result<()> {
    let scene = Scene::ready().await?;
    let clone = scene.clone("clone", &[]).await?;
    for round in 0..3 {
        clone.git(&["commit", "--quiet", "--allow-empty", "--message", &format!("round {round}")]).await?;
        clone.push("origin", &["HEAD:refs/heads/main", "HEAD:refs/heads/topic"]).await?;
        let head = clone.rev_parse("HEAD").await?;
        ensure!(scene.origin.rev_parse("refs/heads/main").await? == head, "the upstream has it");
        ensure!(scene.refs().await?.get("refs/heads/topic") == Some(&head), "the next reader sees it");
    }
    Ok(())
}

#[tokio::test]
async fn a_push_that_the_upstream_refuses_says_what_the_upstream_said() -> Result<()> {
    let scene = Scene::ready().await?;
    let clone = scene.clone("clone", &[]).await?;
    scene.origin.commit("main", &[("meanwhile", "x")]).await?;
    clone.git(&["commit", "--quiet", "--allow-empty", "--message", "late"]).await?;
    let error = clone.push("origin", &["HEAD:refs/heads/main"]).await.map(drop).unwrap_err().to_string();
    ensure!(error.contains("rejected"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_push_needs_the_callers_own_credentials() -> Result<()> {
    let scene = Scene::ready().await?;
    let clone = scene.clone("clone", &[]).await?;
    clone.git(&["commit", "--quiet", "--allow-empty", "--message", "mine"]).await?;
    scene.upstream.require(Auth::Basic { user: "ada".into(), password: "pw".into() });
    let error = clone.push("origin", &["HEAD:refs/heads/main"]).await.map(drop).unwrap_err().to_string();
    ensure!(error.contains("could not read Username") || error.contains("Authentication failed"), "{error}");
    // Through Tarn, the user says for which upstream the password is.
    let ada = format!("ada%40http+{}", scene.upstream.address().to_string().replace(':', "._"));
    let url = scene.url()?.replace("http://", &format!("http://{ada}:pw@"));
    clone.push(&url, &["HEAD:refs/heads/main"]).await?;
    ensure!(scene.origin.rev_parse("main").await? == clone.rev_parse("HEAD").await?);
    ensure!(scene.upstream.log().iter().any(|seen| seen.operation == Operation::Push && seen.authorized));
    Ok(())
}

#[tokio::test]
async fn a_mirror_of_a_file_url_names_the_way_to_push() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let origin = tarn_testkit::git::Repo::seeded(dir.path().join("a.git")).await?;
    let agent = crate::scene::agent().file_upstreams().mirror(&origin.file_url()).start().await?;
    let repo = tarn_testkit::agent::repo_id(&origin.file_url());
    let answer = agent.get(&format!("/git/{repo}/info/refs?service=git-receive-pack")).await?;
    ensure!(answer.status == 403 && answer.text().contains("pushInsteadOf"), "{}", answer.text());
    Ok(())
}

#[tokio::test]
async fn a_push_of_known_length_arrives_with_its_length() -> Result<()> {
    let scene = Scene::ready().await?;
    let clone = scene.clone("clone", &[]).await?;
    // More than git sends in one piece of its own accord, so that the client's configuration decides.
    let noise: String = (0..400_000_u64).map(|at| char::from(b'a' + (at * at % 23) as u8)).collect();
    std::fs::write(clone.path().join("big"), noise + &"x".repeat(2_000_000))?;
    clone.git(&["add", "big"]).await?;
    clone.git(&["commit", "--quiet", "--message", "big"]).await?;
    scene.upstream.clear_log();
    clone
        .git(&["-c", "http.postBuffer=100000000", "push", "--quiet", "origin", "HEAD:refs/heads/main"])
        .await?;
    let log = scene.upstream.log();
    let pushes: Vec<_> = log.iter().filter(|seen| seen.operation == Operation::Push).collect();
    ensure!(pushes.len() >= 2 && pushes.iter().all(|push| push.sized), "{pushes:?}");
    Ok(())
}

#[tokio::test]
async fn a_suspended_mirror_hands_no_push_to_its_upstream() -> Result<()> {
    let scene = Scene::ready().await?;
    let clone = scene.clone("clone", &[]).await?;
    clone.git(&["commit", "--quiet", "--allow-empty", "--message", "mine"]).await?;
    scene.suspend("/info/refs?service=git-receive-pack").await?;
    scene.upstream.clear_log();
    ensure!(clone.push("origin", &["HEAD:refs/heads/main"]).await.is_err(), "it was pushed");
    ensure!(scene.upstream.log().is_empty(), "{:?}", scene.upstream.log());
    Ok(())
}
