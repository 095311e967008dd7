//! Faults that a test switches on and off while the server runs.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::watch;

use super::{Body, Operation};

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The request is taken and never answered.
    Hang,
    /// The request waits until the fault is changed, and is then answered as if it had just arrived.
    Hold,
    /// The answer is computed at once and kept back until the fault is changed: an old answer, late.
    HoldAnswer,
    /// This status, with a line of text.
    Status(u16),
    /// 429 that asks to be left alone for so many seconds.
    Limited(u64),
    /// 200 with a web page, as a captive portal or a login form gives.
    Html,
    /// 200 with a good answer that says it is of this type.
    Type(&'static str),
    /// This status, with this text, which is said to be of this type.
    Page {
        /// The status.
        status: u16,
        /// The type.
        kind: &'static str,
        /// The text.
        text: String,
    },
    /// 200 of the right type, with a body that never ends.
    Endless,
    /// The answer lists so many more refs, all of one object.
    Refs(u32),
    /// A message with this text goes before the pack.
    Say(String),
    /// 302 to the same path and query below this URL.
    Redirect(String),
    /// This redirect, to this very URL.
    Lead(u16, String),
    /// The answer comes this much later.
    Delay(Duration),
    /// The answer's body comes at about this many bytes a second.
    Throttle(u64),
    /// The connection is cut after this many bytes of the answer's body.
    CutAfter(u64),
    /// The answer ends, as HTTP goes properly, after this many bytes of its body.
    EndAfter(u64),
    /// In place of its last packet the answer says, in band 3, that the server gave up; then it ends properly.
    GiveUp,
    /// About this share of the requests is answered with 500; which ones depends on the seed alone.
    FailRatio {
        /// From 0 to 1.
        ratio: f64,
        /// The same seed fails the same requests.
        seed: u64,
    },
}

/// The faults in force; the last that fits a request wins.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<(Option<String>, Option<Operation>, Fault)>,
    met: std::sync::atomic::AtomicU64,
}

/// What to do with a request.
pub(super) enum Action {
    /// Serve it, then treat the answer.
    Pass { wrap: Wrap },
    /// Answer this instead.
    Answer { status: StatusCode, content_type: &'static str, text: Cow<'static, str> },
    /// Begin such an answer, and never end it.
    Endless,
    /// Ask the client to come back after so many seconds.
    Later(u64),
    /// Send the client there, with the path and query it asked for.
    Redirect(String),
    /// Send the client to this very URL.
    Lead(StatusCode, String),
}

/// What happens to a good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrap {
    Whole,
    Held,
    Cut(u64),
    End(u64),
    GiveUp,
    Slow(u64),
    Type(&'static str),
    Refs(u32),
    Say(String),
}

impl Faults {
    pub(super) fn replace(&mut self, fault: Fault) {
        self.rules.clear();
        self.add(None, None, fault);
    }

    pub(super) fn add(&mut self, repo: Option<String>, operation: Option<Operation>, fault: Fault) {
        self.rules.push((repo, operation, fault));
    }

    fn find(&self, repo: &str, operation: Operation) -> Fault {
        let fits = |(of, on, _): &&(Option<String>, Option<Operation>, Fault)| {
            of.as_deref().is_none_or(|of| of == repo) && on.is_none_or(|on| on == operation)
        };
        self.rules.iter().rev().find(fits).map_or(Fault::None, |(_, _, fault)| fault.clone())
    }

    /// Whether the next request is one of those that fail.
    fn draw(&self, ratio: f64, seed: u64) -> bool {
        use rand::{Rng as _, SeedableRng as _};
        let number = self.met.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        rand::rngs::StdRng::seed_from_u64(seed.wrapping_add(number)).random_bool(ratio.clamp(0.0, 1.0))
    }
}

/// Decides what happens to a request; waits where the fault says so.
pub(super) async fn meet(mut faults: watch::Receiver<Faults>, repo: &str, operation: Operation) -> Action {
    let held = faults.wait_for(|faults| faults.find(repo, operation) != Fault::Hold).await;
    // An error means that the server stops.
    let (fault, unlucky) = held.map_or((Fault::None, false), |faults| match faults.find(repo, operation) {
        Fault::FailRatio { ratio, seed } => (Fault::None, faults.draw(ratio, seed)),
        fault => (fault, false),
    });
    let failure = "the upstream has a bad day\n";
    if unlucky {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return Action::Answer { status, content_type: "text/plain", text: failure.into() };
    }
    match fault {
        Fault::None | Fault::Hold | Fault::FailRatio { .. } => Action::Pass { wrap: Wrap::Whole },
        Fault::Hang => std::future::pending().await,
        Fault::HoldAnswer => Action::Pass { wrap: Wrap::Held },
        Fault::Status(code) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Action::Answer { status, content_type: "text/plain", text: failure.into() }
        }
        Fault::Html => {
            let text = "<!DOCTYPE html><html><body>Please log in</body></html>\n";
            Action::Answer {
                status: StatusCode::OK,
                content_type: "text/html; charset=utf-8",
                text: text.into(),
            }
        }
        Fault::Limited(seconds) => Action::Later(seconds),
        Fault::Redirect(base) => Action::Redirect(base),
        Fault::Lead(status, url) => {
            Action::Lead(StatusCode::from_u16(status).unwrap_or(StatusCode::FOUND), url)
        }
        Fault::Page { status, kind, text } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Action::Answer { status, content_type: kind, text: text.into() }
        }
        Fault::Endless => Action::Endless,
        Fault::Type(kind) => Action::Pass { wrap: Wrap::Type(kind) },
        Fault::Refs(count) => Action::Pass { wrap: Wrap::Refs(count) },
        Fault::Say(text) => Action::Pass { wrap: Wrap::Say(text) },
        Fault::Delay(delay) => {
            tokio::time::sleep(delay).await;
            Action::Pass { wrap: Wrap::Whole }
        }
        Fault::Throttle(rate) => Action::Pass { wrap: Wrap::Slow(rate) },
        Fault::EndAfter(bytes) => Action::Pass { wrap: Wrap::End(bytes) },
        Fault::GiveUp => Action::Pass { wrap: Wrap::GiveUp },
        Fault::CutAfter(bytes) => Action::Pass { wrap: Wrap::Cut(bytes) },
    }
}

impl Wrap {
    /// Treats a good answer. A held one is complete after this, and waits for [`released`].
    pub(super) async fn apply(self, answer: Response<Body>) -> Result<Response<Body>> {
        let (mut head, body) = answer.into_parts();
        let body = match self {
            Self::Whole => body,
            Self::Type(kind) => {
                head.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
                body
            }
            Self::Refs(count) => {
                let whole = body.collect().await?.to_bytes();
                let id = whole.get(4..44).context("a ref")?;
                let more = (0..count).flat_map(|number| {
                    let line = [id, format!(" refs/heads/made-up-{number:07}\n").as_bytes()].concat();
                    packet(&line)
                });
                let most = whole.strip_suffix(b"0000").unwrap_or(&whole);
                full([most, &more.collect::<Vec<u8>>(), b"0000"].concat().into())
            }
            Self::Say(text) => {
                let whole = body.collect().await?.to_bytes();
                let begin = whole.windows(PACKFILE.len()).position(|part| part == PACKFILE);
                let (before, after) = whole.split_at(begin.map_or(0, |begin| begin + PACKFILE.len()));
                full([before, &packet(&[b"\x02", text.as_bytes()].concat()), after].concat().into())
            }
            Self::Held => full(body.collect().await?.to_bytes()),
            Self::Cut(bytes) => cut(body, bytes),
            Self::End(bytes) => {
                let whole = body.collect().await?.to_bytes();
                full(whole.slice(..whole.len().min(usize::try_from(bytes)?)))
            }
            Self::GiveUp => {
                let whole = body.collect().await?.to_bytes();
                let most = whole.strip_suffix(b"0000").unwrap_or(&whole);
                full([most, b"0013\x03out of memory\n"].concat().into())
            }
            Self::Slow(rate) => slow(body, rate),
        };
        Ok(Response::from_parts(head, body))
    }
}

/// What comes before a pack in protocol v2.
const PACKFILE: &[u8] = b"000dpackfile\n";

/// A packet of git's protocol.
fn packet(content: &[u8]) -> Vec<u8> {
    [format!("{:04x}", content.len() + 4).as_bytes(), content].concat()
}

/// A body that goes on for ever.
pub(super) fn endless() -> Body {
    let piece = Bytes::from_static(&[b'0'; 16 * 1024]);
    let frames = futures_util::stream::repeat_with(move || anyhow::Ok(Frame::data(piece.clone())));
    StreamBody::new(frames).boxed_unsync()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Waits until answers to such requests are no longer held.
pub(super) async fn released(mut faults: watch::Receiver<Faults>, repo: &str, operation: Operation) {
    // An error means that the server stops.
    let _ = faults.wait_for(|faults| faults.find(repo, operation) != Fault::HoldAnswer).await;
}

/// The body's first bytes, then an error, which makes the server drop the connection.
fn cut(body: Body, left: u64) -> Body {
    let frames = futures_util::stream::try_unfold((body, left), |(mut body, left)| async move {
        let Some(data) = next(&mut body).await? else { return Ok(None) };
        let data = data.slice(..data.len().min(usize::try_from(left)?));
        anyhow::ensure!(!data.is_empty(), "cut by the test");
        let left = left - data.len() as u64;
        anyhow::Ok(Some((Frame::data(data), (body, left))))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// The body in pieces of a twentieth of a second.
fn slow(body: Body, rate: u64) -> Body {
    let piece = usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1);
    let frames =
        futures_util::stream::try_unfold((body, Bytes::new()), move |(mut body, mut rest)| async move {
            if rest.is_empty() {
                let Some(data) = next(&mut body).await? else { return Ok(None) };
                rest = data;
            }
            let data = rest.split_to(rest.len().min(piece));
            tokio::time::sleep(Duration::from_millis(50).mul_f64(data.len() as f64 / piece as f64)).await;
            anyhow::Ok(Some((Frame::data(data), (body, rest))))
        });
    StreamBody::new(frames).boxed_unsync()
}

/// The next bytes that are not none.
async fn next(body: &mut Body) -> Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) if !data.is_empty() => return Ok(Some(data)),
            _ => {}
        }
    }
    Ok(None)
}
