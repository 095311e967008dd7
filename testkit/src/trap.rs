//! A server that nobody should ask: it notes who does, and gives a secret away, to some only if they bring a header, as
//! the metadata servers of clouds want it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::listening::Listening;

/// What the server gives away.
pub const SECRET: &str = "kanarienvogel-of-a-machine-5e1d";

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct Trap {
    heard: Arc<Mutex<Vec<String>>>,
    met: Arc<AtomicUsize>,
    listening: Listening,
}

impl Trap {
    /// Listens on a free port of 127.0.0.1, and gives its secret to requests with this header; without one to all.
    pub fn start(header: Option<(&'static str, &'static str)>) -> Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), header)
    }

    /// As [`Trap::start`], on this address.
    pub fn start_on(address: SocketAddr, header: Option<(&'static str, &'static str)>) -> Result<Self> {
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let met: Arc<AtomicUsize> = Arc::default();
        let (log, count) = (Arc::clone(&heard), Arc::clone(&met));
        let listening = Listening::start("trap", address, move |stream| {
            count.fetch_add(1, Ordering::Relaxed);
            let log = Arc::clone(&log);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (head, _) = request.into_parts();
                let line = format!("{} {} {:?}", head.method, head.uri, head.headers);
                log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                let let_in = header
                    .is_none_or(|(name, value)| head.headers.get(name).is_some_and(|given| given == value));
                let (status, text) =
                    if let_in { (StatusCode::OK, SECRET) } else { (StatusCode::FORBIDDEN, "no") };
                let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
                *answer.status_mut() = status;
                std::future::ready(Ok::<_, std::convert::Infallible>(answer))
            });
            async move {
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            }
        })?;
        Ok(Self { heard, met, listening })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Every request so far: method, target and headers.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections there were, whatever was said.
    pub fn met(&self) -> usize {
        self.met.load(Ordering::Relaxed)
    }
}
