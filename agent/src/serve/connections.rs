//! Connections to the git port: accepted, limited, encrypted where there is a certificate, and ended when they are
//! silent. What a client costs that sends nothing is bounded here; what its requests cost, in [`super::limits`].

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::tls::Tls;
use crate::metrics::Metrics;

/// The longest head of a request. Git's are below 1 KiB, tokens of large clusters some KiB.
const MAX_HEAD: usize = 64 << 10;

/// Streams of one HTTP/2 connection at once.
const STREAMS: u32 = 128;

/// After an error of the operating system, such as too many open files, which takes a moment to pass.
const BREATH: Duration = Duration::from_millis(50);

/// What a client reads that comes when there is no room.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 56\r\n\r\nTooManyConnections: there is no room now; try again soon";

/// How connections are taken.
#[derive(Clone, Debug)]
pub struct Limits {
    /// At once, of all clients.
    pub connections: usize,
    /// At once, of one address.
    pub per_client: usize,
    /// How long a client may take to send a request's head, and be silent before the next; how long it may take nothing
    /// of an answer.
    pub silence: Duration,
}

/// Serves `router` until `until`, and then until the requests under way are answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    metrics: Metrics,
    until: CancellationToken,
) {
    let (seats, tasks) = (Seats::new(&limits), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = until.cancelled() => break,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                time::sleep(BREATH).await;
                continue;
            }
        };
        let Some(seat) = seats.take(client.ip()) else {
            metrics.refused_connections.inc();
            tasks.spawn(refuse(stream, tls.is_some(), limits.silence));
            continue;
        };
        let connection = Connection {
            router: router.clone(),
            client,
            silence: limits.silence,
            until: until.clone(),
            _seat: seat,
        };
        let tls = tls.clone();
        tasks.spawn(async move {
            // A client that goes away, or speaks something else, is no trouble of ours.
            if let Err(reason) = connection.run(stream, tls).await {
                tracing::debug!(%client, reason, "a connection ends");
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// Says that there is no room. A client that is still sending may not read it.
async fn refuse(mut stream: TcpStream, encrypted: bool, silence: Duration) {
    if !encrypted {
        let say = async {
            stream.write_all(FULL).await?;
            stream.shutdown().await
        };
        let _ = time::timeout(silence.min(Duration::from_secs(1)), say).await;
    }
}

struct Connection {
    router: Router,
    client: SocketAddr,
    silence: Duration,
    until: CancellationToken,
    _seat: Seat,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<Arc<Tls>>) -> Result<(), String> {
        // Answers are written whole; waiting for more of them only delays the last packet.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.silence));
        let stream = Box::pin(stream);
        let Some(tls) = tls else { return self.http(stream).await };
        let shaking = TlsAcceptor::from(tls.config()).accept(stream);
        let stream =
            time::timeout(self.silence, shaking).await.map_err(|_| "it shakes no hands".to_owned())?;
        self.http(stream.map_err(|error| error.to_string())?).await
    }

    async fn http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), String> {
        let (router, client) = (self.router, self.client);
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(client));
            router.clone().oneshot(request)
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.silence).max_buf_size(MAX_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.silence)
            .keep_alive_timeout(self.silence)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let done = tokio::select! {
            done = connection.as_mut() => done,
            () = self.until.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        done.map_err(|error| error.to_string())
    }
}

/// Who is connected.
#[derive(Clone, Debug)]
struct Seats {
    taken: Arc<Mutex<Taken>>,
    connections: usize,
    per_client: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

impl Seats {
    fn new(limits: &Limits) -> Self {
        Self { taken: Arc::default(), connections: limits.connections, per_client: limits.per_client }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, client: IpAddr) -> Option<Seat> {
        let mut taken = self.lock();
        let own = taken.of.get(&client).copied().unwrap_or(0);
        if taken.all >= self.connections || own >= self.per_client {
            return None;
        }
        taken.all += 1;
        taken.of.insert(client, own + 1);
        Some(Seat { seats: self.clone(), client })
    }
}

/// One connection's, for as long as this lives.
#[derive(Debug)]
struct Seat {
    seats: Seats,
    client: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.of.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.of.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_limited_for_one_and_for_all_and_come_back() {
        let limits = Limits { connections: 3, per_client: 2, silence: Duration::ZERO };
        let seats = Seats::new(&limits);
        let [one, two]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let mut held = vec![seats.take(one).unwrap(), seats.take(one).unwrap()];
        assert!(seats.take(one).is_none(), "the third of one client");
        held.push(seats.take(two).unwrap());
        assert!(seats.take(two).is_none(), "the fourth of all");
        held.remove(0);
        held.push(seats.take(two).unwrap());
        drop(held);
        assert!(seats.lock().of.is_empty() && seats.lock().all == 0);
    }

    #[test]
    fn the_answer_for_those_without_room_is_whole() {
        let text = str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
