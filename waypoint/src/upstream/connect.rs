//! A connection to an endpoint: a stream of a tunnel to its pod, or plain TCP to what is not in the mesh.

use std::{io, net::SocketAddr, sync::Arc};

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
        endpoints::EndpointAddress,
    },
};

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
    endpoint: EndpointAddress,
    purpose: For,
) -> Result<UpstreamIo, ConnectFailure> {
    let deadline = cluster.connect_timeout;
    let work = async {
        let header = header(cluster.transport.announce, endpoint.addr(), &purpose);
        let mut raw = connect_raw(shared, endpoint, purpose, deadline).await?;
        if let Some(header) = header {
            raw.write_all(&header)
                .await
                .map_err(ConnectFailure::Announce)?;
        }
        match &cluster.transport.tls {
            None => Ok(UpstreamIo::Left(raw)),
            Some(tls) => {
                let stream = tls.connect(raw, deadline).await?;
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
    endpoint: EndpointAddress,
    purpose: For,
    deadline: Duration,
) -> Result<RawIo, ConnectFailure> {
    let target = endpoint.addr();
    if pending::settled(shared, endpoint, deadline).await? {
        tunnel(shared, target, purpose).await
    } else {
        plain(shared, target, deadline).await
    }
}

async fn plain(
    shared: &Shared,
    target: SocketAddr,
    deadline: Duration,
) -> Result<RawIo, ConnectFailure> {
    let options = options(deadline);
    let stream = leyline_net::connect(&shared.netns, target, &options).await?;
    Ok(RawIo::Right(stream))
}

async fn tunnel(
    shared: &Arc<Shared>,
    target: SocketAddr,
    purpose: For,
) -> Result<RawIo, ConnectFailure> {
    let snapshot = shared.mesh.snapshot();
    let workloads = || snapshot.workloads_at(target.ip());
    let mut expected: Vec<Identity> = workloads().map(|it| it.identity.clone()).collect();
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
            ..options(shared.settings.proxy.connect_deadline)
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

fn options(deadline: Duration) -> ConnectOptions<'static> {
    ConnectOptions {
        mark: None,
        source: Source::Routed,
        deadline,
        keepalive: Some(Keepalive::default()),
        announce: None,
    }
}
