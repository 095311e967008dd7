//! Passwords in URLs, and what is said of the command line.

use anyhow::Result;
use tarn_testkit::upstream::Auth;

use crate::scene::Scene;

#[tokio::test]
async fn a_password_logs_in_to_the_upstream_and_is_written_nowhere() -> Result<()> {
    let scene = Scene::small().await?;
    scene.upstream.require(Auth::Basic { user: "ada".into(), password: "can@ary".into() });
    let url = scene.url().replace("//", "//ada:can%40ary@");
    let mut command = scene.command(&[&url, "a", "--json", "--server", "http://127.0.0.1:1"])?;
    let trace = scene.dir.path().join("trace");
    command.env("GIT_TRACE", &trace);
    let output = tarn_testkit::process::run(command, b"", std::time::Duration::from_secs(60)).await?;
    assert!(output.status.success(), "{}", output.stderr);
    // Git names every child with its arguments there.
    let arguments = std::fs::read_to_string(trace)?;
    let config = std::fs::read_to_string(scene.work().join("a/.git/config"))?;
    assert!(config.contains(&scene.url()) && arguments.contains("GIT_TARN_LOGIN"), "{config}");
    for text in [&arguments, &config, &output.stderr, &output.text()] {
        assert!(!text.contains("can@ary") && !text.contains("can%40ary"), "{text}");
    }
    assert_eq!(scene.left()?, ["a"]);
    Ok(())
}

#[tokio::test]
async fn a_command_that_makes_no_sense_ends_with_2() -> Result<()> {
    let scene = Scene::small().await?;
    let url = scene.url();
    let secret = scene.proxy.url().replace("//", "//ada:canary@");
    for (args, says) in [
        (&[][..], "<URL>"),
        (&[&*url, "--jobs", "99"], "--jobs"),
        (&[&url, "--commit", "abc"], "full hash"),
        (&[&url, "--server", "tarn.example"], "http:// or https://"),
        (&[&url, "--server", &secret], "without user"),
        (&["https://"], "directory"),
        (&["ssh://git:canary@h/a"], "must not contain a password"),
    ] {
        let output = scene.tarn(args).await?;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", output.stderr);
        assert!(
            output.stderr.contains(says) && !output.stderr.contains("canary"),
            "{args:?}: {}",
            output.stderr
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_server_is_found_by_flag_variable_and_configuration() -> Result<()> {
    let scene = Scene::small().await?;
    let url = scene.url();
    let run = async |variable: Option<&str>, config: Option<&str>| {
        let mut command = scene.command(&["--json", "--no-fallback", &url, "a"])?;
        command.env_remove("TARN_URL");
        command.envs(variable.map(|url| ("TARN_URL", url)));
        let file = scene.dir.path().join("gitconfig");
        let text = config.map(|url| format!("[tarn]\n\turl = {url}\n")).unwrap_or_default();
        std::fs::write(&file, text)?;
        command.env("GIT_CONFIG_GLOBAL", file);
        let output = tarn_testkit::process::run(command, b"", std::time::Duration::from_secs(60)).await?;
        let _ = std::fs::remove_dir_all(scene.work().join("a"));
        anyhow::Ok(output)
    };
    let right = scene.proxy.url();
    assert!(run(Some(&right), Some("http://127.0.0.1:1")).await?.status.success());
    assert!(run(Some(""), Some(&right)).await?.status.success());
    assert!(run(None, Some(&right)).await?.status.success());
    let unknown = run(None, None).await?;
    assert_eq!(unknown.status.code(), Some(2));
    for name in ["--server", "TARN_URL", "tarn.url"] {
        assert!(unknown.stderr.contains(name), "{}", unknown.stderr);
    }
    Ok(())
}
