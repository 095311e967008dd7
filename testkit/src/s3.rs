//! A real S3 server on loopback: versitygw over a temporary directory.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::eventually::eventually;
use crate::process::{Group, command, run};
use crate::wire;

/// For 127.0.0.1, until 2126. Made by openssl (`req -x509`, `x509 -req`); the authority's key is gone.
const CERTIFICATE: &str = include_str!("../tls/server.pem");
const KEY: &str = include_str!("../tls/server.key");

/// How the server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// A running S3 server with one bucket. It stops when dropped, and its objects go with it.
#[derive(Debug)]
pub struct S3Server {
    dir: tempfile::TempDir,
    address: SocketAddr,
    scheme: Scheme,
    // In this order: the group is killed while its leader has not been waited for.
    _group: Group,
    _child: tokio::process::Child,
}

impl S3Server {
    /// The one bucket that is there from the start.
    pub const BUCKET: &str = "tarn";
    /// Where the server says it is.
    pub const REGION: &str = "us-east-1";
    /// The access key that may do everything.
    pub const ACCESS_KEY: &str = "test";
    /// Its secret.
    pub const SECRET_KEY: &str = "testtesttest";
    /// The authority, in PEM, that vouches for servers of [`S3Server::start_https`].
    pub const AUTHORITY: &str = include_str!("../tls/ca.pem");

    /// Starts versitygw on a free port and waits until it answers.
    ///
    /// The binary is the one that `TARN_VERSITYGW` names, or that of PATH, or that of Go's directory.
    pub async fn start() -> Result<Self> {
        Self::start_with(Scheme::Http).await
    }

    /// The same over HTTPS, with a certificate of [`S3Server::AUTHORITY`].
    pub async fn start_https() -> Result<Self> {
        Self::start_with(Scheme::Https).await
    }

    async fn start_with(scheme: Scheme) -> Result<Self> {
        let binary = find().await?;
        let dir = tempfile::tempdir().context("create a directory for the store")?;
        let buckets = dir.path().join("buckets");
        // To versitygw a bucket is a directory.
        std::fs::create_dir_all(buckets.join(Self::BUCKET))?;
        let log = dir.path().join("versitygw.log");
        let mut attempts = 0;
        loop {
            attempts += 1;
            let address = free_port()?;
            let mut gateway = command(&binary);
            gateway.env("ROOT_ACCESS_KEY", Self::ACCESS_KEY).env("ROOT_SECRET_KEY", Self::SECRET_KEY);
            gateway.args(["--quiet", "--port", &address.to_string()]);
            if scheme == Scheme::Https {
                for (flag, name, text) in
                    [("--cert", "server.pem", CERTIFICATE), ("--key", "server.key", KEY)]
                {
                    let path = dir.path().join(name);
                    std::fs::write(&path, text)?;
                    gateway.arg(flag).arg(path);
                }
            }
            // Who may ask besides the root user; empty at first.
            gateway.arg("--iam-dir").arg(dir.path());
            gateway.arg("posix").arg(&buckets);
            let output = std::fs::File::create(&log)?;
            gateway.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
            let child = tokio::process::Command::from(gateway).kill_on_drop(true).spawn();
            let mut child = child.with_context(|| format!("start {}", binary.display()))?;
            let group = Group::of(&child);
            let ready =
                eventually(Duration::from_secs(20), "the S3 server to answer", async || match scheme {
                    Scheme::Http => wire::get(address, "/").await.map(drop),
                    Scheme::Https => Ok(tokio::net::TcpStream::connect(address).await.map(drop)?),
                });
            let reason = tokio::select! {
                ready = ready => match ready {
                    Ok(()) => return Ok(Self { dir, address, scheme, _group: group, _child: child }),
                    Err(error) => format!("{error:#}"),
                },
                status = child.wait() => {
                    group.forget();
                    format!("it ended with {}", status?)
                }
            };
            // Another process may have taken the port between the two.
            if attempts == 3 {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("{} does not serve: {reason}\n{said}", binary.display());
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its endpoint for S3 clients, which must use path-style URLs.
    pub fn endpoint(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        format!("{scheme}://{}", self.address)
    }

    /// Lets another user in who may do everything, or ends that: `create-user` or `delete-user`.
    pub async fn administer(&self, verb: &str, access_key: &str, secret: &str) -> Result<()> {
        let mut admin = command(find().await?);
        admin.args(["admin", "--allow-insecure", "--access", Self::ACCESS_KEY, "--secret", Self::SECRET_KEY]);
        admin.args(["--endpoint-url", &self.endpoint(), verb, "--access", access_key]);
        if verb == "create-user" {
            admin.args(["--secret", secret, "--role", "admin"]);
        }
        let output = run(admin, b"", Duration::from_secs(20)).await?;
        ensure!(output.status.success(), "{verb}: {} {}", output.text(), output.stderr);
        Ok(())
    }

    /// The bucket as a directory: every object is a file below it, for a look or for damage on purpose.
    pub fn bucket_dir(&self) -> PathBuf {
        self.dir.path().join("buckets").join(Self::BUCKET)
    }
}

/// Finds the binary.
async fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("TARN_VERSITYGW") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut go = command("go");
    go.args(["env", "GOPATH"]);
    if let Ok(output) = run(go, b"", Duration::from_secs(10)).await {
        places.push(Path::new(&output.text()).join("bin"));
    }
    if let Some(home) = std::env::home_dir() {
        places.push(home.join("go/bin"));
    }
    places.into_iter().map(|place| place.join("versitygw")).find(|binary| binary.is_file()).context(
        "no versitygw: install it with `go install github.com/versity/versitygw/cmd/versitygw@v1.8.0`, \
         or name it with TARN_VERSITYGW",
    )
}

/// A port of 127.0.0.1 that nobody listens on at the moment.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_answers_strangers_with_an_s3_error() {
        let server = S3Server::start().await.unwrap();
        let answer = wire::get(server.address(), &format!("/{}/none", S3Server::BUCKET)).await.unwrap();
        assert_eq!(answer.status, 403);
        assert!(answer.text().contains("<Code>AccessDenied</Code>"), "{}", answer.text());
        assert!(server.bucket_dir().is_dir());
    }

    #[tokio::test]
    async fn it_is_gone_when_dropped() {
        let server = S3Server::start().await.unwrap();
        let address = server.address();
        drop(server);
        eventually(Duration::from_secs(5), "the port to be free", async || {
            match tokio::net::TcpStream::connect(address).await {
                Ok(_) => Err("somebody answers"),
                Err(_) => Ok(()),
            }
        })
        .await
        .unwrap();
    }
}
