//! The test kit's git server as a program, for tests on a cluster: it runs as a pod there.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use tarn_testkit::upstream::{Auth, Upstream};
use tokio::signal::unix::{SignalKind, signal};

/// Serves the bare repositories below a directory over smart HTTP, until it is told to stop.
#[derive(Debug, Parser)]
struct Flags {
    /// Directory that holds the repositories.
    #[arg(long)]
    root: PathBuf,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// File with NAME:PASSWORD, read again at every SIGHUP; whoever lacks the two is turned away. Where it is
    /// missing, everybody is served.
    #[arg(long)]
    credentials: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let flags = Flags::parse();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut again = signal(SignalKind::hangup())?;
    let upstream = Upstream::start_on(&flags.root, flags.listen)?;
    loop {
        upstream.require(required(flags.credentials.as_deref())?);
        writeln!(std::io::stdout(), "listening on {}", upstream.address())?;
        tokio::select! {
            _ = again.recv() => {}
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
        }
    }
}

/// What the file asks of callers.
fn required(file: Option<&Path>) -> Result<Auth> {
    let Some(file) = file.filter(|file| file.exists()) else { return Ok(Auth::Open) };
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let (user, password) = text
        .trim_end()
        .split_once(':')
        .with_context(|| format!("{} does not hold NAME:PASSWORD", file.display()))?;
    Ok(Auth::Basic { user: user.to_owned(), password: password.to_owned() })
}
