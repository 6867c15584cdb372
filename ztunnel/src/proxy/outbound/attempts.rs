//! A connection on its way to one of several endpoints: where the first does not take it, another is tried, as long as
//! no byte has been sent and there is time. Each further try is decided on what is known of the mesh by then.

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use leyline_hbone::HboneStream;
use leyline_net::into_split_reading;
use leyline_state::{OutboundRoute, Service, Workload};
use leyline_telemetry::{
    endpoints as counters,
    traffic::{Connection, ResponseFlag},
};
use leyline_types::WorkloadUid;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Captured, Counted, Failure, Fault, Route,
    plain::{self, PlainRoute},
    tunnel,
};
use crate::proxy::{
    Pod, Shared,
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
/// One that has not answered for so long, which is longer than a round trip around the world, may be gone: from then on a word of
/// the control plane is listened to.
const LISTEN_AFTER: Duration = Duration::from_millis(300);

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

    /// Another endpoint of the same service, as the mesh is now: the one that was tried may have been replaced.
    fn alternative(self, tried: &[WorkloadUid]) -> Option<Route> {
        let Shared {
            store, endpoints, ..
        } = &*self.pod.shared;
        let view = endpoints.view(self.peer.ip(), tried);
        let rng = &mut rand::rng();
        let snapshot = store.snapshot();
        let route = snapshot.route_outbound_among(self.source, self.orig_dst, &view, rng);
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
    /// Has it carried by the task of its tunnel, where it goes through one.
    pub(super) async fn carry_beside(self: Box<Self>, pod: Arc<Pod>, counted: Counted) {
        let task = match &self.upstream {
            Upstream::Tunnel(stream) => stream.task(),
            Upstream::Plain(_) => None,
        };
        let carried = async move {
            let _counted = counted;
            self.carry(&pod).await;
        };
        let left = match task {
            Some(task) => task.run(carried).err(),
            None => Some(carried),
        };
        // The tunnel has ended, or there is none.
        if let Some(carried) = left {
            carried.await;
        }
    }

    /// Carries it to its end. A box, because a future would hold what it is given beside what it takes out of it.
    async fn carry(self: Box<Self>, pod: &Pod) {
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
        attempts += 1;
        let is_last = attempts == MAX_ATTEMPTS;
        // The last one gets all the time that is left.
        let patience = (!is_last).then(|| Instant::now() + config.connect_deadline / SHARE_OF_TIME);
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

/// One endpoint. One that has left the mesh, or keeps us waiting longer than we have patience, is given up before the deadline
/// as soon as there is another, which is then given too.
async fn attempt(
    captured: Captured<'_>,
    route: &Route,
    tried: &[WorkloadUid],
    patience: Option<Instant>,
    deadline: Instant,
) -> (Result<Upstream, Failure>, Option<Route>) {
    // `open` is cancel safe: a tunnel that is being made is finished without us and kept for others.
    let mut opening = pin!(captured.open(route));
    let listen = match patience {
        Some(patience) => patience.min(Instant::now() + LISTEN_AFTER),
        None => deadline,
    };
    tokio::select! {
        opened = &mut opening => return (opened, None),
        () = sleep_until(listen) => {}
    }
    let Some(patience) = patience else {
        return (Err(late(route)), None);
    };
    let mut changed = captured.pod.shared.changed.subscribe();
    loop {
        // Subscribed before it is looked, so that no change is missed.
        if (Instant::now() >= patience || has_left(captured, route))
            && let Some(other) = captured.alternative(tried)
        {
            return (Err(late(route)), Some(other));
        }
        let next = if Instant::now() < patience {
            patience
        } else {
            deadline
        };
        tokio::select! {
            opened = &mut opening => return (opened, None),
            () = sleep_until(next) => {}
            () = news(&mut changed) => {}
        }
        if Instant::now() >= deadline {
            return (Err(late(route)), None);
        }
    }
}

/// Whether the control plane has taken the endpoint away.
fn has_left(captured: Captured<'_>, route: &Route) -> bool {
    let snapshot = captured.pod.shared.store.snapshot();
    let gone = |it: &Arc<Workload>| snapshot.workload_by_uid(&it.uid).is_none();
    route.workload().is_some_and(gone)
}

/// Returns when the mesh has changed. Cancel safe.
async fn news(changed: &mut watch::Receiver<u64>) {
    if changed.changed().await.is_err() {
        // Nobody is left to tell.
        std::future::pending().await
    }
}

fn late(route: &Route) -> Failure {
    Failure {
        flag: match route {
            Route::Tunnel(_) => ResponseFlag::NetworkPolicy,
            Route::Plain(_) => ResponseFlag::Connect,
        },
        error: "the endpoint did not take the connection in time".to_owned(),
        fault: Fault::Endpoint,
    }
}
