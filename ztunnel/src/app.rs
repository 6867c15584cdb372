//! Puts the parts together and takes them down again.
//!
//! Two runtimes: one thread for the control plane's streams, certificates and admin, so that a scrape or a large push
//! does not delay traffic; workers for the data plane.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use leyline_net::{
    ListenOptions, NetNs, listen,
    listen::{Families, listen_on},
};
use leyline_runtime::{
    Drain, DrainOutcome, Readiness, ReadinessTask,
    env::{EnvSource, Reader},
    http as server,
    signal::{ShutdownSignals, Signal},
    spawn, threads,
};
use leyline_state::{LocalNode, Store};
use leyline_telemetry::{log, mesh, metrics};
use leyline_tls::control_plane;
use leyline_types::ports;
use leyline_xds::{NodeInfo, client::Observed, node_id, session::Rejection};
use tokio::{net::TcpListener, runtime::Handle, sync::mpsc};
use tracing::{Span, error, info, warn};

use crate::{
    admin::{self, Admin},
    agent, certificates,
    config::{CaptureConfig, Config, PagesConfig},
    discovery::{self, Discovery},
    local_xds::LocalXds,
    proxy::{Shared, on_demand::OnDemand},
    version,
};

/// How often metrics are looked through for what nobody uses any more.
const METRICS_UPKEEP: Duration = Duration::from_secs(15);
/// For the last lines of the log. A reader that has stalled must not hold up the end of the process.
const FLUSH_DEADLINE: Duration = Duration::from_millis(300);

/// Runs until SIGTERM, SIGINT or `/quitquitquit`, then drains.
///
/// # Errors
/// When the environment is invalid, a privilege is missing, or a port is taken: a sentence for the operator.
pub fn run(env: &dyn EnvSource) -> Result<()> {
    let config = Arc::new(read_config(env)?);
    leyline_tls::install_crypto_policy(config.crypto);
    let log = log::init(config.log.clone())?;
    threads::raise_open_files_limit().context("cannot raise the limit of open files")?;
    info!(version = version::line(), config = %config.shown(), "starting");

    config.labels.keep();
    let workers = threads::worker_runtime(config.worker_threads, "ztunnel")
        .context("cannot start worker threads")?;
    let main = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the main thread's runtime")?;
    let result = main.block_on(serve(config, log.clone(), workers.handle().clone()));
    workers.shutdown_background();
    // The last lines say how it ended.
    log.flush(FLUSH_DEADLINE);
    result
}

/// Removes all kernel objects of this instance: for a node that leaves the mesh.
///
/// # Errors
/// When something cannot be removed.
pub fn cleanup(env: &dyn EnvSource) -> Result<()> {
    let config = read_config(env)?;
    let known: Vec<NetNs> = match std::fs::read_dir(&config.capture.pod_netns_dir) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| NetNs::open(&entry.path()).ok())
            .collect(),
        // Pods that are gone leave nothing to enter.
        Err(_) => Vec::new(),
    };
    let CaptureConfig {
        bpffs, instance, ..
    } = &config.capture;
    let removed = leyline_capture::remove_instance(bpffs, instance, &known)?;
    anyhow::ensure!(
        removed.unreachable.is_empty(),
        "{} pods are still captured because their namespaces cannot be found",
        removed.unreachable.len()
    );
    Ok(())
}

fn read_config(env: &dyn EnvSource) -> Result<Config> {
    let mut reader = Reader::new(env);
    let config = Config::read(&mut reader);
    reader.finish()?;
    Ok(config)
}

async fn serve(config: Arc<Config>, log: log::LogHandle, workers: Handle) -> Result<()> {
    agent::check_capabilities(config.proxy.bypass_mark)?;
    let mut signals = ShutdownSignals::listen().context("cannot listen for signals")?;
    let metrics = metrics::install()?;
    mesh::build("ztunnel", &config.node.istio_version);
    metrics.observe_runtime(workers.clone());
    let readiness = Readiness::new();
    let state_ready = readiness.register("state manager");
    let pods_ready = readiness.register("workload proxy manager");
    let drain = Drain::new();
    // What connections need until the last one has ended: policies, certificates.
    let background = Drain::new();
    let servers = Drain::new();
    keep_metrics(&metrics, &background);

    // First, because a second ztunnel by mistake fails here, before it takes pods from the first.
    let listeners = ServerListeners::open(&config.pages, &workers)?;
    let shared = start_state(&config, &background)?;
    let mut agent = agent::start(&config, &shared, &drain, &background, &workers, pods_ready)?;
    certificates::attend(&shared, &agent.pods, &background);
    agent::counters::export(&metrics, agent.kernel.take(), agent.pods.clone());
    follow_xds(
        &config,
        Discovery::new(shared.clone(), agent.pods.clone()),
        state_ready,
        &background,
    )?;

    let (quit, mut quit_asked) = mpsc::channel(1);
    let admin = Admin {
        shared,
        pods: agent.pods.clone(),
        config: config.clone(),
        log,
        quit,
    };
    listeners.serve(Arc::new(admin), metrics, readiness, &servers, &workers);

    let failure = tokio::select! {
        signal = signals.next() => {
            info!(?signal, "shutting down");
            None
        }
        _ = quit_asked.recv() => {
            info!("shutting down");
            None
        }
        Some(failure) = agent.failures.recv() => {
            error!(error = %failure, "shutting down");
            Some(failure)
        }
    };
    servers.start();
    finish_connections(&drain, config.drain_deadline, &mut signals).await;
    drop(agent);
    background.run(Duration::ZERO).await;
    servers.run(Duration::ZERO).await;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Lets old series go, also where nobody scrapes.
fn keep_metrics(metrics: &metrics::MetricsHandle, background: &Drain) {
    let (metrics, ends) = (metrics.clone(), background.clone());
    let upkeep = async move {
        let mut due = tokio::time::interval(METRICS_UPKEEP);
        loop {
            tokio::select! {
                () = ends.started() => return,
                _ = due.tick() => metrics.upkeep(),
            }
        }
    };
    spawn("metrics upkeep", Span::none(), background, upkeep);
}

/// Waits for connections until the deadline, or until somebody at a terminal has enough.
async fn finish_connections(drain: &Drain, deadline: Duration, signals: &mut ShutdownSignals) {
    let interrupted = async { while signals.next().await != Signal::Interrupt {} };
    let outcome = tokio::select! {
        outcome = drain.run(deadline) => outcome,
        () = interrupted => drain.run(Duration::ZERO).await,
    };
    match outcome {
        DrainOutcome::Finished => info!("shutdown complete"),
        DrainOutcome::Forced { tasks } => {
            warn!(
                tasks,
                "drain duration expired with pending connections, forcefully shutting down"
            );
        }
    }
}

/// The store and the certificates.
fn start_state(config: &Config, background: &Drain) -> Result<Arc<Shared>> {
    let certificates = certificates::start(config, background)?;
    let node = &config.node.node;
    let local = LocalNode {
        network: config.node.network.clone(),
        node: (!node.is_empty()).then(|| node.as_str().into()),
    };
    let store = Arc::new(Store::new(local));
    Ok(Arc::new(Shared::new(
        config.proxy.clone(),
        store,
        certificates,
    )))
}

fn follow_xds(
    config: &Config,
    discovery: Discovery,
    ready: ReadinessTask,
    background: &Drain,
) -> Result<()> {
    if let Some(local) = &config.local_xds {
        load_local(local, &discovery).context("local configuration")?;
    }
    if config.xds.address.is_empty() {
        // What is known from elsewhere is all there is.
        discovery.mark_synced();
        ready.ready();
        return Ok(());
    }
    let channel = control_plane::channel(&config.xds).context("xDS address or root")?;
    let interceptor = control_plane::AuthInterceptor::new(&config.xds)?;
    let mut settings = leyline_xds::client::Config::new(
        node_of(config),
        vec![
            leyline_proto::ADDRESS_TYPE,
            leyline_proto::AUTHORIZATION_TYPE,
        ],
    );
    if let Some(on_demand) = &discovery.shared().on_demand {
        settings.interest = OnDemand::interest(on_demand);
    }
    let ends = background.clone();
    let discovery = Arc::new(discovery);
    let synced = discovery.clone();
    let observer = move |observed: Observed<'_>| {
        if matches!(observed, Observed::Synced) {
            synced.mark_synced();
            ready.ready();
        }
        discovery::observe(&observed);
    };
    let client = leyline_xds::client::run(
        settings,
        move || std::future::ready(Ok(channel.clone())),
        interceptor,
        move |update| discovery.apply(update),
        observer,
        async move { ends.started().await },
    );
    spawn("xds", Span::none(), background, client);
    Ok(())
}

/// Nobody is there to be told of a mistake later, so that the first ends the start.
fn load_local(local: &LocalXds, discovery: &Discovery) -> Result<()> {
    for update in local.load()? {
        if let Some(Rejection { name, reason }) = discovery.apply(update).pop() {
            bail!("{name}: {reason}");
        }
    }
    Ok(())
}

/// The sockets of the process's own pages, open and not served yet.
struct ServerListeners {
    admin: Vec<TcpListener>,
    metrics: TcpListener,
    readiness: TcpListener,
}

impl ServerListeners {
    fn open(pages: &PagesConfig, workers: &Handle) -> Result<Self> {
        let netns = NetNs::current().context("cannot open the process's network namespace")?;
        let options = ListenOptions {
            families: pages.families,
            ..ListenOptions::default()
        };
        let taken = |port: u16, what: &str| format!("cannot listen on port {port} for {what}");
        let loopback = |addr: IpAddr| {
            listen_on(&netns, SocketAddr::new(addr, pages.admin_port), &options)
                .with_context(|| taken(pages.admin_port, "the admin page"))
        };
        let mut admin = vec![loopback(Ipv4Addr::LOCALHOST.into())?];
        match pages.families {
            Families::V4 => {}
            Families::Both => match loopback(Ipv6Addr::LOCALHOST.into()) {
                Ok(v6) => admin.push(v6),
                Err(error) => warn!(error = format!("{error:#}"), "admin page by IPv4 only"),
            },
        }
        let metrics = listen(&netns, pages.metrics_port, &options)
            .with_context(|| taken(pages.metrics_port, "metrics"))?;
        let _on_workers = workers.enter();
        let readiness = listen(&netns, ports::READINESS, &options)
            .with_context(|| taken(ports::READINESS, "readiness"))?;
        Ok(Self {
            admin,
            metrics,
            readiness,
        })
    }

    fn serve(
        self,
        admin: Arc<Admin>,
        metrics: metrics::MetricsHandle,
        readiness: Readiness,
        servers: &Drain,
        workers: &Handle,
    ) {
        let limits = server::HttpLimits::default;
        let handler = admin.handler();
        for listener in self.admin {
            server::serve(listener, handler.clone(), servers, Admin::limits());
        }
        let metrics = admin::metrics_handler(metrics);
        server::serve(self.metrics, metrics, servers, limits());
        let _on_workers = workers.enter();
        admin::serve_readiness(self.readiness, readiness, servers);
    }
}

/// XDS-3.
fn node_of(config: &Config) -> NodeInfo {
    let node = &config.node;
    let metadata = [
        ("NAME", &node.pod_name),
        ("NAMESPACE", &node.pod_namespace),
        ("INSTANCE_IPS", &node.instance_ip),
        ("NODE_NAME", &node.node),
        ("CLUSTER_ID", &node.cluster_id),
    ];
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value.as_str().into()));
    let mut all = node.metadata.clone();
    all.extend(metadata);
    NodeInfo {
        id: node_id(
            "ztunnel",
            &node.instance_ip,
            &node.pod_name,
            &node.pod_namespace,
        ),
        cluster: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        metadata: all,
    }
}
