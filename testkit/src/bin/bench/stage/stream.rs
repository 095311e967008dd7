//! One stream of an answer that Tarn has already, beside nginx, which serves the same bytes from a file.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tarn_testkit::eventually::eventually;
use tarn_testkit::load::{CLONE_PREFIXES, Client, Depth, Download};
use tarn_testkit::measure::Server;

use crate::scenario::Sample;
use crate::side::{Side, SideName, Staleness};

/// Answers read one after the other for one measurement: one alone takes less than 0.2 s.
const ANSWERS: usize = 12;

/// nginx and the answer it serves.
#[derive(Debug)]
pub(crate) struct Stream {
    nginx: Server,
    url: String,
    wants: Vec<String>,
    bytes: u64,
}

/// nginx's binary, if it is installed.
pub(super) fn nginx() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir| dir.join("nginx")).find(|file| file.is_file())
}

impl Stream {
    /// Keeps the answer to a full clone and lets nginx serve it.
    pub(super) async fn set(nginx: &Path, tarn: &Side, work: &Path) -> Result<Self> {
        let mut client = Client::new(tarn.url(Staleness::None))?;
        let wants = client.ls_refs(&CLONE_PREFIXES).await?.set.wants();
        let mut file = File::create(work.join("answer"))?;
        let pack = Download::Pack { wants: &wants, depth: Depth::Full };
        let answer = client.download(pack, |piece| Ok(file.write_all(piece)?)).await?;
        drop(file);

        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let config = work.join("nginx.conf");
        std::fs::write(&config, configuration(work, port))?;
        // It says nothing when it is ready, so this line does not mean that it listens.
        let script = "echo starting; exec \"$@\"";
        let args = ["-c".as_ref(), script.as_ref(), "sh".as_ref(), nginx.as_os_str()];
        let args =
            args.into_iter().chain(["-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), config.as_os_str()]);
        let log = work.join("nginx.log");
        let (server, _) = Server::start("nginx", "/bin/sh", args, "starting", &log).await?;
        let url = format!("http://127.0.0.1:{port}");
        let served = eventually(Duration::from_secs(10), "nginx to serve", async || {
            Client::new(&url)?.download(Download::File("/answer"), |_| Ok(())).await
        });
        let served = served.await.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        ensure!(served.bytes == answer.bytes, "nginx serves {} bytes, not {}", served.bytes, answer.bytes);
        Ok(Self { nginx: server, url, wants, bytes: answer.bytes })
    }

    /// Reads the answer some times over one connection.
    pub(super) async fn measure(&self, name: SideName, tarn: &Side) -> Result<Sample> {
        let (server, url, what) = match name {
            SideName::Baseline => (&self.nginx, self.url.as_str(), Download::File("/answer")),
            SideName::Tarn => {
                let pack = Download::Pack { wants: &self.wants, depth: Depth::Full };
                (&tarn.server, tarn.url(Staleness::None), pack)
            }
        };
        let mut client = Client::new(url)?;
        let work = async {
            let mut taken = Duration::ZERO;
            for _ in 0..ANSWERS {
                let answer = client.download(what, |_| Ok(())).await?;
                ensure!(answer.bytes == self.bytes, "{} bytes, not {}", answer.bytes, self.bytes);
                taken += answer.total;
            }
            Ok(taken)
        };
        let (taken, usage) = server.measure(work).await?;
        let bytes = self.bytes as f64 * ANSWERS as f64;
        let figures = vec![
            bytes / 1e6 / taken.as_secs_f64(),
            usage.cpu.as_secs_f64() * 1e9 / bytes,
            usage.client_cpu.as_secs_f64() * 1e9 / bytes,
        ];
        Ok(Sample { figures, objects: None })
    }
}

/// One worker on loopback that reads files itself (sendfile is what Tarn cannot use: it frames what it sends).
fn configuration(work: &Path, port: u16) -> String {
    let work = work.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {work}/{kind};\n"))
        .collect();
    // The user matters only to root, whose worker could not read the working directory otherwise.
    format!(
        "daemon off;\nworker_processes 1;\nuser root;\npid {work}/nginx.pid;\nerror_log stderr;\n\
         events {{}}\nhttp {{\n{temporary}  access_log off;\n  sendfile off;\n  keepalive_timeout 75s;\n  \
         server {{ listen 127.0.0.1:{port}; root {work}; }}\n}}\n"
    )
}
