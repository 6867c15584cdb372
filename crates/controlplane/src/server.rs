//! Puts the control plane together: reads the objects, serves discovery, certificates and enrolment on one TLS
//! listener, and an admin page on another.

mod admin;
mod listener;
mod tls;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use leyline_proto::{
    envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer,
    leyline::enrolment::v1::enrolment_service_server::EnrolmentServiceServer,
};
use leyline_runtime::{Drain, spawn};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tracing::{error, info, info_span, warn};

use crate::{
    auth::Authenticator,
    ca::{Authority, CaError, CertificateService, Current, Follower, fixed},
    clients::Clients,
    enrolment::Enrolment,
    keys,
    mesh::{Mesh, last_good_documents},
    objects::{WatchError, Watcher},
    state_dir::{StateDir, StateError},
    token::{TokenKey, TokenKeyError},
    translate::MeshSettings,
    xds::DiscoveryService,
};

/// A request names at most every known resource with its version; this is room for a hundred thousand.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;
/// A CSR of 16 KiB with its metadata; a report of an outcome is smaller.
const MAX_SMALL_REQUEST_BYTES: usize = 64 * 1024;
/// What Istio's proxies take in one message.
const MAX_RESPONSE_BYTES: usize = 200 * 1024 * 1024;
/// A dead peer is noticed after interval and timeout, as Istio's proxies do on their side.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A proxy has two long streams and asks for some certificates at a time.
const MAX_STREAMS: u32 = 256;

/// What to serve and where.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Directories of YAML.
    pub config_dirs: Vec<PathBuf>,
    /// Keys and what must survive a restart.
    pub state_dir: PathBuf,
    /// The files of an operator's CA; one of our own in the state directory if there are none.
    pub ca_dir: Option<PathBuf>,
    /// Discovery, certificates, enrolment.
    pub listen: SocketAddr,
    /// Readiness, status, metrics; none by default.
    pub admin: Option<SocketAddr>,
    /// DNS names and addresses of the server's certificate, besides localhost.
    pub names: Vec<String>,
    /// What holds for the mesh.
    pub mesh: MeshSettings,
}

/// Why the control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The objects cannot be read.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The authority cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The token key cannot be used.
    #[error(transparent)]
    Token(#[from] TokenKeyError),
    /// No TLS.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// Taken, or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A running control plane; it runs until its drain ends.
#[derive(Debug)]
pub struct ControlPlane {
    address: SocketAddr,
    admin: Option<SocketAddr>,
}

impl ControlPlane {
    /// Where discovery, certificates and enrolment are served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin page is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Reads the configuration, then listens and serves. `render_metrics` is what `/metrics` shows.
    ///
    /// # Errors
    /// When something that is needed is missing, taken, expired or not ours; nothing is left running then.
    pub async fn start(
        config: ServerConfig,
        render_metrics: Arc<dyn Fn() -> String + Send + Sync>,
        drain: &Drain,
    ) -> Result<Self, ServeError> {
        let state = StateDir::open(&config.state_dir)?;
        let (authority, follower) = authority(&config, &state)?;
        let key = TokenKey::open(&state)?;
        let auth = Arc::new(Authenticator::new(key, config.mesh.node_accounts.clone()));
        let (watcher, loaded) =
            Watcher::start(config.config_dirs.clone(), last_good_documents(&state))?;
        let mesh = Arc::new(Mesh::new(config.mesh.clone(), loaded, &state));
        let clients = Clients::new();
        let certificate = tls::ServerCertificate::new(authority.clone(), names(&config))?;
        let tls = certificate.acceptor()?;

        let listener = bind(config.listen).await?;
        let address = local_address(&listener, config.listen)?;
        let admin = match config.admin {
            Some(address) => {
                let listener = bind(address).await?;
                let bound = local_address(&listener, address)?;
                if !bound.ip().is_loopback() {
                    warn!(address = %bound, "the admin page is open to others and asks for no password");
                }
                let page = admin::Admin::new(Arc::clone(&mesh), clients.clone(), render_metrics);
                page.serve(listener, drain);
                Some(bound)
            }
            None => None,
        };
        let spans = || info_span!("controlplane");
        let running = Arc::clone(&mesh).run(drain.clone());
        drop(spawn("mesh", spans(), drain, running));
        drop(spawn(
            "mesh store",
            spans(),
            drain,
            Arc::clone(&mesh).keep(drain.clone()),
        ));
        let fetching = keys::run(Arc::clone(&mesh), drain.clone());
        drop(spawn("token keys", spans(), drain, fetching));
        if let Some(follower) = follower {
            let following = follower.run(drain.clone());
            drop(spawn("ca files", spans(), drain, following));
        }
        let watching = watch(watcher, Arc::clone(&mesh), drain.clone());
        drop(spawn("watch", spans(), drain, watching));
        drop(spawn(
            "server certificate",
            spans(),
            drain,
            certificate.renew(drain.clone()),
        ));
        let serving = serve(listener, tls, authority, auth, mesh, clients, drain.clone());
        drop(spawn("grpc", spans(), drain, serving));
        info!(%address, admin = admin.map(tracing::field::display), "control plane serves");
        Ok(Self { address, admin })
    }
}

/// The operator's, which is followed, or our own.
fn authority(
    config: &ServerConfig,
    state: &StateDir,
) -> Result<(Current, Option<Follower>), CaError> {
    let now = OffsetDateTime::now_utc();
    match &config.ca_dir {
        Some(directory) => {
            let (follower, current) = Follower::start(directory.clone(), state.clone(), now)?;
            Ok((current, Some(follower)))
        }
        None => {
            let authority = Authority::open(state, &config.mesh.trust_domain, now)?;
            Ok((fixed(authority), None))
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ServeError::Listen { address, source })
}

fn local_address(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, ServeError> {
    let local = listener.local_addr();
    local.map_err(|source| ServeError::Listen { address, source })
}

/// The names that the server's certificate is good for.
fn names(config: &ServerConfig) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        format!("istiod.{}.svc", config.mesh.root_namespace),
    ];
    if !config.listen.ip().is_unspecified() {
        names.push(config.listen.ip().to_string());
    }
    names.extend(config.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

async fn watch(mut watcher: Watcher, mesh: Arc<Mesh>, drain: Drain) {
    loop {
        tokio::select! {
            () = drain.started() => return,
            loaded = watcher.changed() => mesh.set_objects(loaded),
        }
    }
}

async fn serve(
    listener: TcpListener,
    tls: tokio_rustls::TlsAcceptor,
    authority: Current,
    auth: Arc<Authenticator>,
    mesh: Arc<Mesh>,
    clients: Clients,
    drain: Drain,
) {
    let discovery = DiscoveryService {
        auth: Arc::clone(&auth),
        mesh: Arc::clone(&mesh),
        clients: clients.clone(),
        drain: drain.clone(),
    };
    let certificates = CertificateService::new(authority, Arc::clone(&auth), Arc::clone(&mesh));
    let enrolment = Enrolment::new(auth, mesh, clients, drain.clone());
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(
            AggregatedDiscoveryServiceServer::new(discovery)
                .max_decoding_message_size(MAX_REQUEST_BYTES)
                .max_encoding_message_size(MAX_RESPONSE_BYTES),
        )
        .add_service(
            IstioCertificateServiceServer::new(certificates)
                .max_decoding_message_size(MAX_SMALL_REQUEST_BYTES),
        )
        .add_service(
            EnrolmentServiceServer::new(enrolment)
                .max_decoding_message_size(MAX_SMALL_REQUEST_BYTES),
        );
    let incoming = listener::accept(listener, tls, &drain);
    let stop = drain.clone();
    let served = router.serve_with_incoming_shutdown(incoming, async move { stop.started().await });
    // Boxed: it is large and there is one.
    if let Err(error) = Box::pin(served).await {
        error!(%error, "the gRPC server failed");
    }
}
