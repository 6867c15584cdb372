//! Outbound (port 15001): a connection that an application of the pod made, captured on its way out. What an application
//! asks for by SOCKS5 goes the same way from [`carry`] on.

mod attempts;
mod double;
mod plain;
mod tunnel;

use std::{net::SocketAddr, sync::Arc};

use leyline_net::{Accepted, orig_dst};
use leyline_state::{HboneRoute, OutboundRefusal, OutboundRoute, Service, Snapshot, Workload};
use leyline_telemetry::{
    dns::on_demand_dns,
    traffic::{Direction, OpenSocket, Refusal, Reporter, ResponseFlag, early_failure},
};
use leyline_types::{OrigDst, PeerAddr, ServiceKey};

use self::{attempts::Reached, plain::PlainRoute};
use super::{Pod, Shared, client::Client, limits::Place, local, no_original_destination};

/// Host names of one service that a connection asks for; more would take longer than it waits.
const MAX_HOSTNAMES: usize = 16;

/// One connection, from accept to end.
pub(super) async fn handle(pod: Arc<Pod>, accepted: Accepted, place: Place) {
    let counted = Counted::new(place);
    let Accepted { stream, peer } = accepted;
    match orig_dst::of_redirected(&stream, pod.shared.config.redirection) {
        Ok(orig_dst) => carry(pod, Client::captured(stream), peer, orig_dst, counted).await,
        Err(error) => no_original_destination(Direction::Outbound, peer.addr(), &error),
    }
}

/// What counts a connection as long as it is there.
#[derive(Debug)]
pub(super) struct Counted {
    _place: Place,
    _open: OpenSocket,
}

impl Counted {
    /// One that was accepted.
    pub(super) fn new(place: Place) -> Self {
        Self {
            _place: place,
            _open: OpenSocket::new(Reporter::Source),
        }
    }
}

/// A connection of which it is known where the client wants to go: to its end, or until the task of its tunnel has taken it
/// over.
pub(super) async fn carry(
    pod: Arc<Pod>,
    client: Client,
    peer: PeerAddr,
    orig_dst: OrigDst,
    counted: Counted,
) {
    // What only the set-up needs, the mesh as it was then above all, is given back before bytes flow: a connection may
    // last for days.
    match Box::pin(set_up(&pod, client, peer, orig_dst)).await {
        Some(Leg::Endpoint(reached)) => Box::pin(reached.carry_beside(pod, counted)).await,
        Some(Leg::Inside(within)) => Box::pin(within.carry(&pod)).await,
        Some(Leg::Network(reached)) => Box::pin(reached.carry(&pod)).await,
        None => {}
    }
}

/// How a connection goes on when it is known where to.
enum Leg {
    /// To an endpoint that has taken it.
    Endpoint(Box<Reached>),
    /// To a pod of this process.
    Inside(Box<local::Connection>),
    /// To an endpoint in another network that has taken it.
    Network(Box<double::Reached>),
}

/// `None` where the connection was refused, and that was told.
async fn set_up(pod: &Arc<Pod>, client: Client, peer: PeerAddr, orig_dst: OrigDst) -> Option<Leg> {
    let refused = async |client: Client, refusal, error: String| {
        let (from, to) = (peer.addr(), orig_dst.addr());
        early_failure(Direction::Outbound, from, to, refusal, error);
        client.turn_away(refusal).await;
        None
    };
    let (snapshot, source) = match Box::pin(both_ends(pod, orig_dst)).await {
        Ok(known) => known,
        Err((refusal, error)) => return refused(client, refusal, error).await,
    };
    let peer = client.seen_as(peer, &source, orig_dst);
    let decide = |snapshot: &Snapshot| {
        let view = pod.shared.endpoints.view(peer.ip(), &[]);
        snapshot.route_outbound_among(&source, orig_dst, &view, &mut rand::rng())
    };
    let (mut snapshot, mut route) = pod.shared.decide_asking(snapshot, decide).await;
    if let OutboundRoute::Refused(OutboundRefusal::HostnameOnly { service, .. }) = &route {
        Box::pin(resolve(pod, &snapshot, &source, service)).await;
        (snapshot, route) = pod.shared.decide(snapshot, decide).await;
    }
    let captured = Captured {
        pod,
        source: &source,
        peer,
        orig_dst,
        snapshot: &snapshot,
    };
    let route = match route {
        OutboundRoute::Hbone(route) => Route::Tunnel(route),
        OutboundRoute::Tcp {
            target,
            workload,
            service,
        } => plain_route(target, Some(workload), service),
        OutboundRoute::Passthrough { target, service } => plain_route(target, None, service),
        OutboundRoute::DoubleHbone(route) => {
            let reached = Box::pin(double::open(captured, client, route)).await;
            return reached.map(Leg::Network);
        }
        OutboundRoute::Refused(error) => {
            return refused(client, refusal_of(&error), error.to_string()).await;
        }
    };
    if let Route::Tunnel(route) = &route
        && let Some(to) = local::destination(pod, &snapshot, &source, peer, route)
    {
        // Inside the process, as both pods are ours.
        return Some(Leg::Inside(Box::new(local::Connection {
            client,
            source: source.clone(),
            peer,
            orig_dst,
            service: route.service.clone(),
            destination: to,
        })));
    }
    let reached = Box::pin(attempts::open(captured, client, route)).await;
    reached.map(Leg::Endpoint)
}

/// The pod's own workload and a snapshot that knows it, and the destination too where the control plane tells only what it
/// is asked for.
async fn both_ends(
    pod: &Pod,
    orig_dst: OrigDst,
) -> Result<(Arc<Snapshot>, Arc<Workload>), (Refusal, String)> {
    let Some((snapshot, source)) = pod.shared.workload(&pod.name).await else {
        let error = "failed to fetch information about local workload".to_owned();
        return Err((Refusal::UnknownSource, error));
    };
    let Some(on_demand) = &pod.shared.on_demand else {
        return Ok((snapshot, source));
    };
    match on_demand.ask_address(&pod.shared, orig_dst.ip()).await {
        Ok(()) => Ok((pod.shared.store.snapshot(), source)),
        Err(error) => Err((Refusal::UnknownDestination, error.to_string())),
    }
}

/// Lets the endpoints of a service have addresses (OUT-10).
async fn resolve(pod: &Pod, snapshot: &Snapshot, source: &Arc<Workload>, service: &ServiceKey) {
    let names = snapshot.hostnames_of(service, MAX_HOSTNAMES);
    let labels = pod.shared.labels.workload(source);
    let principal = source.identity.to_string();
    for name in &names {
        on_demand_dns(&labels, &principal, name);
    }
    let Shared {
        endpoints, config, ..
    } = &*pod.shared;
    endpoints.hostnames.resolve(&names, config).await;
}

fn plain_route(
    target: SocketAddr,
    workload: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
) -> Route {
    Route::Plain(PlainRoute {
        target,
        workload,
        service,
    })
}

/// A captured connection, and the mesh that it is decided on.
#[derive(Clone, Copy)]
struct Captured<'a> {
    pod: &'a Arc<Pod>,
    source: &'a Arc<Workload>,
    peer: PeerAddr,
    orig_dst: OrigDst,
    snapshot: &'a Snapshot,
}

/// A route that ends at one known place.
enum Route {
    Tunnel(HboneRoute),
    Plain(PlainRoute),
}

/// Why a place could not be reached.
struct Failure {
    flag: ResponseFlag,
    error: String,
    fault: Fault,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The place's: another may do better.
    Endpoint,
    /// Ours, or a verdict on us that another place would not change.
    Ours,
}

fn refusal_of(error: &OutboundRefusal) -> Refusal {
    match error {
        OutboundRefusal::SelfCall(_) => Refusal::SelfCall,
        OutboundRefusal::NotSynced(_) => Refusal::UnknownDestination,
        OutboundRefusal::EnrolmentPending(_) => Refusal::EnrolmentPending,
        OutboundRefusal::UnknownWaypoint { .. } => Refusal::UnknownWaypoint,
        OutboundRefusal::UnknownPort { .. }
        | OutboundRefusal::NoHealthyUpstream { .. }
        | OutboundRefusal::NoHealthyWaypoint { .. }
        | OutboundRefusal::OtherNetwork { .. }
        | OutboundRefusal::HostnameOnly { .. } => Refusal::NoHealthyUpstream,
    }
}
