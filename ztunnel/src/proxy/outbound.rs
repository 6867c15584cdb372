//! Outbound (port 15001): a connection that an application of the pod made, captured on its way out.

mod double;
mod plain;
mod tunnel;

use std::sync::Arc;

use leyline_net::{Accepted, orig_dst};
use leyline_state::{HboneRoute, OutboundRefusal, OutboundRoute, Snapshot, Workload};
use leyline_telemetry::traffic::{Direction, OpenSocket, Refusal, Reporter, early_failure};
use leyline_types::{OrigDst, PeerAddr};
use tokio::net::TcpStream;

use self::plain::PlainRoute;
use super::{Pod, forward, local, no_original_destination};

/// One connection, from accept to end.
pub(super) async fn handle(pod: Arc<Pod>, accepted: Accepted) {
    let _open = OpenSocket::new(Reporter::Source);
    let Accepted { stream, peer } = accepted;
    let orig_dst = match orig_dst::of(&stream) {
        Ok(orig_dst) => orig_dst,
        Err(error) => return no_original_destination(Direction::Outbound, peer.addr(), &error),
    };
    let refused = |stream: TcpStream, refusal, error: &dyn std::fmt::Display| {
        early_failure(
            Direction::Outbound,
            peer.addr(),
            orig_dst.addr(),
            refusal,
            error,
        );
        forward::reset(stream);
    };
    let Some((snapshot, source)) = pod.shared.workload(&pod.name).await else {
        let error = "failed to fetch information about local workload";
        return refused(stream, Refusal::UnknownSource, &error);
    };
    let route = snapshot.route_outbound(&source, orig_dst, &mut rand::rng());
    match route {
        OutboundRoute::Hbone(route) => {
            Box::pin(carry_hbone(
                &pod, &snapshot, &source, stream, peer, orig_dst, route,
            ))
            .await;
        }
        OutboundRoute::DoubleHbone(route) => {
            let connection = double::Captured {
                pod: &pod,
                source: &source,
                peer,
                orig_dst,
                network: snapshot.network(),
            };
            Box::pin(double::carry(connection, stream, route)).await;
        }
        OutboundRoute::Tcp {
            target,
            workload,
            service,
        } => {
            let route = PlainRoute::to(target, Some(workload), service);
            Box::pin(plain::carry(&pod, &source, stream, peer, orig_dst, route)).await;
        }
        OutboundRoute::Passthrough { target, service } => {
            let route = PlainRoute::to(target, None, service);
            Box::pin(plain::carry(&pod, &source, stream, peer, orig_dst, route)).await;
        }
        OutboundRoute::Refused(error) => refused(stream, refusal_of(&error), &error),
    }
}

/// Inside the process if both pods are ours, else in a tunnel.
async fn carry_hbone(
    pod: &Arc<Pod>,
    snapshot: &Snapshot,
    source: &Arc<Workload>,
    stream: TcpStream,
    peer: PeerAddr,
    orig_dst: OrigDst,
    route: HboneRoute,
) {
    match local::destination(pod, snapshot, source, peer, &route) {
        Some(to) => local::carry(pod, source, stream, peer, orig_dst, route.service, to).await,
        None => tunnel::carry(pod, source, stream, peer, orig_dst, route).await,
    }
}

fn refusal_of(error: &OutboundRefusal) -> Refusal {
    match error {
        OutboundRefusal::SelfCall(_) => Refusal::SelfCall,
        OutboundRefusal::NotSynced(_) => Refusal::UnknownDestination,
        OutboundRefusal::UnknownWaypoint { .. } => Refusal::UnknownWaypoint,
        OutboundRefusal::UnknownPort { .. }
        | OutboundRefusal::NoHealthyUpstream { .. }
        | OutboundRefusal::NoHealthyWaypoint { .. }
        | OutboundRefusal::OtherNetwork { .. }
        | OutboundRefusal::HostnameOnly { .. } => Refusal::NoHealthyUpstream,
    }
}
