//! A connection into another network: a tunnel within a tunnel (HB-15).
//!
//! The outer tunnel ends at the gateway of that network and is shared by all connections that go there. The inner one is
//! the connection's own, since the gateway may lead each to another endpoint; it ends at the endpoint's node proxy,
//! which sees our pod's identity and not the gateway's.

use std::sync::{Arc, OnceLock};

use leyline_hbone::{Baggage, ConnectRequest, DialError, HboneStream, Pool, PoolKey};
use leyline_net::into_split_reading;
use leyline_state::DoubleHboneRoute;
use leyline_telemetry::traffic::{
    Connection, Direction, Reporter, ResponseFlag, Security, WorkloadLabels,
};
use leyline_types::Identity;

use super::{
    Captured, Failure,
    tunnel::{self, DialFailure},
};
use crate::proxy::{
    Pod,
    client::{Client, client_gone},
    connections::{Protocol, Registration, Shown},
    forward, labels,
    record::Record,
};

/// The open stream of an inner tunnel, and who is at its end.
struct Inner {
    stream: HboneStream,
    identity: Option<Identity>,
    baggage: Option<Baggage>,
}

/// A connection that an endpoint in another network has taken.
pub(super) struct Reached {
    client: Client,
    upstream: HboneStream,
    record: Record,
    _registered: Registration,
}

impl Reached {
    /// Carries it to its end. A box, because a future would hold what it is given beside what it takes out of it.
    pub(super) async fn carry(self: Box<Self>, pod: &Pod) {
        let Self {
            client,
            mut upstream,
            record,
            _registered,
        } = *self;
        let stream = match client.welcome().await {
            Ok(stream) => stream,
            Err(error) => return record.end(Err(client_gone(&error))),
        };
        pod.limit_send(&mut upstream);
        let downstream = into_split_reading(stream, pod.read_share());
        let (upstream, limits) = (upstream.into_split(), pod.shared.config.idle);
        let carried = forward::outbound(downstream, upstream, limits, record.log()).await;
        record.end(carried.map_err(|error| (error.flag(), error)));
    }
}

/// Opens both tunnels; `None` where that failed, and that was told.
pub(super) async fn open(
    captured: Captured<'_>,
    client: Client,
    route: DoubleHboneRoute,
) -> Option<Box<Reached>> {
    let Captured { pod, peer, .. } = captured;
    let registered = pod.connections.track(Shown {
        src: peer.addr(),
        original_dst: captured.orig_dst.to_string(),
        actual_dst: route.gateway.tunnel,
        protocol: Protocol::Hbone,
    });
    let opened = tunnels(captured, &route).await;
    // Who answers is known only now.
    let record = Record::open(connection(captured, &route, opened.as_ref().ok()));
    match opened {
        Ok(inner) => Some(Box::new(Reached {
            client,
            upstream: inner.stream,
            record,
            _registered: registered,
        })),
        Err(failure) => {
            client.turn_away(failure.0).await;
            record.end(Err(failure));
            None
        }
    }
}

async fn tunnels(
    captured: Captured<'_>,
    route: &DoubleHboneRoute,
) -> Result<Inner, (ResponseFlag, String)> {
    let Captured {
        pod, source, peer, ..
    } = captured;
    let gateway = &route.gateway;
    let request = ConnectRequest {
        authority: route.authority.clone(),
        forwarded_for: peer.addr(),
        forwarded_host: Some(route.service.hostname.clone()),
        baggage: Some(labels::baggage(source).encode()),
        forwarded_network: None,
    };
    let outer = PoolKey {
        source: source.identity.clone(),
        destinations: gateway.expected.to_vec(),
        target: gateway.tunnel,
        source_ip: peer.ip(),
        workload: gateway.workload.uid.clone(),
    };
    let inner = PoolKey {
        destinations: route.expected.to_vec(),
        ..outer.clone()
    };
    let named = |failure: Failure| {
        let (at, error) = (gateway.tunnel, failure.error);
        (failure.flag, format!("network gateway {at}: {error}"))
    };
    let stream = tunnel::open(pod, outer, request.clone())
        .await
        .map_err(named)?;
    let request = ConnectRequest {
        forwarded_network: Some(captured.snapshot.network().clone()),
        ..request
    };
    within(pod, stream, inner, request).await.map_err(named)
}

/// The inner tunnel.
async fn within(
    pod: &Arc<Pod>,
    outer: HboneStream,
    key: PoolKey,
    request: ConnectRequest,
) -> Result<Inner, Failure> {
    let verdict = Arc::new(OnceLock::new());
    let proven = Arc::new(OnceLock::new());
    let dial = {
        let (pod, key) = (pod.clone(), key.clone());
        let (verdict, proven) = (verdict.clone(), proven.clone());
        async move || {
            let dialled = async {
                let certificate = pod.shared.certificates.get(&key.source).await?;
                let deadline = pod.shared.config.handshake_deadline;
                let (stream, identity) = leyline_tls::connect_over(
                    &certificate,
                    outer.into_io(),
                    &key.destinations,
                    deadline,
                )
                .await?;
                verdict.get_or_init(|| stream.verdict());
                proven.get_or_init(|| identity);
                Ok(stream)
            };
            let dialled: Result<_, DialFailure> = dialled.await;
            dialled.map_err(DialError::new)
        }
    };
    // For one stream: without the pool it closes after that.
    let pool = Pool::new(pod.shared.config.hbone.clone(), pod.drain.clone());
    let opened = pool.open(&key, request, dial).await;
    let opened = opened.map_err(|error| tunnel::failure(&error, &verdict))?;
    let baggage = opened.baggage.as_deref();
    Ok(Inner {
        stream: opened.stream,
        identity: proven.get().cloned(),
        baggage: baggage.and_then(|text| Baggage::parse(text.as_bytes()).ok()),
    })
}

fn connection(
    captured: Captured<'_>,
    route: &DoubleHboneRoute,
    inner: Option<&Inner>,
) -> Connection {
    let labels = &captured.pod.shared.labels;
    Connection {
        reporter: Reporter::Source,
        direction: Direction::Outbound,
        security: Security::MutualTls,
        source: Some(labels.workload(captured.source)),
        destination: Some(
            inner
                .and_then(said)
                .unwrap_or_else(|| labels.workload(&route.workload)),
        ),
        service: Some(labels.service(&route.service)),
        source_identity: Some(captured.source.identity.clone()),
        destination_identity: inner.and_then(|inner| inner.identity.clone()),
        src_addr: captured.peer.addr(),
        dst_addr: route.gateway.tunnel,
        hbone_addr: Some(route.authority.to_string()),
    }
}

/// The gateway has chosen the endpoint, so only the endpoint can tell which it is; where it contradicts its identity it
/// is not believed.
fn said(inner: &Inner) -> Option<Arc<WorkloadLabels>> {
    let (baggage, identity) = (inner.baggage.clone()?, inner.identity.as_ref()?);
    let agrees = baggage.namespace == *identity.namespace();
    agrees.then(|| Arc::new(labels::of_baggage(baggage)))
}
