//! Upstreams over ssh: git gets the Secret's key and host keys in private files, and new ones when they change. What
//! stands on PATH as `ssh` looks at what it is given, and runs git where the far end would.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::manifest;
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::{Git, Repo};

use super::credentials::{CANARY, expect_no_canary};
use crate::scene::{agent, message};

const URL: &str = "ssh://git@git.example/o/a.git";
const REPO: &str = "git.example/o/a";

/// A program that admits who comes with the key in `accepted`, to the repositories below `root`.
fn ssh(dir: &Path) -> Result<()> {
    let script = format!(
        "#!/bin/sh\n\
         cd '{dir}' || exit 255\n\
         printf '%s\\n' \"$*\" >>arguments\n\
         while :; do case \"$1\" in\n\
           -i) cp \"$2\" key; stat -c %a \"$2\" >mode; shift 2;;\n\
           -oUserKnownHostsFile=*) cp \"${{1#*=}}\" hosts; shift;;\n\
           -o|-p|-F) shift 2;;\n\
           -*) shift;;\n\
           *) break;;\n\
         esac; done\n\
         shift\n\
         cmp -s key accepted || {{ echo 'git@git.example: Permission denied (publickey).' >&2; exit 255; }}\n\
         eval \"set -- $*\"\n\
         exec git upload-pack \"root$2\"\n",
        dir = dir.display()
    );
    let path = dir.join("bin/ssh");
    std::fs::create_dir_all(dir.join("bin"))?;
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn yaml(key: &str) -> String {
    let spec = ["secretRef: {name: creds}", "access: Anonymous", "interval: 10s"];
    format!(
        "{}---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: creds\n  labels: {{tarn.dev/credentials: 'true'}}\n  \
         annotations: {{tarn.dev/hosts: git.example}}\nstringData:\n  identity: |\n    {key}\n    second line\n  \
         known_hosts: git.example ssh-ed25519 AAAA\n",
        manifest("a", URL, &spec)
    )
}

#[tokio::test]
async fn a_key_for_ssh_is_used_kept_private_and_rotated_without_a_restart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    ssh(dir.path())?;
    let origin = Repo::seeded(dir.path().join("root/o/a.git")).await?;
    let accept = |key: &str| std::fs::write(dir.path().join("accepted"), format!("{key}\nsecond line\n"));
    let (first, second) = (format!("{CANARY}-1"), format!("{CANARY}-2"));
    accept(&first)?;
    let path = std::env::var("PATH").context("PATH")?;
    let agent = agent().env("PATH", format!("{}:{path}", dir.path().join("bin").display()));
    let agent = agent.env("TARN_AGENT_LOG", "trace").start_with(&[("a.yaml", &yaml(&first))]).await?;
    agent.wait_ready(&[REPO]).await?;
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name));
    ensure!(read("mode")?.trim() == "600", "others may read the key: {}", read("mode")?);
    ensure!(read("hosts")?.trim() == "git.example ssh-ed25519 AAAA", "{}", read("hosts")?);
    let arguments = read("arguments")?;
    ensure!(!arguments.contains(CANARY), "{arguments}");
    ensure!(
        arguments.contains("-oStrictHostKeyChecking=yes") && arguments.contains("-oBatchMode=yes"),
        "{arguments}"
    );
    expect_no_canary(&agent).await?;

    // Another key from now on.
    accept(&second)?;
    let refused = |status: &serde_json::Value| message(status).starts_with("AuthenticationFailed");
    agent.fetch_now(REPO).await?;
    agent.wait_status(REPO, "the refusal", refused).await?;
    let pushed = origin.commit("main", &[("f", "2")]).await?;
    agent.write_manifest("a.yaml", &yaml(&second))?;
    let (git, url) = (Git::new()?, agent.git_url(REPO)?);
    eventually(Duration::from_secs(30), "the push", async || {
        let refs = git.ls_remote(&url).await?;
        ensure!(refs.get("HEAD") == Some(&pushed), "{refs:?}");
        Ok(())
    })
    .await?;
    let clone = git.clone_repo(&url, &dir.path().join("clone"), &[]).await?;
    ensure!(clone.rev_parse("HEAD").await? == pushed, "old");
    expect_no_canary(&agent).await
}

#[tokio::test]
async fn what_ssh_says_reaches_whoever_reads_the_status() -> Result<()> {
    for (line, reason) in [
        ("ssh: connect to host git.example port 22: No route to host", "UpstreamUnreachable"),
        ("kex_exchange_identification: Connection closed by remote host", "UpstreamUnreachable"),
        ("Load key: error in libcrypto", "AuthenticationFailed"),
        ("fatal: write error: No space left on device", "GitFailed"),
    ] {
        let dir = tempfile::tempdir()?;
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin)?;
        let script = format!("#!/bin/sh\necho 'banner' >&2\necho '{line}' >&2\nexit 255\n");
        std::fs::write(bin.join("ssh"), script)?;
        std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755))?;
        let path = std::env::var("PATH").context("PATH")?;
        let agent = agent().env("PATH", format!("{}:{path}", bin.display()));
        let agent = agent.start_with(&[("a.yaml", &yaml("key"))]).await?;
        let told = |status: &serde_json::Value| {
            message(status).starts_with(reason) && message(status).contains(line)
        };
        agent.wait_status(REPO, line, told).await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_key_and_no_configuration_of_the_agents_user_is_used_for_ssh() -> Result<()> {
    for (yaml, key) in [(manifest("a", URL, &["interval: 10s"]), "none"), (yaml("key"), ".key")] {
        let dir = tempfile::tempdir()?;
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin)?;
        // The real ssh says what it would do, with a home that has keys and a configuration.
        let script =
            format!("#!/bin/sh\n/usr/bin/ssh -G \"$@\" >'{}/told' 2>&1\nexit 255\n", dir.path().display());
        std::fs::write(bin.join("ssh"), script)?;
        std::fs::set_permissions(bin.join("ssh"), std::fs::Permissions::from_mode(0o755))?;
        let path = std::env::var("PATH").context("PATH")?;
        let agent = agent().env("PATH", format!("{}:{path}", bin.display()));
        let agent = agent.start_with(&[("a.yaml", &yaml)]).await?;
        let told = eventually(Duration::from_secs(20), "ssh to be started", async || {
            let told = std::fs::read_to_string(dir.path().join("told"))?;
            ensure!(told.contains("identityfile "), "{told}");
            Ok::<_, anyhow::Error>(told)
        })
        .await?;
        let keys: Vec<_> = told.lines().filter_map(|line| line.strip_prefix("identityfile ")).collect();
        ensure!(keys.len() == 1 && keys[0].ends_with(key), "{keys:?}");
        for line in ["identitiesonly yes", "identityagent none", "batchmode yes"] {
            ensure!(told.lines().any(|told| told == line), "{line}: {told}");
        }
        drop(agent);
    }
    Ok(())
}
