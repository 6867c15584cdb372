//! A connection to an endpoint: a stream of a tunnel to its pod, or plain TCP to what is not in the mesh.

use std::{io, net::SocketAddr, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use leyline_hbone::{ConnectRequest, DialError, HboneIo, PoolKey};
use leyline_net::{
    ConnectError,
    connect::{ConnectOptions, Source},
    pace, proxy_protocol,
    sockopt::Keepalive,
};
use leyline_tls::{ClientTls, OriginTls, OriginationError, TlsError};
use leyline_types::{HboneAuthority, Identity, Str, ports};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_util::either::Either;

use super::pending;
use crate::{
    app::Shared,
    config::{
        cluster::{Cluster, transport::Announce},
        endpoints::Endpoint,
    },
};

/// What a node proxy has not acknowledged for so long it never will: kernel and proxy read whatever comes, however slow
/// the application is. Five retransmissions are lost by then, and a pod that vanished costs its requests no more.
const TUNNEL_PATIENCE: Keepalive = Keepalive {
    time: Duration::from_secs(3),
    interval: Duration::from_secs(1),
    retries: 2,
    user_timeout: true,
};
/// The next of several addresses is tried when the one before has been silent for so long (RFC 8305, Envoy's default).
const RACE_DELAY: Duration = Duration::from_millis(300);

/// Who the connection is for; told to the endpoint's proxy.
#[derive(Clone, Debug)]
pub(crate) struct For {
    /// The client, or this waypoint where clients share the connection.
    pub(crate) client: SocketAddr,
    /// Host name of the service.
    pub(crate) service: Option<Str>,
}

/// Why there is no connection; all of these are worth another endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectFailure {
    #[error(
        "nothing is known of the workload at {0}, so that nobody can say who must answer there"
    )]
    UnknownWorkload(SocketAddr),
    #[error(
        "{0} shall be captured and is not yet, hint: check the logs of its node's ztunnel (enrolment_pending)"
    )]
    EnrolmentPending(SocketAddr),
    #[error(
        "{0} is a service of the mesh, whose pods take no plaintext, and no endpoint was chosen"
    )]
    EnrolledService(SocketAddr),
    #[error("{0}")]
    Tunnel(#[from] leyline_hbone::HboneError),
    #[error("{0}")]
    Plain(#[from] ConnectError),
    #[error("no connection within {0:?}")]
    Deadline(Duration),
    #[error("cannot send the PROXY header: {0}")]
    Announce(#[source] io::Error),
    #[error("{0}")]
    Tls(#[from] OriginationError),
    #[error("HTTP handshake failed: {0}")]
    Http(#[source] hyper::Error),
}

/// Any kind of connection: what carries the bytes, or TLS of the user's own over it.
pub(crate) type UpstreamIo = Either<RawIo, Box<OriginTls<RawIo>>>;

/// What carries the bytes: a stream of a tunnel, or plain TCP.
type RawIo = Either<Box<HboneIo>, TcpStream>;

/// Connects within the deadline of the cluster.
pub(crate) async fn connect(
    shared: &Arc<Shared>,
    cluster: &Cluster,
    endpoint: &Endpoint,
    purpose: For,
) -> Result<UpstreamIo, ConnectFailure> {
    let deadline = cluster.connect_timeout;
    let work = async {
        let header = header(
            cluster.transport.announce,
            endpoint.address.addr(),
            &purpose,
        );
        let mut raw = connect_raw(shared, endpoint, purpose, deadline).await?;
        if let Some(header) = header {
            raw.write_all(&header)
                .await
                .map_err(ConnectFailure::Announce)?;
        }
        match &cluster.transport.tls {
            None => Ok(UpstreamIo::Left(raw)),
            Some(tls) => {
                let stream = tls
                    .connect(raw, endpoint.host.as_ref().map(Str::as_str), deadline)
                    .await?;
                Ok(UpstreamIo::Right(Box::new(stream)))
            }
        }
    };
    // The tunnel's future is large and rare compared to requests on connections that there are.
    timeout(deadline, Box::pin(work))
        .await
        .unwrap_or(Err(ConnectFailure::Deadline(deadline)))
}

/// The PROXY header.
fn header(announce: Option<Announce>, target: SocketAddr, purpose: &For) -> Option<Vec<u8>> {
    match announce? {
        Announce::V1 => Some(proxy_protocol::header_v1(purpose.client, target)),
        Announce::V2 => Some(proxy_protocol::header(purpose.client, target, &[])),
    }
}

async fn connect_raw(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    purpose: For,
    deadline: Duration,
) -> Result<RawIo, ConnectFailure> {
    let target = endpoint.address.addr();
    if pending::settled(shared, endpoint.address, deadline).await? {
        return tunnel(shared, target, purpose).await;
    }
    let stream = if endpoint.others.is_empty() {
        plain(shared, target, deadline).await?
    } else {
        race(shared, target, &endpoint.others, deadline).await?
    };
    Ok(RawIo::Right(stream))
}

async fn plain(
    shared: &Shared,
    target: SocketAddr,
    deadline: Duration,
) -> Result<TcpStream, ConnectFailure> {
    // The address of a service leads to one of its pods, who knows which, and past all that tunnels are for.
    if shared.mesh.snapshot().stands_for_enrolled(target.ip()) {
        return Err(ConnectFailure::EnrolledService(target));
    }
    let options = options(deadline, Keepalive::default());
    Ok(leyline_net::connect(&shared.netns, target, &options).await?)
}

/// Connects to whichever of the addresses answers first; each gets a head start before the next.
async fn race(
    shared: &Shared,
    first: SocketAddr,
    others: &[SocketAddr],
    deadline: Duration,
) -> Result<TcpStream, ConnectFailure> {
    // What has become a workload of the mesh meanwhile is not reached in plaintext.
    let known = shared.mesh.snapshot();
    let is_plain = |addr: &&SocketAddr| pending::is_plain(&known, **addr);
    let mut left = others.iter().filter(is_plain);
    let mut racing = FuturesUnordered::new();
    racing.push(plain(shared, first, deadline));
    let mut failure = ConnectFailure::Deadline(deadline);
    loop {
        match timeout(RACE_DELAY, racing.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => failure = error,
            Ok(None) => return Err(failure),
            Err(_elapsed) => {}
        }
        if let Some(next) = left.next() {
            racing.push(plain(shared, *next, deadline));
        }
    }
}

async fn tunnel(
    shared: &Arc<Shared>,
    target: SocketAddr,
    purpose: For,
) -> Result<RawIo, ConnectFailure> {
    let snapshot = shared.mesh.snapshot();
    let workloads = || snapshot.workloads_at(target.ip());
    let mut expected: Vec<Identity> = workloads()
        .flat_map(|it| it.expected_identities().iter().cloned())
        .collect();
    expected.sort();
    expected.dedup();
    let Some(workload) = workloads().map(|it| it.uid.clone()).min() else {
        return Err(ConnectFailure::UnknownWorkload(target));
    };
    let key = PoolKey {
        source: shared.settings.identity.clone(),
        destinations: expected,
        target: SocketAddr::new(target.ip(), ports::HBONE),
        source_ip: shared.settings.node.instance_ip,
        workload,
    };
    let request = ConnectRequest {
        authority: HboneAuthority::Address(target),
        forwarded_for: purpose.client,
        forwarded_host: purpose.service,
        forwarded_network: None,
        baggage: Some(shared.baggage.clone()),
    };
    let dial = {
        let (shared, key) = (shared.clone(), key.clone());
        move || async move { dial(&shared, &key).await }
    };
    let opened = shared.pool.open(&key, request, dial).await?;
    Ok(RawIo::Left(Box::new(opened.stream.into_io())))
}

#[derive(Debug, thiserror::Error)]
enum DialFailure {
    #[error("no certificate: {0}")]
    Certificate(#[from] leyline_tls::IdentityError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("tls handshake failed: {0}")]
    Tls(#[from] TlsError),
}

async fn dial(shared: &Shared, key: &PoolKey) -> Result<ClientTls, DialError> {
    let dialled = async {
        let certificate = shared.certificates.get(&key.source).await?;
        let deadline = shared.settings.proxy.handshake_deadline;
        let options = ConnectOptions {
            source: Source::tunnel(shared.settings.proxy.pace_tunnels),
            ..options(shared.settings.proxy.connect_deadline, TUNNEL_PATIENCE)
        };
        let stream = leyline_net::connect(&shared.netns, key.target, &options).await?;
        let (stream, _identity) =
            leyline_tls::connect(&certificate, stream, &key.destinations, deadline).await?;
        pace::settle(stream.socket(), &shared.netns);
        Ok(stream)
    };
    let dialled: Result<ClientTls, DialFailure> = dialled.await;
    dialled.map_err(DialError::new)
}

fn options(deadline: Duration, keepalive: Keepalive) -> ConnectOptions<'static> {
    ConnectOptions {
        mark: None,
        source: Source::Routed,
        deadline,
        keepalive: Some(keepalive),
        announce: None,
    }
}
