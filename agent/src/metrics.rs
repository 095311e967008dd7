//! Every metric of the agent, in one place: names, labels, meaning. A metric's doc comment begins with its full name:
//! that is where its registered name, its unit and its help come from.
//!
//! Labels come from closed enums; `mirror` stands only on per-mirror gauges, which are read from the fleet
//! when they are asked for (see `admin`). No ref, URL or error text is ever a label.

use std::sync::{Arc, atomic::AtomicU64};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry, Unit},
};
use tarn_crds::v1alpha1::conditions::Reason;

/// Seconds: from a cached answer on loopback to a clone of minutes.
const SECONDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// What the name of every metric begins with.
const PREFIX: &str = "tarn";

/// Declares labels of one key each, with the values that have names.
macro_rules! labels {
    ($($(#[$of:meta])* $label:ident { $(#[$is:meta])* $key:ident $($(#[$means:meta])* $name:ident = $value:literal)* })*) => {
        $($(#[$of])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub struct $label {
            $(#[$is])*
            pub $key: &'static str,
        }

        impl $label {
            $($(#[$means])* pub const $name: Self = Self { $key: $value };)*
        })*
    };
}

labels! {
    /// How something ended.
    Outcome {
        /// `ok`, or a reason code.
        outcome
    }
    /// How a request to the API server ended.
    ApiOutcome {
        /// `ok`, `conflict`, `denied`, `gone`, `invalid`, `refused` (any other answer) or `unreachable`.
        outcome
    }
    /// What became of a webhook.
    HookOutcome {
        /// `ok`, `ignored` where the event moves no refs, or the code of the refusal.
        outcome
    }
    /// What an answer about refs rested on.
    Basis {
        /// `verified`, `reused`, `stale` or `error`.
        freshness
    }
    /// What is done, what was done to a mirror while it serves, or what was evicted.
    Work {
        /// In the queue, the kind of bounded work; `repack` or `seed`; `undeclared`, `mirror`, `snapshot` or `packs`.
        work
    }
    /// What the disk damaged.
    Damaged {
        /// `mirror`, `answer`, `snapshot` or `lfs`.
        what
        /// A mirror.
        MIRROR = "mirror"
        /// A cached answer.
        ANSWER = "answer"
        /// A snapshot.
        SNAPSHOT = "snapshot"
        /// An LFS object.
        LFS = "lfs"
    }
    /// How a request for a pack met the cache.
    Lookup {
        /// `hit`, `joined` or `miss`.
        result
        /// The answer was whole already.
        HIT = "hit"
        /// The answer was being made.
        JOINED = "joined"
        /// The answer is made for this request.
        MISS = "miss"
    }
    /// An answer that is put together.
    Composed {
        /// `history` or `tree`.
        base
        /// Of a mirror's base.
        HISTORY = "history"
        /// Of its seed.
        TREE = "tree"
    }
    /// A file with tokens.
    TokenFile {
        /// `tokens`, `admin-tokens` or `peer-token`, as its flag.
        file
        /// That of `--tokens`.
        CALLERS = "tokens"
        /// That of `--admin-tokens`.
        ADMINISTRATORS = "admin-tokens"
        /// That of `--peer-token`.
        PEER = "peer-token"
    }
    /// What became of an answer that is made before anyone asks.
    Ahead {
        /// `made`, `failed` or `abandoned`; of those made, `used` by whoever came first, or `unused` until the refs moved
        /// again.
        outcome
        /// It is there.
        MADE = "made"
        /// It cannot be made.
        FAILED = "failed"
        /// The refs moved while it was made.
        ABANDONED = "abandoned"
        /// Somebody has asked for it.
        USED = "used"
        /// Nobody has.
        UNUSED = "unused"
    }
    /// What became of a request that was handed to a peer.
    Proxied {
        /// `served`, `cold`, `refused`, `unreachable` or, of those served, `broken`.
        outcome
        /// The peer answers.
        SERVED = "served"
        /// The peer does not have the mirror either.
        COLD = "cold"
        /// The peer has the mirror and cannot answer, or is no agent.
        REFUSED = "refused"
        /// There is no connection to the peer, or it breaks before the answer begins.
        UNREACHABLE = "unreachable"
        /// An answer broke off in the middle.
        BROKEN = "broken"
    }
}

impl Outcome {
    /// `ok`, or the reason of the error.
    pub fn of<T, E>(result: &Result<T, E>, reason: impl FnOnce(&E) -> Reason) -> Self {
        Self { outcome: result.as_ref().map_or_else(|error| reason(error).as_str(), |_| "ok") }
    }
}

/// One kind of request and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Route {
    /// `info-refs`, `ls-refs`, `fetch`, `push`, `ensure-refs`, `snapshot`, `bundle`, `lfs-batch`,
    /// `lfs-object`, `lfs-locks`, `lfs-snapshot`, or `other`.
    pub route: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// How a caller was judged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Decision {
    /// The access of the mirror: `Anonymous`, `Authenticated`, `RBAC` or `Upstream`.
    pub access: &'static str,
    /// `allowed`, `unauthenticated`, `denied`, or `away`: nobody could judge.
    pub outcome: &'static str,
}

/// Some of a spool's files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SpoolPart {
    /// `packs` or `lfs`.
    pub spool: &'static str,
    /// `kept`, `growing` or `pinned`: evicted, and still read.
    pub part: &'static str,
}

/// A metric as it is before anything has happened.
trait Fresh {
    fn fresh() -> Self;
}

impl<L: Clone + std::hash::Hash + Eq, M: Default> Fresh for Family<L, M> {
    fn fresh() -> Self {
        Self::default()
    }
}

impl<N: Default, A> Fresh for Counter<N, A>
where
    Self: Default,
{
    fn fresh() -> Self {
        Self::default()
    }
}

impl Fresh for Gauge {
    fn fresh() -> Self {
        Self::default()
    }
}

impl Fresh for Histogram {
    fn fresh() -> Self {
        Self::new(SECONDS)
    }
}

/// Registers a metric by its doc comment: `` `tarn_PART_NAME_UNIT_total`: help. ``.
fn register(registry: &mut Registry, doc: &str, metric: impl Metric) {
    let (name, help) = doc.trim().strip_prefix('`').and_then(|doc| doc.split_once("`: ")).unwrap_or_default();
    let name = name.trim_start_matches("tarn_").trim_end_matches("_total");
    let help = help.trim_end_matches('.');
    for (ending, unit) in [("_bytes", Unit::Bytes), ("_seconds", Unit::Seconds)] {
        if let Some(name) = name.strip_suffix(ending) {
            return registry.register_with_unit(name, help, unit, metric);
        }
    }
    registry.register(name, help, metric);
}

/// Declares the metrics of each part, and [`Metrics`], which holds the parts.
macro_rules! metrics {
    ($($(#[$of:meta])* $part:ident: $type:ident { $(#[doc = $doc:literal] $(#[$more:meta])* $name:ident: $metric:ty,)* })*) => {
        $($(#[$of])*
        #[derive(Clone)]
        pub struct $type {
            $(#[doc = $doc] $(#[$more])* pub $name: $metric,)*
        }

        impl $type {
            fn new(registry: &mut Registry) -> Self {
                let part = Self { $($name: Fresh::fresh(),)* };
                $(register(registry, $doc, part.$name.clone());)*
                part
            }
        })*

        /// Handles on all metrics, by part. Cheap to clone.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Arc<Mutex<Registry>>,
            $($(#[$of])* pub $part: $type,)*
        }

        impl Metrics {
            /// Registers all metrics.
            pub fn new() -> Self {
                let mut registry = Registry::with_prefix(PREFIX);
                $(let $part = $type::new(&mut registry);)*
                Self { registry: Arc::new(Mutex::new(registry)), $($part,)* }
            }
        }
    };
}

metrics! {
    /// Requests to the git port, and answers.
    serve: ServeMetrics {
        /// `tarn_serve_requests_total`: requests to the git port.
        requests: Family<Route, Counter>,
        /// `tarn_serve_answers_total`: answers about refs.
        answers: Family<Basis, Counter>,
        /// `tarn_serve_sent_bytes_total`: bytes of packs and bundles sent.
        sent: Counter,
        /// `tarn_serve_proxied_total`: requests handed to peers, each attempt.
        proxied: Family<Proxied, Counter>,
        /// `tarn_serve_proxied_bytes_total`: bytes of peers' answers sent on.
        proxied_bytes: Counter,
        /// `tarn_serve_refused_connections_total`: connections that were too many.
        refused_connections: Counter,
        /// `tarn_serve_replaced_connections_total`: idle connections that made way for others.
        replaced_connections: Counter,
        /// `tarn_serve_hooks_total`: webhooks.
        hooks: Family<HookOutcome, Counter>,
        /// `tarn_serve_upload_packs`: running `git upload-pack` children.
        upload_packs: Gauge,
    }
    /// Judgements of callers.
    access: AccessMetrics {
        /// `tarn_access_decisions_total`: requests, by how their callers were judged.
        decisions: Family<Decision, Counter>,
        /// `tarn_access_withheld_total`: requests that got nothing because the upstream does not let the agent have it.
        withheld: Family<Outcome, Counter>,
        /// `tarn_access_tokens`: tokens of a file that count now.
        tokens: Family<TokenFile, Gauge>,
    }
    /// Answers to requests for packs.
    packs: PacksMetrics {
        /// `tarn_packs_lookups_total`: requests for packs, by how they met the cache.
        lookups: Family<Lookup, Counter>,
        /// `tarn_packs_composed_total`: answers that were put together from a base and what is new since.
        composed: Family<Composed, Counter>,
        /// `tarn_packs_ahead_total`: answers made before anyone asked for them.
        ahead: Family<Ahead, Counter>,
        /// `tarn_packs_ahead_seconds_total`: time spent on them.
        ahead_seconds: Counter<f64, AtomicU64>,
    }
    /// Files that grow.
    spool: SpoolMetrics {
        /// `tarn_spool_bytes`: bytes of cached answers and LFS objects.
        bytes: Family<SpoolPart, Gauge>,
        /// `tarn_spool_files`: their number.
        files: Family<SpoolPart, Gauge>,
        /// `tarn_spool_cut_total`: readers that were cut because they were slow and others needed their room.
        cut: Counter,
    }
    /// Looks, fetches and maintenance.
    mirror: MirrorMetrics {
        /// `tarn_mirror_looks_total`: looks at upstreams.
        looks: Family<Outcome, Counter>,
        /// `tarn_mirror_look_duration_seconds`: how long looks took.
        look_seconds: Histogram,
        /// `tarn_mirror_fetches_total`: clones and fetches.
        fetches: Family<Outcome, Counter>,
        /// `tarn_mirror_upkeeps_total`: repacks done and seeds made.
        upkeeps: Family<Work, Counter>,
        /// `tarn_mirror_fetch_duration_seconds`: how long clones and fetches took.
        fetch_seconds: Histogram,
    }
    /// Checkpoints.
    checkpoint: CheckpointMetrics {
        /// `tarn_checkpoint_publishes_total`: attempts to publish.
        publishes: Family<Outcome, Counter>,
        /// `tarn_checkpoint_uploaded_bytes_total`: bytes of published checkpoints that this agent uploaded.
        uploaded: Counter,
        /// `tarn_checkpoint_restores_total`: attempts to restore.
        restores: Family<Outcome, Counter>,
        /// `tarn_checkpoint_restore_duration_seconds`: how long restores took, waiting for their turn included.
        restore_seconds: Histogram,
    }
    /// Snapshots.
    snapshot: SnapshotMetrics {
        /// `tarn_snapshot_builds_total`: attempts to build a snapshot.
        builds: Family<Outcome, Counter>,
        /// `tarn_snapshot_build_duration_seconds`: how long they took.
        build_seconds: Histogram,
        /// `tarn_snapshot_downloads_total`: downloads of snapshots from the store.
        downloads: Family<Outcome, Counter>,
        /// `tarn_snapshot_comparisons_total`: comparisons of snapshots that were found with their commits: `same`, `differs`
        /// or `unknown`.
        comparisons: Family<Outcome, Counter>,
        /// `tarn_snapshot_sent_bytes_total`: bytes of snapshots sent to clients.
        sent: Counter,
    }
    /// Git LFS.
    lfs: LfsMetrics {
        /// `tarn_lfs_lookups_total`: downloads of LFS objects, by how they met the cache.
        lookups: Family<Lookup, Counter>,
        /// `tarn_lfs_downloads_total`: downloads of LFS objects from upstreams.
        downloads: Family<Outcome, Counter>,
        /// `tarn_lfs_sent_bytes_total`: bytes of LFS objects sent to clients.
        sent: Counter,
        /// `tarn_lfs_snapshot_builds_total`: attempts to build an archive of the LFS objects that a worktree needs.
        snapshot_builds: Family<Outcome, Counter>,
    }
    /// The store.
    store: StoreMetrics {
        /// `tarn_store_unconditional`: 1 where the store ignores conditions, so that two agents may both create.
        unconditional: Gauge,
        /// `tarn_store_untrusted_total`: manifests in the store that were refused because no key of this cache signed them.
        untrusted: Counter,
        /// `tarn_store_agents`: living agents that share the store, this one included.
        agents: Gauge,
    }
    /// The audit log in the store.
    audit: AuditMetrics {
        /// `tarn_audit_batches_total`: attempts to store a batch of the audit log, `ok` or `failed`.
        batches: Family<Outcome, Counter>,
        /// `tarn_audit_dropped_total`: entries that found no room and are missing in the store; the log has them.
        dropped: Counter,
    }
    /// Connections to upstreams.
    upstream: UpstreamMetrics {
        /// `tarn_upstream_connections`: looks and fetches under way, at all upstream hosts.
        connections: Gauge,
        /// `tarn_upstream_waiting`: looks and fetches that wait for a connection.
        waiting: Gauge,
    }
    /// The queue.
    queue: QueueMetrics {
        /// `tarn_queue_running`: work that has its turn.
        running: Family<Work, Gauge>,
        /// `tarn_queue_waiting`: work that waits for its turn.
        waiting: Family<Work, Gauge>,
    }
    /// Damage on the disk.
    integrity: IntegrityMetrics {
        /// `tarn_integrity_examinations_total`: comparisons of a mirror's files with their checksums.
        examinations: Family<Outcome, Counter>,
        /// `tarn_integrity_read_bytes_total`: bytes read for them.
        examined_bytes: Counter,
        /// `tarn_integrity_damages_total`: damage found on the disk.
        damages: Family<Damaged, Counter>,
    }
    /// The disk budget.
    disk: DiskMetrics {
        /// `tarn_disk_evictions_total`: what left the disk so that others have room.
        evictions: Family<Work, Counter>,
        /// `tarn_disk_evicted_bytes_total`: its bytes.
        evicted: Counter,
    }
    /// Mirrors brought before anyone asks.
    prewarm: PrewarmMetrics {
        /// `tarn_prewarm_attempts_total`: mirrors brought before anyone asked, by what came of it.
        prewarms: Family<Outcome, Counter>,
    }
    /// Writes to the API server.
    report: ReportMetrics {
        /// `tarn_report_writes_total`: attempts to write an entry of a GitMirror's status.
        writes: Family<ApiOutcome, Counter>,
        /// `tarn_report_waiting`: mirrors whose newest state the API server has not been told yet.
        waiting: Gauge,
        /// `tarn_report_renewals_total`: attempts to renew the pod's Lease.
        renewals: Family<ApiOutcome, Counter>,
    }
    /// What is watched in the cluster.
    cluster: ClusterMetrics {
        /// `tarn_cluster_watch_errors_total`: failed lists and broken watches.
        watch_errors: Counter,
        /// `tarn_cluster_synced`: 1 once the cluster's GitMirrors have been listed.
        synced: Gauge,
    }
}

impl Metrics {
    /// All metrics in OpenMetrics' text format, those that are computed for this very answer among them.
    pub fn encode(&self, computed: Box<dyn Collector>) -> String {
        let mut out = String::new();
        let mut own = Registry::with_prefix(PREFIX);
        own.register_collector(computed);
        // Writing to a String cannot fail.
        text::encode_registry(&mut out, &own).unwrap_or_default();
        text::encode(&mut out, &self.registry.lock()).unwrap_or_default();
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
