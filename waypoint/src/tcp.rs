//! A TCP connection through the waypoint: to one endpoint, until it ends.

pub(crate) mod checks;
pub(crate) mod rbac;
mod record;
mod sni;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use leyline_authz::Permit;
use leyline_hbone::HboneIo;
use leyline_types::Str;
use rand::RngExt;
use tokio::{
    io::AsyncWriteExt,
    time::{Duration, sleep},
};

use self::record::Record;
use crate::{
    app::Shared,
    config::{Config, listener::Chain, tcp::TcpChain},
    http::{affinity::hash_of_client, reply::Flag, server::Destination},
    listener::Client,
    upstream::{
        balance::Wanted,
        connect::{For, UpstreamIo, connect},
        endpoint::Active,
        outlier::{self, Showed},
        pending,
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
    (config, name): (&Config, &Str),
    (chain, seen): (&TcpChain, &Arc<Chain>),
    client: &Client,
    destination: &Destination,
    mut io: HboneIo,
) {
    let mut record = Record::begin(shared, &chain.telemetry, client, destination);
    let moved = Moved::default();
    let checked = checks::check(&chain.checks, (shared, config), client, destination);
    let opened = match Box::pin(checked).await {
        Ok(permit) => match sni::asked(shared, chain, &mut io).await {
            Ok(server) => {
                let ends = (shared, client, destination);
                open(permit, config, (chain, server), ends, &mut record).await
            }
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    let counted = record.opened();
    let result = match opened {
        Ok((mut upstream, active)) => {
            let ends = (&**shared, name);
            let revoked = checks::revoked(ends, seen.clone(), client, destination);
            let copied = tokio::select! {
                copied = copy(&mut io, &mut upstream, chain, &moved) => copied,
                () = record.count(&moved, &counted) => Ok(()),
                failure = revoked => Err(failure),
            };
            drop(active);
            copied
        }
        Err(failure) => Err(failure),
    };
    counted.add(&moved);
    if let Err((flag, reason)) = result {
        record.failed(flag, reason);
        io.abort();
    }
    record.closed(&moved);
}

type Opened = (UpstreamIo, (Active, Place));

/// What is told of a connection that did not get through, or broke.
type Failure = (Flag, String);

async fn open(
    _permit: Permit,
    config: &Config,
    (chain, server): (&TcpChain, Option<String>),
    (shared, client, destination): (&Arc<Shared>, &Client, &Destination),
    record: &mut Record<'_>,
) -> Result<Opened, Failure> {
    let unknown = |reason: String| (Flag::NoCluster, reason);
    let name = chain.clusters.pick(rand::rng().random());
    let name = name.ok_or_else(|| unknown("no cluster".to_owned()))?;
    let cluster = config.clusters.get(name);
    let cluster = cluster.ok_or_else(|| unknown(format!("no cluster {name}")))?;
    record.cluster(cluster);
    let host = sni::host(shared, cluster, chain, server).await?;
    let nobody = |reason: &str| (Flag::NoHealthyUpstream, reason.to_owned());
    let mut tried = Vec::new();
    let mut failure = nobody("no healthy upstream");
    while tried.len() < ATTEMPTS {
        let wanted = Wanted {
            tried: &tried,
            beyond: &[],
            hash: chain.by_client.then(|| hash_of_client(client.addr.ip())),
        };
        let destination = destination.address();
        let found = match &host {
            Some(host) => host.endpoint(cluster, &tried),
            None => pending::endpoint_for(shared, config, cluster, wanted, destination),
        };
        let Some(endpoint) = found else {
            break;
        };
        let purpose = For {
            client: client.addr,
            service: cluster.service.as_ref().map(|service| service.host.clone()),
        };
        let limit = cluster.limits.connections;
        let Some(place) = cluster.state.enter(Resource::Connections, limit) else {
            Resource::Connections.overflow();
            let reason = "overflow of connections".to_owned();
            return Err((Flag::UpstreamOverflow, reason));
        };
        record.upstream(endpoint.address);
        let active = (endpoint.state.enter(), place);
        match connect(shared, cluster, &endpoint, purpose).await {
            Ok(io) => {
                outlier::report(cluster, &endpoint, Showed::Status(200));
                return Ok((io, active));
            }
            Err(error) => {
                outlier::report(cluster, &endpoint, Showed::Broken);
                failure = (Flag::UpstreamConnect, error.to_string());
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
    moved: &Moved,
) -> Result<(), Failure> {
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let both = async {
        tokio::try_join!(
            one_way(
                &mut client_read,
                &mut upstream_write,
                &moved.received,
                moved
            ),
            one_way(&mut upstream_read, &mut client_write, &moved.sent, moved),
        )
    };
    tokio::select! {
        result = both => result.map(|_| ()).map_err(|error| (Flag::UpstreamReset, error.to_string())),
        () = moved.idle(chain.idle) => Err((Flag::IdleTimeout, "idle timeout".to_owned())),
        () = at_age(chain.max_duration) => {
            Err((Flag::DurationTimeout, "max connection duration".to_owned()))
        }
    }
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
