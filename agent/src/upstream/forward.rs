//! Requests handed on to the upstream: reads while the mirror is not there yet, with the mirror's
//! credentials; pushes, with the caller's own.

use std::{io::Write, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use reqwest::{Body, Response};
use tarn_crds::repo::Scheme;
use tokio::time::timeout;

use super::look::{LookError, Looker, check_type};
use crate::git::upload_pack::ProtocolVersion;

/// An upstream that sends nothing for this long is given up; git servers send keepalives every 5 s.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// What a push carries besides its body; everything else is between the client and this agent.
const FORWARDED: [HeaderName; 6] = [
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

    /// Hands a request for objects on, and appends the answer to `file`, telling `grown` its length as it
    /// grows. Returns the whole length. Dropping the future ends the transfer.
    ///
    /// # Errors
    /// The upstream refuses or breaks off; the file then holds part of an answer, or nothing.
    pub async fn fetch(
        &self,
        version: ProtocolVersion,
        request: Bytes,
        mut file: std::fs::File,
        grown: impl Fn(u64),
    ) -> Result<u64, LookError> {
        if self.url.scheme() == Scheme::File {
            return Ok(self.file_job(self.path(), version, request).spool(&self.git, file, grown).await?);
        }
        let post = self
            .client
            .post(format!("{}/git-upload-pack", self.url()))
            .header(header::CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(header::ACCEPT, "application/x-git-upload-pack-result")
            .body(request);
        let response = timeout(SILENCE, self.send_as(post, version))
            .await
            .map_err(|_| LookError::TimedOut(SILENCE))??;
        check_type(&response, "application/x-git-upload-pack-result")?;
        let (mut chunks, mut length) = (response.bytes_stream(), 0_u64);
        while let Some(chunk) =
            timeout(SILENCE, chunks.next()).await.map_err(|_| LookError::TimedOut(SILENCE))?
        {
            let chunk = chunk?;
            // Into the page cache; a full disk is the one thing that fails here.
            file.write_all(&chunk)
                .map_err(|error| LookError::Refused(format!("cannot store the answer: {error}")))?;
            length += u64::try_from(chunk.len()).unwrap_or(0);
            grown(length);
        }
        Ok(length)
    }

    /// Hands one request of a push on, with the caller's own credentials and never the mirror's. The
    /// answer, whatever its status, is the upstream's.
    ///
    /// # Errors
    /// The upstream cannot be reached.
    pub async fn push(
        &self,
        method: Method,
        verb: &str,
        from: &HeaderMap,
        body: Body,
    ) -> Result<Response, LookError> {
        self.hand_on(method, format!("{}{verb}", self.url()), from, body).await
    }

    /// Sends a caller's request to `url`, with the caller's own credentials and never the mirror's.
    pub(super) async fn hand_on(
        &self,
        method: Method,
        url: String,
        from: &HeaderMap,
        body: Body,
    ) -> Result<Response, LookError> {
        let mut headers = HeaderMap::new();
        for name in FORWARDED {
            if let Some(value) = from.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Ok(self.client.request(method, url).headers(headers).body(body).send().await?)
    }

    async fn send_as(
        &self,
        request: reqwest::RequestBuilder,
        version: ProtocolVersion,
    ) -> Result<Response, LookError> {
        self.send_with(request, HeaderValue::from_static(version.env())).await
    }
}
