//! Every metric of the agent, in one place: names, labels, meaning.
//!
//! Labels come from closed enums; `mirror` stands only on per-mirror gauges, which are read from the fleet
//! when they are asked for (see `admin`). No ref, URL or error text is ever a label.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tarn_crds::v1alpha1::conditions::Reason;

/// Seconds: from a cached answer on loopback to a clone of minutes.
const SECONDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `ok`, or a reason code.
    pub outcome: &'static str,
}

impl Outcome {
    /// `ok`, or the reason of the error.
    pub fn of<T, E>(result: &Result<T, E>, reason: impl FnOnce(&E) -> Reason) -> Self {
        Self { outcome: result.as_ref().map_or_else(|error| reason(error).as_str(), |_| "ok") }
    }
}

/// How a request to the API server ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiOutcome {
    /// `ok`, `conflict`, `denied`, `gone`, `invalid`, `refused` (any other answer) or `unreachable`.
    pub outcome: &'static str,
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

/// What an answer about refs rested on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Basis {
    /// `verified`, `reused`, `stale` or `error`.
    pub freshness: &'static str,
}

/// What is done, what was done to a mirror while it serves, or what was evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Work {
    /// In the queue, the kind of bounded work; `repack` or `seed`; `undeclared`, `mirror`, `snapshot` or `packs`.
    pub work: &'static str,
}

/// What the disk damaged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Damaged {
    /// `mirror`, `answer`, `snapshot` or `lfs`.
    pub what: &'static str,
}

impl Damaged {
    /// A mirror.
    pub const MIRROR: Self = Self { what: "mirror" };
    /// A cached answer.
    pub const ANSWER: Self = Self { what: "answer" };
    /// A snapshot.
    pub const SNAPSHOT: Self = Self { what: "snapshot" };
    /// An LFS object.
    pub const LFS: Self = Self { what: "lfs" };
}

/// How a request for a pack met the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Lookup {
    /// `hit`: whole already; `joined`: being made; `miss`: made for this request; `pack`: a pack of the
    /// mirror, as it is.
    pub result: &'static str,
}

impl Lookup {
    /// The answer was whole already.
    pub const HIT: Self = Self { result: "hit" };
    /// The answer was being made.
    pub const JOINED: Self = Self { result: "joined" };
    /// The answer is made for this request.
    pub const MISS: Self = Self { result: "miss" };
    /// A pack of the mirror is the answer.
    pub const PACK: Self = Self { result: "pack" };
}

/// Some of a spool's files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SpoolPart {
    /// `packs` or `lfs`.
    pub spool: &'static str,
    /// `kept`, `growing` or `pinned`: evicted, and still read.
    pub part: &'static str,
}

/// What became of an answer that is made before anyone asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ahead {
    /// `made`, `failed` or `abandoned`; of those made, `used` by whoever came first, or `unused` until the refs moved again.
    pub outcome: &'static str,
}

impl Ahead {
    /// It is there.
    pub const MADE: Self = Self { outcome: "made" };
    /// It cannot be made.
    pub const FAILED: Self = Self { outcome: "failed" };
    /// The refs moved while it was made.
    pub const ABANDONED: Self = Self { outcome: "abandoned" };
    /// Somebody has asked for it.
    pub const USED: Self = Self { outcome: "used" };
    /// Nobody has.
    pub const UNUSED: Self = Self { outcome: "unused" };
}

/// What became of a request that was handed to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Proxied {
    /// `served`, `cold`, `refused`, `unreachable` or, of those served, `broken`.
    pub outcome: &'static str,
}

impl Proxied {
    /// The peer answers.
    pub const SERVED: Self = Self { outcome: "served" };
    /// The peer does not have the mirror either.
    pub const COLD: Self = Self { outcome: "cold" };
    /// The peer has the mirror and cannot answer, or is no agent.
    pub const REFUSED: Self = Self { outcome: "refused" };
    /// There is no connection to the peer, or it breaks before the answer begins.
    pub const UNREACHABLE: Self = Self { outcome: "unreachable" };
    /// An answer broke off in the middle.
    pub const BROKEN: Self = Self { outcome: "broken" };
}

/// What became of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HookOutcome {
    /// `ok`, `ignored` where the event moves no refs, or the code of the refusal.
    pub outcome: &'static str,
}

/// Handles on all metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// `tarn_serve_requests_total`: requests to the git port.
    pub requests: Family<Route, Counter>,
    /// `tarn_access_decisions_total`: requests, by how their callers were judged.
    pub decisions: Family<Decision, Counter>,
    /// `tarn_serve_answers_total`: answers about refs.
    pub answers: Family<Basis, Counter>,
    /// `tarn_serve_sent_bytes_total`: bytes of packs sent.
    pub sent: Counter,
    /// `tarn_serve_proxied_total`: requests handed to peers, each attempt.
    pub proxied: Family<Proxied, Counter>,
    /// `tarn_serve_proxied_bytes_total`: bytes of peers' answers sent on.
    pub proxied_bytes: Counter,
    /// `tarn_serve_refused_connections_total`: connections that were too many.
    pub refused_connections: Counter,
    /// `tarn_serve_replaced_connections_total`: idle connections that made way for others.
    pub replaced_connections: Counter,
    /// `tarn_serve_hooks_total`: webhooks.
    pub hooks: Family<HookOutcome, Counter>,
    /// `tarn_packs_lookups_total`: requests for packs, by how they met the cache.
    pub pack_lookups: Family<Lookup, Counter>,
    /// `tarn_packs_ahead_total`: answers made before anyone asked for them.
    pub packs_ahead: Family<Ahead, Counter>,
    /// `tarn_packs_ahead_seconds_total`: time spent on them.
    pub packs_ahead_seconds: Counter<f64, AtomicU64>,
    /// `tarn_spool_bytes`: bytes of cached answers and LFS objects.
    pub spool_bytes: Family<SpoolPart, Gauge>,
    /// `tarn_spool_files`: their number.
    pub spool_files: Family<SpoolPart, Gauge>,
    /// `tarn_spool_cut_total`: readers that were cut because they were slow and others needed their room.
    pub spool_cut: Counter,
    /// `tarn_serve_upload_packs`: running `git upload-pack` children.
    pub upload_packs: Gauge,
    /// `tarn_mirror_looks_total`: looks at upstreams.
    pub looks: Family<Outcome, Counter>,
    /// `tarn_mirror_look_duration_seconds`: how long looks took.
    pub look_seconds: Histogram,
    /// `tarn_mirror_fetches_total`: clones and fetches.
    pub fetches: Family<Outcome, Counter>,
    /// `tarn_mirror_upkeeps_total`: repacks done and seeds made.
    pub upkeeps: Family<Work, Counter>,
    /// `tarn_mirror_fetch_duration_seconds`: how long clones and fetches took.
    pub fetch_seconds: Histogram,
    /// `tarn_checkpoint_publishes_total`: attempts to publish.
    pub publishes: Family<Outcome, Counter>,
    /// `tarn_checkpoint_uploaded_bytes_total`: bytes of published checkpoints that this agent uploaded.
    pub uploaded: Counter,
    /// `tarn_checkpoint_restores_total`: attempts to restore.
    pub restores: Family<Outcome, Counter>,
    /// `tarn_checkpoint_restore_duration_seconds`: how long restores took, waiting for their turn included.
    pub restore_seconds: Histogram,
    /// `tarn_snapshot_builds_total`: attempts to build a snapshot.
    pub snapshot_builds: Family<Outcome, Counter>,
    /// `tarn_snapshot_build_duration_seconds`: how long they took.
    pub snapshot_build_seconds: Histogram,
    /// `tarn_snapshot_downloads_total`: downloads of snapshots from the store.
    pub snapshot_downloads: Family<Outcome, Counter>,
    /// `tarn_snapshot_sent_bytes_total`: bytes of snapshots sent to clients.
    pub snapshot_sent: Counter,
    /// `tarn_lfs_lookups_total`: downloads of LFS objects, by how they met the cache.
    pub lfs_lookups: Family<Lookup, Counter>,
    /// `tarn_lfs_downloads_total`: downloads of LFS objects from upstreams.
    pub lfs_downloads: Family<Outcome, Counter>,
    /// `tarn_lfs_sent_bytes_total`: bytes of LFS objects sent to clients.
    pub lfs_sent: Counter,
    /// `tarn_lfs_snapshot_builds_total`: attempts to build an archive of the LFS objects that a worktree needs.
    pub lfs_snapshot_builds: Family<Outcome, Counter>,
    /// `tarn_store_unconditional`: 1 where the store ignores conditions, so that two agents may both create.
    pub unconditional: Gauge,
    /// `tarn_store_agents`: living agents that share the store, this one included.
    pub agents: Gauge,
    /// `tarn_upstream_connections`: looks and fetches under way, at all upstream hosts.
    pub upstream_connections: Gauge,
    /// `tarn_queue_running`: work that has its turn.
    pub queue_running: Family<Work, Gauge>,
    /// `tarn_queue_waiting`: work that waits for its turn.
    pub queue_waiting: Family<Work, Gauge>,
    /// `tarn_upstream_waiting`: looks and fetches that wait for a connection.
    pub upstream_waiting: Gauge,
    /// `tarn_integrity_examinations_total`: comparisons of a mirror's files with their checksums.
    pub examinations: Family<Outcome, Counter>,
    /// `tarn_integrity_read_bytes_total`: bytes read for them.
    pub examined_bytes: Counter,
    /// `tarn_integrity_damages_total`: damage found on the disk.
    pub damages: Family<Damaged, Counter>,
    /// `tarn_disk_evictions_total`: what left the disk so that others have room.
    pub evictions: Family<Work, Counter>,
    /// `tarn_disk_evicted_bytes_total`: its bytes.
    pub evicted: Counter,
    /// `tarn_prewarm_attempts_total`: mirrors brought before anyone asked, by what came of it.
    pub prewarms: Family<Outcome, Counter>,
    /// `tarn_report_writes_total`: attempts to write an entry of a GitMirror's status.
    pub report_writes: Family<ApiOutcome, Counter>,
    /// `tarn_report_waiting`: mirrors whose newest state the API server has not been told yet.
    pub report_waiting: Gauge,
    /// `tarn_report_renewals_total`: attempts to renew the pod's Lease.
    pub renewals: Family<ApiOutcome, Counter>,
    /// `tarn_cluster_watch_errors_total`: failed lists and broken watches.
    pub watch_errors: Counter,
    /// `tarn_cluster_synced`: 1 once the cluster's GitMirrors have been listed.
    pub synced: Gauge,
}

impl Metrics {
    /// Registers all metrics.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tarn");
        let metrics = Self {
            registry: Arc::default(),
            requests: Family::default(),
            decisions: Family::default(),
            answers: Family::default(),
            sent: Counter::default(),
            proxied: Family::default(),
            proxied_bytes: Counter::default(),
            refused_connections: Counter::default(),
            replaced_connections: Counter::default(),
            hooks: Family::default(),
            pack_lookups: Family::default(),
            packs_ahead: Family::default(),
            packs_ahead_seconds: Counter::default(),
            spool_bytes: Family::default(),
            spool_files: Family::default(),
            spool_cut: Counter::default(),
            upload_packs: Gauge::default(),
            looks: Family::default(),
            look_seconds: Histogram::new(SECONDS),
            fetches: Family::default(),
            upkeeps: Family::default(),
            fetch_seconds: Histogram::new(SECONDS),
            publishes: Family::default(),
            uploaded: Counter::default(),
            restores: Family::default(),
            restore_seconds: Histogram::new(SECONDS),
            snapshot_builds: Family::default(),
            snapshot_build_seconds: Histogram::new(SECONDS),
            snapshot_downloads: Family::default(),
            snapshot_sent: Counter::default(),
            lfs_lookups: Family::default(),
            lfs_downloads: Family::default(),
            lfs_sent: Counter::default(),
            lfs_snapshot_builds: Family::default(),
            unconditional: Gauge::default(),
            agents: Gauge::default(),
            upstream_connections: Gauge::default(),
            queue_running: Family::default(),
            queue_waiting: Family::default(),
            upstream_waiting: Gauge::default(),
            examinations: Family::default(),
            examined_bytes: Counter::default(),
            damages: Family::default(),
            evictions: Family::default(),
            evicted: Counter::default(),
            prewarms: Family::default(),
            report_writes: Family::default(),
            report_waiting: Gauge::default(),
            renewals: Family::default(),
            watch_errors: Counter::default(),
            synced: Gauge::default(),
        };
        let serve = registry.sub_registry_with_prefix("serve");
        serve.register("requests", "Requests to the git port", metrics.requests.clone());
        serve.register("answers", "Answers about refs, by what they rested on", metrics.answers.clone());
        serve.register_with_unit("sent", "Bytes of packs sent", Unit::Bytes, metrics.sent.clone());
        serve.register("proxied", "Requests handed to peers", metrics.proxied.clone());
        let bytes = metrics.proxied_bytes.clone();
        serve.register_with_unit("proxied", "Bytes of peers' answers sent on", Unit::Bytes, bytes);
        let refused = metrics.refused_connections.clone();
        serve.register("refused_connections", "Connections that were too many", refused);
        let replaced = metrics.replaced_connections.clone();
        serve.register("replaced_connections", "Idle connections that made way for others", replaced);
        serve.register("hooks", "Webhooks", metrics.hooks.clone());
        serve.register("upload_packs", "Running git upload-pack children", metrics.upload_packs.clone());
        let access = registry.sub_registry_with_prefix("access");
        access.register("decisions", "Requests, by how their callers were judged", metrics.decisions.clone());
        let packs = registry.sub_registry_with_prefix("packs");
        packs.register(
            "lookups",
            "Requests for packs, by how they met the cache",
            metrics.pack_lookups.clone(),
        );
        packs.register("ahead", "Answers made before anyone asked", metrics.packs_ahead.clone());
        let seconds = metrics.packs_ahead_seconds.clone();
        packs.register_with_unit(
            "ahead",
            "Time spent on answers nobody had asked for",
            Unit::Seconds,
            seconds,
        );
        let spool = registry.sub_registry_with_prefix("spool");
        spool.register("bytes", "Bytes of cached answers and LFS objects", metrics.spool_bytes.clone());
        spool.register("files", "Their number", metrics.spool_files.clone());
        spool.register("cut", "Readers that were cut for others' room", metrics.spool_cut.clone());
        let mirror = registry.sub_registry_with_prefix("mirror");
        mirror.register("looks", "Looks at upstreams", metrics.looks.clone());
        mirror.register_with_unit(
            "look_duration",
            "Time looks took",
            Unit::Seconds,
            metrics.look_seconds.clone(),
        );
        mirror.register("upkeeps", "Repacks done and seeds made", metrics.upkeeps.clone());
        mirror.register("fetches", "Clones and fetches", metrics.fetches.clone());
        mirror.register_with_unit(
            "fetch_duration",
            "Time fetches took",
            Unit::Seconds,
            metrics.fetch_seconds.clone(),
        );
        let checkpoint = registry.sub_registry_with_prefix("checkpoint");
        checkpoint.register("publishes", "Attempts to publish a checkpoint", metrics.publishes.clone());
        checkpoint.register_with_unit("uploaded", "Bytes uploaded", Unit::Bytes, metrics.uploaded.clone());
        checkpoint.register("restores", "Attempts to restore a checkpoint", metrics.restores.clone());
        checkpoint.register_with_unit(
            "restore_duration",
            "Time restores took",
            Unit::Seconds,
            metrics.restore_seconds.clone(),
        );
        let snapshot = registry.sub_registry_with_prefix("snapshot");
        snapshot.register("builds", "Attempts to build a snapshot", metrics.snapshot_builds.clone());
        snapshot.register_with_unit(
            "build_duration",
            "Time building took",
            Unit::Seconds,
            metrics.snapshot_build_seconds.clone(),
        );
        let downloads = metrics.snapshot_downloads.clone();
        snapshot.register("downloads", "Downloads of snapshots from the store", downloads);
        let sent = metrics.snapshot_sent.clone();
        snapshot.register_with_unit("sent", "Bytes of snapshots sent to clients", Unit::Bytes, sent);
        let lfs = registry.sub_registry_with_prefix("lfs");
        let lookups = metrics.lfs_lookups.clone();
        lfs.register("lookups", "Downloads of LFS objects, by how they met the cache", lookups);
        let downloads = metrics.lfs_downloads.clone();
        lfs.register("downloads", "Downloads of LFS objects from upstreams", downloads);
        let sent = metrics.lfs_sent.clone();
        lfs.register_with_unit("sent", "Bytes of LFS objects sent to clients", Unit::Bytes, sent);
        let builds = metrics.lfs_snapshot_builds.clone();
        lfs.register("snapshot_builds", "Attempts to build an archive of LFS objects", builds);
        let store = registry.sub_registry_with_prefix("store");
        store.register(
            "unconditional",
            "1 where the store ignores conditions",
            metrics.unconditional.clone(),
        );
        store.register("agents", "Living agents that share the store", metrics.agents.clone());
        let upstream = registry.sub_registry_with_prefix("upstream");
        upstream.register("connections", "Looks and fetches under way", metrics.upstream_connections.clone());
        upstream.register(
            "waiting",
            "Looks and fetches that wait for a connection",
            metrics.upstream_waiting.clone(),
        );
        let queue = registry.sub_registry_with_prefix("queue");
        queue.register("running", "Bounded work that has its turn", metrics.queue_running.clone());
        queue.register("waiting", "Bounded work that waits for its turn", metrics.queue_waiting.clone());
        let integrity = registry.sub_registry_with_prefix("integrity");
        let (examinations, read) = (metrics.examinations.clone(), metrics.examined_bytes.clone());
        integrity.register(
            "examinations",
            "Comparisons of mirrors' files with their checksums",
            examinations,
        );
        integrity.register_with_unit("read", "Bytes read for them", Unit::Bytes, read);
        integrity.register("damages", "Damage found on the disk", metrics.damages.clone());
        let disk = registry.sub_registry_with_prefix("disk");
        disk.register("evictions", "What left the disk for want of room", metrics.evictions.clone());
        disk.register_with_unit("evicted", "Bytes of it", Unit::Bytes, metrics.evicted.clone());
        let prewarm = registry.sub_registry_with_prefix("prewarm");
        prewarm.register("attempts", "Mirrors brought before anyone asked", metrics.prewarms.clone());
        let report = registry.sub_registry_with_prefix("report");
        report.register("writes", "Attempts to write an entry of status", metrics.report_writes.clone());
        report.register(
            "waiting",
            "Mirrors whose newest state is not told yet",
            metrics.report_waiting.clone(),
        );
        report.register("renewals", "Attempts to renew the pod's Lease", metrics.renewals.clone());
        let cluster = registry.sub_registry_with_prefix("cluster");
        cluster.register("watch_errors", "Failed lists and broken watches", metrics.watch_errors.clone());
        cluster.register("synced", "1 once the GitMirrors have been listed", metrics.synced.clone());
        metrics.lock(|slot| *slot = registry);
        metrics
    }

    /// Adds metrics that are computed when they are asked for.
    pub fn collect_from(&self, collector: Box<dyn Collector>) {
        self.lock(|registry| registry.register_collector(collector));
    }

    /// All metrics in OpenMetrics' text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        self.lock(|registry| text::encode(&mut out, registry)).unwrap_or_default();
        out
    }

    fn lock<T>(&self, work: impl FnOnce(&mut Registry) -> T) -> T {
        // The registry stays usable whatever a panicking holder did to it.
        work(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
