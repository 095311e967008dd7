//! The one place where parts are put together: configuration in, running agent out.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::OptionFuture;
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    access::{
        self, Guard, Means,
        peers::{Judge, OwnToken, PeersError},
        reviews::Reviews,
        tokens::{Tokens, TokensError},
    },
    admin::{self, Admin, gauges::Gauges, status::Probed},
    checkpoint::Archive,
    config::{self, Pod},
    descriptors::{self, Raised, Shares},
    fleet::{
        Fleet, budget,
        cluster::{self, Cluster, ClusterError, Scope, cleanup::Cleanup, endpoints},
        declarations::{Flag, Rules},
        last_known::{LastKnown, Origin},
        manifests::Manifests,
        prewarm::{self, Warmer},
    },
    git::{Git, GitError},
    lfs::Lfs,
    listen::{self, ConnectionLimits},
    metrics::Metrics,
    mirror::{
        Limits, Shared,
        disk::{Disk, DiskError},
        state::retry_delay,
    },
    packs::Packs,
    peers::{
        Peers,
        addresses::{Address, Addresses},
        placement::{Follower, Placement},
    },
    popularity::{self, Popularity},
    queue::{Capacities, Queue},
    report::{Reporter, lease},
    serve::{self, ServeError, Serving, hooks::Hooks, lately::Lately, limits::RequestLimits, proxy::Proxy},
    shutdown,
    store::{self, StoreError},
    tls::{Tls, TlsError},
};

/// The most that cached answers take on the disk, if an eighth of the budget is not less.
const PACK_BUDGET: u64 = 10 << 30;

/// The most that LFS objects take on the disk, if an eighth of the budget is not less.
const LFS_BUDGET: u64 = 10 << 30;

/// How long a connection to the admin port may be silent: probes ask at once.
const ADMIN_SILENCE: Duration = Duration::from_secs(5);

/// Why the agent cannot start. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Git.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The store's location makes no sense, or its directory cannot be used.
    #[error("--store: {0}")]
    Store(#[from] StoreError),
    /// The callers' tokens.
    #[error("--tokens: {0}")]
    Tokens(#[from] TokensError),
    /// The certificate.
    #[error("--tls-cert, --tls-key: {0}")]
    Tls(#[from] TlsError),
    /// What the agent proves itself with.
    #[error("--peer-token: {0}")]
    PeerToken(#[from] PeersError),
    /// `--mirror` or `--peer` values; all that are wrong.
    #[error("{0}")]
    Flags(String),
    /// The client for other agents.
    #[error("cannot set up the client for other agents: {0}")]
    Client(#[from] reqwest::Error),
    /// The manifests directory.
    #[error("cannot read {path}: {source}; --manifests must name a directory that this user may read")]
    Manifests {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The downward API.
    #[error("--in-cluster: not set: {0}; the pod's downward API sets them")]
    Pod(String),
    /// The API server.
    #[error("--in-cluster: {0}")]
    Cluster(#[from] ClusterError),
    /// A port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Signals cannot be handled, or standard output is closed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs the agent until a signal stops it.
///
/// # Errors
/// It cannot start.
pub async fn run(config: config::Serve) -> Result<(), StartError> {
    let shares = shares(&config.limits);
    let rules = Rules {
        allow_file: config.allow_file_upstreams,
        in_cluster: config.in_cluster,
        tokens: config.tokens.is_some(),
    };
    let flags = each("--mirror", &config.mirrors, |url| Flag::parse(url, rules))?;
    let tls = config.tls_cert.as_deref().zip(config.tls_key.as_deref());
    let tls = tls.map(|(cert, key)| Tls::open(cert, key)).transpose()?;
    let _renewing = tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.follow())));
    let (addresses, found) = Addresses::new(each("--peer", &config.peers, Address::parse)?);
    let cluster = cluster(&config).await?;
    if cluster.is_none() && config.manifests.is_none() && flags.is_empty() {
        tracing::warn!("nothing to mirror: give --manifests DIR or --mirror URL");
    }
    let (placement, placing) = placement(&config, cluster.as_ref(), &addresses)?.unzip();
    let data = config.data.clone();
    let disk = tokio::task::spawn_blocking(move || Disk::open(&data)).await.map_err(io::Error::other)??;
    let disk = Arc::new(disk);
    let git = Git::detect(&disk.home(), &disk.mark(), config.allow_file_upstreams).await?;
    let metrics = Metrics::new();
    let popularity = Popularity::default();
    let prewarm = &config.prewarm;
    let at_once = prewarm.prewarm_concurrency;
    let archive = archive(&config.store, &disk, at_once.get(), &popularity)?;
    let every = Duration::from_secs(config.heartbeat.into());
    let peers = archive
        .as_ref()
        .map(|archive| Peers::new(archive.store.clone(), &archive.agent, every, metrics.clone()));
    let (peers, heart) = peers.unzip();
    let peers = peers.map(|peers: Peers| peers.placed(placement.clone()));
    let share = config.disk_budget.bytes_of(disk.volume()?.total) / 8;
    let lfs = Lfs::open(disk.lfs(), disk.incoming(), LFS_BUDGET.min(share), metrics.clone())?;
    let capacities = Capacities::here(at_once.get(), config.upstream_connections.into());
    let weigh = popularity.clone();
    let queue = Queue::new(capacities, move |id| weigh.of(id).weight(), popularity.sums(), metrics.clone());
    let shared = Shared {
        git: git.clone(),
        disk: disk.clone(),
        metrics: metrics.clone(),
        limits: Arc::new(Limits::new(popularity, queue)),
        archive: archive.clone(),
        peers: peers.clone(),
        lfs,
        placement: placement.clone(),
    };
    let fleet = Arc::new(Fleet::new(shared));
    let manifests =
        |source| StartError::Manifests { path: config.manifests.clone().unwrap_or_default(), source };
    let last_known = |origin| LastKnown::new(disk.declarations(), origin);
    let in_files = last_known(Origin::Manifests);
    let mut manifests =
        Manifests::new(config.manifests.clone(), flags, rules, in_files).map_err(manifests)?;
    let popularity = archive.as_ref().map(|archive| archive.popularity.clone());
    let terms = prewarm::Rules { most_cloned: prewarm.prewarm_most_cloned.into(), at_once };
    let warmer = Warmer::new(fleet.clone(), popularity.clone(), terms, metrics.clone());
    let packs = Packs::new(&disk.packs(), PACK_BUDGET.min(share), metrics.clone())?;
    let (all, room) = (fleet.clone(), config.disk_budget.clone());
    let budget = budget::Keeper::new(all, disk.clone(), packs.clone(), room, metrics.clone());
    let gauges = Gauges { fleet: fleet.clone(), warmer: warmer.clone(), budget: budget.clone() };
    metrics.collect_from(Box::new(gauges));
    let _evicting = AbortOnDropHandle::new(tokio::spawn(budget.clone().run()));
    let _warming = AbortOnDropHandle::new(tokio::spawn(warmer.clone().run()));
    let called = cluster.as_ref().map_or("tarn-agent", |(_, pod)| pod.name.as_str());
    // Elsewhere than in a cluster, --peer names them as certificates do.
    let same = tls.as_ref().filter(|_| config.in_cluster).map(Tls::for_peers).transpose()?;
    let proxy = Proxy::new(called, addresses, same, metrics.clone())?;
    let (means, _following) = means(&config, cluster.as_ref().map(|(scope, _)| scope))?;
    let guard = Guard::new(means, metrics.clone());
    let (served, known) = (fleet.clone(), metrics.clone());
    let serving = Serving::new(served, guard, git.clone(), &disk, packs, popularity, proxy, known).await?;
    let (lately, newly_asked) = (config.pack_ahead > 0).then(Lately::new).unzip();
    let serving = serving
        .with_hooks(Hooks::new(config.webhook_secret_file.clone()))
        .with_limits(request_limits(&config.limits, shares))
        .with_lately(lately);

    let serving = Arc::new(serving);
    let packing = newly_asked.map(|new| serve::ahead::run(serving.clone(), new, config.pack_ahead));
    let _packing = packing.map(|packing| AbortOnDropHandle::new(tokio::spawn(packing)));
    let _placing = placing.map(|placing| AbortOnDropHandle::new(tokio::spawn(placing.run())));
    let releasing = placement.map(|placement| serve::moving::release(serving.clone(), placement));
    let _releasing = releasing.map(|releasing| AbortOnDropHandle::new(tokio::spawn(releasing)));
    let probing = archive.clone().map(|archive| probe(archive, metrics.clone()));
    let _probing = probing.map(|probing| AbortOnDropHandle::new(tokio::spawn(probing)));
    let stopping = shutdown::on_signal()?;
    let beating = heart.map(|heart| AbortOnDropHandle::new(tokio::spawn(heart.run(stopping.clone()))));
    let counting = archive.as_ref().map(|archive| {
        let (popularity, store, agent) = (&archive.popularity, &archive.store, &archive.agent);
        let (popularity, store, agent) = (popularity.clone(), store.clone(), agent.clone());
        let counting = popularity::run(popularity, store, agent, prewarm.prewarm_window, stopping.clone());
        AbortOnDropHandle::new(tokio::spawn(counting))
    });
    let git_port = bind(config.listen).await?;
    let admin_port = bind(config.admin_listen).await?;
    let watching = match cluster {
        // Not waited for: the API server may be away.
        Some((scope, pod)) => {
            let store = archive.clone().zip(peers.clone());
            let origin = Origin::Cache { namespace: scope.namespace.clone(), name: scope.cache.clone() };
            let cluster = Cluster::new(scope.clone(), rules, last_known(origin), metrics.clone());
            in_cluster(&scope, pod, cluster, &fleet, found, store, &metrics)
        }
        None => {
            // Watching begins before the first reading, so that no change falls in between.
            let changes = manifests.changes();
            let keeping = AbortOnDropHandle::new(tokio::spawn(manifests.keeping()));
            manifests.apply(&fleet).await;
            vec![keeping, AbortOnDropHandle::new(tokio::spawn(manifests.follow(changes, fleet.clone())))]
        }
    };
    // For whoever started the agent with port 0, and as a sign that it serves.
    let (git_address, admin_address) = (git_port.local_addr()?, admin_port.local_addr()?);
    writeln!(io::stdout(), "listening git={git_address} admin={admin_address}")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), git = git.version(), data = %config.data.display(), listen = %git_address, admin = %admin_address, "serving");

    // The admin port outlives the git port: probes and metrics tell of the draining.
    let stopped = CancellationToken::new();
    let store = archive.zip(peers);
    let store = store.map(|(archive, peers)| Probed { archive, peers });
    let counted = metrics.clone();
    let admin = Admin { fleet, warmer, budget, metrics, store, stopping: stopping.clone() };
    let admin = listen::serve(
        admin_port,
        admin::router(admin),
        None,
        admin_limits(shares),
        counted.clone(),
        stopped.clone(),
    );
    let admin = AbortOnDropHandle::new(tokio::spawn(admin));
    let (router, limits) = (serve::router(serving), connection_limits(&config.limits, shares));
    let serving = listen::serve(git_port, router, tls, limits, counted, stopping.clone());
    let mut serving = AbortOnDropHandle::new(tokio::spawn(serving));
    stopping.cancelled().await;
    drop(watching);
    if timeout(shutdown::DRAIN, &mut serving).await.is_err() {
        tracing::warn!("streams still under way are cut");
    }
    if let Some(Err(error)) = OptionFuture::from(beating).await {
        tracing::warn!(%error, "the others will notice by themselves that this agent has gone");
    }
    if let Some(Err(error)) = OptionFuture::from(counting).await {
        tracing::warn!(%error, "the last counts of clones are lost");
    }
    stopped.cancel();
    drop(admin);
    Ok(())
}

/// Raises the limit of open files, and says what of it clients may take.
fn shares(flags: &config::LimitFlags) -> Shares {
    let limit = match descriptors::raise() {
        Ok(Raised { from, to }) => {
            if from < to {
                tracing::info!(from, to, "the limit of open files is raised");
            }
            to
        }
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            descriptors::limit()
        }
    };
    let shares = Shares::of(limit, flags.max_connections, flags.max_requests);
    if shares.connections < flags.max_connections || shares.requests < flags.max_requests {
        let (connections, requests) = (shares.connections, shares.requests);
        tracing::warn!(
            limit,
            connections,
            requests,
            "fewer connections and requests than --max-connections and --max-requests allow: the limit of open files is too low for more (ulimit -n)"
        );
    }
    shares
}

fn connection_limits(flags: &config::LimitFlags, shares: Shares) -> ConnectionLimits {
    ConnectionLimits {
        total: shares.connections,
        per_client: part(flags.max_connections_per_client, shares.connections, flags.max_connections),
        silence: Duration::from_secs(flags.client_timeout.into()),
    }
}

/// A quarter of the connections at most for one address: it is full for all only if four are up to it at once.
fn admin_limits(shares: Shares) -> ConnectionLimits {
    ConnectionLimits { total: shares.admin, per_client: shares.admin.div_ceil(4), silence: ADMIN_SILENCE }
}

fn request_limits(flags: &config::LimitFlags, shares: Shares) -> RequestLimits {
    RequestLimits {
        total: shares.requests,
        per_client: part(flags.max_requests_per_client, shares.requests, flags.max_requests),
        rate: flags.max_rate,
        rate_per_client: flags.max_rate_per_client,
    }
}

/// The same part of what is `granted` as `own` is of what is `wanted`.
fn part(own: usize, granted: usize, wanted: usize) -> usize {
    if granted >= wanted { own } else { (own.min(wanted).saturating_mul(granted) / wanted.max(1)).max(1) }
}

/// What callers are judged by, and what keeps it up to date.
fn means(
    config: &config::Serve,
    scope: Option<&Scope>,
) -> Result<(Means, Vec<AbortOnDropHandle<()>>), StartError> {
    let mut following = Vec::new();
    let tokens = config.tokens.as_deref().map(Tokens::open).transpose()?;
    following.extend(tokens.clone().map(|tokens| AbortOnDropHandle::new(tokio::spawn(tokens.follow()))));
    let reviews =
        scope.map(|scope| Reviews::new(scope.client.clone(), scope.namespace.clone(), config.audiences()));
    let judge = if reviews.is_some() { Judge::Cluster } else { Judge::Shared };
    let own = config.peer_token.as_deref().map(|path| OwnToken::open(path, judge)).transpose()?;
    following.extend(own.clone().map(|own| AbortOnDropHandle::new(tokio::spawn(own.follow()))));
    let peers = own.map(|own| access::peers::Peers::new(own, reviews.as_ref()));
    Ok((Means { tokens, reviews, peers }, following))
}

/// Where the declarations are, and which pod this is, if it runs in a cluster.
async fn cluster(config: &config::Serve) -> Result<Option<(Scope, Pod)>, StartError> {
    let Some(cache) = config.cache.clone().filter(|_| config.in_cluster) else { return Ok(None) };
    let pod = Pod::from_variables(|name| std::env::var(name).ok()).map_err(StartError::Pod)?;
    let client = cluster::connect().await?;
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    Ok(Some((Scope { client, namespace, cache, pod: name, scheme }, pod)))
}

/// Who keeps which mirror, where not all agents keep all, and what keeps that up to date.
fn placement(
    config: &config::Serve,
    cluster: Option<&(Scope, Pod)>,
    addresses: &Addresses,
) -> Result<Option<(Placement, Follower)>, StartError> {
    let Some(copies) = config.replication else { return Ok(None) };
    let name = match (cluster, &config.advertise) {
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
fn in_cluster(
    scope: &Scope,
    pod: Pod,
    cluster: Cluster,
    fleet: &Arc<Fleet>,
    found: watch::Sender<Arc<[Address]>>,
    store: Option<(Arc<Archive>, Peers)>,
    metrics: &Metrics,
) -> Vec<AbortOnDropHandle<()>> {
    let reporter = Reporter::new(scope, pod.clone(), fleet.clone(), cluster.board(), metrics.clone());
    let peers = endpoints::follow(scope.clone(), found, metrics.clone());
    let cleanup = Cleanup { board: cluster.board(), fleet: fleet.clone(), store };
    vec![
        AbortOnDropHandle::new(tokio::spawn(cleanup.run())),
        AbortOnDropHandle::new(tokio::spawn(peers)),
        AbortOnDropHandle::new(tokio::spawn(cluster.keeping())),
        AbortOnDropHandle::new(tokio::spawn(cluster.follow(fleet.clone()))),
        AbortOnDropHandle::new(tokio::spawn(reporter.run())),
        AbortOnDropHandle::new(tokio::spawn(lease::run(scope.clone(), pod, metrics.clone()))),
    ]
}

/// The store, if there is one. It may be down: the agent starts and serves without.
fn archive(
    flags: &config::StoreFlags,
    disk: &Disk,
    restores: usize,
    popularity: &Popularity,
) -> Result<Option<Arc<Archive>>, StartError> {
    let Some(location) = &flags.store else { return Ok(None) };
    let store = store::open(location, flags.s3())?;
    // Tells agents apart that share a store, and one that comes back from another: a host has several data
    // directories, a volume may change hosts.
    let place = blake3::hash(disk.mark().as_encoded_bytes()).to_hex();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = format!("{host}-{}", place.get(..8).unwrap_or_default());
    Ok(Some(Arc::new(Archive::new(store, name, restores, popularity.clone()))))
}

/// Finds out what the store can do, as soon as it answers.
async fn probe(archive: Arc<Archive>, metrics: Metrics) {
    for attempt in 1.. {
        match archive.capabilities().await {
            Ok(found) => {
                let honoured = found.conditional_create;
                if !honoured {
                    tracing::warn!(
                        store = archive.store.location(),
                        "the store ignores conditions: agents take turns by a lease, which is best effort; use a store that honours If-None-Match"
                    );
                    metrics.unconditional.set(1);
                }
                tracing::info!(store = archive.store.location(), conditional_create = honoured, "store");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the store cannot be used; trying again");
                tokio::time::sleep(retry_delay(attempt, rand::random())).await;
            }
        }
    }
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
