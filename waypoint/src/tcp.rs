//! A TCP connection through the waypoint: to one endpoint, until it ends.

pub(crate) mod rbac;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use leyline_authz::Permit;
use leyline_hbone::HboneIo;
use rand::RngExt;
use tokio::{
    io::AsyncWriteExt,
    time::{Duration, Instant, sleep},
};
use tracing::info;

use crate::{
    app::Shared,
    config::{Config, tcp::TcpChain},
    http::{affinity::hash_of_client, server::Destination},
    listener::Client,
    upstream::{
        balance::{self, Wanted},
        connect::{For, UpstreamIo, connect},
        endpoint::Active,
        outlier::{self, Showed},
        state::{Place, Resource},
    },
};

/// Endpoints that are asked for one connection (Envoy's `max_connect_attempts` of Istio is 1 without, 10 with retries).
const ATTEMPTS: usize = 3;
/// Bytes that each direction reads at once.
const BUFFER: usize = 32 << 10;

/// Carries the connection to its end and writes its line.
pub(crate) async fn carry(
    shared: &Arc<Shared>,
    config: &Config,
    chain: &TcpChain,
    client: &Client,
    destination: &Destination,
    mut io: HboneIo,
) {
    let start = Instant::now();
    let mut bytes = (0, 0);
    let mut upstream_host = None;
    let opened = match rbac::check(&chain.rbac, client, destination) {
        Ok(permit) => open(permit, shared, config, chain, client, destination).await,
        Err(denial) => Err(denial.to_string()),
    };
    let result = match opened {
        Ok((mut upstream, active, addr)) => {
            upstream_host = Some(addr);
            let copied = copy(&mut io, &mut upstream, chain, &mut bytes).await;
            drop(active);
            copied
        }
        Err(reason) => Err(reason),
    };
    if result.is_err() {
        io.abort();
    }
    info!(
        target: "access",
        bytes_received = bytes.0,
        bytes_sent = bytes.1,
        duration = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        upstream_host = upstream_host.map(tracing::field::display),
        upstream_cluster = chain.name.as_str(),
        downstream_local_address = %destination,
        downstream_remote_address = %client.addr,
        source_principal = &*client.principal,
        error = result.err(),
        "connection complete"
    );
}

type Opened = (UpstreamIo, (Active, Place), std::net::SocketAddr);

async fn open(
    _permit: Permit,
    shared: &Arc<Shared>,
    config: &Config,
    chain: &TcpChain,
    client: &Client,
    destination: &Destination,
) -> Result<Opened, String> {
    let name = chain.clusters.pick(rand::rng().random());
    let name = name.ok_or("no cluster")?;
    let cluster = config
        .clusters
        .get(name)
        .ok_or_else(|| format!("no cluster {name}"))?;
    let mut tried = Vec::new();
    let mut failure = "no healthy upstream".to_owned();
    while tried.len() < ATTEMPTS {
        let wanted = Wanted {
            tried: &tried,
            hash: chain.by_client.then(|| hash_of_client(client.addr.ip())),
        };
        let destination = destination.address();
        let Some(endpoint) = balance::endpoint_for(config, cluster, wanted, destination) else {
            break;
        };
        let purpose = For {
            client: client.addr,
            service: cluster.service.as_ref().map(|service| service.host.clone()),
        };
        let limit = cluster.limits.connections;
        let Some(place) = cluster.state.enter(Resource::Connections, limit) else {
            Resource::Connections.overflow();
            return Err("overflow of connections".to_owned());
        };
        let active = (endpoint.state.enter(), place);
        match connect(shared, cluster, endpoint.address, purpose).await {
            Ok(io) => {
                outlier::report(cluster, &endpoint, Showed::Status(200));
                return Ok((io, active, endpoint.address.addr()));
            }
            Err(error) => {
                outlier::report(cluster, &endpoint, Showed::Broken);
                failure = error.to_string();
            }
        }
        if tried.contains(&endpoint.address) {
            break;
        }
        tried.push(endpoint.address);
    }
    Err(failure)
}

/// Copies both ways until both have ended, nothing has moved for long, or the connection is too old.
async fn copy(
    client: &mut HboneIo,
    upstream: &mut UpstreamIo,
    chain: &TcpChain,
    bytes: &mut (u64, u64),
) -> Result<(), String> {
    let moved = Moved::default();
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let both = async {
        tokio::try_join!(
            one_way(
                &mut client_read,
                &mut upstream_write,
                &moved.received,
                &moved
            ),
            one_way(&mut upstream_read, &mut client_write, &moved.sent, &moved),
        )
    };
    let result = tokio::select! {
        result = both => result.map(|_| ()).map_err(|error| error.to_string()),
        () = moved.idle(chain.idle) => Err("idle timeout".to_owned()),
        () = at_age(chain.max_duration) => Err("max connection duration".to_owned()),
    };
    *bytes = (
        moved.received.load(Ordering::Relaxed),
        moved.sent.load(Ordering::Relaxed),
    );
    result
}

async fn at_age(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
}

#[derive(Debug, Default)]
struct Moved {
    received: AtomicU64,
    sent: AtomicU64,
    chunks: AtomicU64,
}

impl Moved {
    /// Resolves when nothing has moved for so long, give or take as much again.
    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let before = self.chunks.load(Ordering::Relaxed);
            sleep(limit).await;
            if self.chunks.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

async fn one_way<R, W>(
    reader: &mut R,
    writer: &mut W,
    bytes: &AtomicU64,
    moved: &Moved,
) -> std::io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    use tokio::io::AsyncReadExt;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        if reader.read_buf(&mut buffer).await? == 0 {
            return writer.shutdown().await;
        }
        writer.write_all(&buffer).await?;
        bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        moved.chunks.fetch_add(1, Ordering::Relaxed);
    }
}
