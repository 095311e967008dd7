//! A git client for load: speaks protocol v2 over HTTP/1.1 keep-alive, checks what it gets, keeps nothing.
//!
//! A real `git clone` spends 13-30 s of CPU on `index-pack` for 300 MB, which on a small machine hides the
//! server. This client asks what `git clone` asks and throws the pack away as it arrives. It still checks the
//! shape of every answer, and the pack's trailer where [`Check::Trailer`] asks for it.

mod crowd;
mod pack;
mod pktline;
mod refs;
mod stats;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use self::pack::Demux;

pub use self::crowd::{Answers, Clones, clones, listings};
pub use self::pack::{Check, Received};
pub use self::refs::{Ref, RefSet};
pub use self::stats::percentile;

/// The prefixes that `git clone` asks for.
pub const CLONE_PREFIXES: [&str; 3] = ["HEAD", "refs/heads/", "refs/tags/"];
/// The largest list of refs that is read: 400,000 refs.
const LARGEST_LIST: usize = 32 << 20;
/// A server that does not take a connection for so long is not there.
const CONNECT: Duration = Duration::from_secs(10);

/// How much of history a clone asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All branches and tags, as `git clone --mirror` or a plain clone.
    Full,
    /// One commit of HEAD's branch, as `git clone --depth 1` and most CI jobs.
    One,
}

/// A clone to be made.
#[derive(Debug, Clone)]
pub struct Ask {
    /// How much of history.
    pub depth: Depth,
    /// How well the pack is looked at.
    pub check: Check,
    /// Objects to ask for instead of those that the server's refs name.
    pub wants: Option<Arc<[String]>>,
}

/// One list of refs.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The refs.
    pub set: Arc<RefSet>,
    /// From the request to the last byte.
    pub latency: Duration,
}

/// One fetched pack.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// What arrived.
    pub received: Received,
    /// From the request to the first byte of the pack.
    pub first_byte: Duration,
    /// From the request to the last byte.
    pub total: Duration,
}

/// An answer to be read as it is.
#[derive(Debug, Clone, Copy)]
pub enum Download<'a> {
    /// The answer to a `fetch` of these objects.
    Pack {
        /// The objects.
        wants: &'a [String],
        /// How much of history.
        depth: Depth,
    },
    /// What lies at this route below the URL.
    File(&'a str),
}

/// One answer that was read as it is.
#[derive(Debug, Clone, Copy)]
pub struct Downloaded {
    /// Bytes of its body.
    pub bytes: u64,
    /// From the request to the last byte.
    pub total: Duration,
}

/// A client with one connection to one repository.
#[derive(Debug)]
pub struct Client {
    authority: String,
    path: String,
    connection: Option<SendRequest<Full<Bytes>>>,
    known: Option<Known>,
}

/// The last list of refs: the same request is most often answered by the same bytes, which need no parsing.
#[derive(Debug)]
struct Known {
    request: Bytes,
    answer: Bytes,
    set: Arc<RefSet>,
}

impl Client {
    /// Prepares a client for the repository at an `http://host:port/path` URL; connects when it is used.
    pub fn new(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("read the URL {url}"))?;
        ensure!(uri.scheme_str() == Some("http"), "the load client speaks plain http, not {url}");
        let authority = uri.authority().with_context(|| format!("{url} names no host"))?.to_string();
        Ok(Self {
            authority,
            path: uri.path().trim_end_matches('/').to_owned(),
            connection: None,
            known: None,
        })
    }

    /// Asks what the server can do, which is how every git client begins; it must speak protocol v2.
    pub async fn capabilities(&mut self) -> Result<()> {
        let body = self.get("/info/refs?service=git-upload-pack").await?;
        // git http-backend puts a service line in front; others need not.
        let (_, mut line, mut rest) = pktline::split(&body)?;
        if line.starts_with(b"# service=") {
            rest = pktline::split(rest)?.2;
            line = pktline::split(rest)?.1;
        }
        ensure!(line.trim_ascii_end() == b"version 2", "not protocol v2: {}", line.escape_ascii());
        Ok(())
    }

    /// Reads something small below the URL.
    pub async fn get(&mut self, route: &str) -> Result<Bytes> {
        let answer = self.send(Method::GET, route, Bytes::new()).await?;
        let body = Limited::new(answer.into_body(), LARGEST_LIST).collect().await;
        Ok(body.map_err(anyhow::Error::from_boxed).with_context(|| format!("read {route}"))?.to_bytes())
    }

    /// Asks for the headers of what lies at a route.
    pub async fn head(&mut self, route: &str) -> Result<()> {
        let answer = self.send(Method::HEAD, route, Bytes::new()).await?;
        answer.into_body().collect().await.with_context(|| format!("read {route}")).map(drop)
    }

    /// Lists the refs that begin with one of these prefixes; all, if there are none.
    pub async fn ls_refs(&mut self, prefixes: &[&str]) -> Result<Listed> {
        let mut request = Vec::new();
        pktline::line(&mut request, "command=ls-refs\n");
        pktline::line(&mut request, "agent=tarn-load\n");
        pktline::line(&mut request, "object-format=sha1");
        pktline::delimiter(&mut request);
        pktline::line(&mut request, "peel\n");
        pktline::line(&mut request, "symrefs\n");
        for prefix in prefixes {
            pktline::line(&mut request, &format!("ref-prefix {prefix}\n"));
        }
        pktline::flush(&mut request);
        let request = Bytes::from(request);

        let known = self.known.take().filter(|known| known.request == request);
        let start = Instant::now();
        let mut body = self.send(Method::POST, "/git-upload-pack", request.clone()).await?.into_body();
        let mut answer = Compared::new(known.as_ref().map(|known| known.answer.clone()));
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.context("read the refs")?.into_data() {
                answer.push(&data)?;
            }
        }
        let latency = start.elapsed();
        let known = match (answer.finish(), known) {
            (None, Some(known)) => known,
            (answer, _) => {
                let answer = answer.unwrap_or_default();
                let set = Arc::new(refs::parse(&answer)?);
                Known { request, answer, set }
            }
        };
        let set = Arc::clone(&known.set);
        self.known = Some(known);
        Ok(Listed { set, latency })
    }

    /// Fetches a pack with everything these objects need and throws it away.
    pub async fn fetch(&mut self, wants: &[String], depth: Depth, check: Check) -> Result<Fetched> {
        let fetched = self.fetch_by(fetch_request(wants, depth), check).await?;
        let (seen, shallow) = (fetched.received.shallow, usize::from(depth == Depth::One));
        ensure!(seen == shallow, "{seen} shallow commits, not {shallow}");
        Ok(fetched)
    }

    /// Fetches a pack by a request such as [`request`] makes and throws it away.
    pub async fn fetch_by(&mut self, request: Bytes, check: Check) -> Result<Fetched> {
        let start = Instant::now();
        let mut body = self.send(Method::POST, "/git-upload-pack", request).await?.into_body();
        let mut demux = Demux::new(check);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.context("read the pack")?.into_data() {
                demux.feed(&data)?;
            }
        }
        let total = start.elapsed();
        let received = demux.finish()?;
        Ok(Fetched { first_byte: received.first_byte - start, received, total })
    }

    /// Reads an answer to its end as it is, handing each piece on; for comparing servers of the same bytes.
    pub async fn download(
        &mut self,
        what: Download<'_>,
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Downloaded> {
        let (method, route, request) = match what {
            Download::Pack { wants, depth } => {
                (Method::POST, "/git-upload-pack", fetch_request(wants, depth))
            }
            Download::File(route) => (Method::GET, route, Bytes::new()),
        };
        let start = Instant::now();
        let mut body = self.send(method, route, request).await?.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.context("read an answer")?.into_data() {
                bytes += data.len() as u64;
                each(&data)?;
            }
        }
        Ok(Downloaded { bytes, total: start.elapsed() })
    }

    /// Does what `git clone` asks of a server, from the capabilities to the end of the pack.
    pub async fn clone(&mut self, ask: &Ask) -> Result<(Listed, Fetched)> {
        self.capabilities().await?;
        let listed = self.ls_refs(&CLONE_PREFIXES).await?;
        let named: Vec<String>;
        let wants = match (&ask.wants, ask.depth) {
            (Some(wants), _) => wants,
            (None, Depth::Full) => {
                named = listed.set.wants();
                named.as_slice()
            }
            (None, Depth::One) => {
                named = listed.set.head().map(ToOwned::to_owned).into_iter().collect();
                named.as_slice()
            }
        };
        ensure!(!wants.is_empty(), "the server lists nothing to ask for");
        let fetched = self.fetch(wants, ask.depth, ask.check).await?;
        Ok((listed, fetched))
    }

    /// Sends one request over the kept connection, or over a new one where the server has closed it.
    async fn send(&mut self, method: Method, route: &str, body: Bytes) -> Result<Response<Incoming>> {
        let mut kept = self.connection.take();
        if let Some(connection) = &mut kept
            && connection.ready().await.is_err()
        {
            kept = None;
        }
        let mut connection = match kept {
            Some(connection) => connection,
            None => connect(&self.authority).await?,
        };
        let request = Request::builder()
            .method(&method)
            .uri(format!("{}{route}", self.path))
            .header(HOST, &self.authority)
            .header(USER_AGENT, "git/2.39.5 (tarn-load)")
            .header("Git-Protocol", "version=2");
        let request = if method == Method::POST {
            request
                .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
                .header(ACCEPT, "application/x-git-upload-pack-result")
        } else {
            request
        };
        let request = request.body(Full::new(body)).context("build a request")?;
        let answer = connection.send_request(request).await;
        let answer =
            answer.with_context(|| format!("{method} http://{}{}{route}", self.authority, self.path))?;
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            let text = Limited::new(answer.into_body(), 4_096).collect().await;
            let text = text.map(|text| String::from_utf8_lossy(&text.to_bytes()).trim_end().to_owned());
            bail!("{method} {}{route}: {status}: {}", self.path, text.unwrap_or_default());
        }
        self.connection = Some(connection);
        Ok(answer)
    }
}

/// A request of these lines, as the trace of git's packets shows them: `0001` is a delimiter.
pub fn request<'a>(lines: impl IntoIterator<Item = &'a str>) -> Bytes {
    let mut request = Vec::new();
    for line in lines {
        match line {
            "0001" => pktline::delimiter(&mut request),
            line => pktline::line(&mut request, &format!("{line}\n")),
        }
    }
    pktline::flush(&mut request);
    request.into()
}

/// What `git clone` without a terminal asks for these objects.
fn fetch_request(wants: &[String], depth: Depth) -> Bytes {
    let about = ["command=fetch", "agent=tarn-load", "object-format=sha1", "0001"];
    let arguments = ["thin-pack", "no-progress", "include-tag", "ofs-delta"];
    let deepen = (depth == Depth::One).then_some("deepen 1");
    let wants: Vec<String> = wants.iter().map(|want| format!("want {want}")).collect();
    let wants = wants.iter().map(String::as_str);
    request(about.into_iter().chain(arguments).chain(deepen).chain(wants).chain(["done"]))
}

/// Opens a connection.
async fn connect(authority: &str) -> Result<SendRequest<Full<Bytes>>> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(authority)).await;
    let stream = stream.context("the server takes no connection")?;
    let stream = stream.with_context(|| format!("connect to {authority}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.context("start HTTP")?;
    // Ends with its sender; what goes wrong on it reaches the request under way.
    tokio::spawn(connection);
    Ok(sender)
}

/// A body that is kept only from where it differs from one already known.
#[derive(Debug)]
struct Compared {
    known: Bytes,
    same: usize,
    other: Option<Vec<u8>>,
}

impl Compared {
    fn new(known: Option<Bytes>) -> Self {
        let other = if known.is_some() { None } else { Some(Vec::new()) };
        Self { known: known.unwrap_or_default(), same: 0, other }
    }

    fn push(&mut self, data: &[u8]) -> Result<()> {
        let have = self.other.as_ref().map_or(self.same, Vec::len);
        ensure!(have + data.len() <= LARGEST_LIST, "a list of refs of more than {LARGEST_LIST} bytes");
        if let Some(other) = &mut self.other {
            other.extend_from_slice(data);
        } else if self.known.get(self.same..self.same + data.len()) == Some(data) {
            self.same += data.len();
        } else {
            let mut other = self.known.slice(..self.same).to_vec();
            other.extend_from_slice(data);
            self.other = Some(other);
        }
        Ok(())
    }

    /// The body; none when it is the known one.
    fn finish(self) -> Option<Bytes> {
        match self.other {
            Some(other) => Some(other.into()),
            None if self.same == self.known.len() => None,
            None => Some(self.known.slice(..self.same)),
        }
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_told_from_the_known_one() {
        let compare = |known: Option<&'static [u8]>, pieces: &[&[u8]]| {
            let mut compared = Compared::new(known.map(Bytes::from_static));
            pieces.iter().try_for_each(|piece| compared.push(piece)).unwrap();
            compared.finish()
        };
        assert_eq!(compare(None, &[b"ab", b"c"]).as_deref(), Some(&b"abc"[..]));
        assert_eq!(compare(Some(b"abc"), &[b"ab", b"c"]), None);
        assert_eq!(compare(Some(b"abc"), &[b"ab"]).as_deref(), Some(&b"ab"[..]));
        assert_eq!(compare(Some(b"abc"), &[b"ab", b"d"]).as_deref(), Some(&b"abd"[..]));
        assert_eq!(compare(Some(b"abc"), &[b"abc", b"d"]).as_deref(), Some(&b"abcd"[..]));
    }
}
