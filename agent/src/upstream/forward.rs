//! Requests handed on to the upstream: reads while the mirror is not there yet, with the mirror's
//! credentials; pushes, with the caller's own.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use reqwest::{Body, Response};
use tarn_crds::repo::Scheme;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    error::LookError,
    http::{HttpError, SILENCE, chunks},
    look::{Looker, check_type, redirected},
};
use crate::{
    git::{stderr::plain, upload_pack::ProtocolVersion},
    protocol::response::{AnswerCheck, Broken},
    spool::Sink,
};

/// How an answer ended that was handed on to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is whole.
    Whole,
    /// The server says that it gave up; whoever reads the answer learns that from itself.
    GaveUp,
}

/// How long an upstream may neither take nor say anything of a push: its hooks may run for minutes.
const PUSH_SILENCE: Duration = Duration::from_secs(600);

/// Chunks that are written in one go, where so many have come.
const WRITTEN_AT_ONCE: usize = 32;

/// An upstream's answer to a request of a push.
#[derive(Debug)]
pub struct Pushed<S> {
    /// Its status: a success, or an error.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub chunks: S,
}

const PUSH_ADVERTISEMENT: &str = "application/x-git-receive-pack-advertisement";
const PUSH_RESULT: &str = "application/x-git-receive-pack-result";

/// What a push carries besides its body; everything else is between the client and this agent.
pub const FORWARDED: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::ACCEPT,
    header::USER_AGENT,
    HeaderName::from_static("git-protocol"),
];

impl Looker {
    /// Whether requests can be handed on: not over ssh.
    pub fn can_forward(&self) -> bool {
        self.url.scheme() != Scheme::Ssh
    }

    /// Whether pushes can be handed on.
    pub fn can_push(&self) -> bool {
        matches!(self.url.scheme(), Scheme::Http | Scheme::Https)
    }

    /// Hands a request for objects on, and puts the answer into `sink`, checked by `check`. Returns the whole length, and how
    /// the answer ended. Dropping the future ends the transfer.
    ///
    /// # Errors
    /// The upstream refuses or breaks off; the file then holds part of an answer, or nothing.
    pub async fn fetch<E: Send + Sync + 'static>(
        &self,
        version: ProtocolVersion,
        request: Bytes,
        mut sink: Sink<E>,
        mut check: AnswerCheck,
    ) -> Result<(u64, Ending), LookError> {
        let stored = |error| LookError::Refused(format!("cannot store the answer: {error}"));
        if self.url.scheme() == Scheme::File {
            let (file, growth) = sink.for_child().map_err(stored)?;
            let job = self.file_job(self.path(), version, request);
            let length = job.spool(&self.git, file, |length| growth.grown(length)).await?;
            return Ok((length, Ending::Whole));
        }
        // A client says what this agent's git takes; the upstream's may be older.
        let request = if version == ProtocolVersion::V2 { self.trim(&request) } else { request };
        let client = self.host.client();
        let post = client
            .post(format!("{}/git-upload-pack", self.url()))
            .header(header::CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(header::ACCEPT, "application/x-git-upload-pack-result")
            .body(request);
        let response = self.send(post, version, SILENCE).await?;
        check_type(&response, "application/x-git-upload-pack-result")?;
        let mut chunks = std::pin::pin!(chunks(response, SILENCE).ready_chunks(WRITTEN_AT_ONCE));
        let mut length = 0;
        while let Some(chunks) = chunks.next().await {
            let chunks = chunks.into_iter().collect::<Result<Vec<_>, _>>()?;
            let work = move || (chunks.into_iter().map(|chunk| check.pass(chunk)).collect(), check);
            (length, check) = sink.append(work).await.map_err(stored)?;
            sink.growth().grown(length);
            if check.leads_elsewhere() {
                break;
            }
        }
        match check.end() {
            Ok(()) => Ok((length, Ending::Whole)),
            Err(Broken::GaveUp(words)) => {
                tracing::debug!(words = plain(&words), "the upstream gives up");
                Ok((length, Ending::GaveUp))
            }
            Err(broken) => Err(LookError::Refused(broken.to_string())),
        }
    }

    /// Hands one request of a push on, with the caller's own credentials and never the mirror's. A good answer is git's; of
    /// any other only the head may be handed on. The upstream may be silent for a minute before it shows its refs, and for
    /// [`PUSH_SILENCE`] while it takes a push.
    ///
    /// # Errors
    /// The upstream cannot be reached, says nothing, leads elsewhere, or answers with something else than git does.
    pub async fn push<S, E>(
        &self,
        method: Method,
        verb: &str,
        from: &HeaderMap,
        body: S,
    ) -> Result<Pushed<impl Stream<Item = Result<Bytes, HttpError>> + Send + use<S, E>>, LookError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let mut headers = kept(from);
        // Many a server, and many a proxy before one, takes no body of unknown length.
        if let Some(length) = from.get(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, length.clone());
        }
        let (kind, patience) = match method {
            Method::GET => (PUSH_ADVERTISEMENT, SILENCE),
            _ => (PUSH_RESULT, PUSH_SILENCE),
        };
        let (taken, progress) = watch::channel(());
        let body = Body::wrap_stream(body.inspect(move |_| taken.send_replace(())));
        let asked = self.hand_on(method, format!("{}{verb}", self.url()), headers, body);
        let response = heard(asked, progress, patience).await??;
        match response.status() {
            StatusCode::OK => check_type(&response, kind)?,
            status if status.is_redirection() => return Err(redirected(&response)),
            _ => {}
        }
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Pushed { status, headers, chunks: chunks(response, patience) })
    }

    /// Sends a caller's request to `url`, with the caller's own `headers` and never the mirror's.
    pub(super) async fn hand_on(
        &self,
        method: Method,
        url: String,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response, LookError> {
        Ok(self.host.client().request(method, url).headers(headers).body(body).send().await?)
    }
}

/// Waits for what `asked` answers: for no longer than `patience` after the last `progress` of the request.
async fn heard<T>(
    asked: impl Future<Output = T>,
    mut progress: watch::Receiver<()>,
    patience: Duration,
) -> Result<T, HttpError> {
    let mut asked = std::pin::pin!(asked);
    loop {
        tokio::select! {
            answer = &mut asked => return Ok(answer),
            moved = progress.changed() => if moved.is_err() {
                // All has been sent.
                return timeout(patience, asked).await.map_err(|_| HttpError::TimedOut(patience));
            },
            () = sleep(patience) => return Err(HttpError::TimedOut(patience)),
        }
    }
}

/// Those of a caller's headers that are handed on.
pub(super) fn kept(from: &HeaderMap) -> HeaderMap {
    let kept = FORWARDED.into_iter().filter_map(|name| Some((name.clone(), from.get(&name)?.clone())));
    kept.collect()
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Instant};

    use super::*;

    #[tokio::test]
    async fn a_request_is_waited_for_while_it_moves_and_for_its_patience_after() {
        let (patience, pace) = (Duration::from_millis(500), Duration::from_millis(150));
        let began = Instant::now();
        let (taken, progress) = watch::channel(());
        let moves = async {
            for _ in 0..5 {
                sleep(pace).await;
                taken.send_replace(());
            }
            drop(taken);
        };
        let (ended, ()) = tokio::join!(heard(pending::<()>(), progress, patience), moves);
        assert!(matches!(ended, Err(HttpError::TimedOut(after)) if after == patience));
        assert!(began.elapsed() >= 5 * pace + patience, "{:?}", began.elapsed());
        // One that stands still in the middle ends, too.
        let (taken, progress) = watch::channel(());
        assert!(heard(pending::<()>(), progress.clone(), patience).await.is_err());
        // And one that is answered is answered.
        assert!(heard(sleep(pace), progress, Duration::from_secs(60)).await.is_ok());
        drop(taken);
    }
}
