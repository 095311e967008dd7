//! The one place where parts are put together: configuration in, running agent out.

mod callers;
mod error;
mod shares;
mod store;

use std::{
    future::pending,
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use tarn_crds::{allowed_hosts::AllowedHosts, v1alpha1::Quantity};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    access::{Guard, administrators::Administrators, tokens::Tokens},
    admin::{self, Admin, status::Probed},
    audit::Audit,
    checkpoint::Archive,
    config::{self, Pod},
    descriptors::Shares,
    fleet::{
        Fleet, budget,
        cluster::{self, Cluster, Scope, cleanup::Cleanup, endpoints},
        declarations::{Flag, Rules},
        last_known::{LastKnown, Origin},
        manifests::Manifests,
        prewarm::{self, Warmer},
        scrub::Scrubber,
    },
    git::{Git, orphans},
    lfs::Lfs,
    listen,
    metrics::Metrics,
    mirror::{Services, disk::Disk, integrity::Integrity},
    packs::Packs,
    peers::{
        Heart, Peers,
        addresses::{Address, Addresses},
        placement::{Follower, Placement},
    },
    popularity::{self, Popularity},
    queue::{Capacities, Queue},
    report::{Reporter, lease},
    serve::{self, Serving, hooks::Hooks, lately::Lately, proxy::Proxy},
    shutdown,
    snapshot::build::WorktreeRules,
    supervisor::{Ended, Tasks},
    tls::Tls,
};
use callers::{admin_tokens, administrators, means};
use shares::{admin_limits, connection_limits, request_limits, shares};
use store::{archive, audit, probe};

pub use error::StartError;

/// The most that cached answers take on the disk, if an eighth of the budget is not less.
const PACK_BUDGET: u64 = 10 << 30;

/// The most that LFS objects take on the disk, if an eighth of the budget is not less.
const LFS_BUDGET: u64 = 10 << 30;

/// How long the last words to other agents may take.
const LAST_WORDS: Duration = Duration::from_secs(6);

/// Runs the agent until a signal stops it.
///
/// # Errors
/// It cannot start, or a task of its own has ended.
pub async fn run(config: config::Serve) -> Result<(), StartError> {
    let shares = shares(&config.limits);
    let mut tasks = Groups::default();
    let base = Base::open(&config, &mut tasks.running).await?;
    let mut mirrors = Mirrors::open(&config, &base, &mut tasks.running)?;
    let answered = CancellationToken::new();
    let audit = audit(&config, &base.metrics, mirrors.archive.as_ref(), &answered, &mut tasks.closing);
    let serving = serving(&config, &base, &mirrors, audit, shares, &mut tasks.running).await?;
    let stopping = shutdown::on_signal()?;
    keep_in_touch(&config, &mut mirrors, &stopping, &mut tasks.closing);
    let (git_port, admin_port) = (bind(config.ports.listen).await?, bind(config.ports.admin_listen).await?);
    declare(&config, &base, &mirrors, &mut tasks.declaring).await?;
    // For whoever started the agent with port 0, and as a sign that it serves.
    let (git_address, admin_address) = (git_port.local_addr()?, admin_port.local_addr()?);
    writeln!(io::stdout(), "listening git={git_address} admin={admin_address}")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), git = base.git.version(), data = %config.data.display(), listen = %git_address, admin = %admin_address, "serving");

    // The admin port outlives the git port: probes and metrics tell of the draining.
    let (metrics, stopped) = (base.metrics.clone(), CancellationToken::new());
    let scope = base.cluster.as_ref().map(|(scope, _)| scope);
    let administrators = administrators(&config, scope, base.admin_tokens.clone());
    let admin = mirrors.admin(&config, &base, administrators, &stopping);
    let limits = admin_limits(shares);
    let admin =
        listen::serve(admin_port, admin::router(admin), None, limits, metrics.clone(), stopped.clone());
    tasks.running.spawn("admin-port", admin);
    let (router, limits) = (serve::router(serving), connection_limits(&config.limits, shares));
    let clients = listen::serve(git_port, router, base.tls.clone(), limits, metrics, stopping.clone());
    let mut clients = AbortOnDropHandle::new(tokio::spawn(clients));

    tokio::select! {
        biased;
        () = stopping.cancelled() => {}
        ended = tasks.ended() => return Err(failed(ended)),
        _ = &mut clients => return Err(failed(Ended { name: "git-port", how: "ended" })),
    }
    let Groups { mut running, declaring, closing } = tasks;
    drop(declaring);
    let drain = Duration::from_secs(config.ports.drain.into());
    tokio::select! {
        drained = timeout(drain, &mut clients) => if drained.is_err() {
            tracing::warn!(seconds = config.ports.drain, "answers still under way are cut: --drain is over");
        },
        ended = running.ended() => return Err(failed(ended)),
    }
    // What was answered until now is in the audit log.
    answered.cancel();
    if !closing.finish(LAST_WORDS).await {
        tracing::warn!(
            "the store did not take the last words in time: the others will notice that this agent has gone"
        );
    }
    Ok(())
}

fn failed(ended: Ended) -> StartError {
    tracing::error!(
        task = ended.name,
        how = ended.how,
        "a task that should not end has ended: the process ends"
    );
    StartError::Task(ended)
}

/// The agent's tasks, by how long they run.
#[derive(Default)]
struct Groups {
    /// To the end of the process.
    running: Tasks,
    /// Until it is told to stop: from then on nothing changes any more.
    declaring: Tasks,
    /// Until it is told to stop, and then to their own end.
    closing: Tasks,
}

impl Groups {
    async fn ended(&mut self) -> Ended {
        tokio::select! {
            ended = self.running.ended() => ended,
            ended = self.declaring.ended() => ended,
            ended = self.closing.ended() => ended,
        }
    }
}

/// What everything else stands on.
struct Base {
    rules: Rules,
    tls: Option<Arc<Tls>>,
    addresses: Addresses,
    /// Where the addresses of other agents are written that the cluster tells of.
    found: watch::Sender<Arc<[Address]>>,
    cluster: Option<(Scope, Pod)>,
    placement: Option<Placement>,
    admin_tokens: Option<Arc<Tokens>>,
    disk: Arc<Disk>,
    git: Git,
    metrics: Metrics,
}

impl Base {
    async fn open(config: &config::Serve, tasks: &mut Tasks) -> Result<Self, StartError> {
        let rules = Rules {
            allow_file: config.upstreams.allow_file,
            in_cluster: config.in_cluster,
            tokens: config.access.tokens.is_some(),
            allowed: Arc::new(AllowedHosts::new(config.upstreams.allowed.clone())),
            max_bytes: config.disk.max_mirror_bytes.as_ref().map(Quantity::value),
        };
        let tls = config.ports.tls_cert.as_deref().zip(config.ports.tls_key.as_deref());
        let tls = tls.map(|(cert, key)| Tls::open(cert, key)).transpose()?;
        tasks.spawn_some("certificate", tls.clone().map(Tls::follow));
        let (addresses, found) = Addresses::new(each("--peer", &config.peering.peers, Address::parse)?);
        let cluster = cluster(config).await?;
        let (placement, placing) = placement(config, cluster.as_ref(), &addresses)?.unzip();
        tasks.spawn_some("placement", placing.map(Follower::run));
        let (data, credentials) = (config.data.clone(), config.disk.credentials());
        let open = move || Disk::open(&data, credentials);
        let disk = Arc::new(tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??);
        adopt_orphans(tasks);
        let git = Git::detect(&disk.home(), &disk.mark(), config.upstreams.allow_file).await?;
        let metrics = Metrics::new();
        let admin_tokens = admin_tokens(config, &metrics, tasks)?;
        Ok(Self { rules, tls, addresses, found, cluster, placement, admin_tokens, disk, git, metrics })
    }

    fn last_known(&self, origin: Origin) -> LastKnown {
        LastKnown::new(self.disk.declarations(), origin)
    }
}

/// What git's children leave behind is the agent's to wait for.
fn adopt_orphans(tasks: &mut Tasks) {
    if let Err(error) = orphans::adopt() {
        tracing::warn!(%error, "what children leave behind cannot be waited for");
    }
    tasks.spawn("orphans", async {
        if let Err(error) = orphans::reap().await {
            tracing::error!(%error, "ended children cannot be waited for");
        }
    });
}

/// The mirrors, and what keeps them within their limits.
struct Mirrors {
    fleet: Arc<Fleet>,
    archive: Option<Arc<Archive>>,
    peers: Option<Peers>,
    heart: Option<Heart>,
    packs: Packs,
    warmer: Warmer,
    budget: budget::Keeper,
}

impl Mirrors {
    fn open(config: &config::Serve, base: &Base, tasks: &mut Tasks) -> Result<Self, StartError> {
        let (disk, metrics, prewarm) = (&base.disk, &base.metrics, &config.prewarm);
        let (popularity, at_once) = (Popularity::default(), prewarm.prewarm_concurrency);
        let archive = archive(&config.store, disk, &popularity, metrics, tasks)?;
        let every = Duration::from_secs(config.peering.heartbeat.into());
        let peers = archive
            .as_ref()
            .map(|archive| Peers::new(archive.store.clone(), &archive.agent, every, metrics.clone()));
        let (peers, heart) = peers.unzip();
        let peers = peers.map(|peers: Peers| peers.placed(base.placement.clone()));
        let share = config.disk.disk_budget.bytes_of(disk.volume()?.total) / 8;
        let capacities = Capacities::here(at_once.get(), config.upstreams.connections.into());
        let weigh = popularity.clone();
        let weigh = move |id: &_| weigh.of(id).weight();
        let queue = Queue::new(capacities, weigh, popularity.sums(), metrics.clone());
        let objects = queue.clone();
        let services = Services {
            git: base.git.clone(),
            namespace: base.cluster.as_ref().map(|(_, pod)| pod.namespace.clone()).unwrap_or_default(),
            disk: disk.clone(),
            metrics: metrics.clone(),
            integrity: Integrity::default(),
            queue,
            cold: Arc::default(),
            room: Arc::default(),
            allowed: base.rules.allowed.clone(),
            worktrees: WorktreeRules {
                files: config.disk.snapshot_max_files.into(),
                bytes: config.disk.snapshot_max_bytes.as_ref().map(Quantity::value),
            },
            spread: Arc::default(),
            archive: archive.clone(),
            peers: peers.clone(),
            lfs: Lfs::open(disk.lfs(), &disk.incoming(), LFS_BUDGET.min(share), objects, metrics.clone())?,
            packs: Packs::new(&disk.packs(), PACK_BUDGET.min(share), metrics.clone())?,
            placement: base.placement.clone(),
        };
        let packs = services.packs.clone();
        let fleet = Arc::new(Fleet::new(services, tasks.alarm()));
        let popularity = archive.as_ref().map(|archive| archive.popularity.clone());
        let terms = prewarm::Rules { most_cloned: prewarm.prewarm_most_cloned.into(), at_once };
        let warmer = Warmer::new(fleet.clone(), popularity, terms, metrics.clone());
        let (all, room) = (fleet.clone(), config.disk.disk_budget.clone());
        let budget = budget::Keeper::new(all, disk.clone(), packs.clone(), room, metrics.clone());
        tasks.spawn("packs", packs.clone().sweep());
        tasks.spawn("budget", budget.clone().run());
        tasks.spawn("warmer", warmer.clone().run());
        let scrubber = Scrubber::new(fleet.clone(), base.git.clone(), metrics.clone(), config.scrub_interval);
        tasks.spawn("scrubber", scrubber.run());
        let probing = archive.clone().map(|archive| probe(archive, metrics.clone()));
        // It has nothing more to do once the store has answered.
        tasks.spawn_some("store-probe", probing.map(|probing| probing.then(|()| pending())));
        Ok(Self { fleet, archive, peers, heart, packs, warmer, budget })
    }

    /// What the admin port shows.
    fn admin(
        &self,
        config: &config::Serve,
        base: &Base,
        administrators: Administrators,
        stopping: &CancellationToken,
    ) -> Admin {
        let store = self.archive.clone().zip(self.peers.clone());
        Admin {
            fleet: self.fleet.clone(),
            warmer: self.warmer.clone(),
            budget: self.budget.clone(),
            metrics: base.metrics.clone(),
            open_metrics: config.access.open_metrics,
            administrators: Arc::new(administrators),
            store: store.map(|(archive, peers)| Probed { archive, peers }),
            stopping: stopping.clone(),
        }
    }
}

/// What answers clients.
async fn serving(
    config: &config::Serve,
    base: &Base,
    mirrors: &Mirrors,
    audit: Audit,
    shares: Shares,
    tasks: &mut Tasks,
) -> Result<Arc<Serving>, StartError> {
    let (metrics, addresses) = (base.metrics.clone(), base.addresses.clone());
    let called = base.cluster.as_ref().map_or("tarn-agent", |(_, pod)| pod.name.as_str());
    // Elsewhere than in a cluster, --peer names them as certificates do.
    let same = base.tls.as_ref().filter(|_| config.in_cluster).map(Tls::for_peers).transpose()?;
    let proxy = Proxy::new(called, addresses, same, metrics.clone())?;
    let scope = base.cluster.as_ref().map(|(scope, _)| scope);
    let means = means(config, scope, base.admin_tokens.clone(), &metrics, tasks)?;
    let (guard, git, packs) = (Guard::new(means, metrics.clone()), base.git.clone(), mirrors.packs.clone());
    let popularity = mirrors.archive.as_ref().map(|archive| archive.popularity.clone());
    let fleet = mirrors.fleet.clone();
    let serving = Serving::new(fleet, guard, git, &base.disk, packs, popularity, proxy, metrics).await?;
    let (lately, newly_asked) = (config.pack_ahead > 0).then(Lately::new).unzip();
    let serving = serving
        .with_hooks(Hooks::new(config.access.webhook_secret_file.clone()))
        .with_limits(request_limits(&config.limits, shares))
        .with_audit(audit)
        .with_lately(lately);
    let serving = Arc::new(serving);
    let packing = newly_asked.map(|new| serve::ahead::run(serving.clone(), new, config.pack_ahead));
    tasks.spawn_some("packs-ahead", packing);
    let releasing =
        base.placement.clone().map(|placement| serve::moving::release(serving.clone(), placement));
    tasks.spawn_some("release", releasing);
    Ok(serving)
}

/// Tells the other agents that this one lives, and what is asked for, until it stops.
fn keep_in_touch(
    config: &config::Serve,
    mirrors: &mut Mirrors,
    stopping: &CancellationToken,
    tasks: &mut Tasks,
) {
    let beating = mirrors.heart.take().map(|heart| heart.run(stopping.clone()));
    tasks.spawn_some("heartbeat", beating);
    let counting = mirrors.archive.as_ref().map(|archive| {
        let (popularity, store, agent) = (&archive.popularity, &archive.store, &archive.agent);
        let (popularity, store, agent) = (popularity.clone(), store.clone(), agent.clone());
        popularity::run(popularity, store, agent, config.prewarm.prewarm_window, stopping.clone())
    });
    tasks.spawn_some("popularity", counting);
}

/// Keeps the fleet as it is declared: in the cluster, in files, by flags.
async fn declare(
    config: &config::Serve,
    base: &Base,
    mirrors: &Mirrors,
    tasks: &mut Tasks,
) -> Result<(), StartError> {
    if let Some((scope, pod)) = &base.cluster {
        // Not waited for: the API server may be away.
        in_cluster(scope, pod, base, mirrors, tasks);
        return Ok(());
    }
    let flags = each("--mirror", &config.mirrors, |url| Flag::parse(url, &base.rules))?;
    if config.manifests.is_none() && flags.is_empty() {
        tracing::warn!("nothing to mirror: give --manifests DIR or --mirror URL");
    }
    let unread =
        |source| StartError::Manifests { path: config.manifests.clone().unwrap_or_default(), source };
    let last_known = base.last_known(Origin::Manifests);
    let mut manifests =
        Manifests::new(config.manifests.clone(), flags, base.rules.clone(), last_known).map_err(unread)?;
    // Watching begins before the first reading, so that no change falls in between.
    let changes = manifests.changes();
    tasks.spawn("declarations", manifests.keeping());
    manifests.apply(&mirrors.fleet).await;
    tasks.spawn("manifests", manifests.follow(changes, mirrors.fleet.clone()));
    Ok(())
}

/// Where the declarations are, and which pod this is, if it runs in a cluster.
async fn cluster(config: &config::Serve) -> Result<Option<(Scope, Pod)>, StartError> {
    let Some(cache) = config.cache.clone().filter(|_| config.in_cluster) else { return Ok(None) };
    let pod = Pod::from_variables(|name| std::env::var(name).ok()).map_err(StartError::Pod)?;
    let client = cluster::connect().await?;
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    let scheme = if config.ports.tls_cert.is_some() { "https" } else { "http" };
    Ok(Some((Scope { client, namespace, cache, pod: name, scheme }, pod)))
}

/// Who keeps which mirror, where not all agents keep all, and what keeps that up to date.
fn placement(
    config: &config::Serve,
    cluster: Option<&(Scope, Pod)>,
    addresses: &Addresses,
) -> Result<Option<(Placement, Follower)>, StartError> {
    let Some(copies) = config.peering.replication else { return Ok(None) };
    let name = match (cluster, &config.peering.advertise) {
        (Some((_, pod)), _) => pod.name.clone(),
        (None, Some(own)) => {
            let own = Address::parse(own).map_err(|why| StartError::Flags(format!("--advertise {why}")))?;
            own.name
        }
        (None, None) => {
            let missing =
                "--replication: give --advertise URL too, this agent's git port as the others name it";
            return Err(StartError::Flags(missing.into()));
        }
    };
    Ok(Some(Placement::new(&name, copies.into(), addresses)))
}

/// What keeps the fleet as the cluster declares it, and tells the cluster of it.
fn in_cluster(scope: &Scope, pod: &Pod, base: &Base, mirrors: &Mirrors, tasks: &mut Tasks) {
    let (fleet, metrics) = (&mirrors.fleet, &base.metrics);
    let origin = Origin::Cache { namespace: scope.namespace.clone(), name: scope.cache.clone() };
    let cluster = Cluster::new(scope.clone(), base.rules.clone(), base.last_known(origin), metrics.clone());
    let reporter = Reporter::new(scope, pod.clone(), fleet.clone(), cluster.board(), metrics.clone());
    let store = mirrors.archive.clone().zip(mirrors.peers.clone());
    let cleanup = Cleanup { board: cluster.board(), fleet: fleet.clone(), store };
    tasks.spawn("cleanup", cleanup.run());
    tasks.spawn("endpoints", endpoints::follow(scope.clone(), base.found.clone(), metrics.clone()));
    tasks.spawn("declarations", cluster.keeping());
    tasks.spawn("cluster", cluster.follow(fleet.clone()));
    tasks.spawn("reporter", reporter.run());
    tasks.spawn("lease", lease::run(scope.clone(), pod.clone(), metrics.clone()));
}

/// What the values of a repeated flag mean; else all that are wrong, by number and not by value, which may hold a
/// password.
fn each<T, E: std::fmt::Display>(
    flag: &str,
    values: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, StartError> {
    let (mut parsed, mut wrong) = (Vec::new(), Vec::new());
    for (at, value) in values.iter().enumerate() {
        match parse(value) {
            Ok(found) => parsed.push(found),
            Err(reason) => wrong.push(format!("{flag} number {}: {reason}", at + 1)),
        }
    }
    if wrong.is_empty() { Ok(parsed) } else { Err(StartError::Flags(wrong.join("; "))) }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}
