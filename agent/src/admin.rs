//! The admin port: probes, metrics, status, and a fetch on demand.
//!
//! Anyone may probe, and have metrics that name no mirror but those that everybody may have. Status and orders are for the
//! agent's own machine or pod, and for whoever has the right to them ([`crate::access::administrators`]).
//!
//! Probes never depend on mirrors, upstreams or the store (P5): an agent that serves nothing yet is ready
//! to say so. Nor do they wait for others who ask here: all other requests share a few places.

pub mod gauges;
pub mod status;
mod local;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, Method, StatusCode, header};
use tarn_crds::repo::RepoId;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    access::administrators::{Administrators, Use},
    fleet::{Fleet, budget::Keeper, prewarm::Warmer},
    metrics::Metrics,
    serve::error::Failure,
};
use gauges::{Gauges, Named};
use local::is_local;

/// Requests at once but for probes. Each may hold the text of all metrics, or wait for an upstream.
const AT_ONCE: usize = 16;

/// How long a request waits to be one of them.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone)]
pub struct Admin {
    /// All mirrors.
    pub fleet: Arc<Fleet>,
    /// Who brings mirrors before anyone asks.
    pub warmer: Warmer,
    /// Who keeps the disk's budget.
    pub budget: Keeper,
    /// All metrics but the gauges of mirrors.
    pub metrics: Metrics,
    /// Whether metrics name all mirrors, whoever asks.
    pub open_metrics: bool,
    /// Who is let in from elsewhere than this machine or pod.
    pub administrators: Arc<Administrators>,
    /// The store, if there is one.
    pub store: Option<status::Probed>,
    /// Cancelled when the agent is about to stop: no new work, please.
    pub stopping: CancellationToken,
}

/// The router of the admin port.
pub fn router(admin: Admin) -> Router {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    Router::new()
        .route("/status", get(status))
        .fallback(order)
        .layer(middleware::from_fn_with_state(admin.clone(), admitted))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(at_once, in_turn))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(admin)
}

/// Lets few through at once.
async fn in_turn(State(at_once): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match timeout(PATIENCE, at_once.acquire()).await {
        Ok(Ok(_permit)) => next.run(request).await,
        _ => {
            (StatusCode::SERVICE_UNAVAILABLE, "too many requests are under way; try again\n").into_response()
        }
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    if admin.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    "ok\n".into_response()
}

/// The one door to all but probes and metrics.
async fn admitted(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if !is_local(request.extensions(), request.headers()) {
        let method = request.method();
        let wanted = if [Method::GET, Method::HEAD].contains(method) { Use::Read } else { Use::Order };
        match admin.administrators.admit(wanted, request.headers()).await {
            Ok(caller) => {
                tracing::info!(%caller, %method, path = request.uri().path(), "let in to the admin port");
            }
            Err(refusal) => return Failure::from(refusal).into_response(),
        }
    }
    next.run(request).await
}

async fn metrics(State(admin): State<Admin>, request: Request) -> Response {
    let (headers, extensions) = (request.headers(), request.extensions());
    let named = if admin.open_metrics || is_local(extensions, headers) {
        Named::All
    } else if !headers.contains_key(header::AUTHORIZATION) {
        Named::Public
    } else {
        match admin.administrators.admit(Use::Read, headers).await {
            Ok(_) => Named::All,
            Err(refusal) => return Failure::from(refusal).into_response(),
        }
    };
    let Admin { fleet, warmer, budget, .. } = &admin;
    let gauges = Gauges { fleet: fleet.clone(), warmer: warmer.clone(), budget: budget.clone(), named };
    let mut response = admin.metrics.encode(Box::new(gauges)).into_response();
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn status(State(admin): State<Admin>) -> Json<status::Status> {
    Json(status::of(&admin))
}

/// `POST /mirrors/{host}/{path}/…`: `fetch` looks at the upstream now, and fetches what moved; `checkpoint`
/// publishes what has moved since the last checkpoint now, and not only after the interval.
async fn order(State(admin): State<Admin>, request: Request) -> Response {
    let path = request.uri().path();
    let order = path.strip_prefix("/mirrors/").and_then(|rest| rest.rsplit_once('/'));
    let Some((route, verb @ ("fetch" | "checkpoint"))) = order else {
        return (
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz, /metrics, /status and POST /mirrors/HOST/PATH/fetch or …/checkpoint\n",
        )
            .into_response();
    };
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "use POST\n").into_response();
    }
    let id = match RepoId::from_route(route) {
        Ok(id) => id,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let Some(mirror) = admin.fleet.get(&id) else {
        return (StatusCode::NOT_FOUND, format!("no GitMirror declares {id}\n")).into_response();
    };
    if mirror.settings().suspend {
        return (StatusCode::CONFLICT, format!("{id} is suspended: set spec.suspend to false\n"))
            .into_response();
    }
    if verb == "checkpoint" {
        return match (&admin.store, mirror.checkpoint()) {
            (None, _) => {
                (StatusCode::CONFLICT, "there is no store: start the agent with --store\n").into_response()
            }
            (_, Ok(())) => (StatusCode::ACCEPTED, "published, if the refs have moved\n").into_response(),
            (_, Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
        };
    }
    match mirror.look(&[]).await {
        Ok(_) => (StatusCode::ACCEPTED, "looked; what moved is being fetched\n").into_response(),
        Err(error) => {
            (StatusCode::BAD_GATEWAY, format!("{}: {error}\n", error.kind().reason())).into_response()
        }
    }
}
