//! What goes wrong in a request: one plain line for the caller, the cause for the log.

use std::{fmt::Display, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tarn_crds::{
    repo::{RepoId, UpstreamUrl},
    v1alpha1::conditions::Reason,
};

use super::{
    headers::{PEER, Told},
    limits::Exceeded,
};
use crate::{
    access::{Refusal, delegation::host_word},
    mirror::{BringError, freshness::Unavailable, snapshots::Unready},
    protocol::{lfs::MEDIA_TYPE, pktline},
};

/// The code of what a cold agent answers to another.
const COLD: &str = "Cold";

/// A failed request.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    /// One word, the same for the same trouble.
    code: &'static str,
    /// For the caller; one line, no secret.
    external: String,
    /// Seconds after which to try again.
    retry_after: Option<u16>,
    /// What credentials are asked for.
    challenge: Option<HeaderValue>,
}

/// What git and its credential helpers understand; a token goes as the password.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"Tarn\", charset=\"UTF-8\"");

/// What a caller is asked for whose credentials go to an upstream. The upstream's own words are not passed on: they could name
/// any other.
pub(super) fn challenge(url: &UpstreamUrl) -> HeaderValue {
    let (host, word) = (url.id().host(), host_word(url));
    let text = format!("Basic realm=\"{host} through Tarn, as USER@{word}\", charset=\"UTF-8\"");
    // A host's name fits into a header.
    HeaderValue::from_str(&text).unwrap_or(CHALLENGE)
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, external: impl Display) -> Self {
        let external = external.to_string().replace(|c: char| c.is_control(), " ");
        Self { status, code, external, retry_after: None, challenge: None }
    }

    /// One word for what it is.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The request makes no sense.
    pub fn bad_request(code: &'static str, reason: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, reason)
    }

    /// Nothing is served under this path.
    pub fn no_route() -> Self {
        let text = "nothing is served here: clone from /git/HOST/PATH with git 1.6.6 or newer (smart HTTP)";
        Self::new(StatusCode::NOT_FOUND, "NoRoute", text)
    }

    /// Nobody declared a mirror of this repository.
    pub fn undeclared(id: &RepoId) -> Self {
        let text = format!("no GitMirror declares {id}; declare one, or clone from the upstream");
        Self::new(StatusCode::NOT_FOUND, "RepositoryUndeclared", text)
    }

    /// A GitMirror declares the repository, and cannot be followed now.
    pub fn declared(id: &RepoId, reason: Reason) -> Self {
        let text =
            format!("a GitMirror declares {id}, but the agent cannot mirror it now; its status says why");
        Self { retry_after: Some(10), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, reason.as_str(), text) }
    }

    /// The agent does not know yet what is declared.
    pub fn undecided(id: &RepoId) -> Self {
        let text = format!(
            "the agent cannot tell whether a GitMirror declares {id}: the API server has not answered since the start"
        );
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "DeclarationsUnknown", text);
        Self { retry_after: Some(5), ..failure }
    }

    /// This mirror's pushes go to the upstream itself: at `url`, where the caller may know it.
    pub fn push(url: Option<&str>) -> Self {
        let to = url.map_or_else(|| "UPSTREAM".to_owned(), quoted);
        let whose = if url.is_some() { "" } else { "; UPSTREAM is the upstream's URL" };
        let text = format!(
            "push to the upstream itself: git config url.{to}.pushInsteadOf \"$(git remote get-url origin)\"{whose}"
        );
        Self::new(StatusCode::FORBIDDEN, "PushNotServed", text)
    }

    /// The upstream refuses a push; of its answer only this is for the caller.
    pub(super) fn push_refused(status: StatusCode, headers: &HeaderMap, url: &UpstreamUrl) -> Self {
        let (ours, code) = match status {
            StatusCode::UNAUTHORIZED => (status, "Unauthenticated"),
            StatusCode::FORBIDDEN => (status, "AccessDenied"),
            StatusCode::NOT_FOUND => (status, "RepositoryNotFound"),
            StatusCode::TOO_MANY_REQUESTS => (status, "RateLimited"),
            status if status.is_client_error() => (status, "UpstreamFailed"),
            _ => (StatusCode::BAD_GATEWAY, "UpstreamFailed"),
        };
        let number = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let challenge = (ours == StatusCode::UNAUTHORIZED).then(|| challenge(url));
        let text = format!("the upstream answers HTTP {} to the push", status.as_u16());
        Self { retry_after: number, challenge, ..Self::new(ours, code, text) }
    }

    /// Another method is needed.
    pub fn method(allowed: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", format!("use {allowed}"))
    }

    /// Nobody said which webhooks are to be heard.
    pub fn no_hooks() -> Self {
        let text = "webhooks are not heard: start the agent with --webhook-secret-file and a readable file";
        Self::new(StatusCode::NOT_FOUND, "NoWebhooks", text)
    }

    /// A webhook whose sender does not know the secret.
    pub fn not_genuine() -> Self {
        let text = "the signature is missing, or not of this body with a secret of --webhook-secret-file";
        Self::new(StatusCode::UNAUTHORIZED, "BadSignature", text)
    }

    /// The body has another type than git's.
    pub fn media_type(expected: &'static str) -> Self {
        let text = format!("the body must be {expected}, plain or gzip");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "WrongContentType", text)
    }

    /// The body is longer than allowed.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BodyTooLarge",
            format!("the request is longer than {limit} bytes"),
        )
    }

    /// Too many requests are under way.
    pub(super) fn too_many(exceeded: Exceeded) -> Self {
        Self::exceeded(
            exceeded,
            "too many requests of yours are under way",
            "too many requests are under way",
        )
    }

    /// Too much memory is taken by request bodies.
    pub(super) fn no_room(exceeded: Exceeded) -> Self {
        let all = "too many bytes of request bodies are being read";
        Self::exceeded(exceeded, "too many bytes of your request bodies are being read", all)
    }

    fn exceeded(exceeded: Exceeded, client: &str, total: &str) -> Self {
        let (status, code, text) = match exceeded {
            Exceeded::Client => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", client),
            Exceeded::Total => (StatusCode::SERVICE_UNAVAILABLE, "Busy", total),
        };
        Self { retry_after: Some(5), ..Self::new(status, code, format!("{text}; try again")) }
    }

    /// Too many requests wait.
    pub fn busy() -> Self {
        let mut failure =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", "too many requests wait; try again");
        failure.retry_after = Some(5);
        failure
    }

    /// The same to a client that has only begun: a git that knows `http.maxRetries` (2.55 does, 2.39 does not) waits as long
    /// as it is told, but only for 429, and only here. A refused POST ends every git.
    pub(super) fn of_discovery(self) -> Self {
        match self.code {
            "Busy" => Self { status: StatusCode::TOO_MANY_REQUESTS, ..self },
            _ => self,
        }
    }

    /// The upstream, to which the request was handed on, refuses or breaks off.
    pub fn upstream(reason: impl Display) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "UpstreamFailed", reason)
    }

    /// The mirror is being made.
    pub fn warming(progress: Option<&str>) -> Self {
        let text = format!("the mirror is being made; {}", progress.unwrap_or("it has just begun"));
        Self { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "Warming", text) }
    }

    /// Another agent asks for a mirror that is not here either.
    pub fn cold() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, COLD, "the mirror is not here either; ask the next agent")
    }

    /// The upstream's `HEAD` leads to no branch.
    pub fn no_branch() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NoDefaultBranch", "the upstream's HEAD names no branch that exists")
    }

    /// Git cannot answer the request.
    pub fn git(reason: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "GitFailed", reason)
    }

    /// The child that should answer failed.
    pub fn child(error: &crate::git::GitError) -> Self {
        tracing::warn!(%error, "upload-pack failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.kind().reason().as_str(), error)
    }

    /// This disk cannot take the answer.
    pub fn disk(reason: impl Display) -> Self {
        let failure = Self::new(StatusCode::INSUFFICIENT_STORAGE, "DiskFull", reason);
        Self { retry_after: Some(5), ..failure }
    }

    /// What the caller reads.
    pub(super) fn text(&self) -> String {
        format!("{}: {}", self.code, self.external)
    }

    /// LFS: what is wrong with a request, or with an object.
    pub fn lfs(status: StatusCode, reason: impl Display) -> Self {
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
        Self { retry_after, ..Self::new(status, "Lfs", reason) }
    }

    /// Asks for credentials of this upstream, where it asks for any.
    pub(super) fn asking_for(self, url: &UpstreamUrl) -> Self {
        let challenge = self.challenge.map(|_| challenge(url));
        Self { challenge, ..self }
    }

    /// Says when to try again, where the upstream has said so.
    pub(super) fn after(mut self, pause: Option<Duration>) -> Self {
        if let Some(pause) = pause {
            self.retry_after = Some(u16::try_from(pause.as_secs().max(1)).unwrap_or(u16::MAX));
        }
        self
    }

    /// The same failure as git-lfs shows it to the person at the terminal.
    pub fn into_lfs(self) -> Response {
        let message = format!("{}: {}", self.code, self.external);
        let body = serde_json::json!({ "message": message }).to_string();
        let mut response = self.into_response();
        *response.body_mut() = body.into();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.remove(header::CONTENT_LENGTH);
        response
    }

    /// The same failure as an answer that git shows to the person at the terminal: git prints the text of
    /// an `ERR` packet, but not that of an HTTP error to a POST.
    pub fn into_packet(self) -> Response {
        tracing::debug!(code = self.code, message = self.external, "answered with an ERR packet");
        let packet = pktline::error(&self.text());
        let mut response = super::answer("application/x-git-upload-pack-result", None, packet.into());
        response.extensions_mut().insert(Told);
        response
    }
}

/// The text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(text) => Self::bad_request("BadCredentials", text),
            Refusal::Unauthenticated(text) => {
                let challenge = Some(CHALLENGE);
                Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, "Unauthenticated", text) }
            }
            Refusal::Denied(text) => Self::new(StatusCode::FORBIDDEN, "AccessDenied", text),
            // Not 401: git would forget them, and they may be right for another upstream.
            Refusal::Unbound(text) => Self::new(StatusCode::FORBIDDEN, "CredentialsUnbound", text),
            Refusal::TooMany(wait) => {
                let text = "the upstream has refused too many credentials from this address or of this user: wait a \
                            minute, and correct them";
                Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRefusals", text).after(Some(wait))
            }
            Refusal::Upstream(401) => {
                let text = "the upstream asks for credentials of its own, or refuses these";
                let challenge = Some(CHALLENGE);
                Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, "Unauthenticated", text) }
            }
            Refusal::Upstream(404 | 410) => {
                let text = "the upstream shows no such repository to these credentials";
                Self::new(StatusCode::NOT_FOUND, "RepositoryNotFound", text)
            }
            Refusal::Upstream(_) => {
                Self::new(StatusCode::FORBIDDEN, "AccessDenied", "the upstream refuses these credentials")
            }
            Refusal::Away(text) => {
                let away = Self::new(StatusCode::SERVICE_UNAVAILABLE, "AccessUnknown", text);
                Self { retry_after: Some(5), ..away }
            }
        }
    }
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        let (code, pause) = match &error {
            Unavailable::Upstream(error) => (error.kind().reason().as_str(), error.pause()),
            // Nothing that the client does again mends it.
            Unavailable::Withheld(trouble) if trouble.reason == Reason::UpstreamRefuses => {
                return Self::new(StatusCode::FORBIDDEN, trouble.reason.as_str(), &error);
            }
            Unavailable::Withheld(trouble) => (trouble.reason.as_str(), None),
            Unavailable::Suspended => ("Suspended", None),
        };
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, &error);
        failure.after(pause.or(Some(Duration::from_secs(5))))
    }
}

impl From<Unready> for Failure {
    fn from(error: Unready) -> Self {
        let (status, code) = match &error {
            Unready::Never(_) => (StatusCode::NOT_FOUND, "NoSnapshot"),
            Unready::Suspended => (StatusCode::NOT_FOUND, "SnapshotSuspended"),
            Unready::Coming(_) => (StatusCode::SERVICE_UNAVAILABLE, "SnapshotComing"),
            Unready::Failed(_) => (StatusCode::SERVICE_UNAVAILABLE, "SnapshotFailed"),
        };
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
        Self { retry_after, ..Self::new(status, code, error) }
    }
}

impl From<BringError> for Failure {
    fn from(error: BringError) -> Self {
        let (status, code) = match &error {
            BringError::Missing(_) => (StatusCode::NOT_FOUND, "ObjectNotFound"),
            BringError::Fetch(error) => (StatusCode::SERVICE_UNAVAILABLE, error.kind().reason().as_str()),
            BringError::Look(error) => (StatusCode::SERVICE_UNAVAILABLE, error.kind().reason().as_str()),
            BringError::Busy => return Self::busy(),
            BringError::Removed => (StatusCode::NOT_FOUND, "RepositoryUndeclared"),
        };
        Self::new(status, code, error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        tracing::debug!(code = self.code, message = self.external, status = self.status.as_u16(), "refused");
        let mut response = (self.status, format!("{}: {}\n", self.code, self.external)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if self.code == COLD {
            response.headers_mut().insert(PEER, HeaderValue::from_static("cold"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_runs_nothing_of_a_url_that_a_refused_push_names() {
        for url in ["https://h/a$(id)", "https://h/a`id`", "https://h/a';id;'", "https://h/\"$HOME\""] {
            let told = Failure::push(Some(url)).external;
            let word = told.split_once("url.").and_then(|(_, rest)| rest.rsplit_once(".pushInsteadOf"));
            let word = word.map(|(word, _)| word).unwrap_or_default();
            // Between single quotes a shell reads everything as it is; `'\''` is a quote outside of them.
            let inner = word.strip_prefix('\'').and_then(|word| word.strip_suffix('\'')).unwrap_or_default();
            let parts: Vec<&str> = inner.split(r"'\''").collect();
            assert!(parts.iter().all(|part| !part.contains('\'')), "{told}");
            assert_eq!(parts.join("'"), url);
        }
        assert!(!Failure::push(None).external.contains("://"));
    }
}
