//! nginx on loopback, serving a directory's files: what answers from the disk are measured against.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::eventually::eventually;
use crate::load::{Client, Download};
use crate::measure::Server;

/// nginx's binary, if it is installed.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir| dir.join("nginx")).find(|file| file.is_file())
}

/// Whether nginx hands files to the kernel, or reads and writes them itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sendfile {
    /// The kernel sends files: no byte passes through nginx.
    On,
    /// nginx reads files and writes what it read, as a server must that frames or encrypts them.
    Off,
}

/// Serves the files of `work`, where it also keeps its own, and waits until it serves `route`, which has so many
/// bytes. Gives its URL as well.
pub async fn serve(
    nginx: &Path,
    sendfile: Sendfile,
    work: &Path,
    route: &str,
    bytes: u64,
) -> Result<(Server, String)> {
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let config = work.join("nginx.conf");
    std::fs::write(&config, configuration(work, sendfile, port))?;
    // It says nothing when it is ready, so this line does not mean that it listens.
    let script = "echo starting; exec \"$@\"";
    let args = ["-c".as_ref(), script.as_ref(), "sh".as_ref(), nginx.as_os_str()];
    let args = args.into_iter().chain(["-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), config.as_os_str()]);
    let log = work.join("nginx.log");
    let (server, _) = Server::start("nginx", "/bin/sh", args, "starting", &log).await?;
    let url = format!("http://127.0.0.1:{port}");
    let served = eventually(Duration::from_secs(10), "nginx to serve", async || {
        Client::new(&url)?.download(Download::File(route), |_| Ok(())).await
    });
    let served = served.await.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
    ensure!(served.bytes == bytes, "nginx serves {} bytes, not {bytes}", served.bytes);
    Ok((server, url))
}

/// One worker on loopback.
fn configuration(work: &Path, sendfile: Sendfile, port: u16) -> String {
    let sendfile = if sendfile == Sendfile::On { "on" } else { "off" };
    let work = work.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {work}/{kind};\n"))
        .collect();
    // The user matters only to root, whose worker could not read the working directory otherwise.
    format!(
        "daemon off;\nworker_processes 1;\nuser root;\npid {work}/nginx.pid;\nerror_log stderr;\n\
         events {{}}\nhttp {{\n{temporary}  access_log off;\n  sendfile {sendfile};\n  keepalive_timeout 75s;\n  \
         server {{ listen 127.0.0.1:{port}; root {work}; }}\n}}\n"
    )
}
