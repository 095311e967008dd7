//! Idle connections make way, probes are answered whatever else happens, and the limit of open files is shared out.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tarn_testkit::agent::{Builder, PATIENCE, manifest};
use tarn_testkit::eventually::eventually;
use tarn_testkit::git::Repo;
use tarn_testkit::upstream::{Fault, Operation, Upstream};
use tarn_testkit::wire::Connection;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::{from, limited};
use crate::p8_nobody_in::{Secured, certificate};
use crate::scene::{Scene, agent};
use crate::serving::{fetch_request, post};

/// This test's own sockets need descriptors, too.
fn raise_own_limit() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raise the limit of open files")
}

/// Connects so many times from one address and says nothing.
async fn idle(count: usize, to: SocketAddr) -> Result<Vec<TcpStream>> {
    let (began, mut held) = (Instant::now(), Vec::new());
    for number in 0..count {
        // Those that are closed again by the agent count all the same.
        held.extend(from([127, 0, 0, 9], to).await.ok());
        ensure!(began.elapsed() < Duration::from_secs(60), "{number} connections took too long");
    }
    ensure!(held.len() > count * 9 / 10, "only {} connections were made", held.len());
    Ok(held)
}

/// A script that starts the agent's binary with these limits of open files.
fn with_open_files(dir: &Path, limits: &str) -> Result<PathBuf> {
    let script = dir.join("agent");
    let binary = env!("CARGO_BIN_EXE_tarn-agent");
    std::fs::write(&script, format!("#!/bin/sh\n{limits}\nexec '{binary}' \"$@\"\n"))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

#[tokio::test]
async fn thousands_of_idle_connections_on_both_ports_keep_neither_clients_nor_probes_out() -> Result<()> {
    raise_own_limit()?;
    let scene = Scene::ready().await?;
    let agent = limited(&scene, &[]).await?;
    let _git = idle(5_000, agent.git_address()?).await?;
    let _admin = idle(5_000, agent.admin_address()?).await?;
    // From the very address that holds them, as a kubelet and the pods of its node may have one.
    let mut times = Vec::new();
    for probe in ["/healthz", "/readyz"].iter().cycle().take(200) {
        let began = Instant::now();
        let stream = from([127, 0, 0, 9], agent.admin_address()?).await?;
        let answer = Connection::over(stream)?.ask("GET", probe, &[], b"").await?;
        ensure!(answer.status == 200, "{probe}: {} {}", answer.status, answer.text());
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!("probes: median {:?}, p99 {:?}", times[100], times[197]);
    ensure!(times[197] < Duration::from_secs(2), "{times:?}");
    let clone = scene.git.clone_repo(&agent.git_url(&scene.repo())?, &scene.place("clone"), &[]).await?;
    clone.fsck().await?;
    let replaced: usize = agent.metric("tarn_serve_replaced_connections_total").await?;
    ensure!(replaced >= 8_000, "{replaced} made way");
    let resident = tarn_testkit::measure::peak_rss(agent.pid()?)?;
    ensure!(resident < 150_000_000, "{resident} bytes of memory");
    Ok(())
}

#[tokio::test]
async fn probes_do_not_wait_for_others_who_ask_on_the_admin_port() -> Result<()> {
    let scene = Scene::ready().await?;
    let agent = limited(&scene, &["--max-requests", "3"]).await?;
    // Each waits for a look.
    scene.upstream.fault_on(Operation::LsRefs, Fault::Hang);
    let order = format!(
        "POST /mirrors/{}/fetch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        scene.repo()
    );
    let mut waiting = Vec::new();
    for _ in 0..60 {
        let mut connection = Connection::open(agent.admin_address()?).await?;
        connection.send(order.as_bytes()).await?;
        waiting.push(connection);
    }
    for _ in 0..20 {
        ensure!(agent.admin("/healthz").await?.status == 200, "a probe has to wait");
    }
    scene.upstream.mend();
    Ok(())
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_and_leaves_enough_for_what_clients_need() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let scene = Scene::ready().await?;
    let yaml = manifest("a", &scene.upstream.url("a.git"), &[]);
    let script = with_open_files(dir.path(), "ulimit -Sn 64; ulimit -Hn 256")?;
    let agent = Builder::new(script).start_with(&[("a.yaml", &yaml)]).await?;
    agent.wait_phase(&scene.repo(), "Ready").await?;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid()?))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
    ensure!(line.split_ascii_whitespace().filter(|word| *word == "256").count() == 2, "{line}");
    let logs = agent.logs()?;
    ensure!(logs.contains("the limit of open files is raised") && logs.contains("connections=64"), "{logs}");
    // More than it could ever hold; children, looks and other clients are served all the same.
    let mut held = Vec::new();
    for client in 1..=4 {
        for _ in 0..100 {
            held.extend(from([127, 0, 1, client], agent.git_address()?).await.ok());
        }
    }
    let clone = scene.git.clone_repo(&agent.git_url(&scene.repo())?, &scene.place("clone"), &[]).await?;
    clone.fsck().await?;
    scene.origin.commit("main", &[("more", "more")]).await?;
    let answer = agent.fetch_now(&scene.repo()).await?;
    ensure!(answer.status == 202, "{}", answer.text());
    ensure!(!agent.logs()?.contains("no connection can be taken"), "it ran out of files");
    Ok(())
}

/// HTTP/2 over TLS with these settings of the client.
async fn http2(secured: &Secured, window: u32) -> Result<h2::client::SendRequest<bytes::Bytes>> {
    // The whole test binary may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate("ca.pem"))?)?;
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(secured.agent.git_address()?).await?;
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake(stream).await?;
    // Answers every ping; ends with the test's runtime.
    tokio::spawn(connection);
    Ok(client.ready().await?)
}

#[tokio::test]
async fn a_reader_over_http_2_that_takes_nothing_is_let_go() -> Result<()> {
    let agent = agent().env("TARN_AGENT_CLIENT_TIMEOUT", "2");
    let secured = Secured::of(agent, async |_, _| Ok(())).await?;
    secured.agent.wait_phase(&secured.repo(), "Ready").await?;
    let mut client = http2(&secured, 0).await?;
    let uri = format!("https://127.0.0.1/git/{}/info/refs?service=git-upload-pack", secured.repo());
    let get = |uri: &str| http::Request::get(uri).body(());
    let (answer, _) = client.send_request(get(&uri)?, true)?;
    let answer = answer.await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let next = tokio::time::timeout(Duration::from_secs(20), answer.into_body().data()).await;
    let ended = next.context("the stream is kept")?.context("a body without a byte")?;
    let reset = ended.err().context("bytes came through a closed window")?;
    ensure!(reset.is_reset(), "{reset}");
    // The connection serves on, for those of its streams that are read.
    let (answer, _) = client.send_request(get("https://127.0.0.1/nothing")?, true)?;
    ensure!(answer.await?.status() == 404, "the connection has gone with the stream");
    Ok(())
}

#[tokio::test]
async fn a_reader_who_takes_nothing_has_the_kernel_hold_little_for_it() -> Result<()> {
    let grown = async |_: &Upstream, origin: &Repo| origin.grow("main", 8, 4_000_000, 1).await.map(drop);
    let scene = Scene::prepared(&[], grown).await?;
    let agent = limited(&scene, &["--client-timeout", "1"]).await?;
    let head = scene.origin.rev_parse("main").await?;
    // Its own kernel takes this much, twice.
    const WINDOW: u32 = 256 << 10;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(WINDOW)?;
    let mut idle = socket.connect(agent.git_address()?).await?;
    let request = fetch_request(&[&head], &["ofs-delta", "no-progress", "done"]);
    idle.write_all(&post(&format!("/git/{}", scene.repo()), "git-upload-pack", &request)).await?;
    let mut line = String::new();
    eventually(PATIENCE, "the reader to be let go", async || {
        let logs = agent.logs()?;
        let served = logs.lines().find(|line| line.contains("tarn_agent::audit") && line.contains("clone"));
        served.context("not yet")?.clone_into(&mut line);
        anyhow::Ok(())
    })
    .await?;
    let bytes = line.split_once("bytes=").and_then(|(_, rest)| rest.split(' ').next()).context("no bytes")?;
    let bytes: u32 = bytes.parse()?;
    // On its way, in the socket, and what is about to be written.
    ensure!(bytes < 2 * WINDOW + (1 << 20), "{line}");
    Ok(())
}
