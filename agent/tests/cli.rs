//! The command line: what starts, what is refused, and in which words.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::git::{Git, Repo};
use tarn_testkit::process::{Output, command, run};

use crate::scene::{Scene, agent};

/// The agent's binary with exactly these arguments.
async fn exactly(args: &[&str], env: &[(&str, &str)]) -> Result<Output> {
    let mut agent = command(env!("CARGO_BIN_EXE_tarn-agent"));
    agent.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    agent.args(args).envs(env.iter().copied());
    run(agent, b"", Duration::from_secs(20)).await
}

/// One line of plain words that names this, and no backtrace.
fn expect_clear(what: &str, output: &Output, words: &[&str]) -> Result<()> {
    ensure!(!output.status.success(), "{what}: it ended well");
    ensure!(output.status.code().is_some(), "{what}: ended by a signal: {}", output.stderr);
    ensure!(output.stdout.is_empty(), "{what}: on stdout: {}", output.text());
    for word in words {
        ensure!(output.stderr.contains(word), "{what}: no {word:?} in {}", output.stderr);
    }
    ensure!(
        !output.stderr.contains("panicked") && !output.stderr.contains("backtrace"),
        "{what}: {}",
        output.stderr
    );
    Ok(())
}

/// Arguments, environment, and what the complaint must name.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[tokio::test]
async fn wrong_and_unknown_flags_stop_the_start_and_are_named() -> Result<()> {
    let data = tempfile::tempdir()?;
    let data = data.path().to_str().context("a plain path")?;
    let cases: [Case<'_>; 9] = [
        (&["serve", "--data", data, "--listne", "x"], &[], "--listne"),
        (&["serve", "--data", data, "--listen", "nowhere"], &[], "--listen"),
        (&["serve", "--data", data, "--admin-listen", "127.0.0.1:99999"], &[], "--admin-listen"),
        (&["serve"], &[], "--data"),
        (&["serve", "--data"], &[], "--data"),
        (&["serve", "--data", data, "extra"], &[], "extra"),
        (&["frobnicate"], &[], "frobnicate"),
        (&["serve", "--data", data], &[("TARN_AGENT_LISTEN", "nowhere")], "--listen"),
        (
            &["serve", "--data", data],
            &[("TARN_AGENT_ALLOW_FILE_UPSTREAMS", "perhaps")],
            "--allow-file-upstreams",
        ),
    ];
    for (args, env, named) in cases {
        let output = exactly(args, env).await?;
        expect_clear(&args.join(" "), &output, &[named])?;
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    Ok(())
}

#[tokio::test]
async fn several_mistakes_are_reported_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().to_str().context("a plain path")?;
    let output = exactly(
        &["serve", "--data", data, "--mirror", "ftp://example.com/a", "--mirror", "https://example.com/../b"],
        &[],
    )
    .await?;
    expect_clear("two bad mirrors", &output, &["ftp", ".."]).or_else(|_| {
        // A URL may hold a password, so naming each by its place is as good.
        expect_clear("two bad mirrors", &output, &["--mirror"])?;
        let named = output.stderr.matches("--mirror").count();
        ensure!(named >= 2, "only one of two mistakes: {}", output.stderr);
        Ok(())
    })
}

#[tokio::test]
async fn help_names_every_flag_and_its_variable_and_version_is_told() -> Result<()> {
    let help = exactly(&["serve", "--help"], &[]).await?;
    assert!(help.status.success());
    for flag in ["--manifests", "--mirror", "--data", "--listen", "--admin-listen", "--allow-file-upstreams"]
    {
        assert!(help.text().contains(flag), "{flag}");
        let variable =
            format!("TARN_AGENT_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase());
        assert!(help.text().contains(&variable), "{variable}");
    }
    for address in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        assert!(help.text().contains(address), "the default {address}");
    }
    let version = exactly(&["--version"], &[]).await?;
    assert!(version.text().contains(env!("CARGO_PKG_VERSION")), "{}", version.text());
    Ok(())
}

#[tokio::test]
async fn every_flag_can_come_from_the_environment() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let origin = Repo::seeded(dir.path().join("a.git")).await?;
    let other = Repo::seeded(dir.path().join("b.git")).await?;
    let manifests = dir.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    std::fs::write(manifests.join("a.yaml"), manifest("a", &origin.file_url(), &[]))?;
    let agent = agent()
        .through_environment()
        .env("TARN_AGENT_MANIFESTS", &manifests)
        .env("TARN_AGENT_MIRROR", other.file_url())
        .env("TARN_AGENT_ALLOW_FILE_UPSTREAMS", "true")
        .start()
        .await?;
    agent.wait_phase(&repo_id(&origin.file_url()), "Ready").await?;
    agent.wait_phase(&repo_id(&other.file_url()), "Ready").await?;
    assert!(agent.data().join("mirrors").exists(), "the data directory is the one named");
    Ok(())
}

#[tokio::test]
async fn a_mirror_on_the_command_line_is_served_like_any_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (first, second) =
        (Repo::seeded(dir.path().join("a.git")).await?, Repo::seeded(dir.path().join("b.git")).await?);
    let agent = agent()
        .without_manifests()
        .file_upstreams()
        .mirror(&first.file_url())
        .mirror(&second.file_url())
        .start()
        .await?;
    let git = Git::new()?;
    for origin in [&first, &second] {
        let repo = repo_id(&origin.file_url());
        agent.wait_phase(&repo, "Ready").await?;
        assert_eq!(git.ls_remote(&agent.git_url(&repo)?).await?, origin.refs().await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_mirror_on_the_command_line_stops_the_start() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let origin = Repo::seeded(dir.path().join("a.git")).await?;
    let output = agent().mirror(&origin.file_url()).run_to_end().await?;
    expect_clear("a file upstream", &output, &["--allow-file-upstreams"])?;
    let output = agent().mirror("not-a-url").run_to_end().await?;
    expect_clear("no URL", &output, &["--mirror"])
}

#[tokio::test]
async fn a_second_agent_on_the_same_data_directory_is_refused() -> Result<()> {
    let mut scene = Scene::ready().await?;
    let second = agent().data(scene.agent.data()).run_to_end().await?;
    expect_clear("a second agent", &second, &[&scene.agent.data().to_string_lossy(), "in use"])?;
    assert!(second.stderr.trim_end().lines().count() <= 3, "{}", second.stderr);
    scene.expect_upstream_refs().await?;
    // The lock goes with the process, however it ends.
    scene.agent.kill9().await?;
    scene.agent.start_again().await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_used_is_named_with_the_remedy() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory")?;
    for data in [file.clone(), file.join("below"), "/proc/tarn".into()] {
        let output = agent().data(&data).run_to_end().await?;
        expect_clear("data", &output, &[&data.to_string_lossy(), "--data"])?;
    }
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed)?;
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000))?;
    if std::fs::read_dir(&closed).is_ok() {
        println!("skipped: this user reads what nobody may");
        return Ok(());
    }
    let output = agent().data(&closed).run_to_end().await?;
    expect_clear("a closed directory", &output, &[&closed.to_string_lossy(), "--data"])
}

#[tokio::test]
async fn a_manifests_directory_that_is_not_there_is_named() -> Result<()> {
    let output = agent().without_manifests().arg("--manifests").arg("/nowhere/at/all").run_to_end().await?;
    expect_clear("no such directory", &output, &["/nowhere/at/all", "--manifests"])
}

#[tokio::test]
async fn a_port_in_use_is_named() -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = listener.local_addr()?;
    let data = tempfile::tempdir()?;
    let data = data.path().to_str().context("a plain path")?;
    for (mine, other) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let taken = taken.to_string();
        let mirror = "http://127.0.0.1:1/a.git";
        let args = ["serve", "--data", data, "--mirror", mirror, mine, &taken, other, "127.0.0.1:0"];
        let output = exactly(&args, &[]).await?;
        expect_clear("a port in use", &output, &[&taken])?;
    }
    drop(listener);
    Ok(())
}

/// A directory that is the whole PATH, with a `git` that is this script.
fn fake_git(dir: &Path, script: &str) -> Result<()> {
    let git = dir.join("git");
    std::fs::write(&git, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(&git, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[tokio::test]
async fn git_that_is_missing_old_or_strange_is_told_with_the_remedy() -> Result<()> {
    let path = tempfile::tempdir()?;
    let start = async || agent().env("PATH", path.path()).run_to_end().await;
    expect_clear("no git", &start().await?, &["git", "2.39"])?;
    fake_git(path.path(), "echo git version 2.30.0")?;
    expect_clear("an old git", &start().await?, &["2.30.0", "2.39"])?;
    fake_git(path.path(), "echo git version 2.38.5.windows.1")?;
    expect_clear("an old git of another build", &start().await?, &["2.38", "2.39"])?;
    fake_git(path.path(), "echo hello")?;
    expect_clear("no version", &start().await?, &["git", "2.39"])?;
    fake_git(path.path(), "exit 7")?;
    expect_clear("a git that fails", &start().await?, &["git"])
}

#[tokio::test]
async fn standard_output_holds_the_listening_line_only_and_a_stop_ends_well() -> Result<()> {
    // The line itself is what every start waits for; a stop by SIGTERM gives exit code 0.
    let mut scene = Scene::ready().await?;
    assert_eq!(scene.agent.stop().await?, 0);
    assert_eq!(scene.agent.strays(), []);
    scene.agent.start_again().await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn a_stop_lets_clients_finish_what_is_under_way() -> Result<()> {
    let mut scene =
        Scene::prepared(&[], async |_, origin| origin.grow("main", 4, 4_000_000, 1).await.map(drop)).await?;
    scene.agent.wait_phase(&scene.repo(), "Ready").await?;
    let head = scene.origin.rev_parse("main").await?;
    let mut client = scene.connect().await?;
    let body = crate::serving::fetch_request(&[&head], &["done"]);
    client.send(&crate::serving::post(&scene.path(), "git-upload-pack", &body)).await?;
    tarn_testkit::eventually::eventually(Duration::from_secs(10), "a child", async || {
        ensure!(!scene.agent.children()?.is_empty(), "none");
        Ok(())
    })
    .await?;
    let (code, answer) = tokio::join!(scene.agent.stop(), client.answer());
    assert_eq!(code?, 0);
    let answer = answer?;
    assert!(answer.status == 200 && answer.body.len() > 16_000_000, "{} bytes", answer.body.len());
    Ok(())
}
