//! `ensure-refs`: refs and commits are on the disk, or proven not to be upstream, when it answers.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use tarn_testkit::upstream::Operation;

use crate::scene::Scene;

/// Requests that the upstream has had: looks, and fetches.
fn asked(scene: &Scene) -> (usize, usize) {
    let count = |operation| scene.upstream.count("a.git", operation);
    (count(Operation::LsRefs), count(Operation::Fetch))
}

/// Names of commits that nobody has.
fn nowhere(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("{number:040x}")).collect()
}

async fn ask(scene: &Scene, body: &str) -> Result<(u16, String)> {
    let target = format!("{}/ensure-refs", scene.path());
    let mut connection = scene.connect().await?;
    let headers = [("Content-Type", "application/json")];
    let answer = connection.ask("POST", &target, &headers, body.as_bytes()).await?;
    Ok((answer.status, answer.text()))
}

async fn found(scene: &Scene, body: &Value) -> Result<Value> {
    let (status, text) = ask(scene, &body.to_string()).await?;
    ensure!(status == 200, "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

#[tokio::test]
async fn what_was_just_pushed_is_there_when_it_answers() -> Result<()> {
    let scene = Scene::ready().await?;
    let pushed = scene.origin.commit("topic", &[("f", "1")]).await?;
    let answer = found(&scene, &json!({"refs": {"refs/heads/topic": pushed, "refs/heads/main": ""}})).await?;
    assert_eq!(answer["refs"]["refs/heads/topic"], pushed);
    assert_eq!((&answer["missing_commits"], &answer["fetched"]), (&json!([]), &json!(true)));
    let mirror = crate::p4_never_stuck::mirror_dir(&scene.agent)?;
    let there = tarn_testkit::git::Repo::open(scene.git.clone(), mirror);
    there.git(&["cat-file", "-e", &pushed]).await?;
    let again = found(&scene, &json!({"refs": {"refs/heads/topic": ""}})).await?;
    assert_eq!(again["fetched"], false);
    Ok(())
}

#[tokio::test]
async fn what_nobody_has_is_named_as_missing() -> Result<()> {
    let scene = Scene::ready().await?;
    let (head, nowhere) = (scene.origin.rev_parse("main").await?, "1".repeat(40));
    let body = json!({"refs": {"refs/heads/none": ""}, "commits": [nowhere, head]});
    let answer = found(&scene, &body).await?;
    assert_eq!(answer["refs"], json!({}));
    assert_eq!(answer["missing_commits"], json!([nowhere]));
    Ok(())
}

#[tokio::test]
async fn a_commit_that_no_ref_leads_to_is_fetched_by_name() -> Result<()> {
    let scene = Scene::ready().await?;
    let hidden = scene.origin.commit("hidden", &[("f", "1")]).await?;
    scene.origin.delete_ref("refs/heads/hidden").await?;
    let answer = found(&scene, &json!({"commits": [hidden]})).await?;
    assert_eq!(answer["missing_commits"], json!([]));
    Ok(())
}

#[tokio::test]
async fn nonsense_is_refused_in_one_line() -> Result<()> {
    let scene = Scene::ready().await?;
    for body in ["", "[]", "{\"commits\": [\"abc\"]}", "{\"commit\": []}", "{\"refs\": {\"x\": 1}}"] {
        let (status, text) = ask(&scene, body).await?;
        ensure!(status == 400 && text.trim_end().lines().count() == 1, "{body}: {status} {text}");
    }
    Ok(())
}

#[tokio::test]
async fn commits_that_are_here_need_no_upstream_and_refs_do() -> Result<()> {
    let scene = Scene::ready().await?;
    let head = scene.origin.rev_parse("main").await?;
    scene.upstream.down().await;
    let answer = found(&scene, &json!({"commits": [head]})).await?;
    assert_eq!((&answer["missing_commits"], &answer["fetched"]), (&json!([]), &json!(false)));
    for body in [json!({"refs": {"refs/heads/main": ""}}), json!({"commits": [head, "1".repeat(40)]})] {
        let (status, text) = ask(&scene, &body.to_string()).await?;
        ensure!(status == 503, "{body}: {status} {text}");
    }
    Ok(())
}

#[tokio::test]
async fn two_thousand_unknown_commits_cost_one_look_and_a_few_fetches() -> Result<()> {
    let scene = Scene::ready().await?;
    let head = scene.origin.rev_parse("main").await?;
    let nowhere = nowhere(2000);
    scene.upstream.clear_log();
    let named = [nowhere.as_slice(), &[head]].concat();
    let answer = found(&scene, &json!({"commits": named, "refs": {"refs/heads/main": ""}})).await?;
    assert_eq!(answer["missing_commits"], json!(nowhere));
    let (looks, fetches) = asked(&scene);
    ensure!(looks == 1 && (1..=16).contains(&fetches), "{looks} looks, {fetches} fetches");
    Ok(())
}

#[tokio::test]
async fn known_and_unknown_commits_that_no_ref_leads_to_are_told_apart() -> Result<()> {
    let scene = Scene::ready().await?;
    let mut hidden = Vec::new();
    for number in 0..3 {
        hidden.push(scene.origin.commit("hidden", &[("h", &number.to_string())]).await?);
    }
    scene.origin.delete_ref("refs/heads/hidden").await?;
    let nowhere = nowhere(2);
    scene.upstream.clear_log();
    let all = [hidden.as_slice(), nowhere.as_slice()].concat();
    let answer = found(&scene, &json!({ "commits": all })).await?;
    assert_eq!(answer["missing_commits"], json!(nowhere));
    let (looks, fetches) = asked(&scene);
    ensure!(looks == 1 && fetches <= 4, "{looks} looks, {fetches} fetches");
    // They are here now.
    scene.upstream.down().await;
    assert_eq!(found(&scene, &json!({"commits": hidden})).await?["missing_commits"], json!([]));
    Ok(())
}

#[tokio::test]
async fn an_unknown_commit_is_not_asked_for_again_until_the_refs_move() -> Result<()> {
    let scene = Scene::ready().await?;
    let body = json!({"commits": nowhere(1)});
    scene.upstream.clear_log();
    for _ in 0..3 {
        assert_eq!(found(&scene, &body).await?["missing_commits"], json!(nowhere(1)));
    }
    assert_eq!(asked(&scene).1, 1, "fetches for three requests");
    scene.origin.commit("main", &[("f", "moved")]).await?;
    found(&scene, &body).await?;
    // One for what has moved, and one for the commit.
    assert_eq!(asked(&scene).1, 3);
    Ok(())
}
