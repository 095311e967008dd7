//! A server on threads of its own, shared by the kit's servers: it can go down and come back on its port, and
//! answers even while the test's own threads are blocked.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A listener with its connections; all of it ends when this is dropped.
#[derive(Debug)]
pub struct Listening {
    address: SocketAddr,
    up: watch::Sender<bool>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Listening {
    /// Listens on the address and lets `connection` work on each connection.
    pub fn start<F, Work>(name: &str, address: SocketAddr, connection: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> Work + Send + 'static,
        Work: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(name)
            .enable_all()
            .build()?;
        let context = runtime.enter();
        let reserved = socket(address)?;
        let address = reserved.local_addr()?;
        let first = socket(address)?.listen(BACKLOG)?;
        let up = watch::Sender::new(true);
        runtime.spawn(serve(reserved, first, up.subscribe(), connection));
        drop(context);
        Ok(Self { address, up, runtime: Some(runtime) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening and cuts all connections; the port stays reserved.
    pub async fn down(&self) {
        self.up.send_replace(false);
        // The server's task has seen the change once the port refuses connections.
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Listens again.
    pub async fn up(&self) {
        self.up.send_replace(true);
        while TcpStream::connect(self.address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping the tasks ends what they own. Not waited for: a drop may happen in async code.
            runtime.shutdown_background();
        }
    }
}

/// More clients at once than any test starts.
const BACKLOG: u32 = 1024;

/// Takes connections while the server is up. `reserved` keeps the port while it is down.
async fn serve<F, Work>(reserved: TcpSocket, first: TcpListener, mut up: watch::Receiver<bool>, connection: F)
where
    F: Fn(TcpStream) -> Work,
    Work: Future<Output = ()> + Send + 'static,
{
    let mut listener = Some(first);
    loop {
        let Some(open) = listener.take() else {
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            let again = reserved.local_addr().ok().and_then(|address| socket(address).ok());
            listener = again.and_then(|socket| socket.listen(BACKLOG).ok());
            continue;
        };
        // Dropped, and every connection with it, when the server goes down.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                _ = up.wait_for(|up| !*up) => break,
                accepted = open.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    // Without it small answers wait for acknowledgements; failing to set it harms no one.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(stream));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// A socket bound to the address; two of them may be, so that one can reserve the port for the other.
fn socket(address: SocketAddr) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address).with_context(|| format!("bind {address}"))?;
    Ok(socket)
}
