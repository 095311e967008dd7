//! Which refs a request may be shown (P1).
//!
//! An answer rests on a look that began after the request arrived, or is as old as the user allows. While
//! the upstream fails, `ServeStale` answers with what is on the disk, marked stale, and `Fail` with an
//! error. The patience of a look, `lookTimeout`, runs from when it is sent, not from when a request arrives: an upstream
//! that is slow, or busy with others' looks, is not down. Once a look has failed, nobody waits longer than
//! [`PROBE_WAIT`].

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bstr::BString;
use tarn_crds::v1alpha1::OnUpstreamFailure;
use tokio::time::{sleep, timeout};

use super::{Mirror, Trouble, View, entitlement::Verdict};
use crate::{
    git::RefSet,
    upstream::{LookError, Provenance, http::HttpError},
};

/// How long requests wait for a look while the upstream is known to fail: long enough for one that has
/// recovered to answer, short enough not to be in the way.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// How long requests wait for their look at most: for the one that runs when they come, for its own answer, and for a
/// connection meanwhile. The looks' own patience ends them long before.
const MOST_WAIT: Duration = Duration::from_secs(60);

/// Refs to show, and how fresh they are.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The refs.
    pub refs: Arc<RefSet>,
    /// What they rest on.
    pub freshness: Freshness,
}

/// What an answer about refs rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// A look that began after the request arrived.
    Verified,
    /// An earlier look, no older than `maxStaleness`.
    Reused {
        /// Time since that look began.
        age: Duration,
    },
    /// What is on the disk: the upstream cannot be asked.
    Stale {
        /// Time since the last look that succeeded began; `None` when there was none in this process.
        age: Option<Duration>,
    },
}

impl Freshness {
    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Reused { .. } => "reused",
            Self::Stale { .. } => "stale",
        }
    }
}

/// The value of the `Tarn-Freshness` header.
impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified => f.write_str("verified"),
            Self::Reused { age } => write!(f, "reused; age={}", age.as_secs()),
            Self::Stale { age: Some(age) } => write!(f, "stale; age={}", age.as_secs()),
            Self::Stale { age: None } => f.write_str("stale; age=unknown"),
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    /// The upstream cannot be asked, and the user does not want old answers, or there are none.
    #[error("{0}")]
    Upstream(Arc<LookError>),
    /// The upstream does not let this agent have it, or nobody knows whether it does.
    #[error("{}", .0.message)]
    Withheld(Trouble),
    /// Suspended, and what is asked for is not on the disk.
    #[error("the mirror is suspended: set spec.suspend to false")]
    Suspended,
}

/// Makes sure that something may be shown: what the mirror has or, where `provenance` is given, content that was fetched
/// with that and lies elsewhere. A look that succeeds now makes up for earlier refusals.
///
/// # Errors
/// The upstream does not let this agent have it, or has not been asked under this declaration.
pub async fn may_show(mirror: &Mirror, provenance: Option<&Provenance>) -> Result<(), Unavailable> {
    let settings = mirror.settings();
    let judge = |view: &View| match provenance {
        None => view.entitlement.verdict(settings.on_upstream_refusal),
        Some(provenance) => view.entitlement.verdict_on(provenance, settings.on_upstream_refusal),
    };
    let view = mirror.view();
    let patience = match judge(&view) {
        Verdict::Shown => return Ok(()),
        // The upstream may be away, and then what is here is served.
        Verdict::AskFirst => settings.look_timeout.min(PROBE_WAIT),
        Verdict::Unproven | Verdict::Refused => MOST_WAIT.max(settings.look_timeout * 2),
    };
    if !settings.suspend && !view.entitlement.is_just_refused(jiff::Timestamp::now()) {
        // What it said is in the view.
        let _ = timeout(patience, mirror.look(&[])).await;
    }
    let view = mirror.view();
    match judge(&view) {
        Verdict::Shown | Verdict::AskFirst => Ok(()),
        verdict => Err(Unavailable::Withheld(view.reason(verdict))),
    }
}

/// The refs to show to a request that arrives now and asks for those that start with one of `prefixes`, or
/// for all. The answer may hold others too.
///
/// # Errors
/// The upstream fails and the policy is `Fail`, or nothing is mirrored yet.
pub async fn refs(mirror: &Mirror, prefixes: &[BString]) -> Result<Answer, Unavailable> {
    let settings = mirror.settings();
    let view = mirror.view();
    if settings.suspend {
        return stale(&view).ok_or(Unavailable::Suspended);
    }
    if let Some(answer) = reused(&view, settings.max_staleness, Instant::now()) {
        return Ok(answer);
    }
    let may_be_stale = settings.on_upstream_failure == OnUpstreamFailure::ServeStale;
    let probing = view.look_trouble.is_some() && may_be_stale && view.stored.is_some();
    let wait = if probing {
        settings.look_timeout.min(PROBE_WAIT)
    } else {
        MOST_WAIT.max(settings.look_timeout * 2)
    };
    let mut views = mirror.watch();
    // The look that runs may fail now: whoever waits for the next one knows as much as whoever comes then.
    let failed = async {
        if view.look_trouble.is_none() && views.wait_for(|view| view.look_trouble.is_some()).await.is_ok() {
            sleep(settings.look_timeout.min(PROBE_WAIT)).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let looked = tokio::select! {
        looked = timeout(wait, mirror.look(prefixes)) => looked.unwrap_or_else(|_| Err(late(wait))),
        () = failed => Err(late(settings.look_timeout)),
    };
    let error = match looked {
        Ok((refs, _)) => return Ok(Answer { refs, freshness: Freshness::Verified }),
        Err(error) => error,
    };
    let view = mirror.view();
    match (view.entitlement.verdict(settings.on_upstream_refusal), stale(&view)) {
        (Verdict::Shown | Verdict::AskFirst, Some(answer)) if may_be_stale => Ok(answer),
        (verdict @ (Verdict::Unproven | Verdict::Refused), Some(_)) => {
            Err(Unavailable::Withheld(view.reason(verdict)))
        }
        _ => Err(Unavailable::Upstream(error)),
    }
}

fn late(wait: Duration) -> Arc<LookError> {
    Arc::new(HttpError::TimedOut(wait).into())
}

fn reused(view: &View, max_staleness: Duration, now: Instant) -> Option<Answer> {
    let (refs, began) = view.seen.as_ref()?;
    let age = now.saturating_duration_since(*began);
    let young = age <= max_staleness && !max_staleness.is_zero();
    young.then(|| Answer { refs: refs.clone(), freshness: Freshness::Reused { age } })
}

fn stale(view: &View) -> Option<Answer> {
    // Refs whose objects have not all arrived are not shown: a clone of them could not be served.
    let stored = view.stored.as_ref()?;
    let age = view.seen.as_ref().map(|(_, began)| began.elapsed());
    Some(Answer { refs: stored.refs.clone(), freshness: Freshness::Stale { age } })
}
