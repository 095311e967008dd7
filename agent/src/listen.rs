//! A port: takes connections, plain or over TLS, and serves HTTP/1.1, and over TLS HTTP/2, until it is told to stop. What a
//! client costs that sends nothing is bounded here; what its requests cost, in [`crate::serve::limits`].

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{Request, Response, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::{
    metrics::Metrics,
    places::{Place, Places},
    serve::Scheme,
    tls::Tls,
};

/// How long a client without room may take to be told so.
const REFUSING: Duration = Duration::from_secs(1);

/// How long to wait after the system has refused a connection: above all, because too many files are open.
const REFUSED: Duration = Duration::from_millis(100);

/// The longest head of a request. Git's are below 1 KiB, tokens of large clusters some KiB.
const MAX_HEAD: usize = 64 << 10;

/// Streams of one HTTP/2 connection at once.
const STREAMS: u32 = 128;

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

/// Serves until `until` is cancelled, and then what is under way to its end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    metrics: Metrics,
    until: CancellationToken,
) {
    let connections = GracefulShutdown::new();
    let seats = Places::new(limits.connections, limits.per_client);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = until.cancelled() => break,
        };
        match accepted {
            Ok((stream, client)) => {
                let Ok(seat) = seats.take(client.ip(), || ()) else {
                    metrics.refused_connections.inc();
                    tokio::spawn(refuse(stream, tls.is_some()));
                    continue;
                };
                let (router, tls, watcher) = (router.clone(), tls.clone(), connections.watcher());
                let silence = limits.silence;
                let connection = Connection { router, client, silence, watcher, _seat: seat };
                tokio::spawn(connection.run(stream, tls));
            }
            Err(error) if is_passing(&error) => tracing::debug!(%error, "a connection was gone at once"),
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken; trying again");
                tokio::time::sleep(REFUSED).await;
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
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
    watcher: Watcher,
    _seat: Place,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        // Answers are written whole; waiting for more of them only delays the last packet.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let client = self.client;
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.silence));
        let stream = Box::pin(stream);
        let Some(tls) = tls else { return self.requests(stream, Scheme::Http, Version::HTTP_11).await };
        match timeout(self.silence, TlsAcceptor::from(tls.config()).accept(stream)).await {
            Ok(Ok(stream)) => {
                let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.requests(stream, Scheme::Https, if h2 { Version::HTTP_2 } else { Version::HTTP_11 })
                    .await;
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
    ) {
        let (router, client) = (self.router, self.client);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(client));
            request.extensions_mut().insert(scheme);
            let mut router = router.clone();
            async move {
                Ok::<Response<Body>, Infallible>(
                    router.call(request).await.unwrap_or_else(|never| match never {}),
                )
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.silence).max_buf_size(MAX_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.silence)
            .keep_alive_timeout(self.silence)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        let builder = if version == Version::HTTP_2 { builder.http2_only() } else { builder.http1_only() };
        let serving = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        if let Err(error) = self.watcher.watch(serving).await {
            // The client's doing, mostly; what Tarn breaks off has been told where it happened.
            tracing::debug!(%client, error, "a connection ends early");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_for_those_without_room_is_whole() {
        let text = str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
