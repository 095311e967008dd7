//! Faults of the network: slow, narrow, cut, silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::listening::Listening;

/// What is wrong with the network at the moment; the default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trouble {
    /// Every byte arrives this much later, in either direction.
    pub latency: Duration,
    /// Bytes a second from the server to the clients, all connections together.
    pub bandwidth: Option<u64>,
    /// Each connection is cut after this many bytes from the server, counted from its start.
    pub cut_after: Option<u64>,
    /// Nothing passes, and nothing is closed either; what arrives waits.
    pub blackhole: bool,
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Connections taken.
    pub connections: u64,
    /// Bytes from clients to the server.
    pub up: u64,
    /// Bytes from the server to clients.
    pub down: u64,
}

/// A TCP proxy in front of one server. It stops when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    listening: Listening,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    trouble: watch::Sender<Trouble>,
    connections: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    /// When the shaped line is free again.
    free: Mutex<Instant>,
}

impl FaultProxy {
    /// Stands in front of `target` on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared {
            target,
            trouble: watch::Sender::new(Trouble::default()),
            connections: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            free: Mutex::new(Instant::now()),
        });
        let of_connection = Arc::clone(&shared);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::start("fault-proxy", any, move |client| {
            let shared = Arc::clone(&of_connection);
            // A broken connection is what this is for.
            async move { drop(shared.connect(client).await) }
        })?;
        Ok(Self { shared, listening })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// Sets what is wrong from now on, on open connections too.
    pub fn set(&self, trouble: Trouble) {
        self.shared.trouble.send_replace(trouble);
    }

    /// Refuses connections and cuts the open ones.
    pub async fn refuse(&self) {
        self.listening.down().await;
    }

    /// Takes connections again.
    pub async fn accept(&self) {
        self.listening.up().await;
    }

    /// What has passed so far.
    pub fn traffic(&self) -> Traffic {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            connections: of(&self.shared.connections),
            up: of(&self.shared.up),
            down: of(&self.shared.down),
        }
    }
}

/// Read at a time: small enough for shaping to be even.
const PIECE: usize = 16 * 1024;

/// Pieces on their way, which bounds bandwidth times latency at 16 MiB.
const ON_THE_WAY: usize = 1024;

type Piece = (Instant, Vec<u8>);

impl Shared {
    async fn connect(&self, client: TcpStream) -> Result<()> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let server = TcpStream::connect(self.target).await?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (up, arriving_up) = mpsc::channel(ON_THE_WAY);
        let (down, arriving_down) = mpsc::channel(ON_THE_WAY);
        // The first error ends all four, and dropping the halves cuts both connections.
        tokio::try_join!(
            self.take(from_client, up),
            self.give(arriving_up, to_server, false),
            self.take(from_server, down),
            self.give(arriving_down, to_client, true),
        )?;
        Ok(())
    }

    /// Reads one side until its end.
    async fn take(&self, mut from: OwnedReadHalf, pieces: mpsc::Sender<Piece>) -> Result<()> {
        loop {
            let mut piece = vec![0; PIECE];
            let size = from.read(&mut piece).await?;
            if size == 0 {
                return Ok(());
            }
            piece.truncate(size);
            pieces.send((Instant::now(), piece)).await?;
        }
    }

    /// Writes to the other side what is due.
    async fn give(
        &self,
        mut pieces: mpsc::Receiver<Piece>,
        mut to: OwnedWriteHalf,
        down: bool,
    ) -> Result<()> {
        let mut trouble = self.trouble.subscribe();
        let mut passed = 0;
        while let Some((read, mut piece)) = pieces.recv().await {
            let now = *trouble.wait_for(|trouble| !trouble.blackhole).await?;
            sleep_until(read + now.latency).await;
            let mut cut = false;
            if down && let Some(limit) = now.cut_after {
                let left = usize::try_from(limit.saturating_sub(passed))?;
                cut = piece.len() >= left;
                piece.truncate(left);
            }
            if down && let Some(rate) = now.bandwidth {
                self.wait_for_line(read + now.latency, piece.len(), rate).await;
            }
            to.write_all(&piece).await?;
            passed += piece.len() as u64;
            let counter = if down { &self.down } else { &self.up };
            counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if cut {
                bail!("cut by the test");
            }
        }
        Ok(to.shutdown().await?)
    }

    /// Waits as long as the line needs for these bytes, after those before them. They have been at the line's beginning
    /// since `there`: counted from now, each piece would cost its connection a millisecond, the finest that timers know,
    /// and a line with little on it would be far slower than `rate`.
    async fn wait_for_line(&self, there: Instant, bytes: usize, rate: u64) {
        let due = {
            let mut free = self.free.lock().await;
            let start = (*free).max(there);
            *free = start + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            *free
        };
        sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each connection with as many bytes as the client's first four say.
    async fn server() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let size = stream.read_u32().await.unwrap();
                    // The proxy may cut.
                    let _ = stream.write_all(&vec![7; size as usize]).await;
                });
            }
        });
        address
    }

    async fn ask(proxy: &FaultProxy, size: u32) -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(proxy.address()).await?;
        stream.write_u32(size).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await
    }

    #[tokio::test]
    async fn counts_what_passes() {
        let proxy = FaultProxy::start(server().await).unwrap();
        assert_eq!(ask(&proxy, 1_000_000).await.unwrap(), 1_000_000);
        assert_eq!(proxy.traffic(), Traffic { connections: 1, up: 4, down: 1_000_000 });
    }

    #[tokio::test]
    async fn latency_and_bandwidth_take_their_time() {
        let proxy = FaultProxy::start(server().await).unwrap();
        proxy.set(Trouble { latency: Duration::from_millis(100), ..Trouble::default() });
        let start = Instant::now();
        assert_eq!(ask(&proxy, 1_000_000).await.unwrap(), 1_000_000);
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
        proxy.set(Trouble { bandwidth: Some(1_000_000), ..Trouble::default() });
        let start = Instant::now();
        assert_eq!(ask(&proxy, 300_000).await.unwrap(), 300_000);
        assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
        // One connection has the whole of a fast line: 64 pieces, in far less than a millisecond each.
        proxy.set(Trouble { bandwidth: Some(1 << 30), ..Trouble::default() });
        let mut fastest = Duration::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            assert_eq!(ask(&proxy, 1 << 20).await.unwrap(), 1 << 20);
            fastest = fastest.min(start.elapsed());
        }
        assert!(fastest < Duration::from_millis(40), "{fastest:?}");
    }

    #[tokio::test]
    async fn cuts_swallows_and_refuses() {
        let proxy = FaultProxy::start(server().await).unwrap();
        proxy.set(Trouble { cut_after: Some(500_000), ..Trouble::default() });
        assert!(ask(&proxy, 1_000_000).await.is_err() || proxy.traffic().down == 500_000);
        assert_eq!(proxy.traffic().down, 500_000);
        proxy.set(Trouble { blackhole: true, ..Trouble::default() });
        tokio::time::timeout(Duration::from_millis(200), ask(&proxy, 10)).await.unwrap_err();
        proxy.set(Trouble::default());
        proxy.refuse().await;
        ask(&proxy, 10).await.unwrap_err();
        proxy.accept().await;
        assert_eq!(ask(&proxy, 10).await.unwrap(), 10);
    }
}
