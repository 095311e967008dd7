//! An upstream that means harm: it serves a real repository, under every name, until a test switches one of its [`Harm`]s on.
//! It writes HTTP by hand, because no library writes it as wrong as that.

mod harm;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

pub use self::harm::{Harm, Place};
use crate::git::Repo;
use crate::listening::Listening;
use crate::upstream::{Operation, Upstream, operation_of};
use crate::wire::{Answer, Connection, pkt};

/// What is in every page of the server: whoever is shown it, is shown too much.
pub const MARK: &str = "kanarienvogel-of-a-page-83c2";

/// What paints on terminals, and would be a line of its own in a log.
pub const PAINT: &str =
    "\u{1b}]0;owned\u{7}\u{1b}[2J\r\n2026-01-01T00:00:00Z  INFO tarn_agent::audit: served caller=forged";

/// Headers that metadata servers and proxies take for something.
const FORGED: [(&str, &str); 6] = [
    ("Metadata-Flavor", "Google"),
    ("Metadata", "true"),
    ("X-aws-ec2-metadata-token", "t"),
    ("Proxy-Authorization", "Basic YWRhOnB3"),
    ("Host", "metadata.google.internal"),
    ("Transfer-Encoding", "chunked"),
];

/// A page with what nobody should see.
fn page() -> Bytes {
    format!("<!DOCTYPE html><html><body>{MARK}</body></html>\n").into()
}

/// Which requests are harmed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Switch {
    name: String,
    /// All, if it is none in particular.
    on: Option<Operation>,
    harm: Harm,
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct Hostile {
    state: Arc<State>,
    listening: Listening,
}

#[derive(Debug)]
struct State {
    inner: Upstream,
    trap: SocketAddr,
    switches: Mutex<Vec<Switch>>,
    met: Mutex<Vec<(String, Operation, Harm)>>,
}

impl Hostile {
    /// Serves the repository `a.git`, made below `root`, under all names. Who is led astray is led to `trap`.
    pub async fn start(root: &Path, trap: SocketAddr) -> Result<(Self, Repo)> {
        let inner = Upstream::start(root)?;
        let origin = inner.seed("a.git").await?;
        let state = Arc::new(State { inner, trap, switches: Mutex::default(), met: Mutex::default() });
        let shared = Arc::clone(&state);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = Listening::start("hostile", address, move |stream| {
            let state = Arc::clone(&shared);
            // A connection that ends in the middle is what the test asked for, or the client's own doing.
            async move { drop(state.converse(stream).await) }
        })?;
        Ok((Self { state, listening }, origin))
    }

    /// The repository's URL by this name.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listening.address()
    }

    /// The honest server behind it.
    pub fn inner(&self) -> &Upstream {
        &self.state.inner
    }

    /// Does harm from now on to requests for this name: to those of one kind, or to all.
    pub fn switch(&self, name: &str, on: Option<Operation>, harm: Harm) {
        self.state.switches().push(Switch { name: name.to_owned(), on, harm });
    }

    /// Does no more harm to requests for this name.
    pub fn repent(&self, name: &str) {
        self.state.switches().retain(|switch| switch.name != name);
    }

    /// Whom what was done so far, for this name.
    pub fn met(&self, name: &str) -> Vec<(Operation, Harm)> {
        let met = self.state.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.iter().filter(|(of, ..)| of == name).map(|(_, operation, harm)| (*operation, *harm)).collect()
    }
}

/// A request as it came.
#[derive(Debug)]
struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// Reads one; none where the client has left.
    async fn read(stream: &mut BufReader<TcpStream>) -> Result<Option<Self>> {
        let Some(first) = line(stream).await? else { return Ok(None) };
        let mut words = first.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().context("no target")?.to_owned();
        let mut headers = Vec::new();
        while let Some(text) = line(stream).await?.filter(|text| !text.is_empty()) {
            let (name, value) = text.split_once(':').context("not a header")?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Self { method, target, headers, body: Vec::new() };
        if request.header("transfer-encoding").is_some() {
            loop {
                let size = line(stream).await?.context("no chunk")?;
                let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
                take(stream, size, &mut request.body).await?;
                line(stream).await?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = request.header("content-length") {
            let length = length.parse()?;
            take(stream, length, &mut request.body).await?;
        }
        Ok(Some(request))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }

    /// The repository's name, and what is asked of it.
    fn split(&self) -> Result<(&str, &str)> {
        self.target.trim_start_matches('/').split_once(".git").context("no repository")
    }

    fn operation(&self) -> Operation {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let zipped = self.header("content-encoding") == Some("gzip");
        operation_of(path, query, &self.body, zipped)
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> Result<Option<String>> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()))
}

async fn take(stream: &mut BufReader<TcpStream>, size: usize, body: &mut Vec<u8>) -> Result<()> {
    ensure!(size <= 64 << 20, "a test sends less");
    let start = body.len();
    body.resize(start + size, 0);
    stream.read_exact(body.get_mut(start..).unwrap_or_default()).await?;
    Ok(())
}

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Next,
    Close,
}

impl State {
    fn switches(&self) -> MutexGuard<'_, Vec<Switch>> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn harm(&self, name: &str, operation: Operation) -> Option<Harm> {
        let switches = self.switches();
        let fits = |switch: &&Switch| {
            switch.name == name
                && switch.on.is_none_or(|on| on == operation)
                && switch.harm.concerns(operation)
        };
        switches.iter().rev().find(fits).map(|switch| switch.harm)
    }

    async fn converse(&self, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream).await? {
            let (name, operation) = (request.split()?.0.to_owned(), request.operation());
            let then = match self.harm(&name, operation) {
                None => {
                    let answer = self.honest(&request).await?;
                    say(&mut stream, &answer).await?
                }
                Some(harm) => {
                    let met = (name, operation, harm);
                    self.met.lock().unwrap_or_else(PoisonError::into_inner).push(met);
                    self.act(&mut stream, &request, operation, harm).await?
                }
            };
            if then == Then::Close {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What the honest server answers.
    async fn honest(&self, request: &Request) -> Result<Answer> {
        let (name, rest) = request.split()?;
        let kept = [
            "host",
            "content-type",
            "git-protocol",
            "content-encoding",
            "accept",
            "authorization",
            "x-amz-security-token",
        ];
        let headers: Vec<(&str, &str)> =
            kept.into_iter().filter_map(|name| Some((name, request.header(name)?))).collect();
        let mut inner = Connection::open(self.inner.address()).await?;
        let mut answer =
            inner.ask(&request.method, &format!("/a.git{rest}"), &headers, &request.body).await?;
        // Objects are at this server, by this name.
        if rest.ends_with("/objects/batch") {
            answer.body = answer.text().replace("/a.git/info/", &format!("/{name}.git/info/")).into();
        }
        answer.headers.retain(|(name, _)| {
            !matches!(name.as_str(), "content-length" | "transfer-encoding" | "connection")
        });
        Ok(answer)
    }

    async fn act(
        &self,
        stream: &mut BufReader<TcpStream>,
        request: &Request,
        operation: Operation,
        harm: Harm,
    ) -> Result<Then> {
        let right = operation.answered_with(request.target.split('?').next().unwrap_or_default());
        let of = |status: u16, kind: &str, body: Bytes| Answer {
            status,
            headers: vec![("content-type".into(), kind.into())],
            body: body.to_vec(),
        };
        match harm {
            Harm::Redirect(place) => {
                let mut answer = of(302, "text/html", page());
                answer.headers.push(("location".into(), place.url(self.trap)));
                say(stream, &answer).await
            }
            Harm::Circle => {
                let mut answer = of(302, "text/html", page());
                answer.headers.push(("location".into(), request.target.clone()));
                say(stream, &answer).await
            }
            Harm::Href(place) => say(stream, &of(200, right, self.forged(request, place)?)).await,
            Harm::Page => say(stream, &of(200, "text/html; charset=utf-8", page())).await,
            Harm::Text => say(stream, &of(200, "text/plain", page())).await,
            Harm::Bytes => say(stream, &of(200, "application/octet-stream", page())).await,
            Harm::Refusal => say(stream, &of(403, "text/html", page())).await,
            Harm::Failure => say(stream, &of(500, "text/html", page())).await,
            Harm::Mislabelled => {
                let honest = self.honest(request).await?;
                say(stream, &of(200, "text/html", honest.body.into())).await
            }
            Harm::EndlessBody => endless(stream, right, &beginning(operation)).await,
            Harm::EndlessPage => endless(stream, "text/html", &page()).await,
            Harm::EndlessHeaders => {
                send(stream, b"HTTP/1.1 200 OK\r\n").await?;
                for number in 0_u64.. {
                    send(stream, format!("X-More-{number}: {}\r\n", "x".repeat(200)).as_bytes()).await?;
                }
                Ok(Then::Close)
            }
            Harm::EndlessHeader => {
                send(stream, b"HTTP/1.1 200 OK\r\nX-More: ").await?;
                loop {
                    send(stream, &[b'x'; 8192]).await?;
                }
            }
            Harm::CutLength | Harm::CutChunks | Harm::EndsEarly => {
                let mut honest = self.honest(request).await?;
                let whole = honest.body.len();
                honest.body.truncate(whole / 2);
                if harm == Harm::EndsEarly {
                    return say(stream, &honest).await;
                }
                let kind = honest.header("content-type").unwrap_or(right).to_owned();
                let (status, half) = (honest.status, honest.body);
                let framing = match harm {
                    Harm::CutLength => format!("Content-Length: {}\r\n\r\n", whole.max(1)),
                    _ => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", half.len() + 1),
                };
                let head = format!("HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\n{framing}");
                send(stream, head.as_bytes()).await?;
                send(stream, &half).await?;
                Ok(Then::Close)
            }
            Harm::Nothing => Ok(Then::Close),
            Harm::Garbage => {
                send(stream, &[&b"\0\x01\xff 200 nonsense\r\n\r\n"[..], &page()].concat()).await?;
                Ok(Then::Close)
            }
            Harm::Swelling => {
                let mut answer = of(200, right, swelling()?);
                answer.headers.push(("content-encoding".into(), "gzip".into()));
                say(stream, &answer).await
            }
            Harm::Uris => {
                let answer = self.elsewhere(request, operation).await?;
                say(stream, &answer).await
            }
            Harm::ManyRefs => {
                let mut honest = self.honest(request).await?;
                let id = honest.text().get(4..44).context("a ref")?.to_owned();
                let more =
                    (0..20_000).flat_map(|number| pkt(&format!("{id} refs/heads/made-up-{number:06}\n")));
                let whole = honest.body.strip_suffix(b"0000").unwrap_or(&honest.body);
                honest.body = whole.iter().copied().chain(more).chain(*b"0000").collect();
                say(stream, &honest).await
            }
            Harm::Paint => {
                let answer = if operation.is_lfs() {
                    let text = json!({"message": PAINT, "objects": [{"oid": asked(request), "error": {"code": 410, "message": PAINT}}]});
                    of(422, "application/vnd.git-lfs+json", text.to_string().into())
                } else {
                    of(200, right, pkt(&format!("ERR {PAINT}\n")).into())
                };
                say(stream, &answer).await
            }
            Harm::Silence => std::future::pending().await,
            Harm::HeadAlone => {
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: {right}\r\nContent-Length: 1000\r\n\r\n");
                send(stream, head.as_bytes()).await?;
                std::future::pending().await
            }
            Harm::Drip => {
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: {right}\r\nTransfer-Encoding: chunked\r\n\r\n");
                send(stream, head.as_bytes()).await?;
                loop {
                    send(stream, b"1\r\n0\r\n").await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Harm::Hints => loop {
                send(stream, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            },
        }
    }

    /// A batch answer that leads every object to `place`.
    fn forged(&self, request: &Request, place: Place) -> Result<Bytes> {
        let asked: Value = serde_json::from_slice(&request.body)?;
        let header: serde_json::Map<String, Value> =
            FORGED.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let action = json!({"href": place.url(self.trap), "header": header});
        let objects = asked.get("objects").and_then(Value::as_array).cloned().unwrap_or_default();
        let objects: Vec<Value> = objects
            .into_iter()
            .map(|object| {
                json!({"oid": object.get("oid"), "size": object.get("size"), "authenticated": true,
                    "actions": {"download": action, "upload": action}})
            })
            .collect();
        Ok(json!({"transfer": "basic", "objects": objects}).to_string().into())
    }

    /// The right answer, but that bundles and packs are to be had from the trap.
    async fn elsewhere(&self, request: &Request, operation: Operation) -> Result<Answer> {
        let mut answer = self.honest(request).await?;
        let place = format!("http://{}/bundle", self.trap);
        let offered = [pkt("bundle-uri\n"), pkt("packfile-uris\n")].concat();
        let (before, what) = match operation {
            Operation::Advertise => (pkt("object-format=sha1\n"), offered),
            _ => {
                let pack = format!("{} {place}\n", "1".repeat(40));
                (pkt("packfile\n"), [pkt("packfile-uris\n"), pkt(&pack), b"0001".to_vec()].concat())
            }
        };
        if let Some(at) = answer.body.windows(before.len()).position(|part| part == before) {
            answer.body.splice(at..at, what);
        }
        Ok(answer)
    }
}

/// The object that a batch request names first.
fn asked(request: &Request) -> Value {
    let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    asked.pointer("/objects/0/oid").cloned().unwrap_or_default()
}

/// How a body begins that has no end: as one that makes sense.
fn beginning(operation: Operation) -> Vec<u8> {
    match operation {
        Operation::Fetch => pkt("packfile\n"),
        Operation::LfsBatch | Operation::LfsLocks => b"{\"message\": \"".to_vec(),
        _ => Vec::new(),
    }
}

/// A hundred megabytes that take a hundred kilobytes.
fn swelling() -> Result<Bytes> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..100 {
        packed.write_all(&[b'0'; 1 << 20])?;
    }
    Ok(packed.finish()?.into())
}

/// Writes a whole answer.
async fn say(stream: &mut BufReader<TcpStream>, answer: &Answer) -> Result<Then> {
    let mut head = format!("HTTP/1.1 {} Said\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    send(stream, head.as_bytes()).await?;
    send(stream, &answer.body).await?;
    Ok(Then::Next)
}

/// Writes an answer for as long as somebody reads it.
async fn endless(stream: &mut BufReader<TcpStream>, kind: &str, first: &[u8]) -> Result<Then> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n");
    send(stream, head.as_bytes()).await?;
    send(stream, first).await?;
    loop {
        send(stream, &[b'0'; 64 * 1024]).await?;
    }
}

async fn send(stream: &mut BufReader<TcpStream>, bytes: &[u8]) -> Result<()> {
    Ok(stream.get_mut().write_all(bytes).await?)
}
