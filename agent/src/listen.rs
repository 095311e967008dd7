//! A port: takes connections, plain or over TLS, and serves HTTP/1.1, and over TLS HTTP/2, until it is told to stop. What a
//! client costs that sends or takes nothing is bounded here; what its requests cost, in [`crate::serve::limits`].

mod answer;
mod connections;

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{Request, Response, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use crate::{metrics::Metrics, serve::Scheme, tls::Tls};
use answer::{PROGRESS, Pieces, Progress, Streams};
pub use connections::ConnectionLimits;
use connections::{Admitted, Connections, Seat};

/// How long a client without room may take to be told so.
const REFUSING: Duration = Duration::from_secs(1);

/// How long to wait after the system has refused a connection: above all, because too many files are open.
const REFUSED: Duration = Duration::from_millis(100);

/// How long a connection is served on that is to end. A request that its client has sent by then is answered; hyper would close
/// at once a connection of which it has read nothing, and a clone has some milliseconds between two of its requests.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Connections that are still taken when the port closes: as many as the kernel lets wait (`net.core.somaxconn`).
const WAITING: usize = 4096;

/// The longest head of a request. Git's are below 1 KiB, tokens of large clusters some KiB.
const MAX_HEAD: usize = 64 << 10;

/// Streams of one HTTP/2 connection at once.
const STREAMS: u32 = 128;

/// Bytes that the kernel holds for a reader beyond what is on its way; it asks for more when less than half of them is left.
const UNSENT: u32 = 128 << 10;

/// What a client reads that comes when there is no room. Git tries again after 429 where `http.maxRetries` is set, and after no
/// other refusal.
const FULL: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 56\r\n\r\nTooManyConnections: there is no room now; try again soon";

/// The address at which a request reached this machine, in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct ReachedAt(pub SocketAddr);

/// Serves until `until` is cancelled, and then what is under way to its end, with those whom the kernel has let in by then.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Tls>>,
    limits: ConnectionLimits,
    metrics: Metrics,
    until: CancellationToken,
) {
    let (silence, open, connections) = (limits.silence, Connections::new(limits), TaskTracker::new());
    let port = Port { router, tls, open, silence, metrics, stopping: until, connections };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = port.stopping.cancelled() => break,
        };
        match accepted {
            Ok((stream, client)) => port.admit(stream, client),
            Err(error) if is_passing(&error) => tracing::debug!(%error, "a connection was gone at once"),
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken; trying again");
                tokio::time::sleep(REFUSED).await;
            }
        }
    }
    if let Err(error) = port.admit_waiting(listener) {
        tracing::debug!(%error, "those who were waiting are cut off");
    }
    port.connections.close();
    port.connections.wait().await;
}

/// What the connections of a port have in common.
struct Port {
    router: Router,
    tls: Option<Arc<Tls>>,
    open: Connections,
    silence: Duration,
    metrics: Metrics,
    stopping: CancellationToken,
    connections: TaskTracker,
}

impl Port {
    /// Serves a client, if there is room for it.
    fn admit(&self, stream: TcpStream, client: SocketAddr) {
        let seat = match self.open.admit(client.ip()) {
            Admitted::Yes(seat) => seat,
            Admitted::Instead(seat) => {
                self.metrics.serve.replaced_connections.inc();
                seat
            }
            Admitted::No => {
                self.metrics.serve.refused_connections.inc();
                tokio::spawn(refuse(stream, self.tls.is_some()));
                return;
            }
        };
        let (router, stopping) = (self.router.clone(), self.stopping.clone());
        let connection = Connection { router, client, silence: self.silence, stopping, seat };
        self.connections.spawn(connection.run(stream, self.tls.clone()));
    }

    /// Serves those who have a connection that nobody has taken yet: with the listener they would be cut off. By system
    /// calls, for the runtime may not have heard of them.
    fn admit_waiting(&self, listener: TcpListener) -> io::Result<()> {
        let listener = listener.into_std()?;
        for _ in 0..WAITING {
            match listener.accept() {
                Ok((stream, client)) => {
                    stream.set_nonblocking(true)?;
                    self.admit(TcpStream::from_std(stream)?, client);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Says that there is no room. A client that is still sending may not read it.
async fn refuse(mut stream: TcpStream, encrypted: bool) {
    if !encrypted {
        let say = async {
            stream.write_all(FULL).await?;
            stream.shutdown().await
        };
        let _ = timeout(REFUSING, say).await;
    }
}

struct Connection {
    router: Router,
    client: SocketAddr,
    silence: Duration,
    stopping: CancellationToken,
    seat: Arc<Seat>,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        let (client, seat) = (self.client, self.seat.clone());
        tokio::select! {
            () = self.serve(stream, tls) => {}
            () = seat.closed() => tracing::debug!(%client, "an idle connection makes way for another"),
        }
    }

    async fn serve(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        // Answers are written whole; waiting for more of them only delays the last packet.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        // A socket that holds megabytes takes more only once a third of them has gone: a slow reader would seem to take nothing.
        if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT");
        }
        let client = self.client;
        let reached_at = stream.local_addr().ok().map(ReachedAt);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.silence));
        let stream = Box::pin(stream);
        let Some(tls) = tls else {
            return self.requests(stream, Scheme::Http, Version::HTTP_11, reached_at).await;
        };
        match timeout(self.silence, TlsAcceptor::from(tls.config()).accept(stream)).await {
            Ok(Ok(stream)) => {
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let version = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
                self.requests(stream, Scheme::Https, version, reached_at).await;
            }
            Ok(Err(error)) => tracing::debug!(%client, %error, "no TLS"),
            Err(_) => tracing::debug!(%client, "no TLS in time"),
        }
    }

    /// The version is told, not found out: whoever finds it out waits for the first byte for ever.
    async fn requests(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        scheme: Scheme,
        version: Version,
        reached_at: Option<ReachedAt>,
    ) {
        let (router, client, seat) = (self.router, self.client, self.seat);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(client));
            request.extensions_mut().insert(scheme);
            reached_at.map(|address| request.extensions_mut().insert(address));
            let (mut router, busy) = (router.clone(), seat.begin());
            async move {
                let answer = router.call(request).await.unwrap_or_else(|never| match never {});
                Ok::<Response<Body>, Infallible>(answer.map(|body| Pieces::of(body, busy)))
            }
        });
        let mut builder = Builder::new(Streams { patience: self.silence });
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.silence).max_buf_size(MAX_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.silence)
            .keep_alive_timeout(self.silence)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        let builder = if version == Version::HTTP_2 { builder.http2_only() } else { builder.http1_only() };
        // Over HTTP/1.1 all answers are sent by this task, one after the other; over HTTP/2 none is.
        let progress = Arc::new(Progress::default());
        let serving = async {
            let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                ended = &mut serving => return ended,
                () = self.stopping.cancelled() => {}
            }
            if let Ok(ended) = timeout(LAST_WORDS, &mut serving).await {
                return ended;
            }
            serving.as_mut().graceful_shutdown();
            serving.await
        };
        let ended = tokio::select! {
            ended = PROGRESS.scope(progress.clone(), serving) => ended,
            () = progress.stalled(self.silence) => return tracing::debug!(%client, "the reader takes nothing"),
        };
        if let Err(error) = ended {
            // The client's doing, mostly; what Tarn breaks off has been told where it happened.
            tracing::debug!(%client, error, "a connection ends early");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Connects, and sends `request`.
    fn client(address: SocketAddr, request: &str) -> std::net::TcpStream {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_has_a_connection_when_the_port_closes_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Nobody takes them before the port is to close. As many as that, because a port that is to close may take some before
        // it notices.
        let request = "GET / HTTP/1.1\r\nHost: t\r\n\r\n";
        let clients = tokio::task::spawn_blocking(move || {
            let asking: Vec<_> = (0..40).map(|_| client(address, request)).collect();
            (asking, client(address, ""))
        });
        let (asking, silent) = clients.await.unwrap();
        let until = CancellationToken::new();
        until.cancel();
        let router = Router::new().route("/", axum::routing::get(async || "answered"));
        let limits = ConnectionLimits { total: 100, per_client: 100, silence: Duration::from_secs(60) };
        let began = tokio::time::Instant::now();
        serve(listener, router, None, limits, Metrics::new(), until).await;
        assert!(began.elapsed() < Duration::from_secs(30), "a silent client keeps the port open");
        let read = |mut stream: std::net::TcpStream| {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        for stream in asking {
            let answer = tokio::task::spawn_blocking(move || read(stream)).await.unwrap().unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("answered"), "{answer}");
        }
        assert_eq!(tokio::task::spawn_blocking(move || read(silent)).await.unwrap().unwrap(), "");
        assert!(std::net::TcpStream::connect(address).is_err(), "the port is open");
    }

    #[test]
    fn the_answer_for_those_without_room_is_whole() {
        let text = str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
