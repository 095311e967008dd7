//! `POST /hooks/{github,gitlab,gitea,generic}`: an upstream says that something was pushed, and the mirror looks at once.
//!
//! Only who knows the secret is heard, and all that is taken from what is said is which mirror to look at: what is served
//! still comes from the upstream alone. However many come, a mirror has one look for them at a time, and [`PAUSE`]
//! between two.

mod sender;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, request::Parts};
use tarn_crds::repo::RepoId;
use tokio::time;

use super::{
    Serving, body,
    error::Failure,
    proxy::{Notice, Origin},
};
use crate::{
    files::{blocking, read_bounded},
    fleet::Known,
    metrics::HookOutcome,
    mirror::Mirror,
};
pub(super) use sender::Sender;

/// The longest body: a push of 2,048 commits, the most that GitHub tells of, is 3 MB.
const MAX_BODY: usize = 5 << 20;

/// How long a body may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest file of secrets that is read.
const MAX_SECRETS: u64 = 64 << 10;

/// After a look, before the next one for the same mirror.
const PAUSE: Duration = Duration::from_secs(1);

/// What is known of webhooks.
#[derive(Debug)]
pub struct Hooks {
    /// Secrets, a line each; read anew for each request, so that a new one counts at once.
    secrets: Option<PathBuf>,
    /// Mirrors that have a task under way, and what came meanwhile.
    under_way: Mutex<HashMap<RepoId, Option<Notice>>>,
}

impl Hooks {
    /// Hears who knows a secret of the file at `secrets`; nobody without one.
    pub fn new(secrets: Option<PathBuf>) -> Self {
        Self { secrets, under_way: Mutex::default() }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<RepoId, Option<Notice>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this one is to start the task; else the one under way goes on with what has come.
    fn begins(&self, id: &RepoId, notice: &Notice) -> bool {
        let mut under_way = self.under_way();
        match under_way.get_mut(id) {
            Some(next) => {
                *next = Some(notice.clone());
                false
            }
            None => {
                under_way.insert(id.clone(), None);
                true
            }
        }
    }

    /// What has come since the task took something up; without anything it is over.
    fn next(&self, id: &RepoId) -> Option<Notice> {
        let mut under_way = self.under_way();
        let next = under_way.get_mut(id).and_then(Option::take);
        if next.is_none() {
            under_way.remove(id);
        }
        next
    }
}

/// Hears a webhook.
///
/// # Errors
/// It is not from who knows the secret, or means no mirror.
pub(super) async fn handle(
    serving: &Arc<Serving>,
    sender: Sender,
    parts: &Parts,
    body: Body,
) -> Result<Response, Failure> {
    let heard = hear(serving, sender, parts, body).await;
    let outcome = match &heard {
        Ok(Heard::Looks) => "ok",
        Ok(Heard::Nothing) => "ignored",
        Err(failure) => failure.code(),
    };
    serving.metrics.serve.hooks.get_or_create(&HookOutcome { outcome }).inc();
    let text = match heard? {
        Heard::Looks => "the mirror looks at its upstream\n",
        Heard::Nothing => "this event moves no refs: nothing follows\n",
    };
    Ok((StatusCode::ACCEPTED, text).into_response())
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
enum Heard {
    Looks,
    Nothing,
}

async fn hear(serving: &Arc<Serving>, sender: Sender, parts: &Parts, body: Body) -> Result<Heard, Failure> {
    if parts.method != Method::POST {
        return Err(Failure::method("POST"));
    }
    let path = serving.hooks.secrets.as_deref().ok_or_else(Failure::no_hooks)?;
    // Without it, nothing that follows could be believed: the body need not be read.
    let proof = sender.proof(&parts.headers).ok_or_else(Failure::not_genuine)?;
    let body = time::timeout(PATIENCE, body::collect(parts, body, MAX_BODY)).await;
    let body = body.map_err(|_| Failure::bad_request("BodyTooSlow", "the body did not arrive in time"))??;
    if !proof.holds(&body, &read_secrets(path).await?) {
        return Err(Failure::not_genuine());
    }
    if !sender.moves_refs(&parts.headers) {
        return Ok(Heard::Nothing);
    }
    let meant = sender.repositories(&body);
    let mirror = meant.iter().find_map(|id| serving.fleet.get(id));
    let mirror = mirror.ok_or_else(|| match meant.first() {
        Some(id) if serving.fleet.known() < Known::All => Failure::undecided(id),
        Some(id) => Failure::undeclared(id),
        None => Failure::bad_request("NoRepository", "the event names no repository by URL"),
    })?;
    let mut headers = HeaderMap::new();
    for name in sender.headers() {
        // Once each: some senders have but one that matters, and of several values none is believed.
        if let Some(value) = parts.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let notice = Notice { path: parts.uri.path().to_owned(), headers, body };
    let told = Origin::of(&parts.headers) == Origin::Peer;
    if serving.hooks.begins(mirror.id(), &notice) {
        tokio::spawn(follow(serving.clone(), mirror, notice, told));
    }
    Ok(Heard::Looks)
}

/// Looks, tells the other agents, and goes on for as long as more has come meanwhile.
async fn follow(serving: Arc<Serving>, mirror: Mirror, mut notice: Notice, told: bool) {
    loop {
        let others = async {
            // Whoever was told by an agent tells nobody: that agent does.
            if !told {
                serving.proxy.tell(&notice).await;
            }
        };
        let (looked, ()) = tokio::join!(mirror.look(&[]), others);
        if let Err(error) = looked {
            tracing::info!(repo = %mirror.id(), %error, "a webhook's look failed; the next fetch comes as usual");
        }
        time::sleep(PAUSE).await;
        match serving.hooks.next(mirror.id()) {
            Some(next) => notice = next,
            None => return,
        }
    }
}

async fn read_secrets(path: &Path) -> Result<Vec<String>, Failure> {
    let file = path.to_owned();
    let read = move || String::from_utf8(read_bounded(&file, MAX_SECRETS)?).map_err(io::Error::other);
    let text = blocking(read).await.map_err(|error| {
        tracing::warn!(path = %path.display(), %error, "the secrets of webhooks cannot be read");
        Failure::no_hooks()
    })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_comes_while_a_task_is_under_way_is_one_more_look() {
        let (hooks, id) = (Hooks::new(None), RepoId::from_url("https://h.example/o/r").unwrap());
        let notice = |body: &'static str| Notice {
            path: String::new(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        };
        assert!(hooks.begins(&id, &notice("a")));
        for body in ["b", "c", "d"] {
            assert!(!hooks.begins(&id, &notice(body)));
        }
        assert_eq!(hooks.next(&id).unwrap().body, "d");
        assert!(hooks.next(&id).is_none());
        assert!(hooks.begins(&id, &notice("e")));
    }
}
