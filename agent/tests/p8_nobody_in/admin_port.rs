//! The admin port: probes and metrics for everybody, names and orders for those who may.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tarn_testkit::agent::{Agent, LOCAL, manifest, repo_id};
use tarn_testkit::git::Git;
use tarn_testkit::upstream::Upstream;
use tarn_testkit::wire::{Answer, Connection};
use tokio::net::TcpSocket;

use crate::scene::agent;

/// A caller of a private mirror.
const CALLER: &str = "kanarienvogel-of-a-caller";
/// Who looks after the agent.
const ADMINISTRATOR: &str = "kanarienvogel-of-an-administrator";

/// A connection to the admin port from another address than the agent's machine has for itself.
async fn from_elsewhere(agent: &Agent) -> Result<Connection> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 77], 0)))?;
    Connection::over(socket.connect(agent.admin_address()?).await?)
}

/// Asks the admin port from elsewhere, with a bearer token or without.
pub(crate) async fn stranger(
    agent: &Agent,
    method: &str,
    target: &str,
    token: Option<&str>,
) -> Result<Answer> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
    from_elsewhere(agent).await?.ask(method, target, &[&[LOCAL][..], &headers].concat(), b"").await
}

/// An agent with a public mirror and a private one, and the names of both.
async fn both() -> Result<(Agent, Upstream, [String; 2], tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("upstream");
    std::fs::create_dir(&root)?;
    let upstream = Upstream::start(&root)?;
    let mut repos = Vec::new();
    for name in ["public", "private"] {
        upstream.seed(&format!("{name}.git")).await?;
        repos.push(repo_id(&upstream.url(&format!("{name}.git"))));
    }
    let file = |name: &str, token: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("{name} {token}\n")).map(|()| path.to_string_lossy().into_owned())
    };
    let (tokens, admin_tokens) = (file("tokens", CALLER)?, file("admin-tokens", ADMINISTRATOR)?);
    let public = manifest("public", &upstream.url("public.git"), &[]);
    let private = manifest("private", &upstream.url("private.git"), &["access: Authenticated"]);
    let agent = agent().arg("--tokens").arg(tokens).arg("--admin-tokens").arg(admin_tokens);
    let agent = agent.start_with(&[("public.yaml", &public), ("private.yaml", &private)]).await?;
    agent.wait_ready(&[&repos[0], &repos[1]]).await?;
    let repos = [repos[0].clone(), repos[1].clone()];
    Ok((agent, upstream, repos, dir))
}

#[tokio::test]
async fn strangers_have_probes_and_metrics_and_learn_no_private_name() -> Result<()> {
    let (agent, upstream, [public, private], _dir) = both().await?;
    for probe in ["/healthz", "/readyz"] {
        ensure!(stranger(&agent, "GET", probe, None).await?.status == 200, "{probe}");
    }
    let metrics = stranger(&agent, "GET", "/metrics", None).await?;
    ensure!(metrics.status == 200 && metrics.text().contains(&public), "{}", metrics.text());
    ensure!(metrics.text().contains("tarn_mirror_ready{mirror=\"hidden-"), "an alert needs a series");
    ensure!(metrics.text().contains("# TYPE tarn_cluster_watch_errors counter"), "{}", metrics.text());
    ensure!(!metrics.text().contains("private"), "{}", metrics.text());
    let seen = upstream.log().len();
    let (fetch, checkpoint) = (format!("/mirrors/{private}/fetch"), format!("/mirrors/{private}/checkpoint"));
    for (method, target) in [
        ("GET", "/status"),
        ("HEAD", "/status"),
        ("POST", &*fetch),
        ("POST", &*checkpoint),
        ("GET", "/nothing"),
    ] {
        for token in [None, Some(CALLER), Some("made-up-and-long-enough")] {
            let refused = stranger(&agent, method, target, token).await?;
            ensure!(
                refused.status == 401,
                "{method} {target} {token:?}: {} {}",
                refused.status,
                refused.text()
            );
            ensure!(refused.header("www-authenticate").is_some(), "{refused:?}");
            ensure!(!refused.text().contains("private"), "{}", refused.text());
        }
    }
    // A token that opens nothing is not taken for none.
    ensure!(stranger(&agent, "GET", "/metrics", Some(CALLER)).await?.status == 401);
    ensure!(upstream.log().len() == seen, "an order was followed");
    Ok(())
}

#[tokio::test]
async fn an_administrators_token_opens_status_orders_and_all_names() -> Result<()> {
    let (agent, _upstream, [_, private], _dir) = both().await?;
    let status = stranger(&agent, "GET", "/status", Some(ADMINISTRATOR)).await?;
    ensure!(status.status == 200 && status.text().contains(&private), "{} {}", status.status, status.text());
    let fetch = format!("/mirrors/{private}/fetch");
    ensure!(stranger(&agent, "POST", &fetch, Some(ADMINISTRATOR)).await?.status == 202);
    let metrics = stranger(&agent, "GET", "/metrics", Some(ADMINISTRATOR)).await?;
    ensure!(metrics.text().contains(&private) && !metrics.text().contains("hidden-"), "{}", metrics.text());
    // It clones nothing.
    let git = Git::new()?;
    let url = agent.git_url(&private)?.replace("//", &format!("//x:{ADMINISTRATOR}@"));
    ensure!(!git.attempt(["ls-remote", &url]).await?.status.success(), "it is a caller's token, too");
    ensure!(!agent.logs()?.contains(ADMINISTRATOR), "the token is seen");
    Ok(())
}

#[tokio::test]
async fn a_page_in_a_browser_and_a_proxys_client_are_strangers_on_the_own_machine() -> Result<()> {
    let (agent, _upstream, [_, private], _dir) = both().await?;
    let local = agent.metrics().await?;
    ensure!(local.contains(&private) && agent.mirror_status(&private).await.is_ok());
    let fetch = format!("/mirrors/{private}/fetch");
    for headers in [
        &[("Host", "evil.example")][..],
        &[LOCAL, ("Origin", "http://evil.example")],
        &[LOCAL, ("X-Forwarded-For", "10.1.2.3")],
        &[LOCAL, ("Forwarded", "for=10.1.2.3")],
    ] {
        for (method, target) in [("GET", "/status"), ("POST", &*fetch)] {
            let refused =
                Connection::open(agent.admin_address()?).await?.ask(method, target, headers, b"").await?;
            ensure!(refused.status == 401, "{headers:?} {target}: {}", refused.status);
        }
        let metrics =
            Connection::open(agent.admin_address()?).await?.ask("GET", "/metrics", headers, b"").await?;
        ensure!(metrics.status == 200 && !metrics.text().contains("private"), "{headers:?}");
    }
    Ok(())
}
