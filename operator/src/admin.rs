//! Probes and metrics.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{Router, routing::get};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Every metric of the operator.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// `tarn_operator_reconciliations_total`.
    pub reconciliations: Family<Reconciliation, Counter>,
    /// `tarn_operator_leader`: 1 while this operator works.
    pub leader: Gauge,
}

/// One kind of object, and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reconciliation {
    /// `GitCache` or `GitMirror`.
    pub kind: &'static str,
    /// `ok`, `conflict`, `api` or `internal`.
    pub outcome: &'static str,
}

impl Metrics {
    /// Registers all of them.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tarn_operator");
        let (reconciliations, leader) = (Family::default(), Gauge::default());
        registry.register("reconciliations", "Reconciliations by outcome", reconciliations.clone());
        registry.register("leader", "1 while this operator works", leader.clone());
        Self { registry: Arc::new(Mutex::new(registry)), reconciliations, leader }
    }

    fn encode(&self) -> String {
        let mut page = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = text::encode(&mut page, &registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// `/healthz`, `/readyz` and `/metrics`. An operator that waits for its turn is ready: it does what it should.
pub fn router(metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { metrics.encode() }))
}
