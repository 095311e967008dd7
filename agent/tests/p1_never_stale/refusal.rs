//! An upstream that refuses is not away: after three looks over ten minutes nothing is served any more, by no route,
//! after a restart too, until a look succeeds.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tarn_testkit::agent::Agent;
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::{Fault, Operation};

use crate::p8_nobody_in::{READS, ask};
use crate::scene::{Scene, agent, condition, message};

/// Where the agent notes what it knows.
pub(crate) fn note(agent: &Agent, repo: &str) -> Result<PathBuf> {
    let id = tarn_crds::repo::RepoId::from_route(repo)?;
    Ok(agent.data().join("mirrors").join(id.dir()).join("tarn-entitlement.json"))
}

/// Lets eleven minutes pass for the refusals that are noted, while the agent does not run.
async fn let_the_grace_pass(agent: &mut Agent, repo: &str) -> Result<()> {
    agent.stop().await?;
    let path = note(agent, repo)?;
    let mut noted: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let since = noted["refusals"]["since"].as_str().with_context(|| format!("no refusal in {noted}"))?;
    let since: jiff::Timestamp = since.parse()?;
    noted["refusals"]["since"] = since.checked_sub(jiff::SignedDuration::from_mins(11))?.to_string().into();
    std::fs::write(&path, noted.to_string())?;
    agent.start_again().await
}

/// Three looks are refused, and more time passes than a refusal is bridged for.
async fn outlast_the_grace(scene: &mut Scene) -> Result<()> {
    for _ in 0..3 {
        scene.refs().await?;
    }
    let repo = scene.repo();
    let_the_grace_pass(&mut scene.agent, &repo).await
}

/// Nothing is served by any route, and each says why.
async fn expect_nothing(agent: &Agent, path: &str, code: &str, status: u16) -> Result<()> {
    for route in READS {
        let answer = ask(agent, path, route, &[]).await?;
        ensure!(answer.status == status, "{route:?}: {} {}", answer.status, answer.text());
        ensure!(route.0 == "HEAD" || answer.text().contains(code), "{route:?}: {}", answer.text());
    }
    Ok(())
}

/// A mirror with everything that is made of one, whose upstream then refuses with this status.
async fn refused(status: u16, spec: &[&str]) -> Result<Scene> {
    let scene =
        Scene::of(agent(), spec, async |_, origin| origin.grow("main", 3, 5_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    scene.agent.wait_settled(&scene.repo()).await?;
    // Its answer is kept, and would be given out again.
    scene.clone(&format!("before-{status}"), &[]).await?;
    scene.upstream.fault(Fault::Status(status));
    Ok(scene)
}

#[tokio::test]
async fn a_refusal_is_bridged_for_ten_minutes_and_then_nothing_is_served_by_any_route() -> Result<()> {
    for status in [401, 404] {
        let mut scene = refused(status, &[]).await?;
        let before = scene.origin.refs().await?;
        for _ in 0..4 {
            ensure!(scene.refs().await? == before, "within the grace");
        }
        ensure!(scene.freshness().await?.starts_with("stale"), "it is called stale");
        let told = scene.status().await?;
        ensure!(condition(&told, "Stale") && !condition(&told, "Withheld"), "{told}");
        let repo = scene.repo();
        let_the_grace_pass(&mut scene.agent, &repo).await?;
        let told = scene
            .agent
            .wait_status(&repo, "Withheld", |status| condition(status, "Withheld"))
            .await
            .with_context(|| format!("HTTP {status}"))?;
        ensure!(message(&told).starts_with("UpstreamRefuses: "), "{told}");
        expect_nothing(&scene.agent, &scene.path(), "UpstreamRefuses", 403).await?;
        for version in ["0", "2"] {
            let git = scene.git.clone().with_config("protocol.version", version);
            let place = scene.place(&format!("refused-{status}-{version}"));
            let (url, place) = (scene.url()?, place.display().to_string());
            let shown = git.attempt(["clone", &url, &place]).await?.stderr;
            ensure!(shown.contains("onUpstreamRefusal"), "the remedy is shown: {shown}");
        }
        ensure!(
            scene.agent.metric::<u64>("tarn_access_withheld_total{outcome=\"UpstreamRefuses\"}").await? > 0,
            "a metric tells of it"
        );
        // An outage forgives nothing, nor does a restart.
        scene.upstream.down().await;
        scene.agent.restart().await?;
        expect_nothing(&scene.agent, &scene.path(), "UpstreamRefuses", 403).await?;
        scene.upstream.up().await;
        scene.upstream.mend();
        eventually(Duration::from_secs(30), "the refs again", async || {
            ensure!(scene.refs().await? == before, "others");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        ensure!(!condition(&scene.status().await?, "Withheld"), "a look that succeeds ends it");
        scene.clone("after", &[]).await?.fsck().await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_status_that_refuses_counts_and_one_that_succeeds_takes_it_back() -> Result<()> {
    let scene = Scene::ready().await?;
    let (before, path) = (scene.origin.refs().await?, note(&scene.agent, &scene.repo())?);
    for status in [401, 403, 404, 410, 451] {
        scene.upstream.fault(Fault::Status(status));
        ensure!(scene.refs().await? == before);
        let noted: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        ensure!(noted["refusals"]["looks"].as_u64() >= Some(1), "HTTP {status}: {noted}");
        ensure!(noted["refusals"]["said"].to_string().contains(&status.to_string()), "{noted}");
        scene.upstream.mend();
        ensure!(scene.refs().await? == before);
        let noted: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        ensure!(noted["refusals"].is_null() && noted["confirmed"] == true, "HTTP {status}: {noted}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cold_agent_gets_nothing_from_a_warm_one_that_is_refused() -> Result<()> {
    let mut scene = refused(403, &[]).await?;
    let repo = scene.repo();
    outlast_the_grace(&mut scene).await?;
    scene.agent.wait_status(&repo, "Withheld", |status| condition(status, "Withheld")).await?;
    let yaml = tarn_testkit::agent::manifest("a", &scene.upstream.url("a.git"), &[]);
    let peer = format!("http://{}", scene.agent.git_address()?);
    let cold = agent().arg("--peer").arg(peer).start_with(&[("a.yaml", &yaml)]).await?;
    for route in READS {
        let answer = ask(&cold, &scene.path(), route, &[]).await?;
        ensure!(answer.status >= 400, "{route:?}: {} {}", answer.status, answer.text());
    }
    ensure!(!scene.git.attempt(["ls-remote", &cold.git_url(&repo)?]).await?.status.success());
    Ok(())
}

#[tokio::test]
async fn whoever_wants_it_serves_on_after_the_upstream_has_refused() -> Result<()> {
    let mut scene = refused(404, &["freshness: {onUpstreamRefusal: ServeStale}"]).await?;
    let (before, repo) = (scene.origin.refs().await?, scene.repo());
    outlast_the_grace(&mut scene).await?;
    for _ in 0..3 {
        ensure!(scene.refs().await? == before);
    }
    ensure!(scene.freshness().await?.starts_with("stale"));
    let told = scene.agent.wait_status(&repo, "Stale", |status| condition(status, "Stale")).await?;
    ensure!(!condition(&told, "Withheld"), "{told}");
    scene.clone("after", &[]).await?.fsck().await?;
    // The default takes effect at once.
    let yaml = tarn_testkit::agent::manifest("a", &scene.upstream.url("a.git"), &[]);
    scene.agent.write_manifest("a.yaml", &yaml)?;
    scene.agent.wait_status(&repo, "Withheld", |status| condition(status, "Withheld")).await?;
    expect_nothing(&scene.agent, &scene.path(), "UpstreamRefuses", 403).await
}

#[tokio::test]
async fn what_fails_and_does_not_refuse_is_an_outage_however_long() -> Result<()> {
    let mut scene = refused(500, &[]).await?;
    let (before, repo) = (scene.origin.refs().await?, scene.repo());
    let noted = |scene: &Scene| Ok::<_, anyhow::Error>(std::fs::read_to_string(note(&scene.agent, &repo)?)?);
    for fault in [Fault::Status(500), Fault::Status(302), Fault::Html, Fault::Status(429)] {
        scene.upstream.fault(fault);
        for _ in 0..3 {
            ensure!(scene.refs().await? == before);
        }
        ensure!(!noted(&scene)?.contains("refusals"), "{}", noted(&scene)?);
    }
    scene.agent.restart().await?;
    ensure!(scene.refs().await? == before);
    Ok(())
}

#[tokio::test]
async fn while_it_is_refused_the_upstream_is_asked_seldom() -> Result<()> {
    let mut scene = refused(403, &[]).await?;
    let repo = scene.repo();
    outlast_the_grace(&mut scene).await?;
    scene.agent.wait_status(&repo, "Withheld", |status| condition(status, "Withheld")).await?;
    scene.upstream.clear_log();
    let began = std::time::Instant::now();
    for _ in 0..100 {
        ensure!(ask(&scene.agent, &scene.path(), READS[0], &[]).await?.status == 403);
    }
    let looks = scene.upstream.count("a.git", Operation::Advertise)
        + scene.upstream.count("a.git", Operation::LsRefs);
    let most = 4 + usize::try_from(began.elapsed().as_secs())?;
    ensure!(looks <= most, "{looks} questions within {:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_push_after_the_upstream_lets_the_agent_in_again_ends_the_refusal_at_once() -> Result<()> {
    let mut scene = refused(403, &[]).await?;
    let (repo, work) =
        (scene.repo(), scene.git.clone_repo(&scene.origin.file_url(), &scene.place("work"), &[]).await?);
    outlast_the_grace(&mut scene).await?;
    scene.agent.wait_status(&repo, "Withheld", |status| condition(status, "Withheld")).await?;
    expect_nothing(&scene.agent, &scene.path(), "UpstreamRefuses", 403).await?;
    work.git(&["commit", "--quiet", "--allow-empty", "--message", "mine"]).await?;
    // A push that the upstream refuses changes nothing.
    ensure!(work.push(&scene.url()?, &["HEAD:refs/heads/main"]).await.is_err(), "it was pushed");
    ensure!(condition(&scene.status().await?, "Withheld"), "a refused push let somebody in");
    scene.upstream.mend();
    work.push(&scene.url()?, &["HEAD:refs/heads/main"]).await?;
    // Nobody has asked for anything since.
    let ended = |status: &Value| !condition(status, "Withheld");
    scene.agent.wait_status(&repo, "the refusal's end", ended).await?;
    ensure!(scene.refs().await?["refs/heads/main"] == work.rev_parse("HEAD").await?, "another commit");
    scene.clone("after", &[]).await?.fsck().await
}
