//! A connection on its way to one of several endpoints: where the first does not take it, another is tried, as long as
//! no byte has been sent and there is time.

use std::{net::IpAddr, pin::pin, sync::Arc};

use leyline_hbone::HboneStream;
use leyline_net::into_split_reading;
use leyline_state::{OutboundRoute, Service, Workload};
use leyline_telemetry::{endpoints as counters, traffic::Connection};
use leyline_types::WorkloadUid;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Captured, Failure, Fault, Route,
    plain::{self, PlainRoute},
    tunnel,
};
use crate::proxy::{
    Pod,
    client::{Client, client_gone},
    connections::{Protocol, Registration, Shown},
    endpoints::Load,
    forward,
    record::Record,
};

/// Endpoints that one connection tries: more would hide an outage from the client for long without curing it.
const MAX_ATTEMPTS: usize = 3;
/// An endpoint that has not answered for this part of the time is given up where there is another.
const SHARE_OF_TIME: u32 = 3;

/// The far leg of a connection.
enum Upstream {
    Tunnel(HboneStream),
    Plain(TcpStream),
}

/// What goes with one endpoint while it is in use.
struct InUse {
    _registered: Registration,
    _load: Option<Load>,
}

impl Route {
    fn workload(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Tunnel(route) => Some(&route.workload),
            Self::Plain(route) => route.workload.as_ref(),
        }
    }

    fn address(&self) -> IpAddr {
        match self {
            Self::Tunnel(route) => route.tunnel.ip(),
            Self::Plain(route) => route.target.ip(),
        }
    }

    fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Tunnel(route) => route.service.as_ref(),
            Self::Plain(route) => route.service.as_ref(),
        }
    }
}

impl Captured<'_> {
    fn connection(self, route: &Route) -> Connection {
        match route {
            Route::Tunnel(route) => tunnel::connection(self, route),
            Route::Plain(route) => plain::connection(self, route),
        }
    }

    /// Registers the connection and counts it for its endpoint.
    fn begin(self, route: &Route) -> InUse {
        let (actual_dst, protocol) = match route {
            Route::Tunnel(route) => (route.tunnel, Protocol::Hbone),
            Route::Plain(route) => (route.target, Protocol::Tcp),
        };
        let endpoints = &self.pod.shared.endpoints;
        InUse {
            _registered: self.pod.connections.track(Shown {
                src: self.peer.addr(),
                original_dst: self.orig_dst.to_string(),
                actual_dst,
                protocol,
            }),
            _load: route.workload().map(|to| endpoints.begin(&to.uid)),
        }
    }

    async fn open(self, route: &Route) -> Result<Upstream, Failure> {
        match route {
            Route::Tunnel(route) => tunnel::open_stream(self, route).await.map(Upstream::Tunnel),
            Route::Plain(route) => plain::open(self, route.target).await.map(Upstream::Plain),
        }
    }

    /// Another endpoint of the same service, by the same snapshot.
    fn alternative(self, tried: &[WorkloadUid]) -> Option<Route> {
        let view = self.pod.shared.endpoints.view(self.peer.ip(), tried);
        let rng = &mut rand::rng();
        let route = self
            .snapshot
            .route_outbound_among(self.source, self.orig_dst, &view, rng);
        let route = match route {
            OutboundRoute::Hbone(route) => Route::Tunnel(route),
            OutboundRoute::Tcp {
                target,
                workload,
                service,
            } => Route::Plain(PlainRoute {
                target,
                workload: Some(workload),
                service,
            }),
            OutboundRoute::DoubleHbone(_)
            | OutboundRoute::Passthrough { .. }
            | OutboundRoute::Refused(_) => return None,
        };
        // A route by address has no other endpoint.
        let is_new = |workload: &Arc<Workload>| !tried.contains(&workload.uid);
        route.workload().is_some_and(is_new).then_some(route)
    }
}

/// A connection that an endpoint has taken.
pub(super) struct Reached {
    client: Client,
    upstream: Upstream,
    in_use: InUse,
    record: Record,
}

impl Reached {
    /// Carries it to its end. A box, because a future would hold what it is given beside what it takes out of it.
    pub(super) async fn carry(self: Box<Self>, pod: &Pod) {
        let Self {
            client,
            upstream,
            in_use,
            record,
        } = *self;
        let stream = match client.welcome().await {
            Ok(stream) => stream,
            Err(error) => return record.end(Err(client_gone(&error))),
        };
        let (most, limits) = (pod.read_share(), pod.shared.config.idle);
        let downstream = into_split_reading(stream, most);
        let carried = match upstream {
            Upstream::Tunnel(mut upstream) => {
                pod.limit_send(&mut upstream);
                forward::outbound(downstream, upstream.into_split(), limits, record.log()).await
            }
            Upstream::Plain(upstream) => {
                let upstream = into_split_reading(upstream, most);
                forward::outbound(downstream, upstream, limits, record.log()).await
            }
        };
        drop(in_use);
        record.end(carried.map_err(|error| (error.flag(), error)));
    }
}

/// Opens the connection's other leg; `None` where no endpoint took it, and that was told.
pub(super) async fn open(
    captured: Captured<'_>,
    client: Client,
    first: Route,
) -> Option<Box<Reached>> {
    let mut record = Record::open(captured.connection(&first));
    match Box::pin(reach(captured, first, &mut record)).await {
        Ok((upstream, in_use)) => Some(Box::new(Reached {
            client,
            upstream,
            in_use,
            record,
        })),
        Err(failure) => {
            client.turn_away(failure.flag).await;
            record.end(Err((failure.flag, failure.error)));
            None
        }
    }
}

/// Tries endpoints until one takes the connection.
async fn reach(
    captured: Captured<'_>,
    first: Route,
    record: &mut Record,
) -> Result<(Upstream, InUse), Failure> {
    let config = &captured.pod.shared.config;
    let endpoints = &captured.pod.shared.endpoints;
    let whole = config.connect_deadline + config.handshake_deadline;
    let deadline = Instant::now() + whole;
    let mut tried: Vec<WorkloadUid> = Vec::new();
    let mut attempts = 0;
    let mut route = first;
    loop {
        let in_use = captured.begin(&route);
        let workload = route.workload().map(|workload| workload.uid.clone());
        tried.extend(workload.clone());
        let patience = Instant::now() + config.connect_deadline / SHARE_OF_TIME;
        attempts += 1;
        let is_last = attempts == MAX_ATTEMPTS;
        // The last one gets all the time that is left.
        let patience = if is_last { deadline } else { patience };
        let (opened, other) = attempt(captured, &route, &tried, patience, deadline).await;
        let failure = match opened {
            Ok(upstream) => {
                if let Some(workload) = &workload {
                    endpoints.forgive(workload);
                    if let Some(service) = route.service() {
                        endpoints.keep(captured.peer.ip(), service, workload);
                    }
                }
                return Ok((upstream, in_use));
            }
            Err(failure) => failure,
        };
        if failure.fault == Fault::Ours {
            return Err(failure);
        }
        if has_another_address(captured, &route) {
            tried.retain(|uid| Some(uid) != workload.as_ref());
        } else if let Some(workload) = &workload {
            endpoints.failed(workload);
        }
        let other = other.or_else(|| captured.alternative(&tried));
        let Some(other) = other.filter(|_| !is_last && Instant::now() < deadline) else {
            return Err(failure);
        };
        counters::retried(failure.flag);
        tracing::debug!(
            endpoint = workload.as_ref().map(tracing::field::display),
            error = failure.error,
            "connection is tried at another endpoint"
        );
        record.redirect(failure.flag, captured.connection(&other));
        route = other;
    }
}

/// Whether the endpoint that did not take the connection has a name, and the name an address that has not failed.
fn has_another_address(captured: Captured<'_>, route: &Route) -> bool {
    let endpoint = route.workload().filter(|it| it.has_only_hostname());
    let names = &captured.pod.shared.endpoints.hostnames;
    endpoint.is_some_and(|it| names.failed(it.hostname.as_str(), route.address(), Instant::now()))
}

/// One endpoint. One that keeps us waiting is given up early only where there is another, which is then given too.
async fn attempt(
    captured: Captured<'_>,
    route: &Route,
    tried: &[WorkloadUid],
    patience: Instant,
    deadline: Instant,
) -> (Result<Upstream, Failure>, Option<Route>) {
    let mut opening = pin!(captured.open(route));
    let late = |flag| Failure {
        flag,
        error: "the endpoint did not take the connection in time".to_owned(),
        fault: Fault::Endpoint,
    };
    // `open` is cancel safe: a tunnel that is being made is finished without us and kept for others.
    tokio::select! {
        opened = &mut opening => return (opened, None),
        () = sleep_until(patience) => {}
    }
    let flag = match route {
        Route::Tunnel(_) => leyline_telemetry::traffic::ResponseFlag::NetworkPolicy,
        Route::Plain(_) => leyline_telemetry::traffic::ResponseFlag::Connect,
    };
    if let Some(other) = captured.alternative(tried) {
        return (Err(late(flag)), Some(other));
    }
    match timeout_at(deadline, opening).await {
        Ok(opened) => (opened, None),
        Err(_) => (Err(late(flag)), None),
    }
}
