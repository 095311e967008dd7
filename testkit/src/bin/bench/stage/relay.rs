//! A relay in front of a git server that counts looks: `ls-refs` requests, and how many are under way at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http::header::{EXPECT, TRANSFER_ENCODING};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tarn_testkit::listening::Listening;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// The largest request or list of refs that is held.
const LARGEST: usize = 32 << 20;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;
type Kept = Mutex<Option<SendRequest<Full<Bytes>>>>;

/// A running relay. It stops when dropped. It has threads of its own: on those of the clients it would wait for
/// each of them to read its answer before it passes on the next look.
#[derive(Debug)]
pub(super) struct Relay {
    count: Arc<Count>,
    listening: Listening,
}

/// What was counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looks {
    /// The most at one time.
    pub(super) most: usize,
    /// All that began.
    pub(super) all: usize,
}

#[derive(Debug, Default)]
struct Count {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

/// A look under way; it ends when this is dropped.
struct Look(Arc<Count>);

impl Look {
    fn begin(count: &Arc<Count>) -> Self {
        let now = count.now.fetch_add(1, Ordering::SeqCst) + 1;
        count.most.fetch_max(now, Ordering::SeqCst);
        count.all.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Relay {
    /// Stands in front of `target`; each client's connection has one of its own to the target.
    pub(super) fn start(target: SocketAddr) -> Result<Self> {
        let count = Arc::new(Count::default());
        let of_connection = Arc::clone(&count);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::start("relay", any, move |client| {
            let (count, kept) = (Arc::clone(&of_connection), Arc::new(Kept::default()));
            async move {
                let service =
                    service_fn(|request| pass(request, target, Arc::clone(&count), Arc::clone(&kept)));
                // A client that goes away is no failure of the relay's.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(client), service)
                    .await;
            }
        })?;
        Ok(Self { count, listening })
    }

    /// Where clients connect.
    pub(super) fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// Counts from now on.
    pub(super) fn begin(&self) {
        self.count.most.store(self.count.now.load(Ordering::SeqCst), Ordering::SeqCst);
        self.count.all.store(0, Ordering::SeqCst);
    }

    /// What was counted since.
    pub(super) fn looks(&self) -> Looks {
        let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        Looks { most: of(&self.count.most), all: of(&self.count.all) }
    }
}

/// Passes one request. A list of refs is handed on once it is whole: the look is over before its client knows.
async fn pass(
    request: Request<Incoming>,
    target: SocketAddr,
    count: Arc<Count>,
    kept: Arc<Kept>,
) -> Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    let body = Limited::new(body, LARGEST).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    let needle = b"command=ls-refs";
    let look =
        body.windows(needle.len()).take(64).any(|window| window == needle).then(|| Look::begin(&count));
    parts.headers.remove(TRANSFER_ENCODING);
    parts.headers.remove(EXPECT);
    let mut kept = kept.lock().await;
    let mut connection = kept.take();
    if let Some(open) = &mut connection
        && open.ready().await.is_err()
    {
        connection = None;
    }
    let mut connection = match connection {
        Some(open) => open,
        None => connect(target).await?,
    };
    let answer = connection.send_request(Request::from_parts(parts, Full::new(body))).await?;
    *kept = Some(connection);
    drop(kept);
    let (mut parts, body) = answer.into_parts();
    let Some(look) = look else { return Ok(Response::from_parts(parts, body.boxed_unsync())) };
    let body = Limited::new(body, LARGEST).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    drop(look);
    parts.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(parts, Full::new(body).map_err(|never| match never {}).boxed_unsync()))
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with its sender.
    tokio::spawn(connection);
    Ok(sender)
}
