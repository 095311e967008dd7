//! Nothing of the machine's or the user's git configuration changes what the agent does, and nobody is asked.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::{Auth, Upstream};

use crate::scene::agent;

#[tokio::test]
async fn no_configuration_and_no_variable_of_git_around_the_agent_is_used() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("upstream");
    std::fs::create_dir(&root)?;
    let upstream = Upstream::start(&root)?;
    let origin = upstream.seed("a.git").await?;
    // Anyone who reads this configuration goes nowhere, or leaves a trace.
    let canary = dir.path().join("canary");
    let poison = format!(
        "[url \"http://127.0.0.1:9/\"]\n\tinsteadOf = http://127.0.0.1:{port}/\n[core]\n\tfsmonitor = touch {canary}\n\
         \tsshCommand = touch {canary}\n\thooksPath = {hooks}\n[credential]\n\thelper = !touch {canary}\n\
         [uploadpack]\n\tpackObjectsHook = touch {canary}\n[protocol]\n\tversion = 0\n[fetch]\n\tfsckObjects = true\n\
         [http]\n\tproxy = http://127.0.0.1:9\n",
        port = upstream.address().port(),
        canary = canary.display(),
        hooks = dir.path().display(),
    );
    let home = dir.path().join("home");
    std::fs::create_dir_all(home.join(".config/git"))?;
    for file in [".gitconfig", ".config/git/config", "other"] {
        std::fs::write(home.join(file), &poison)?;
    }
    let agent = agent()
        .env("HOME", &home)
        .env("XDG_CONFIG_HOME", home.join(".config"))
        .env("GIT_CONFIG_GLOBAL", home.join("other"))
        .env("GIT_CONFIG_SYSTEM", home.join("other"))
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "url.http://127.0.0.1:9/.insteadOf")
        .env("GIT_CONFIG_VALUE_0", format!("http://{}/", upstream.address()))
        .env("GIT_CONFIG_PARAMETERS", "'url.http://127.0.0.1:9/.insteadof'='http://127.0.0.1'")
        .env("GIT_DIR", "/nowhere")
        .env("GIT_WORK_TREE", "/nowhere")
        .env("GIT_OBJECT_DIRECTORY", "/nowhere")
        .env("GIT_INDEX_FILE", "/nowhere")
        .env("GIT_NAMESPACE", "elsewhere")
        .env("GIT_PROTOCOL", "version=9")
        .env("GIT_TRACE", dir.path().join("trace"))
        .env("GIT_TEMPLATE_DIR", &home)
        .env("GIT_DEFAULT_HASH", "sha256")
        .start_with(&[("a.yaml", &manifest("a", &upstream.url("a.git"), &[]))])
        .await?;
    let repo = repo_id(&upstream.url("a.git"));
    agent.wait_phase(&repo, "Ready").await?;
    origin.commit("main", &[("f", "2")]).await?;
    let git = Git::new()?;
    assert_eq!(git.ls_remote(&agent.git_url(&repo)?).await?, origin.refs().await?);
    git.clone_repo(&agent.git_url(&repo)?, &dir.path().join("clone"), &[]).await?.fsck().await?;
    assert!(!canary.exists(), "a program of the configuration was run");
    assert!(!dir.path().join("trace").exists(), "a variable of git's reached git");
    Ok(())
}

#[tokio::test]
async fn nobody_is_asked_for_a_password() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("upstream");
    std::fs::create_dir(&root)?;
    let upstream = Upstream::start(&root)?;
    upstream.seed("a.git").await?;
    upstream.require(Auth::Basic { user: "ada".into(), password: "secret".into() });
    let (ask, asked) = (dir.path().join("ask"), dir.path().join("asked"));
    std::fs::write(&ask, format!("#!/bin/sh\necho \"$@\" >> {}\necho secret\n", asked.display()))?;
    std::fs::set_permissions(&ask, std::fs::Permissions::from_mode(0o755))?;
    let agent = agent()
        .env("GIT_ASKPASS", &ask)
        .env("SSH_ASKPASS", &ask)
        .env("DISPLAY", ":0")
        .env("GIT_TERMINAL_PROMPT", "1")
        .start_with(&[("a.yaml", &manifest("a", &upstream.url("a.git"), &[]))])
        .await?;
    let status = agent.wait_phase(&repo_id(&upstream.url("a.git")), "Backoff").await?;
    ensure!(!asked.exists(), "somebody was asked: {}", std::fs::read_to_string(&asked)?);
    ensure!(!status["message"].as_str().unwrap_or_default().is_empty(), "{status}");
    Ok(())
}
