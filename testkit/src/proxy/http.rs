//! Faults of single requests: an error for the third PUT, a flipped bit, a header that a store ignores.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, DATE, HOST};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::listening::Listening;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, anyhow::Error>;

/// What happens to a request or its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFault {
    /// The server never sees the request; this status comes back, with an S3 error of this code.
    Answer(u16, &'static str),
    /// The server never sees the request, and says that the clocks differ: its own is so many seconds ahead.
    Skewed(u32),
    /// The request passes without this header, as if the server ignored it.
    WithoutHeader(&'static str),
    /// The request is done, and the connection cut instead of the answer.
    LoseAnswer,
    /// The lowest bit of this byte of the answer's body is flipped.
    FlipBit(u64),
    /// The connection is cut after this many bytes of the answer's body.
    Truncate(u64),
    /// The request waits this long before it passes.
    Delay(Duration),
}

/// Which of the selected requests meet the fault, counted from when it was added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// All.
    Always,
    /// The n-th only, starting with 1.
    Nth(u64),
    /// As many, and no more.
    First(u64),
    /// About this share; the same seed takes the same ones.
    Ratio(f64, u64),
}

/// Which requests a fault is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Select {
    /// Only this method.
    pub method: Option<Method>,
    /// Only paths that hold this text.
    pub path: Option<String>,
}

/// One request that passed, with what it moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub target: String,
    /// Its `Range` header.
    pub range: Option<String>,
    /// The status the client got; none while it waits, or when the answer was lost.
    pub status: Option<u16>,
    /// Bytes of its body so far.
    pub up: u64,
    /// Bytes of the answer's body so far.
    pub down: u64,
}

/// An HTTP proxy in front of one server. It stops when dropped.
#[derive(Debug)]
pub struct HttpFaultProxy {
    shared: Arc<Shared>,
    listening: Listening,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    rules: Mutex<Vec<Rule>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Debug)]
struct Rule {
    select: Select,
    when: When,
    fault: HttpFault,
    matched: u64,
}

impl HttpFaultProxy {
    /// Stands in front of `target` on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared { target, rules: Mutex::default(), seen: Arc::default() });
        let of_connection = Arc::clone(&shared);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::start("http-fault-proxy", any, move |client| {
            let shared = Arc::clone(&of_connection);
            let service = hyper::service::service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { shared.pass(request).await }
            });
            async move {
                // A broken connection is what this is for.
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(client), service).await;
            }
        })?;
        Ok(Self { shared, listening })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// The URL of the proxy's root.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Adds a fault. Of several that a request meets, all happen, but the first answer wins.
    pub fn add(&self, select: Select, when: When, fault: HttpFault) {
        lock(&self.shared.rules).push(Rule { select, when, fault, matched: 0 });
    }

    /// Ends all faults.
    pub fn mend(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Every request so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        lock(&self.shared.seen).clear();
    }

    /// Bytes of bodies (up, down) that requests of one method have moved.
    pub fn bytes(&self, method: &Method) -> (u64, u64) {
        let seen = lock(&self.shared.seen);
        let of_method = seen.iter().filter(|seen| seen.method == *method);
        of_method.fold((0, 0), |(up, down), seen| (up + seen.up, down + seen.down))
    }
}

impl Rule {
    fn meets(&mut self, request: &http::request::Parts) -> bool {
        let method = self.select.method.as_ref().is_none_or(|method| *method == request.method);
        let path = self.select.path.as_ref().is_none_or(|path| request.uri.path().contains(path));
        if !method || !path {
            return false;
        }
        self.matched += 1;
        match self.when {
            When::Always => true,
            When::Nth(nth) => self.matched == nth,
            When::First(first) => self.matched <= first,
            When::Ratio(ratio, seed) => {
                use rand::{Rng as _, SeedableRng as _};
                let mut random = rand::rngs::StdRng::seed_from_u64(seed.wrapping_add(self.matched));
                random.random_bool(ratio.clamp(0.0, 1.0))
            }
        }
    }
}

impl Shared {
    /// Passes one request, or fails, upon which the client's connection is cut.
    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let (mut parts, body) = request.into_parts();
        let number = self.note(&parts);
        let faults: Vec<HttpFault> = {
            let mut rules = lock(&self.rules);
            rules.iter_mut().filter_map(|rule| rule.meets(&parts).then(|| rule.fault.clone())).collect()
        };
        for fault in &faults {
            match fault {
                HttpFault::Skewed(ahead) => {
                    let body = self.counted(body.map_err(Into::into).boxed_unsync(), number, Way::Up);
                    body.collect().await?;
                    let mut answer = self.refuse(number, 403, "RequestTimeTooSkewed")?;
                    let date = SystemTime::now() + Duration::from_secs((*ahead).into());
                    answer.headers_mut().insert(DATE, HeaderValue::from_str(&httpdate::fmt_http_date(date))?);
                    return Ok(answer);
                }
                HttpFault::Answer(status, code) => {
                    // The request is read to its end, or the client would see a broken connection instead.
                    let body = self.counted(body.map_err(Into::into).boxed_unsync(), number, Way::Up);
                    body.collect().await?;
                    return self.refuse(number, *status, code);
                }
                HttpFault::WithoutHeader(name) => {
                    parts.headers.remove(HeaderName::from_static(name));
                }
                HttpFault::Delay(delay) => tokio::time::sleep(*delay).await,
                HttpFault::LoseAnswer | HttpFault::FlipBit(_) | HttpFault::Truncate(_) => {}
            }
        }
        let body = self.counted(body.map_err(Into::into).boxed_unsync(), number, Way::Up);
        let answer = self.forward(parts, body).await?;
        let (head, body) = answer.into_parts();
        let mut body = body.map_err(Into::into).boxed_unsync();
        for fault in faults {
            match fault {
                HttpFault::LoseAnswer => bail!("lost by the test"),
                HttpFault::FlipBit(at) => body = flipped(body, at),
                HttpFault::Truncate(at) => body = truncated(body, at),
                HttpFault::Answer(..)
                | HttpFault::Skewed(_)
                | HttpFault::WithoutHeader(_)
                | HttpFault::Delay(_) => {}
            }
        }
        self.change(number, |seen| seen.status = Some(head.status.as_u16()));
        Ok(Response::from_parts(head, self.counted(body, number, Way::Down)))
    }

    /// Sends the request on, over a connection of its own: the answer to one never waits for another.
    async fn forward(&self, mut parts: http::request::Parts, body: Body) -> Result<Response<Incoming>> {
        // The Host header stays: S3 clients sign it.
        let target = parts.uri.path_and_query().context("a request without a path")?.clone();
        parts.uri = target.into();
        if !parts.headers.contains_key(HOST) {
            parts.headers.insert(HOST, HeaderValue::from_str(&self.target.to_string())?);
        }
        let server = TcpStream::connect(self.target).await?;
        server.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(server)).await?;
        // It ends with the answer's body, or when the body is dropped.
        tokio::spawn(connection);
        Ok(sender.send_request(Request::from_parts(parts, body)).await?)
    }

    fn refuse(&self, number: usize, status: u16, code: &str) -> Result<Response<Body>> {
        self.change(number, |seen| seen.status = Some(status));
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>injected by the test</Message></Error>"
        );
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut answer = Response::new(body);
        *answer.status_mut() = StatusCode::from_u16(status)?;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        Ok(answer)
    }

    fn note(&self, parts: &http::request::Parts) -> usize {
        let range = parts.headers.get(http::header::RANGE).and_then(|range| range.to_str().ok());
        let mut seen = lock(&self.seen);
        seen.push(Seen {
            method: parts.method.clone(),
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            range: range.map(str::to_owned),
            status: None,
            up: 0,
            down: 0,
        });
        seen.len() - 1
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Seen)) {
        lock(&self.seen).get_mut(number).map(change);
    }

    /// The body, its bytes counted as they pass.
    fn counted(&self, body: Body, number: usize, way: Way) -> Body {
        let seen = Arc::clone(&self.seen);
        body.map_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            if let Some(seen) = lock(&seen).get_mut(number) {
                match way {
                    Way::Up => seen.up += bytes,
                    Way::Down => seen.down += bytes,
                }
            }
            frame
        })
        .boxed_unsync()
    }
}

#[derive(Clone, Copy)]
enum Way {
    Up,
    Down,
}

/// The body with one bit flipped.
fn flipped(body: Body, at: u64) -> Body {
    let mut passed = 0;
    body.map_frame(move |frame| {
        let Ok(data) = frame.into_data() else { return Frame::data(Bytes::new()) };
        let start = passed;
        passed += data.len() as u64;
        if !(start..passed).contains(&at) {
            return Frame::data(data);
        }
        let mut data = BytesMut::from(data);
        if let Some(byte) = usize::try_from(at - start).ok().and_then(|at| data.get_mut(at)) {
            *byte ^= 1;
        }
        Frame::data(data.freeze())
    })
    .boxed_unsync()
}

/// The body's first bytes, then an error, which makes the server drop the connection.
fn truncated(body: Body, left: u64) -> Body {
    let frames = futures_util::stream::try_unfold((body, left), |(mut body, left)| async move {
        anyhow::ensure!(left > 0, "cut by the test");
        let Some(frame) = body.frame().await else { return Ok(None) };
        let data = frame?.into_data().unwrap_or_default();
        let data = data.slice(..data.len().min(usize::try_from(left)?));
        let left = left - data.len() as u64;
        anyhow::Ok(Some((Frame::data(data), (body, left))))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Locks; a test thread that panicked does not spoil what the lock guards.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, Connection};

    /// A server that answers with the request's method, body and `if-none-match`, on any path.
    async fn server() -> SocketAddr {
        let echo = async |request: axum::extract::Request| {
            let condition = request.headers().get("if-none-match").cloned();
            let method = request.method().clone();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            format!("{method} {} {condition:?}", String::from_utf8_lossy(&body))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(echo);
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    async fn put(proxy: &HttpFaultProxy) -> Result<Answer> {
        let mut connection = Connection::open(proxy.address()).await?;
        connection.ask("PUT", "/bucket/key?x=1", &[("If-None-Match", "*")], b"hello").await
    }

    #[tokio::test]
    async fn counts_what_passes() {
        let proxy = HttpFaultProxy::start(server().await).unwrap();
        let answer = put(&proxy).await.unwrap();
        assert_eq!(answer.text(), "PUT hello Some(\"*\")");
        assert_eq!(proxy.bytes(&Method::PUT), (5, answer.body.len() as u64));
        assert_eq!(proxy.bytes(&Method::GET), (0, 0));
        let seen = proxy.seen();
        assert_eq!((seen[0].target.as_str(), seen[0].status), ("/bucket/key?x=1", Some(200)));
    }

    #[tokio::test]
    async fn only_the_request_asked_for_fails() {
        let proxy = HttpFaultProxy::start(server().await).unwrap();
        let puts = Select { method: Some(Method::PUT), path: Some("key".into()) };
        proxy.add(puts, When::Nth(2), HttpFault::Answer(503, "SlowDown"));
        let statuses = [put(&proxy).await, put(&proxy).await, put(&proxy).await];
        assert_eq!(statuses.map(|answer| answer.unwrap().status), [200, 503, 200]);
        proxy.add(Select::default(), When::First(1), HttpFault::LoseAnswer);
        put(&proxy).await.unwrap_err();
        assert_eq!(put(&proxy).await.unwrap().status, 200);
    }

    #[tokio::test]
    async fn a_header_is_taken_away_and_bodies_are_spoilt() {
        let proxy = HttpFaultProxy::start(server().await).unwrap();
        proxy.add(Select::default(), When::Always, HttpFault::WithoutHeader("if-none-match"));
        proxy.add(Select::default(), When::Always, HttpFault::FlipBit(1));
        assert_eq!(put(&proxy).await.unwrap().text(), "PTT hello None");
        proxy.mend();
        proxy.add(Select::default(), When::Always, HttpFault::Truncate(3));
        assert!(put(&proxy).await.is_err());
        proxy.mend();
        assert_eq!(put(&proxy).await.unwrap().status, 200);
    }
}
