//! The audit log: whatever content goes out, or is handed on, has its line, in the log and in the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tarn_testkit::agent::{Agent, Builder};
use tarn_testkit::eventually::eventually;
use tarn_testkit::upstream::lfs;

use crate::{
    lfs::{ATTRIBUTES, client},
    scene::{Scene, agent},
};

/// The events of the audit log, of an agent that logs as JSON.
fn lines(agent: &Agent) -> Result<Vec<Value>> {
    let events = agent.logs()?;
    let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(events.filter(|event| event["target"] == "tarn_agent::audit").collect())
}

/// Waits for a line of which this holds.
async fn line(agent: &Agent, what: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(Duration::from_secs(20), what, async || {
        let all = lines(agent)?;
        all.iter().find(|line| fits(line)).cloned().with_context(|| format!("{what} is not in {all:#?}"))
    })
    .await
}

async fn scene(agent: Builder) -> Result<Scene> {
    let scene = Scene::of(agent.arg("--log-format").arg("json"), &[], async |upstream, origin| {
        upstream.lfs().enable("token");
        let pointer = upstream.lfs().put("a.git", b"large");
        origin.commit("main", &[(".gitattributes", ATTRIBUTES), ("big.bin", &pointer)]).await.map(drop)
    })
    .await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(scene)
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_lfs_and_pushes_of_every_protocol_version_are_in_the_audit_log() -> Result<()> {
    let scene = scene(agent()).await?;
    let head = scene.origin.rev_parse("HEAD").await?;
    for version in ["0", "1", "2"] {
        let before = lines(&scene.agent)?.iter().filter(|line| line["what"] == "clone").count();
        let git = client()?.with_config("protocol.version", version);
        let clone = git.clone_repo(&scene.url()?, &scene.place(version), &[]).await?;
        let what = format!("a clone by version {version}");
        eventually(Duration::from_secs(20), &what, async || {
            let all = lines(&scene.agent)?;
            let clones: Vec<_> = all.iter().filter(|line| line["what"] == "clone").collect();
            ensure!(clones.len() == before + 1, "{all:#?}");
            let last = clones.last().context("a clone")?;
            ensure!(last["wants"].as_str().is_some_and(|wants| wants.contains(&head)), "{last}");
            ensure!(last["status"] == 200 && last["whole"] == true, "{last}");
            Ok(())
        })
        .await?;
        ensure!(std::fs::read(clone.path().join("big.bin"))? == b"large", "without its object");
    }
    let oid = lfs::oid(b"large");
    let object = line(&scene.agent, "an object", |line| line["what"] == "lfs-object").await?;
    ensure!(object["wants"] == oid.as_str() && object["bytes"] == 5, "{object}");
    let clone = client()?.clone_repo(&scene.url()?, &scene.place("pushing"), &[]).await?;
    clone.git(&["lfs", "lock", "big.bin"]).await?;
    std::fs::write(clone.path().join("new.bin"), "new content")?;
    clone.git(&["add", "new.bin"]).await?;
    clone.git(&["commit", "--quiet", "--message", "new"]).await?;
    clone.git(&["lfs", "push", "origin", "main"]).await?;
    clone.push("origin", &["main", "main:side"]).await?;
    line(&scene.agent, "a lock", |line| line["what"] == "lfs-locks" && line["wants"] == "POST locks").await?;
    let new = lfs::oid(b"new content");
    line(&scene.agent, "an upload", |line| {
        line["what"] == "lfs-upload" && line["wants"].as_str().is_some_and(|wants| wants.contains(&new))
    })
    .await?;
    let push = line(&scene.agent, "a push", |line| line["what"] == "push" && line["bytes"] != 0).await?;
    let wants = push["wants"].as_str().context("refs")?;
    ensure!(wants.contains("refs/heads/main") && wants.contains("refs/heads/side"), "{push}");
    ensure!(push["client"] == "127.0.0.1" && push["repo"] == scene.repo().as_str(), "{push}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hands_something_on_is_told_by_a_name_and_not_by_a_credential() -> Result<()> {
    let scene = scene(agent()).await?;
    let target = format!("{}/info/lfs/objects/batch", scene.path());
    let body = json!({"operation": "upload", "transfers": ["basic"], "objects": [{"oid": lfs::oid(b"x"), "size": 1}]});
    let kind = ("Content-Type", "application/vnd.git-lfs+json");
    let user = format!("ada@http+{}", scene.upstream.address().to_string().replace(':', "._"));
    let basic = BASE64_STANDARD.encode(format!("{user}:kanarienvogel"));
    let header = format!("Basic {basic}");
    let own = ("Authorization", header.as_str());
    let asked =
        scene.connect().await?.ask("POST", &target, &[kind, own], body.to_string().as_bytes()).await?;
    ensure!(asked.status == 200, "{} {}", asked.status, asked.text());
    let told = line(&scene.agent, "an upload", |line| line["what"] == "lfs-upload").await?;
    ensure!(told["by"] == "upstream", "{told}");
    ensure!(told["caller"].as_str().is_some_and(|name| name.starts_with("credential-")), "{told}");
    let logs = scene.agent.logs()?;
    ensure!(!logs.contains("kanarienvogel") && !logs.contains(&basic), "a credential is in the log");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_of_the_upstream_or_a_client_forges_no_line_in_any_format() -> Result<()> {
    for format in ["text", "json"] {
        let scene = Scene::of(agent().arg("--log-format").arg(format), &[], async |_, _| Ok(())).await?;
        scene.agent.wait_phase(&scene.repo(), "Ready").await?;
        // A push names a ref as no ref can be called.
        let zero = "0".repeat(40);
        let forged = "x\n2026-01-01T00:00:00Z  INFO tarn_agent::audit: served caller=\"forged\"\r\u{1b}[2K\u{202e}\u{85}\u{2028}";
        let command = format!("{zero} {} {forged}\0 report-status", "1".repeat(40));
        let body = format!("{:04x}{command}0000", command.len() + 4);
        let kind = [("Content-Type", "application/x-git-receive-pack-request")];
        let target = format!("{}/git-receive-pack", scene.path());
        scene.connect().await?.ask("POST", &target, &kind, body.as_bytes()).await?;
        let logs = eventually(Duration::from_secs(20), "the push", async || {
            let logs = scene.agent.logs()?;
            ensure!(logs.contains("forged"), "not yet");
            Ok(logs)
        })
        .await?;
        ensure!(!logs.lines().any(|line| line.starts_with("2026-01-01")), "{logs}");
        let odd = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{2028}' | '\u{202e}');
        ensure!(!logs.contains(odd), "{format}: {logs:?}");
        if format == "json" {
            for line in logs.lines() {
                serde_json::from_str::<Value>(line).with_context(|| line.to_owned())?;
            }
            let push = lines(&scene.agent)?.into_iter().find(|line| line["what"] == "push");
            let wants = push.as_ref().and_then(|push| push["wants"].as_str()).context("a push")?;
            ensure!(wants == forged, "another text: {wants:?}");
        }
    }
    Ok(())
}

/// The batches of the audit log in a directory, by their names.
fn batches(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() { found.extend(batches(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_before_the_end_is_in_the_stores_audit_log() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("store");
    let mut scene = scene(agent().arg("--store").arg(&store).arg("--audit-store")).await?;
    for name in ["one", "two"] {
        client()?.clone_repo(&scene.url()?, &scene.place(name), &[]).await?;
    }
    line(&scene.agent, "an object", |line| line["what"] == "lfs-object").await?;
    let told = lines(&scene.agent)?;
    scene.agent.stop().await?;
    let found = batches(&store.join("audit"))?;
    // More than one where this took more than a minute.
    let first = found.first().context("no batch")?;
    let name = first.strip_prefix(&store)?.to_string_lossy().into_owned();
    // audit/yyyy/mm/dd/agent-time.jsonl.zst
    let parts: Vec<_> = name.split('/').collect();
    ensure!(parts.len() == 5 && parts[4].ends_with("Z.jsonl.zst"), "{name}");
    let mut text = String::new();
    for batch in &found {
        text.push_str(&String::from_utf8(zstd::stream::decode_all(&std::fs::read(batch)?[..])?)?);
    }
    let stored: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(stored.len() >= told.len(), "{} of {}: {text}", stored.len(), told.len());
    for (stored, told) in stored.iter().zip(&told) {
        for field in ["caller", "by", "client", "repo", "what", "wants", "status", "bytes", "whole", "cache"]
        {
            ensure!(stored[field] == told[field], "{field}: {stored} {told}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_audit_log_makes_no_answer_wait() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("store");
    std::fs::create_dir(&store)?;
    // Where the batches are to be, there is a file.
    std::fs::write(store.join("audit"), "")?;
    let mut scene = scene(agent().arg("--store").arg(&store).arg("--audit-store")).await?;
    client()?.clone_repo(&scene.url()?, &scene.place("one"), &[]).await?;
    line(&scene.agent, "a clone", |line| line["what"] == "clone").await?;
    ensure!(scene.agent.stop().await? == 0, "it did not end well");
    let logs = scene.agent.logs()?;
    ensure!(logs.contains("a batch of the audit log is not in the store yet"), "nobody is told");
    Ok(())
}
