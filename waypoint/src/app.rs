//! Puts the parts together and takes them down again.
//!
//! Two runtimes, as in ztunnel: one thread for the control plane's streams, certificates and admin; workers for traffic.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use leyline_hbone::{Baggage, Pool};
use leyline_net::{ListenOptions, NetNs, Peers, listen, listen::listen_on};
use leyline_proto::{
    ADDRESS_TYPE, CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, SECRET_TYPE,
};
use leyline_runtime::{
    Drain, DrainOutcome, Readiness, ReadinessTask,
    env::{EnvSource, Reader},
    http as server,
    signal::ShutdownSignals,
    spawn, threads,
};
use leyline_state::{LocalNode, Store};
use leyline_telemetry::{log, mesh, metrics};
use leyline_tls::{
    CaClient, CertificateConfig, CertificateSource, CertificateStore,
    control_plane::{self, RootWatcher},
};
use leyline_types::ports;
use leyline_xds::{
    NodeInfo,
    client::{Interest, Observed},
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{Notify, mpsc},
};
use tracing::{Span, info, warn};

use crate::{
    admin::{self, Admin},
    config::store::ConfigStore,
    discovery, dns,
    export::{self, Exporter, Queue},
    http::{filters::jwt::remote::KeyStore, replay::Budget},
    jwks, listener,
    logs::ServiceLogs,
    settings::Settings,
    spans::Spans,
    stats::Stats,
    upstream::names::Names,
};

/// For the last lines of the log.
const FLUSH_DEADLINE: Duration = Duration::from_millis(300);
/// Recorded values of histograms that nobody scrapes are put together this often.
const UPKEEP: Duration = Duration::from_secs(5);
/// Series in which nothing was counted for so long, or twice as long, are forgotten. Longer than any usual interval of
/// scrapes.
const SERIES_EXPIRY: Duration = Duration::from_secs(15 * 60);
/// Where Envoy serves its own metrics; scrapers of waypoints look here, too.
const ENVOY_METRICS: u16 = 15090;
/// The version of Istio whose wire shape is understood; istiod asks for it (facts A.1).
const ISTIO_VERSION: &str = "1.30.0";

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    /// From LDS, CDS, EDS, RDS.
    pub(crate) config: ConfigStore,
    /// Who is where, from WDS.
    pub(crate) mesh: Store,
    /// Told after each update of it.
    pub(crate) mesh_changed: Notify,
    pub(crate) certificates: Arc<CertificateStore>,
    /// Of token issuers.
    pub(crate) keys: KeyStore,
    /// Tunnels to endpoints.
    pub(crate) pool: Pool,
    pub(crate) netns: NetNs,
    /// What we say of ourselves in tunnels.
    pub(crate) baggage: String,
    pub(crate) drain: Drain,
    /// Where access logs go.
    pub(crate) log: log::LogHandle,
    pub(crate) stats: Stats,
    /// Hosts that requests named.
    pub(crate) names: Names,
    /// Bodies that are kept for retries.
    pub(crate) kept: Arc<Budget>,
    pub(crate) spans: Queue<Spans>,
    /// Access logs that go to services.
    pub(crate) service_logs: Queue<ServiceLogs>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Runs until SIGTERM, SIGINT or `/quitquitquit`, then drains. `domain` is the DNS domain of the waypoint's namespace.
///
/// # Errors
/// When the environment is invalid or a port is taken: a sentence for the operator.
pub fn run(env: &dyn EnvSource, domain: &str) -> Result<()> {
    let mut reader = Reader::new(env);
    let settings = Settings::read(&mut reader, domain);
    reader.finish()?;
    leyline_tls::install_crypto_provider();
    let log = log::init(settings.log.clone())?;
    threads::raise_open_files_limit().context("cannot raise the limit of open files")?;
    info!(config = %settings.shown(), "starting");
    let workers = threads::worker_runtime(settings.worker_threads, "waypoint")
        .context("cannot start worker threads")?;
    let main = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the main thread's runtime")?;
    let result = main.block_on(serve(settings, log.clone(), workers.handle().clone()));
    workers.shutdown_background();
    log.flush(FLUSH_DEADLINE);
    result
}

async fn serve(settings: Settings, log: log::LogHandle, workers: Handle) -> Result<()> {
    let mut signals = ShutdownSignals::listen().context("cannot listen for signals")?;
    let metrics = metrics::install()?;
    mesh::build("proxy", env!("CARGO_PKG_VERSION"));
    metrics.observe_runtime(workers.clone());
    let readiness = Readiness::new();
    let configured = readiness.register("configuration");
    let drain = Drain::new();
    // What connections need until the last one has ended.
    let background = Drain::new();
    let servers = Drain::new();

    let netns = NetNs::current().context("cannot open the process's network namespace")?;
    let listeners = Listeners::open(&netns, &workers, settings.proxy.pace_tunnels)?;
    let drain_deadline = settings.drain_deadline;
    let (shared, exporters) = start_state(settings, netns, log.clone(), (&drain, &background))?;
    start_calls(&shared, exporters, &background, &workers);
    shared
        .certificates
        .prefetch(shared.settings.identity.clone());
    spawn("dns", Span::none(), &background, dns::run(shared.clone()));
    follow_xds(&shared, configured, &background)?;

    let counted = shared.clone();
    metrics.add_source(move |samples| counted.stats.collect(samples));
    let upkeep = keep_metrics(shared.clone(), metrics.clone(), background.clone());
    spawn("metrics", Span::none(), &background, upkeep);

    let (quit, mut quit_asked) = mpsc::channel(1);
    let admin = Admin {
        shared: shared.clone(),
        log,
        quit,
        node: node_of(&shared.settings),
        started: SystemTime::now(),
    };
    listeners.serve(
        &shared,
        Arc::new(admin),
        metrics,
        readiness,
        &servers,
        &workers,
    );

    tokio::select! {
        signal = signals.next() => info!(?signal, "shutting down"),
        _ = quit_asked.recv() => info!("shutting down"),
    }
    servers.start();
    tell_outcome(drain.run(drain_deadline).await);
    tokio::join!(shared.spans.flush(), shared.service_logs.flush());
    background.run(Duration::ZERO).await;
    servers.run(Duration::ZERO).await;
    Ok(())
}

fn tell_outcome(outcome: DrainOutcome) {
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

/// Those who send what requests leave behind.
struct Exporters {
    spans: Exporter<Spans>,
    logs: Exporter<ServiceLogs>,
}

/// Spans, access logs and keys of token issuers travel as traffic does, and where it does.
fn start_calls(shared: &Arc<Shared>, exporters: Exporters, background: &Drain, workers: &Handle) {
    let _on_workers = workers.enter();
    let fetch = jwks::run(shared.clone());
    spawn("keys", Span::none(), background, fetch);
    let Exporters { spans, logs } = exporters;
    let spans = spans.run(shared.clone(), background.clone());
    spawn("spans", Span::none(), background, spans);
    let logs = logs.run(shared.clone(), background.clone());
    spawn("access logs", Span::none(), background, logs);
}

/// Forgets series that nothing counts in.
async fn keep_metrics(shared: Arc<Shared>, metrics: metrics::MetricsHandle, ends: Drain) {
    let mut upkeep = tokio::time::interval(UPKEEP);
    let mut sweep = tokio::time::interval(SERIES_EXPIRY);
    loop {
        tokio::select! {
            () = ends.started() => return,
            _ = upkeep.tick() => {
                metrics.upkeep();
                shared.config.forget_ended();
            }
            _ = sweep.tick() => shared.stats.sweep(),
        }
    }
}

/// Configuration, certificates, tunnels.
fn start_state(
    settings: Settings,
    netns: NetNs,
    log: log::LogHandle,
    (drain, background): (&Drain, &Drain),
) -> Result<(Arc<Shared>, Exporters)> {
    let ca = Arc::new(CaClient::own(&settings.ca).context("CA address or root")?);
    let certificate = CertificateConfig {
        ttl: settings.secret_ttl,
        ..CertificateConfig::default()
    };
    let (certificates, worker) =
        CertificateStore::new(CertificateSource::Ca(ca.clone()), certificate);
    spawn("certificates", Span::none(), background, worker.run());
    if let Some(watcher) = RootWatcher::of(&settings.ca.root) {
        let following = watcher.run(ca, certificates.clone());
        spawn("roots", Span::none(), background, following);
    }
    let node = &settings.node;
    let baggage = Baggage {
        namespace: node.pod_namespace.as_str().into(),
        cluster: node.cluster_id.as_str().into(),
        service: node.service_account.as_str().into(),
        ..Baggage::default()
    };
    let local = LocalNode {
        network: node.network.clone(),
        // No workload is local: certificates are wanted for nobody but this waypoint.
        node: Some("".into()),
    };
    let (spans, spans_exporter) = export::queue();
    let (service_logs, logs_exporter) = export::queue();
    let exporters = Exporters {
        spans: spans_exporter,
        logs: logs_exporter,
    };
    let shared = Shared {
        config: ConfigStore::default(),
        mesh_changed: Notify::new(),
        mesh: Store::new(local),
        certificates,
        keys: KeyStore::default(),
        pool: Pool::new(settings.proxy.hbone.clone(), drain.clone()),
        netns,
        baggage: baggage.encode(),
        drain: drain.clone(),
        log,
        stats: Stats::default(),
        names: Names::default(),
        kept: Arc::default(),
        spans,
        service_logs,
        settings,
    };
    let shared = Arc::new(shared);
    let replacing = replace_tunnels(shared.certificates.clone(), shared.pool.clone());
    spawn("tunnel replacement", Span::none(), background, replacing);
    Ok((shared, exporters))
}

/// New tunnels where the waypoint's own certificate has another issuer, or fewer roots, than when the old ones were
/// opened. Runs for ever.
async fn replace_tunnels(certificates: Arc<CertificateStore>, pool: Pool) {
    loop {
        let reissued = certificates.reissued().await;
        pool.renew_where(|key| reissued.contains(&key.source));
    }
}

fn follow_xds(shared: &Arc<Shared>, ready: ReadinessTask, background: &Drain) -> Result<()> {
    let config = &shared.settings.xds;
    let channel = control_plane::channel(config).context("xDS address or root")?;
    let interceptor = control_plane::AuthInterceptor::new(config)?;
    // Clusters and endpoints before the listeners and routes that name them.
    let types = vec![
        ADDRESS_TYPE,
        CLUSTER_TYPE,
        SECRET_TYPE,
        ENDPOINT_TYPE,
        LISTENER_TYPE,
        ROUTE_TYPE,
    ];
    let mut settings = leyline_xds::client::Config::new(node_of(&shared.settings), types);
    // istiod says nothing of a secret that it does not have.
    settings.optional = vec![SECRET_TYPE];
    let known = shared.clone();
    settings.interest = Interest::new(Arc::new(move |kind| known.config.load().wanted(kind)));
    let ends = background.clone();
    let observer = move |observed: Observed<'_>| {
        if matches!(observed, Observed::Synced) {
            ready.ready();
        }
        discovery::observe(&observed);
    };
    let applied = shared.clone();
    let client = leyline_xds::client::run(
        settings,
        move || std::future::ready(Ok(channel.clone())),
        interceptor,
        move |update| discovery::apply(&applied, update),
        observer,
        async move { ends.started().await },
    );
    spawn("xds", Span::none(), background, client);
    Ok(())
}

/// The sockets, open and not served yet.
struct Listeners {
    hbone: TcpListener,
    admin: TcpListener,
    metrics: [TcpListener; 2],
    readiness: TcpListener,
}

impl Listeners {
    fn open(netns: &NetNs, workers: &Handle, paced: bool) -> Result<Self> {
        let options = ListenOptions::default();
        let open_with = |port: u16, what: &str, options: &ListenOptions| {
            listen(netns, port, options)
                .with_context(|| format!("cannot listen on port {port} for {what}"))
        };
        let open = |port, what| open_with(port, what, &options);
        let tunnels = ListenOptions {
            peers: Peers::tunnels(paced),
            ..options
        };
        let loopback = SocketAddr::from(([127, 0, 0, 1], ports::ADMIN));
        let admin = listen_on(netns, loopback, &options)
            .with_context(|| format!("cannot listen on {loopback} for the admin page"))?;
        let metrics = [
            open(ports::METRICS, "metrics")?,
            open(ENVOY_METRICS, "metrics")?,
        ];
        let _on_workers = workers.enter();
        Ok(Self {
            hbone: open_with(ports::HBONE, "HBONE", &tunnels)?,
            readiness: open(ports::READINESS, "readiness")?,
            admin,
            metrics,
        })
    }

    fn serve(
        self,
        shared: &Arc<Shared>,
        admin: Arc<Admin>,
        metrics: metrics::MetricsHandle,
        readiness: Readiness,
        servers: &Drain,
        workers: &Handle,
    ) {
        let limits = server::HttpLimits::default;
        server::serve(self.admin, admin.handler(), servers, limits());
        let metrics = admin::metrics_handler(metrics);
        for listener in self.metrics {
            server::serve(listener, metrics.clone(), servers, limits());
        }
        let _on_workers = workers.enter();
        server::serve(
            self.readiness,
            server::readiness_handler(readiness),
            servers,
            limits(),
        );
        let accept = listener::run(shared.clone(), self.hbone);
        spawn("listener", Span::none(), &shared.drain, accept);
    }
}

/// Facts A.1.
fn node_of(settings: &Settings) -> NodeInfo {
    let node = &settings.node;
    let metadata = [
        ("NAME", node.pod_name.as_str()),
        ("NAMESPACE", &node.pod_namespace),
        ("SERVICE_ACCOUNT", &node.service_account),
        ("CLUSTER_ID", &node.cluster_id),
        ("NODE_NAME", &node.node_name),
        ("WORKLOAD_NAME", &node.workload_name),
        ("MESH_ID", &node.mesh_id),
        ("ISTIO_VERSION", ISTIO_VERSION),
    ];
    let mut metadata: serde_json::Map<_, _> = metadata
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let ip = node.instance_ip.to_string();
    metadata.insert("INSTANCE_IPS".to_owned(), ip.as_str().into());
    metadata.insert("NETWORK".to_owned(), node.network.to_string().into());
    NodeInfo {
        id: node.id(),
        cluster: node.cluster(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        metadata,
    }
}
