//! An answer that is long in coming: proxies on the way end connections that are silent for a minute.
//!
//! Nothing may be said before the section that an answer begins with. Where that is the pack (a client that has said all, and
//! wants no part of the history), it can begin at once, with empty packets until there is more to say. Others are silent until
//! they begin.

use std::{pin::Pin, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::time::{sleep, timeout};

use super::{PackSeen, RESULT};
use crate::{
    protocol::{pktline, sideband},
    serve::{answer, error::Failure},
};

/// The silence after which an answer begins.
const SILENCE: Duration = Duration::from_secs(10);

/// The time between two signs of life.
const EVERY: Duration = Duration::from_secs(5);

/// Empty packets in a sign of life: clients give up where fewer than 1,000 bytes a second come.
const PACKETS: usize = 1024;

pub(super) type Work = Pin<Box<dyn Future<Output = Result<Response, Failure>> + Send>>;

/// The answer that comes out of `work`; where it takes long, one that begins before it is known what it will be. It must
/// begin with a pack.
pub(super) async fn patiently(mut work: Work) -> Response {
    match timeout(SILENCE, &mut work).await {
        Ok(answered) => answered.unwrap_or_else(Failure::into_packet),
        Err(_) => {
            tracing::debug!("an answer is long in coming; it begins with signs of life");
            let seen = PackSeen::default();
            let body = Body::from_stream(stream::unfold(Step::Begin(work, seen.clone()), Step::next));
            let mut response = answer(RESULT, None, body);
            response.extensions_mut().insert(seen);
            response
        }
    }
}

/// How far such an answer is.
enum Step {
    Begin(Work, PackSeen),
    Wait(Work, PackSeen),
    Rest(BodyDataStream),
    End,
}

impl Step {
    async fn next(self) -> Option<(Result<Bytes, axum::Error>, Self)> {
        match self {
            Self::Begin(work, seen) => {
                Some((Ok(Bytes::from_static(sideband::PACKFILE)), Self::Wait(work, seen)))
            }
            Self::Wait(mut work, seen) => {
                let answered = tokio::select! {
                    answered = &mut work => answered,
                    () = sleep(EVERY) => {
                        return Some((Ok(sideband::keepalive(PACKETS)), Self::Wait(work, seen)));
                    }
                };
                match answered {
                    Ok(response) => Some(Self::rest(response, &seen).await),
                    Err(failure) => Some((Ok(sideband::error(&failure.text())), Self::End)),
                }
            }
            Self::Rest(mut body) => body.next().await.map(|chunk| (chunk, Self::Rest(body))),
            Self::End => None,
        }
    }

    /// The answer without the line that it should begin with, which has been sent.
    async fn rest(response: Response, seen: &PackSeen) -> (Result<Bytes, axum::Error>, Self) {
        let mut body = response.into_body().into_data_stream();
        let mut first = BytesMut::new();
        while first.len() < sideband::PACKFILE.len() {
            match body.next().await {
                Some(Ok(chunk)) => first.extend_from_slice(&chunk),
                Some(Err(error)) => return (Err(error), Self::End),
                None => break,
            }
        }
        if let Some(rest) = first.strip_prefix(sideband::PACKFILE) {
            seen.set();
            return (Ok(Bytes::copy_from_slice(rest)), Self::Rest(body));
        }
        // Git refuses in a line of its own, which may not come any more where a band is awaited.
        let line =
            pktline::Packets::new(&first).map_while(Result::ok).next().and_then(|packet| packet.line());
        match line.and_then(|line| line.strip_prefix(b"ERR ")) {
            Some(text) => (Ok(sideband::error(&String::from_utf8_lossy(text))), Self::End),
            None => (Err(axum::Error::new("the answer begins with no pack")), Self::End),
        }
    }
}
