//! Names of upstreams that lead, or begin to lead, where no upstream is.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Builder, PATIENCE, manifest, repo_id};
use tarn_testkit::eventually::eventually;
use tarn_testkit::process::{command, run};
use tarn_testkit::trap::Trap;
use tarn_testkit::upstream::Upstream;

use crate::scene::{agent, message};

/// Names as the owner of a zone has them: a file in the place of the machine's own, for one agent. None where this user may
/// not have that.
struct Names(tempfile::TempDir);

impl Names {
    #[expect(clippy::print_stdout, reason = "the test runner shows why nothing was tested")]
    async fn new() -> Result<Option<Self>> {
        let names = Self(tempfile::tempdir()?);
        names.set(&[])?;
        let mut may = command("unshare");
        may.args(Self::WAY).arg(names.file()).arg("true");
        if run(may, b"", PATIENCE).await?.status.success() {
            return Ok(Some(names));
        }
        println!("skipped: this user may not have names of its own");
        Ok(None)
    }

    /// The file is put there, and then the program that follows takes over.
    const WAY: [&str; 5] =
        ["--map-root-user", "--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""];

    fn file(&self) -> PathBuf {
        self.0.path().join("hosts")
    }

    /// From now on these names lead to these addresses.
    fn set(&self, names: &[(&str, &str)]) -> Result<()> {
        let lines = names.iter().map(|(name, address)| format!("{address} {name}\n"));
        Ok(std::fs::write(self.file(), lines.collect::<String>())?)
    }

    /// An agent that knows these names.
    fn known_to(&self, agent: Builder) -> Builder {
        let way = Self::WAY.map(OsString::from).into_iter().chain([self.file().into()]);
        agent.through("unshare", way)
    }
}

#[tokio::test]
async fn a_name_that_leads_to_this_machine_or_the_link_is_not_asked_though_it_is_the_upstreams() -> Result<()>
{
    let Some(names) = Names::new().await? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    upstream.seed("a.git").await?;
    let port = upstream.address().port();
    let all = [
        ("loopback.example", "127.0.0.1"),
        ("another.example", "127.9.9.9"),
        ("six.example", "::1"),
        ("mapped.example", "::ffff:127.0.0.1"),
        ("unspecified.example", "0.0.0.0"),
        ("metadata.example", "169.254.169.254"),
        ("azure.example", "168.63.129.16"),
    ];
    names.set(&all)?;
    let url = |name: &str| format!("http://{name}:{port}/a.git");
    let yaml: Vec<String> =
        all.iter().map(|(name, _)| manifest(&name.replace('.', "-"), &url(name), &[])).collect();
    let agent = names.known_to(agent()).start_with(&[("all.yaml", &yaml.join("---\n"))]).await?;
    for (name, address) in all {
        let status = agent.wait_phase(&repo_id(&url(name)), "Backoff").await?;
        ensure!(message(&status).contains("--allow-upstream"), "{name}: {status}");
        ensure!(
            !status.to_string().contains(address),
            "the agent's resolver is of nobody's concern: {status}"
        );
    }
    ensure!(upstream.log().is_empty(), "{:?}", upstream.log());
    // Whoever looks after the agent may say that it belongs there.
    let agent = names.known_to(crate::scene::agent()).arg("--allow-upstream").arg("loopback.example");
    let agent = agent.start_with(&[("all.yaml", &yaml[0])]).await?;
    agent.wait_phase(&repo_id(&url("loopback.example")), "Ready").await?;
    Ok(())
}

#[tokio::test]
async fn a_name_that_begins_to_lead_to_this_machine_is_not_asked_though_it_is_the_upstreams() -> Result<()> {
    let Some(names) = Names::new().await? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start(dir.path())?;
    let origin = upstream.seed("a.git").await?;
    let port = upstream.address().port();
    let trap = Trap::start_on(SocketAddr::from(([127, 0, 0, 2], port)), None)?;
    names.set(&[("moving.example", "127.0.0.1")])?;
    let url = format!("http://moving.example:{port}/a.git");
    let agent = names.known_to(agent()).arg("--allow-upstream").arg("127.0.0.1");
    let agent =
        agent.start_with(&[("a.yaml", &manifest("a", &url, &["freshness: {maxStaleness: 0s}"]))]).await?;
    let (repo, git) = (repo_id(&url), tarn_testkit::git::Git::new()?);
    agent.wait_phase(&repo, "Ready").await?;
    let before = origin.refs().await?;
    // Its owner moves it, and lets the connections end that there are.
    names.set(&[("moving.example", "127.0.0.2")])?;
    upstream.down().await;
    upstream.up().await;
    upstream.clear_log();
    origin.commit("main", &[("f", "2")]).await?;
    for _ in 0..3 {
        ensure!(git.ls_remote(&agent.git_url(&repo)?).await? == before, "stale, and nothing else");
    }
    let status =
        agent.wait_status(&repo, "why", |status| message(status).contains("--allow-upstream")).await?;
    ensure!(trap.met() == 0 && upstream.log().is_empty(), "{status}: {:?}", trap.heard());
    // It comes back.
    names.set(&[("moving.example", "127.0.0.1")])?;
    let pushed = origin.rev_parse("main").await?;
    eventually(PATIENCE, "the new commit", async || {
        let seen = git.ls_remote(&agent.git_url(&repo)?).await?;
        ensure!(seen["refs/heads/main"] == pushed, "{seen:?}");
        Ok(())
    })
    .await?;
    ensure!(trap.met() == 0, "{:?}", trap.heard());
    Ok(())
}
