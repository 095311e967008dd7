//! What the agent knows stays in its memory: not even git's children, which are of the same user, may look into it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tarn_testkit::agent::{Agent, Builder, PATIENCE};
use tarn_testkit::process::{command, run};

/// In front of a program: without the rights of root to look into every process. For other users it changes nothing.
const WITHOUT_RIGHTS: &str = "setpriv --inh-caps=-all --bounding-set=-all";

async fn started(dir: &Path, debuggable: &str) -> Result<Agent> {
    let script = dir.join("agent");
    let binary = env!("CARGO_BIN_EXE_tarn-agent");
    std::fs::write(&script, format!("#!/bin/sh\nexec {} '{binary}' \"$@\"\n", prefix()))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Builder::new(script).env("TARN_AGENT_DEBUGGABLE", debuggable).start().await
}

fn prefix() -> &'static str {
    if rustix::process::geteuid().is_root() { WITHOUT_RIGHTS } else { "" }
}

/// Whether another process of the same user can read the agent's environment, where the keys of a bucket are.
async fn is_open(agent: &Agent) -> Result<bool> {
    let mut reader = command("/bin/sh");
    reader.args(["-c", &format!("{} cat /proc/{}/environ", prefix(), agent.pid()?)]);
    let read = run(reader, b"", PATIENCE).await?;
    ensure!(read.status.success() || read.stderr.contains("denied"), "{}", read.stderr);
    Ok(read.status.success())
}

#[tokio::test]
async fn no_process_of_the_same_user_and_no_core_dump_has_the_agents_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path(), "false").await?;
    ensure!(!is_open(&agent).await?, "another process reads the environment");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid()?))?;
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit")?;
    ensure!(line.split_ascii_whitespace().filter(|word| *word == "0").count() == 2, "{line}");
    drop(agent);
    // Who wants to debug it says so.
    ensure!(is_open(&started(dir.path(), "true").await?).await?, "--debuggable changes nothing");
    Ok(())
}
