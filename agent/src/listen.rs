//! A port: takes connections, plain or over TLS, and serves HTTP/1.1 and HTTP/2 on them until it is told to stop.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::{serve::Scheme, tls::Tls};

/// How long a client may take to agree on a key.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long to wait after the system has refused a connection: above all, because too many files are open.
const REFUSED: Duration = Duration::from_millis(100);

/// Serves until `until` is cancelled, and then what is under way to its end.
pub async fn serve(listener: TcpListener, router: Router, tls: Option<Arc<Tls>>, until: CancellationToken) {
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = until.cancelled() => break,
        };
        match accepted {
            Ok((stream, client)) => {
                let (router, tls, watcher) = (router.clone(), tls.clone(), connections.watcher());
                tokio::spawn(connection(stream, client, router, tls, watcher));
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

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    router: Router,
    tls: Option<Arc<Tls>>,
    watcher: Watcher,
) {
    // Answers are written whole; waiting for more of them only delays the last packet.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let Some(tls) = tls else { return requests(stream, client, Scheme::Http, router, watcher).await };
    match timeout(HANDSHAKE, TlsAcceptor::from(tls.config()).accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, client, Scheme::Https, router, watcher).await,
        Ok(Err(error)) => tracing::debug!(%client, %error, "no TLS"),
        Err(_) => tracing::debug!(%client, "no TLS in time"),
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    client: SocketAddr,
    scheme: Scheme,
    router: Router,
    watcher: Watcher,
) {
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
    let builder = Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(serving).await {
        // The client's doing, mostly; what Tarn breaks off has been told where it happened.
        tracing::debug!(%client, error, "a connection ends early");
    }
}
