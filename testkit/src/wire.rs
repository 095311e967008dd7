//! HTTP/1.1 by hand over one connection: requests that no well-behaved client sends, connections that must
//! survive them, and nothing followed, decoded or retried behind the test's back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Longer than any single answer takes on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer, its body whole and unchunked.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Whether an answer has a body: one to HEAD has none, whatever its headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    AsTold,
    None,
}

/// One connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        Self::over(TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?)
    }

    /// Goes on with a connection that there is.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends these bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = tokio::time::timeout(TIMEOUT, self.stream.get_mut().write_all(bytes)).await;
        sent.context("the server stopped reading")?.context("send")
    }

    /// Sends a request with a body whose length is told, and reads the answer.
    pub async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        self.send(&request(method, target, headers, body)).await?;
        self.expect(if method == "HEAD" { Body::None } else { Body::AsTold }).await
    }

    /// As [`Connection::ask`] with a body in chunks.
    pub async fn ask_chunked(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        chunks: &[&[u8]],
    ) -> Result<Answer> {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n").into_bytes();
        for (name, value) in headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
        self.send(&bytes).await?;
        for chunk in chunks {
            self.send(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
            self.send(chunk).await?;
            self.send(b"\r\n").await?;
        }
        self.send(b"0\r\n\r\n").await?;
        self.answer().await
    }

    /// Reads one answer to its end.
    pub async fn answer(&mut self) -> Result<Answer> {
        self.expect(Body::AsTold).await
    }

    /// Reads until these bytes have come; gives back all that came, framing included.
    pub async fn until(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let read = async {
            let mut seen = Vec::new();
            while !seen.windows(bytes.len()).any(|part| part == bytes) {
                let more = self.stream.fill_buf().await?;
                ensure!(!more.is_empty(), "the server closed the connection");
                let length = more.len();
                seen.extend_from_slice(more);
                self.stream.consume(length);
            }
            Ok(seen)
        };
        tokio::time::timeout(TIMEOUT, read).await.context("they did not come")?
    }

    /// Sends a request, and takes what comes until the server closes the connection, at most so many bytes and for so long:
    /// for answers that may have no end.
    pub async fn hear(mut self, request: &[u8], most: usize, patience: Duration) -> Result<Heard> {
        let mut heard = Heard { bytes: Vec::new(), end: End::Closed };
        let taken = tokio::time::timeout(patience, async {
            self.send(request).await?;
            while heard.bytes.len() < most {
                let more = match self.stream.fill_buf().await {
                    Ok(more) if !more.is_empty() => more,
                    // Cut is closed, too.
                    _ => return Ok(End::Closed),
                };
                heard.bytes.extend_from_slice(more);
                let length = more.len();
                self.stream.consume(length);
            }
            anyhow::Ok(End::Most)
        });
        heard.end = taken.await.unwrap_or(Ok(End::Late))?;
        Ok(heard)
    }

    async fn expect(&mut self, body: Body) -> Result<Answer> {
        tokio::time::timeout(TIMEOUT, read(&mut self.stream, body))
            .await
            .context("the server did not answer")?
    }
}

/// What came of a request, whatever it is.
#[derive(Debug)]
pub struct Heard {
    /// All that came.
    pub bytes: Vec<u8>,
    /// Why there is no more.
    pub end: End,
}

/// Why no more was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The server closed the connection.
    Closed,
    /// That was as much as was to be heard.
    Most,
    /// That was as long as was to be waited.
    Late,
}

impl Heard {
    /// The answer to a request of this method, if that is what came, and whole.
    pub async fn answer(&self, method: &str) -> Option<Answer> {
        read(&mut &*self.bytes, if method == "HEAD" { Body::None } else { Body::AsTold }).await.ok()
    }
}

async fn read(stream: &mut (impl AsyncBufRead + Unpin), body: Body) -> Result<Answer> {
    let status = loop {
        let line = line(stream).await?;
        let code = line.split(' ').nth(1).with_context(|| format!("not a status line: {line:?}"))?;
        let status: u16 = code.parse()?;
        if status != 100 {
            break status;
        }
        ensure!(self::line(stream).await?.is_empty(), "a 100 Continue with headers");
    };
    let mut headers = Vec::new();
    loop {
        let line = line(stream).await?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: Vec::new() };
    if body == Body::None {
        return Ok(answer);
    }
    if answer.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        loop {
            let line = line(stream).await?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
                .with_context(|| format!("not a chunk size: {line:?}"))?;
            take(stream, size, &mut answer.body).await?;
            ensure!(self::line(stream).await?.is_empty(), "a chunk longer than it said");
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = answer.header("content-length") {
        let length = length.parse()?;
        take(stream, length, &mut answer.body).await?;
    } else if status != 204 && status != 304 {
        stream.read_to_end(&mut answer.body).await?;
    }
    Ok(answer)
}

async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    if line.pop() != Some(b'\n') {
        bail!("the server closed the connection");
    }
    line.pop_if(|last| *last == b'\r');
    Ok(String::from_utf8_lossy(&line).into_owned())
}

async fn take(stream: &mut (impl AsyncBufRead + Unpin), size: usize, body: &mut Vec<u8>) -> Result<()> {
    let start = body.len();
    body.resize(start + size, 0);
    let end = body.get_mut(start..).expect("the body has just been made longer");
    stream.read_exact(end).await.context("the server cut the body")?;
    Ok(())
}

/// A request with a body whose length is told.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("Host: test\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One GET on a connection of its own.
pub async fn get(address: SocketAddr, target: &str) -> Result<Answer> {
    Connection::open(address).await?.ask("GET", target, &[], b"").await
}

/// One pkt-line.
pub fn pkt(text: &str) -> Vec<u8> {
    format!("{:04x}{text}", text.len() + 4).into_bytes()
}

/// The pkt-lines of an answer: none is a flush, delimiter or response-end packet.
pub fn pkts(mut bytes: &[u8]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let (size, rest) = bytes.split_at_checked(4).context("a pkt-line without its length")?;
        let size = usize::from_str_radix(std::str::from_utf8(size)?, 16)?;
        if size < 4 {
            lines.push(None);
            bytes = rest;
            continue;
        }
        let (line, rest) = rest.split_at_checked(size - 4).context("a pkt-line cut short")?;
        lines.push(Some(line.to_vec()));
        bytes = rest;
    }
    Ok(lines)
}
