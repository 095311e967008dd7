//! `ensure-refs`: refs and commits are on the disk, or proven not to be upstream, when it answers.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::scene::Scene;

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
